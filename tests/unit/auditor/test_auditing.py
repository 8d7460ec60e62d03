"""One audit from beginning to end: its order, its parts, and what it says where it cannot look."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from audit_lab import System, audit, change, told
from factory import make_maker
from postgres_fixture import NOW, Database
from store_values import make_event

from estd.auditor import auditing
from estd.auditor.auditing import Scope, audit_url
from estd.auditor.auditing import audit as audit_connections
from estd.auditor.findings import Findings
from estd.errors import Invalid
from estd.signer.blocks import Anchor
from estd.signer.journal import Journal
from estd.store.postgres import PostgresStore

PART = {"journals", "audit trail", "intents and certificates"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def system(store: PostgresStore, directory: Path) -> System:
    return System(store, Journal.open(directory, 0, NOW))


async def problem(database: Database, *directories: Path) -> str:
    with pytest.raises(Invalid) as caught:
        await audit_url(database.url, Scope(directories), NOW, lambda _what, _count: None)
    (found,) = caught.value.problems
    return str(found)


async def sessions(database: Database) -> int:
    """Connections of audits that are still there."""
    rows = await database.fetch(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'estd audit' AND datname = current_database()"
    )
    return len(rows)


async def until_closed(database: Database) -> None:
    """A connection that was closed here is gone there a moment later."""
    async with asyncio.timeout(10):
        while await sessions(database):
            await asyncio.sleep(0.01)


# --- where nothing is wrong --------------------------------------------------------------------------------------------


async def test_where_nothing_is_wrong_it_says_what_it_looked_at_and_nothing_else(
    database: Database, system: System, directory: Path
) -> None:
    for number in range(1, 4):
        await system.issue(number)
    found = await audit(database, directory)
    assert (found.breaches, found.notices, found.clean) == ([], [], True)
    assert found.counts["journals"] == 1
    assert found.counts["journal_entries"] == 3
    assert found.counts["events"] == 3
    assert set(found.seconds) == PART
    assert found.write()["clean"]


async def test_a_new_system_is_clean(database: Database, directory: Path) -> None:
    directory.mkdir(0o700)
    assert (await audit(database, directory)).clean
    Journal.open(directory, 0, NOW).close(NOW)
    found = await audit(database, directory)
    assert (found.clean, found.counts["journals"], found.counts["journal_entries"]) == (True, 1, 0)


async def test_it_tells_how_far_it_is(database: Database, system: System, directory: Path) -> None:
    for number in range(1, 4):
        await system.issue(number)
    told_so_far: list[tuple[str, int]] = []
    scope = Scope([directory], with_signatures=False)
    await audit_url(database.url, scope, NOW, lambda what, count: told_so_far.append((what, count)))
    # Part after part, and the last word of each is all of it.
    assert list(dict.fromkeys(what for what, _ in told_so_far)) == [
        "journals",
        "audit trail",
        "intents and certificates",
    ]
    last = dict(told_so_far)
    assert (last["journals"], last["audit trail"]) == (3, 3)


async def test_nothing_is_changed_anywhere(database: Database, system: System, directory: Path) -> None:
    await system.issue(1)
    _, entry = system.intend(2)  # and something to complain of
    system.journal.record_entries([entry], NOW)
    system.journal.record_anchor(Anchor(77, bytes(32)), NOW)

    async def look() -> tuple[dict[str, bytes], list[str]]:
        files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
        tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        rows = [
            str(row["t"])
            for table in tables
            for row in await database.fetch(f"SELECT t::text FROM {table[0]} t ORDER BY 1")
        ]
        return files, rows

    before = await look()
    assert not (await audit(database, directory)).clean
    assert await look() == before


# --- the order ---------------------------------------------------------------------------------------------------------


async def test_what_is_issued_while_it_looks_is_no_false_alarm(
    database: Database, system: System, directory: Path
) -> None:
    """At every moment that can be told from outside a server issues one more, and leaves one half done."""
    await system.issue(1)
    moments: list[str] = []

    async def go_on(number: int) -> None:
        store = await PostgresStore.connect(database.url, clock=lambda: NOW)
        try:
            server = System(store, system.journal)
            await server.issue(number)
            begun, entry = server.intend(number + 1, created_at=NOW)
            await store.reserve_intents([begun])
            server.journal.record_entries([entry], NOW)
        finally:
            await store.close()

    def advance(what: str, _count: int) -> None:
        moments.append(what)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, go_on(100 * len(moments))).result()

    found = await audit_url(database.url, Scope([directory], with_signatures=False), NOW, advance)
    assert set(moments) == PART
    assert (found.breaches, found.notices) == ([], [])
    assert (await audit(database, directory)).counts["journal_entries"] == 1 + 2 * len(moments)
    assert (await audit(database, directory)).clean


async def look_at_a_moment(database: Database, directory: Path, meanwhile: Callable[[], Awaitable[object]]) -> Findings:
    """An audit whose view of the database is older than `meanwhile`."""
    async with (
        database.session() as steady,
        database.session() as current,
        steady.transaction(isolation="repeatable_read", readonly=True),
    ):
        await steady.fetchval("SELECT count(*) FROM intent")
        await meanwhile()
        scope = Scope([directory], with_signatures=False)
        return await audit_connections(steady, current, scope, NOW, lambda _what, _count: None)


async def test_from_journal_to_tables_it_asks_what_stands_there_by_now(
    database: Database, system: System, directory: Path
) -> None:
    await system.issue(1)
    assert (await look_at_a_moment(database, directory, lambda: system.issue(2))).clean

    async def slip_in() -> None:  # what no intent was committed for is no matter of moments
        system.journal.record_entries([system.intend(3)[1]], NOW)

    assert told(await look_at_a_moment(database, directory, slip_in)) == {("ii", "00000003")}


async def test_from_tables_to_journal_it_asks_what_was_there_at_its_moment(
    database: Database, system: System, directory: Path
) -> None:
    await system.issue(1)

    async def record_without_entry() -> None:
        intent, entry = system.intend(2)
        await system.store.reserve_intents([intent])
        await system.store.record_issued([system.result(intent, entry)])

    assert (await look_at_a_moment(database, directory, record_without_entry)).clean
    assert ("i", "00000002") in told(await audit(database, directory))


# --- journals ----------------------------------------------------------------------------------------------------------


async def test_all_journals_of_all_directories_are_read(
    database: Database, store: PostgresStore, tmp_path: Path
) -> None:
    journals = [Journal.open(tmp_path / "one", slot, NOW) for slot in (0, 1)]
    journals.append(Journal.open(tmp_path / "other", 0, NOW))
    for number, journal in enumerate(journals, 1):
        await System(store, journal).issue(number)
    scope = Scope([tmp_path / "one", tmp_path / "other"], with_signatures=False)
    found = await audit_url(database.url, scope, NOW, lambda _what, _count: None)
    assert (found.clean, found.counts["journals"], found.counts["journal_entries"]) == (True, 3, 3)
    found = await audit(database, tmp_path / "one")
    assert [one.where for one in found.breaches] == [f"journal {journals[2].name}"]


async def test_a_directory_that_cannot_be_read_is_named_before_anything_is_said(
    database: Database, system: System, directory: Path
) -> None:
    await system.issue(1)
    file = directory.parent / "file"
    file.touch()
    for wrong, why in ((directory.parent / "none", "No such file or directory"), (file, "Not a directory")):
        assert await problem(database, directory, wrong) == (
            f"{wrong}: cannot be read ({why}). Name the directory of the signers' journals; read it as their user."
        )
    await until_closed(database)


async def test_a_damaged_journal_keeps_nothing_else_from_being_checked(
    database: Database, system: System, store: PostgresStore, directory: Path, tmp_path: Path
) -> None:
    other = System(store, Journal.open(directory, 1, NOW))
    for number in range(1, 4):
        await system.issue(number)
    other.journal.record_entries([other.intend(9)[1]], NOW)  # journaled without intent
    path = directory / "journal-0-0001.log"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    found = await audit(database, directory)
    assert any(one.invariant.value == "v" and one.where.startswith(f"{path}:") for one in found.breaches)
    assert ("ii", "00000009") in told(found)
    assert found.counts["journals"] == 2
    assert found.counts["events"] == 3


async def fill(system: System, count: int = 12) -> None:
    for number in range(1, count + 1):
        await system.issue(number)


async def test_oldest_segments_that_are_elsewhere_are_missed_unless_they_may_be(
    database: Database, store: PostgresStore, directory: Path
) -> None:
    system = System(store, Journal.open(directory, 0, NOW, segment_bytes=1000))
    await fill(system)
    assert (await audit(database, directory)).clean
    (directory / "journal-0-0001.log").unlink()
    found = await audit(database, directory)
    (begins,) = [one for one in found.breaches if one.where == f"{directory}/journal-0"]
    assert (begins.invariant.value, begins.serial) == ("v", None)
    assert begins.what.startswith("begins with block ")
    assert begins.what.endswith("; what was before is not here")
    found = await audit(database, directory, partial=True)
    assert found.clean
    assert f"journal {system.journal.name} {begins.what}" in found.notices


async def test_a_partial_audit_excuses_what_is_elsewhere_and_no_fault(
    database: Database, store: PostgresStore, directory: Path
) -> None:
    system = System(store, Journal.open(directory, 0, NOW, segment_bytes=1000))
    await fill(system)
    (directory / "journal-0-0001.log").unlink()
    system.journal.record_entries([system.intend(0x99)[1]], NOW)
    await change(database, "DELETE FROM certificate WHERE serial = '\\x0000000c'")
    assert told(await audit(database, directory, partial=True)) == {("ii", "00000099"), ("i", "0000000c")}


async def test_an_interrupted_write_is_worth_a_note(database: Database, system: System, directory: Path) -> None:
    await system.issue(1)
    copy = shutil.copytree(directory, directory.with_name("copy"))
    path = copy / "journal-0-0001.log"
    end = len(path.read_bytes().rstrip(b"\0"))
    with path.open("r+b") as file:
        file.seek(end)
        file.write(b"ESJ1\x03half a block")
    found = await audit(database, copy)
    assert found.clean
    assert found.notices == [
        f"{copy}, slot 0: 17 octets behind the last block are an interrupted write, or one going on at this moment"
    ]


@pytest.mark.parametrize("together", [1, 2, 3, 1000])
async def test_every_anchor_is_held_against_the_trail(
    database: Database, system: System, directory: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """However many are looked up at once: none is left over."""
    monkeypatch.setattr(auditing, "_ANCHORS", together)
    for number in range(1, 6):
        await system.issue(number)
        newest = await system.store.find_newest_link()
        assert newest is not None
        system.journal.record_anchor(Anchor(*newest), NOW)
    found = await audit(database, directory)
    assert (found.breaches, found.counts["anchors"]) == ([], 5)
    system.journal.record_anchor(Anchor(newest[0], bytes(32)), NOW)
    system.journal.record_anchor(Anchor(newest[0] + 7, bytes(32)), NOW)
    found = await audit(database, directory)
    assert [one.what for one in found.breaches] == [
        f"link {newest[0]} of the audit trail is another one in the database",
        f"link {newest[0] + 7} of the audit trail is missing from the database",
    ]


# --- the database ------------------------------------------------------------------------------------------------------


async def test_a_database_without_a_chain_is_not_audited(bare_database: Database, directory: Path) -> None:
    assert await problem(bare_database, directory) == (
        "the database: has no audit chain. Start this version of estd on it once, then audit."
    )


async def test_a_database_that_is_away_is_no_finding(
    postgres_server: object, database: Database, system: System, directory: Path
) -> None:
    gone = database.url.replace(database.name, "no_such_database")
    assert gone != database.url
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await audit_url(gone, Scope([directory]), NOW, lambda _what, _count: None)
    nowhere = database.url.replace(database.socket.rpartition("/")[0], str(directory.parent))
    assert nowhere != database.url
    with pytest.raises(OSError):  # whichever it is, the command says that the database cannot be asked
        await audit_url(nowhere, Scope([directory]), NOW, lambda _what, _count: None)


async def test_a_connection_that_is_lost_meanwhile_is_no_finding_and_leaves_nothing_behind(
    database: Database, system: System, directory: Path
) -> None:
    await fill(system, 3)

    def advance(_what: str, _count: int) -> None:
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'estd audit'"
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, database.fetch(cut)).result()

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await audit_url(database.url, Scope([directory], with_signatures=False), NOW, advance)
    await until_closed(database)


async def test_a_database_that_was_set_back_is_told_with_what_is_lost(
    database: Database, system: System, directory: Path
) -> None:
    await system.issue(1)
    newest = await system.store.find_newest_link()
    assert newest is not None
    lost = {"links_after": newest[0], "links_until": newest[0] + 9}
    at = NOW - timedelta(minutes=1)
    await system.store.record_events([make_event(kind="audit.reconcile", at=at, ecosystem_id=None, extra=lost)])
    system.journal.record_anchor(Anchor(newest[0] + 9, bytes(32)), NOW)
    found = await audit(database, directory)
    assert found.clean
    assert found.counts["anchors_set_back"] == 1
    assert found.notices == [
        f"the database was set back and reconciled at 2029-12-31 23:59:00Z: refusals and other events of the links"
        f" {newest[0] + 1} to {newest[0] + 9} of the audit trail are lost; certificates are not"
    ]


# --- what clients hold -------------------------------------------------------------------------------------------------


async def test_what_clients_hold_is_asked_for_last_and_only_if_there_is_any(
    database: Database, system: System, directory: Path
) -> None:
    await system.issue(1)
    found = await audit(database, directory)
    assert (found.counts["received"], "received" in found.seconds) == (0, False)
    scope = Scope([directory], [("a.pem", make_maker().der), ("b.pem", make_maker().der)], with_signatures=False)
    found = await audit_url(database.url, scope, NOW, lambda _what, _count: None)
    assert [(one.invariant.value, one.where) for one in found.breaches] == [("i", "a.pem"), ("i", "b.pem")]
    assert found.counts["received"] == 2
    assert list(found.seconds)[-1] == "received"


async def test_how_long_an_intent_may_take_is_asked_of_the_clock_that_is_given(
    database: Database, system: System, directory: Path
) -> None:
    begun, entry = system.intend(1, created_at=NOW)
    await system.store.reserve_intents([begun])
    system.journal.record_entries([entry], NOW)

    async def look(now: datetime, within: timedelta) -> set[tuple[str, str | None]]:
        scope = Scope([directory], settled_within=within, with_signatures=False)
        return told(await audit_url(database.url, scope, now, lambda _what, _count: None))

    for within in (timedelta(minutes=1), timedelta(minutes=5)):
        assert await look(NOW + within - timedelta(seconds=1), within) == set()
        assert await look(NOW + within + timedelta(seconds=1), within) == {("iv", "00000001")}
