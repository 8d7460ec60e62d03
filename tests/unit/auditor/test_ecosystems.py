"""Versions and issuers that were applied by the program itself, then changed in the tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from factory import KEK, make_maker, make_rules
from postgres_fixture import Database
from store_values import make_event, make_new_issuer

from estd.app.apply import apply_document
from estd.app.plan import write_digest
from estd.auditor import ecosystems
from estd.auditor.ecosystems import Ecosystems
from estd.auditor.findings import Findings
from estd.auditor.hearing import Hearing
from estd.auditor.trail import check_trail
from estd.ca.ecosystem import write_document
from estd.store.postgres import PostgresStore

CHANGES = (
    "UPDATE ecosystem SET label = 'other'",
    "UPDATE ecosystem_version SET document = document || '{\"evil\": 1}'",
    "UPDATE ecosystem_version SET applied_by = 'mallory'",
    "UPDATE ecosystem_version SET applied_at = applied_at - interval '1 s'",
    "UPDATE ecosystem_version SET version = 2",
    "DELETE FROM ecosystem_version",
    "INSERT INTO ecosystem_version SELECT ecosystem_id, 2, document, applied_at, 'mallory' FROM ecosystem_version",
    "UPDATE issuer SET certificate = set_byte(certificate, length(certificate) - 3, 7 # get_byte(certificate, 9))",
    "UPDATE issuer SET ecosystem_id = 2",
    "UPDATE issuer SET name = 'other'",
    "UPDATE issuer SET created_at = created_at + interval '1 s'",
    "DELETE FROM issuer",
    "INSERT INTO issuer (ecosystem_id, created_at, name, certificate) SELECT ecosystem_id, created_at, 'more', '\\x00'"
    " FROM issuer LIMIT 1",
)


async def audit(database: Database) -> Findings:
    findings = Findings()
    known = Ecosystems(findings)
    async with database.session() as connection, connection.transaction():
        await known.read(connection, with_signatures=True)
        hearing = Hearing(connection, findings, known)
        await check_trail(connection, findings, hearing.hear, lambda _count: None)
        await hearing.finish(connection)
    return findings


@pytest.mark.parametrize("changed", CHANGES)
async def test_what_was_applied_is_bound_by_its_event(database: Database, store: PostgresStore, changed: str) -> None:
    await apply_document(store, KEK, make_rules(make_maker()), "ada")
    assert (await audit(database)).breaches == []
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(changed)
    assert not (await audit(database)).clean


async def test_two_versions_of_one_second_are_told_apart(database: Database, store: PostgresStore) -> None:
    rules = make_rules(make_maker())
    at = datetime.now(UTC).replace(microsecond=0)
    for number in (0, 1):
        issuer = make_new_issuer(f"one-{number}")
        extra = {"version": number + 1, "issuers": {issuer.name: sha256(issuer.certificate).hexdigest()}}
        event = make_event(
            kind="ecosystem.apply", at=at, ecosystem=rules.label, ecosystem_id=None, extra=extra, identity="ada"
        )
        await store.record_ecosystem(rules.label, write_document(rules), [issuer], number, "ada", event)
    complaints = [str(one) for one in (await audit(database)).breaches if "issuer" in str(one) and "event" in str(one)]
    assert complaints == []


async def test_an_event_of_an_older_version_binds_what_it_names(database: Database, store: PostgresStore) -> None:
    await apply_document(store, KEK, make_rules(make_maker()), "ada")
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE event SET extra = extra - 'document_sha256' - 'issuers'")
    found = (await audit(database)).breaches
    assert all(one.where.startswith("audit_link") for one in found)  # that the event was edited is all there is


def test_both_sides_hash_a_document_alike() -> None:
    document = write_document(make_rules(make_maker())) | {
        "numbers": [1, 2.0, 0.5, 10**20, 1e20],
        "é": {"b": None, "a": "🚀"},
    }
    assert write_digest(document) == ecosystems.write_digest(document)
    assert write_digest({"a": 2.0, "b": 1}) == write_digest({"b": 1, "a": 2})


async def test_the_shortest_window_of_any_version_counts(database: Database, store: PostgresStore) -> None:
    rules = make_rules(make_maker())
    await apply_document(store, KEK, rules, "ada")
    findings = Findings()
    known = Ecosystems(findings)
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        for version, window in ((2, "1h30min"), (3, "10min"), (4, "2h")):
            await connection.execute(
                "INSERT INTO ecosystem_version SELECT ecosystem_id, $1, jsonb_build_object('profile',"
                " jsonb_build_object('x', jsonb_build_object('retry_window', $2::text))), applied_at, 'ada'"
                " FROM ecosystem_version WHERE version = 1",
                version,
                window,
            )
        await known.read(connection, with_signatures=False)
    assert known.find_retry_window(1, "x") == timedelta(minutes=10)
    assert known.find_retry_window(1, "unknown") == timedelta()
