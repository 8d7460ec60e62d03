"""Tables that break one invariant each; what a healthy system looks like is in tests/faults and tests/integration."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from audit_lab import ENDS, System, audit, change, make_tbs, told
from factory import make_maker
from msgspec import structs
from postgres_fixture import NOW, Database
from store_values import make_event, make_new_issuer, make_revocation

from estd.asn1 import der
from estd.auditor.auditing import Scope, audit_url
from estd.signer.blocks import Entry
from estd.signer.journal import Journal
from estd.store.contract import Closing
from estd.store.postgres import PostgresStore


async def test_each_fault_is_told_by_its_invariant(database: Database, store: PostgresStore, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    system = System(store, Journal.open(directory, 0, NOW))
    for number in range(1, 4):
        await system.issue(number)
    assert (await audit(database, directory)).breaches == []

    _, unintended = system.intend(0x11)  # journaled without intent
    system.journal.record_entries([unintended], NOW)
    unjournaled, entry = system.intend(0x12)  # on record without entry
    await store.reserve_intents([unjournaled])
    await store.record_issued([system.result(unjournaled, entry)])
    other, entry = system.intend(0x13)  # another content than was intended
    await store.reserve_intents([other])
    content = make_tbs(other.serial, subject=der.sequence())
    system.journal.record_entries([Entry(1, other.serial, other.request_key, content, entry.note)], NOW)
    void, entry = system.intend(0x14)  # said to be never signed
    await store.reserve_intents([void])
    system.journal.record_entries([entry], NOW)
    await store.close_intent(void.issuer_id, void.serial, Closing.VOID)
    assert told(await audit(database, directory)) == {
        ("ii", "00000011"),
        ("i", "00000012"),
        ("iii", "00000013"),
        ("iv", "00000013"),  # and it is open for too long
        ("iv", "00000014"),
    }


async def test_an_intent_may_be_open_for_a_while(database: Database, store: PostgresStore, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    system = System(store, Journal.open(directory, 0, NOW))
    young, _ = system.intend(1)
    await store.reserve_intents([structs.replace(young, created_at=NOW - timedelta(seconds=299))])
    assert (await audit(database, directory)).clean
    old, _ = system.intend(2)
    await store.reserve_intents([structs.replace(old, created_at=NOW - timedelta(seconds=301))])
    assert told(await audit(database, directory)) == {("iv", "00000002")}
    await store.close_intent(old.issuer_id, old.serial, Closing.ORPHAN)
    found = await audit(database, directory)
    assert found.clean
    assert found.counts["intents_orphan"] == 1


async def test_a_journal_that_is_elsewhere_is_missed_unless_it_may_be(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    system = System(store, Journal.open(tmp_path / "one", 0, NOW))
    await system.issue(1)
    other = Journal.open(tmp_path / "other", 0, NOW)
    other.close(NOW)
    found = await audit(database, tmp_path / "other")
    assert [breach.where for breach in found.breaches] == [f"journal {system.journal.name}"]
    found = await audit(database, tmp_path / "other", partial=True)
    assert found.clean
    assert len(found.notices) == 1


async def test_what_clients_hold_must_be_on_record(database: Database, store: PostgresStore, tmp_path: Path) -> None:
    Journal.open(tmp_path / "journal", 0, NOW).close(NOW)
    certificate = make_maker().der
    scope = Scope([tmp_path / "journal"], [("device.pem", certificate)])
    found = await audit_url(database.url, scope, NOW, lambda _what, _count: None)
    assert [(breach.invariant.value, breach.where) for breach in found.breaches] == [("i", "device.pem")]


async def test_a_revocation_of_a_serial_nobody_intended_is_worth_a_note(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    Journal.open(tmp_path / "journal", 0, NOW).close(NOW)
    await store.record_ecosystem("campus", {}, [make_new_issuer()], 0, "ada", make_event(kind="ecosystem.apply"))
    event = make_event(kind="certificate.revoke", at=NOW, issuer_id=1, serial="0a", extra={"reason": "unspecified"})
    await store.record_revocation(make_revocation(1, b"\x0a", reason="unspecified", revoked_at=NOW), event)
    found = await audit(database, tmp_path / "journal")
    assert any("revoked and was never intended" in notice for notice in found.notices)


CHANGES = {
    # what a journal entry's note says
    "identity = 'somebody else'": "ii",
    "device = 'another'": "ii",
    "profile = 'other'": "ii",
    "operation = 'simplereenroll'": "ii",
    "ecosystem_id = 2": "ii",
    "ecosystem_version = 9": "ii",
    "node_id = 9": "ii",
    "csr_sha256 = sha256(csr_sha256)": "ii",
    # what the bytes themselves say, and when they were journaled
    "spki_sha256 = sha256(spki_sha256)": "ii",
    "created_at = created_at - interval '1 day'": "ii",
    # a spent code is spent
    "code_id = NULL": "vi",
    "held_code_id = NULL": "vi",
    "code_id = NULL, held_code_id = NULL": "vi",
    "held_code_id = 8": "vi",
    "code_id = 8, held_code_id = 8": "vi",
    # a request has one certificate, and a retry gets it
    "closed = 'orphan'": "vi",
    "closed = 'superseded'": "vi",
    "closed = 'void'": "iv",
    # where it was begun
    "journal = '7-0123456789abcdef' || substr(journal, 19)": "v",
    "journal = split_part(journal, '.', 1) || '.9.' || split_part(journal, '.', 3)": "v",
}


@pytest.mark.parametrize("changed", CHANGES)
async def test_a_changed_intent_is_told(database: Database, store: PostgresStore, tmp_path: Path, changed: str) -> None:
    system = System(store, Journal.open(tmp_path / "journal", 0, NOW))
    await store.record_ecosystem(
        "campus", {"profile": {"sensor": {"retry_window": "1h"}}}, [], 0, "ada", make_event(kind="ecosystem.apply")
    )
    baseline = (await audit(database, tmp_path / "journal")).breaches
    await system.issue(1, code_id=7)
    await system.issue(2)
    assert (await audit(database, tmp_path / "journal")).breaches == baseline
    await change(database, f"UPDATE intent SET {changed} WHERE serial = '\\x00000001'")
    found = (await audit(database, tmp_path / "journal")).breaches
    assert (CHANGES[changed], "00000001") in {(one.invariant.value, one.serial) for one in found}


@pytest.mark.parametrize(
    ("changed", "invariant"),
    [
        ("not_before = not_before + interval '1 s'", "i"),
        ("not_after = 'infinity'", "i"),
        ("not_after = not_after + interval '10 years'", "i"),
        ("issued_at = issued_at - interval '1 s'", "v"),
        ("ecosystem_id = 2", "v"),
    ],
)
async def test_a_changed_row_of_a_certificate_is_told(
    database: Database, store: PostgresStore, tmp_path: Path, changed: str, invariant: str
) -> None:
    system = System(store, Journal.open(tmp_path / "journal", 0, NOW))
    await system.issue(1)
    await change(database, f"UPDATE certificate SET {changed}")
    assert told(await audit(database, tmp_path / "journal")) == {(invariant, "00000001")}


async def test_a_certificate_that_is_gone_breaks_the_first_invariant_and_no_other(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    system = System(store, Journal.open(tmp_path / "journal", 0, NOW))
    await system.issue(1)
    await change(database, "DELETE FROM certificate")
    assert told(await audit(database, tmp_path / "journal")) == {("i", "00000001")}


async def test_an_unresolved_row_without_intent_is_told(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    Journal.open(tmp_path / "journal", 0, NOW).close(NOW)
    await change(database, "INSERT INTO unresolved_intent VALUES (now(), 1, 1, '\\x0a')")
    assert told(await audit(database, tmp_path / "journal")) == {("iv", "0a")}


async def test_a_code_that_was_left_to_whoever_spent_it_anew_is_no_fault(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    """As a reconciliation leaves it: the lost certificate's intent lets go of the code that another one holds by now."""
    system = System(store, Journal.open(tmp_path / "journal", 0, NOW))
    await system.issue(1, code_id=7)
    await change(database, "UPDATE intent SET held_code_id = NULL, code_id = NULL")
    await system.issue(2, code_id=7)
    assert (await audit(database, tmp_path / "journal")).breaches == []


async def test_an_orphan_that_became_known_is_no_fault(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    system = System(store, Journal.open(tmp_path / "journal", 0, NOW))
    intent, entry = system.intend(1)
    await store.reserve_intents([intent])
    system.journal.record_entries([entry], NOW)
    await store.close_intent(intent.issuer_id, intent.serial, Closing.ORPHAN)
    await store.record_issued([system.result(intent, entry)])
    assert (await audit(database, tmp_path / "journal")).breaches == []
    await change(database, "UPDATE intent SET closed = NULL")
    assert told(await audit(database, tmp_path / "journal")) == {("vi", "00000001")}


async def test_a_certificate_gives_way_to_another_once_its_time_is_over(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    system = System(store, Journal.open(directory, 0, NOW))
    document = {"profile": {"sensor": {"retry_window": "1h30min"}}}
    await store.record_ecosystem("campus", document, [make_new_issuer()], 0, "ada", make_event(kind="ecosystem.apply"))
    intent, _ = await system.issue(1, request_key=bytes(32))
    await store.close_intent(intent.issuer_id, intent.serial, Closing.SUPERSEDED)
    assert ("vi", "00000001") in told(await audit(database, directory))
    assert ("vi", "00000001") not in told(await audit(database, directory, now=NOW + timedelta(hours=2)))
    # What follows it too early is told for ever.
    await system.issue(2, request_key=bytes(32))
    assert ("vi", "00000001") in told(await audit(database, directory, now=NOW + timedelta(hours=2)))
    # That it was revoked is no excuse: its request is refused then, and gets no other one.
    event = make_event(
        kind="certificate.revoke", at=NOW, issuer_id=1, serial="00000001", extra={"reason": "superseded"}
    )
    await store.record_revocation(make_revocation(1, (1).to_bytes(4), reason="superseded", revoked_at=NOW), event)
    assert ("vi", "00000001") in told(await audit(database, directory, now=NOW + timedelta(hours=2)))


@pytest.mark.parametrize("operation", ["batch", "server-certificate"])
async def test_a_certificate_gives_way_when_it_has_ended_and_not_before(
    database: Database, store: PostgresStore, tmp_path: Path, operation: str
) -> None:
    """Whatever the profile's window is: a batch repeats a certificate for all of its life, and our own is asked for once."""
    directory = tmp_path / "journal"
    system = System(store, Journal.open(directory, 0, NOW))
    document = {"profile": {"sensor": {"retry_window": "1h"}}}
    await store.record_ecosystem("campus", document, [make_new_issuer()], 0, "ada", make_event(kind="ecosystem.apply"))
    intent, _ = await system.issue(1, request_key=bytes(32), operation=operation)
    await store.close_intent(intent.issuer_id, intent.serial, Closing.SUPERSEDED)
    assert ("vi", "00000001") in told(await audit(database, directory, now=ENDS - timedelta(seconds=1)))
    assert ("vi", "00000001") not in told(await audit(database, directory, now=ENDS + timedelta(seconds=1)))


async def test_an_intent_of_a_lost_journal_waits_for_it_before_it_is_given_up(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    Journal.open(tmp_path / "journal", 0, NOW).close(NOW)
    system = System(store, Journal.open(tmp_path / "other", 0, NOW))
    intent, _ = system.intend(1)
    await store.reserve_intents([structs.replace(intent, created_at=NOW - timedelta(minutes=19))])
    assert (await audit(database, tmp_path / "journal")).clean
    assert told(await audit(database, tmp_path / "journal", now=NOW + timedelta(minutes=2))) == {("iv", "00000001")}
