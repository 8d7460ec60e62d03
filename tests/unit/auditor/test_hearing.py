"""Events that speak of certificates and revocations, against tables that say something else."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from msgspec import structs
from postgres_fixture import NOW, Database
from store_values import make_event, make_intent, make_issued, make_new_issuer, make_revocation

from estd.audit import Event
from estd.auditor import hearing as hearing_module
from estd.auditor.ecosystems import Ecosystems
from estd.auditor.findings import Findings
from estd.auditor.hearing import Hearing
from estd.auditor.trail import check_trail, key_of
from estd.store.contract import Intent
from estd.store.postgres import PostgresStore


async def audit(database: Database) -> tuple[Findings, Hearing]:
    findings = Findings()
    async with database.session() as connection, connection.transaction():
        hearing = Hearing(connection, findings, Ecosystems(findings))
        await check_trail(connection, findings, hearing.hear, lambda _count: None)
        await hearing.finish(connection)
    return findings, hearing


async def issue(store: PostgresStore) -> Intent:
    intent = make_intent()
    await store.reserve_intents([intent])
    issued = make_issued(intent)
    await store.record_issued([issued])
    return intent


async def change(database: Database, statement: str) -> None:
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(statement)


async def test_what_events_say_was_granted_is_known_and_stands(database: Database, store: PostgresStore) -> None:
    intents = [await issue(store) for _ in range(3)]
    findings, hearing = await audit(database)
    assert findings.breaches == []
    assert list(hearing.granted) == sorted(key_of(intent.issuer_id, intent.serial) for intent in intents)


async def test_a_serial_that_is_none_is_told(database: Database, store: PostgresStore) -> None:
    await store.record_events([Event(NOW, "est.simpleenroll", "granted", issuer_id=1, serial="strange")])
    findings, _ = await audit(database)
    assert [one.what for one in findings.breaches] == ["names 'strange', which is no serial"]


@pytest.mark.parametrize(
    ("changed", "invariant"),
    [
        ("DELETE FROM certificate", "i"),
        ("UPDATE certificate SET issued_at = issued_at + interval '1 s'", "v"),
        ("UPDATE certificate SET ecosystem_id = 2", "v"),
        ("UPDATE intent SET ecosystem_id = 2", "v"),
        ("UPDATE intent SET identity = 'other'", "v"),
        ("UPDATE intent SET operation = 'other'", "v"),
        ("UPDATE intent SET closed = 'orphan'", "vi"),
    ],
)
async def test_what_the_tables_say_otherwise_is_told(
    database: Database, store: PostgresStore, changed: str, invariant: str
) -> None:
    intent = await issue(store)
    await change(database, changed)
    findings, _ = await audit(database)
    assert {(one.invariant.value, one.serial) for one in findings.breaches} == {(invariant, intent.serial.hex())}


@pytest.mark.parametrize(
    ("extra", "is_told"),
    [
        ({}, False),  # of a version whose settlements did not say which of them came late
        ({"settled": True}, True),
        ({"settled": True, "late": True}, False),
    ],
)
async def test_an_orphan_has_a_certificate_that_came_late(
    database: Database, store: PostgresStore, extra: dict[str, bool], is_told: bool
) -> None:
    intent = make_intent()
    await store.reserve_intents([intent])
    issued = make_issued(intent)
    event = structs.replace(issued.event, ecosystem=None, address="", request_id="", extra=extra)
    await store.record_issued([structs.replace(issued, event=event)])
    await change(database, "UPDATE intent SET closed = 'orphan'")
    findings, _ = await audit(database)
    assert [one.invariant.value for one in findings.breaches] == ["vi"] * is_told


def revoke_event(at: datetime, reason: str) -> Event:
    return make_event(
        kind="certificate.revoke", at=at, issuer_id=1, serial="06", extra={"device": "d", "reason": reason}
    )


async def revoke_twice(store: PostgresStore) -> None:
    """A revocation whose reason is raised a day later."""
    await store.record_ecosystem("campus", {}, [make_new_issuer()], 0, "ada", make_event())
    for days, reason in ((0, "unspecified"), (1, "keyCompromise")):
        at = NOW + timedelta(days=days)
        await store.record_revocation(
            make_revocation(1, b"\x06", reason=reason, revoked_at=at), revoke_event(at, reason)
        )


@pytest.mark.parametrize("batch", [1, 500])
async def test_a_reason_that_was_raised_is_no_breach(
    database: Database, store: PostgresStore, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing_module, "_BATCH", batch)  # the two events are looked up one by one, or together
    await revoke_twice(store)
    findings, _ = await audit(database)
    assert findings.breaches == []
    assert findings.counts["revocations"] == 1


@pytest.mark.parametrize(
    "changed",
    [
        "DELETE FROM revocation",
        "UPDATE revocation SET reason = 'unspecified'",
        "UPDATE revocation SET reason = 'superseded'",
        "UPDATE revocation SET revoked_at = revoked_at + interval '1 day'",
    ],
)
async def test_what_was_raised_and_says_otherwise_is_told(
    database: Database, store: PostgresStore, changed: str
) -> None:
    await revoke_twice(store)
    await change(database, changed)
    findings, _ = await audit(database)
    assert {(one.invariant.value, one.where) for one in findings.breaches} == {("v", "revocation 1/06")}


async def test_a_reason_that_no_event_raised_is_told(database: Database, store: PostgresStore) -> None:
    await store.record_ecosystem("campus", {}, [make_new_issuer()], 0, "ada", make_event())
    revocation = make_revocation(1, b"\x06", reason="unspecified", revoked_at=NOW)
    await store.record_revocation(revocation, revoke_event(NOW, "unspecified"))
    await database.fetch("UPDATE revocation SET reason = 'keyCompromise'")  # as whoever may raise it can
    findings, _ = await audit(database)
    assert [one.where for one in findings.breaches] == ["revocation 1/06"]


async def test_an_event_that_raises_is_none_that_revokes(database: Database, store: PostgresStore) -> None:
    await store.record_ecosystem("campus", {}, [make_new_issuer()], 0, "ada", make_event())
    event = structs.replace(revoke_event(NOW, "keyCompromise"), extra={"reason": "keyCompromise", "raised": True})
    await store.record_revocation(make_revocation(1, b"\x06", revoked_at=NOW), event)
    findings, _ = await audit(database)
    assert [one.what for one in findings.breaches] == ["no audit event says that it was made"]


@pytest.mark.parametrize(
    "changed",
    [
        "DELETE FROM revocation",
        "TRUNCATE revocation",
        "UPDATE revocation SET reason = 'superseded'",
        "UPDATE revocation SET revoked_at = revoked_at + interval '1 s'",
        "UPDATE revocation SET serial = '\\x07'",
        "INSERT INTO revocation VALUES (now(), 1, '\\x07', 'keyCompromise')",
    ],
)
async def test_revocations_are_those_that_events_speak_of(
    database: Database, store: PostgresStore, changed: str
) -> None:
    await store.record_ecosystem("campus", {}, [make_new_issuer()], 0, "ada", make_event())
    extra = {"device": "d", "reason": "keyCompromise"}
    event = make_event(kind="certificate.revoke", at=NOW, issuer_id=1, serial="06", extra=extra)
    await store.record_revocation(make_revocation(1, b"\x06", revoked_at=NOW), event)
    await store.record_revocation(make_revocation(1, b"\x06", revoked_at=NOW), event)
    findings, _ = await audit(database)
    assert findings.breaches == []
    await change(database, changed)
    findings, _ = await audit(database)
    assert {one.invariant.value for one in findings.breaches} == {"v"}
    assert all(one.where.startswith("revocation 1/") for one in findings.breaches)
