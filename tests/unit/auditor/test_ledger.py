"""Tables that break one invariant each; what a healthy system looks like is in tests/faults and tests/integration."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

from factory import make_maker
from msgspec import structs
from postgres_fixture import NOW, Database
from store_values import make_intent, make_issued

from estd.asn1 import der
from estd.auditor.auditing import Scope, audit_url
from estd.auditor.findings import Findings
from estd.signer.blocks import Entry
from estd.signer.journal import Journal
from estd.store.contract import Closing, Intent, Issued
from estd.store.postgres import PostgresStore


class System:
    """A journal and a database that are written as a server writes them, and sometimes not."""

    def __init__(self, store: PostgresStore, journal: Journal) -> None:
        self.store = store
        self.journal = journal

    def intend(self, number: int) -> tuple[Intent, Entry]:
        tbs = der.sequence(der.integer(number))
        serial = number.to_bytes(4, "big")
        intent = make_intent(serial=serial, tbs_sha256=hashlib.sha256(tbs).digest(), journal=self.journal.mark)
        return intent, Entry(intent.issuer_id, serial, intent.request_key, tbs)

    def result(self, intent: Intent, entry: Entry) -> Issued:
        return make_issued(intent, certificate=der.sequence(entry.tbs, der.sequence(), der.bit_string(b"signature")))

    async def issue(self, number: int) -> tuple[Intent, Entry]:
        intent, entry = self.intend(number)
        await self.store.reserve_intents([intent])
        self.journal.record_entries([entry], NOW)
        await self.store.record_issued([self.result(intent, entry)])
        return intent, entry


async def audit(database: Database, directory: Path, *, partial: bool = False) -> Findings:
    scope = Scope([directory], with_signatures=False, partial=partial)
    return await audit_url(database.url, scope, NOW, lambda _what, _count: None)


def told(findings: Findings) -> set[tuple[str, str | None]]:
    return {(breach.invariant.value, breach.serial) for breach in findings.breaches}


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
    system.journal.record_entries([Entry(entry.issuer_id, entry.serial, entry.request_key, b"\x30\x01x")], NOW)
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
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(
            "INSERT INTO revocation (revoked_at, issuer_id, serial, reason) VALUES (now(), 1, '\\x0a', 'unspecified')"
        )
    found = await audit(database, tmp_path / "journal")
    assert found.clean
    assert "revoked" in found.notices[0]
