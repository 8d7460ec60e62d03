"""The store and a database that fails on cue.

Every writing method is cut off twice at each statement that changes something: before the server saw it (failed and not
persisted) and after the server committed it (failed but persisted). Either way the call raises `Unavailable`, and
repeating it leads to the state that one undisturbed call leads to.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from database_proxy import DatabaseProxy, database_proxy
from postgres_fixture import NOW, Database, PostgresServer
from store_values import (
    make_code,
    make_device,
    make_event,
    make_intent,
    make_issued,
    make_new_issuer,
    make_revocation,
)

from estd.errors import Unavailable
from estd.store.contract import Closing, Outcome, RevocationOutcome
from estd.store.migrator import migrate
from estd.store.postgres import PostgresStore
from estd.store.private import PrivatePostgres
from estd.store.queries import sql_of

Call = Callable[[PostgresStore], Awaitable[Any]]


@dataclass(frozen=True)
class Case:
    """One writing method: what comes before it, the call, where it is cut, and what a repeat answers."""

    name: str
    prepare: Call
    call: Call
    cuts: tuple[str, ...]
    not_persisted: Any
    """The repeat's answer when the first attempt was not persisted."""
    persisted: Any
    """The repeat's answer when it was."""


INTENT = make_intent(code_id=7)
RIVAL = make_intent(request_key=INTENT.request_key)
NEWCOMER = make_intent()
BATCH = [make_intent(), make_intent(), make_intent(code_id=8)]
ISSUED = make_issued(INTENT)
RESULTS = [ISSUED, *map(make_issued, BATCH)]
ISSUERS = [make_new_issuer("root"), make_new_issuer("issuing", "root")]
CODES = [make_code(1, device="pump"), make_code(1, device="valve")]
DEVICES = [make_device(1, device="pump"), make_device(1, device="valve")]
EVENTS = [make_event(), make_event()]
EVENT = make_event(kind="certificate.revoke")
COMMIT = "COMMIT;"


async def nothing(store: PostgresStore) -> None:
    """Start from an empty database."""


async def reserved(store: PostgresStore) -> None:
    assert await store.reserve_intents([INTENT, *BATCH]) == [Outcome.RESERVED] * 4


async def issued(store: PostgresStore) -> None:
    await reserved(store)
    await store.record_issued([ISSUED])


async def orphaned(store: PostgresStore) -> None:
    await reserved(store)
    assert await store.close_intent(INTENT.issuer_id, INTENT.serial, Closing.ORPHAN)


async def campus(store: PostgresStore) -> None:
    await store.record_ecosystem("campus", {"n": 1}, ISSUERS, 0, "ada", EVENT)


async def revoked(store: PostgresStore) -> None:
    await campus(store)
    await store.record_revocation(make_revocation(1, b"\x01", reason="superseded"), EVENT)


async def with_codes(store: PostgresStore) -> None:
    await campus(store)
    await store.record_codes(CODES)


async def with_devices(store: PostgresStore) -> None:
    await campus(store)
    await store.record_devices(DEVICES)


async def version(store: PostgresStore, expected_version: int) -> tuple[int, int]:
    issuers = ISSUERS if expected_version == 0 else []
    record = await store.record_ecosystem("campus", {"n": 1}, issuers, expected_version, "ada", EVENT)
    return record.version, len(record.issuers)


async def devices_of(codes: Awaitable[Any]) -> list[str]:
    return [code.device for code in await codes]


def close(closing: Closing) -> Call:
    return lambda store: store.close_intent(INTENT.issuer_id, INTENT.serial, closing)


CASES = [
    Case(
        "reserve_intents",
        nothing,
        lambda store: store.reserve_intents([INTENT, *BATCH]),
        (sql_of("reserve_intents"),),
        [Outcome.RESERVED] * 4,
        [Outcome.RESERVED] * 4,
    ),
    Case(
        "reserve_intents in part",
        issued,
        lambda store: store.reserve_intents([INTENT, RIVAL, NEWCOMER]),
        (sql_of("reserve_intents"),),
        [Outcome.EXISTS, Outcome.EXISTS, Outcome.RESERVED],
        [Outcome.EXISTS, Outcome.EXISTS, Outcome.RESERVED],
    ),
    Case(
        "record_issued",
        reserved,
        lambda store: store.record_issued(RESULTS),
        (sql_of("record_issued"),),
        None,
        None,
    ),
    Case(
        "record_issued after closing",
        orphaned,
        lambda store: store.record_issued([ISSUED]),
        (sql_of("record_issued_late"),),
        None,
        None,
    ),
    Case(
        "restore_intents",
        reserved,
        lambda store: store.restore_intents([INTENT, RIVAL, NEWCOMER], Closing.ORPHAN),
        (sql_of("restore_intents"),),
        None,
        None,
    ),
    Case("close_intent void", reserved, close(Closing.VOID), (sql_of("close_unresolved"),), True, False),
    Case("close_intent orphan", reserved, close(Closing.ORPHAN), (sql_of("close_unresolved"),), True, False),
    Case("close_intent superseded", issued, close(Closing.SUPERSEDED), (sql_of("close_issued"),), True, False),
    Case(
        "record_revocation",
        campus,
        lambda store: store.record_revocation(make_revocation(1, b"\x01"), EVENT),
        (sql_of("record_revocation"),),
        RevocationOutcome.REVOKED,
        RevocationOutcome.UNCHANGED,
    ),
    Case(
        "record_revocation raising",
        revoked,
        lambda store: store.record_revocation(make_revocation(1, b"\x01"), EVENT),
        (sql_of("raise_revocation"),),
        RevocationOutcome.RAISED,
        RevocationOutcome.UNCHANGED,
    ),
    Case(
        "record_ecosystem first",
        nothing,
        lambda store: version(store, 0),
        (COMMIT,),
        (1, 2),
        (1, 2),
    ),
    Case(
        "record_ecosystem next",
        campus,
        lambda store: version(store, 1),
        (COMMIT,),
        (2, 2),
        (2, 2),
    ),
    Case(
        "record_codes",
        campus,
        lambda store: devices_of(store.record_codes(CODES)),
        (sql_of("record_codes"),),
        ["pump", "valve"],
        ["pump", "valve"],
    ),
    Case(
        "revoke_codes",
        with_codes,
        lambda store: store.revoke_codes(1, ["pump"], CODES[0].created_at, EVENT),
        (sql_of("revoke_codes"),),
        ["pump"],
        [],
    ),
    Case(
        "remove_devices",
        with_devices,
        lambda store: store.remove_devices(1, ["pump"], EVENT),
        (sql_of("remove_devices"),),
        ["pump"],
        [],
    ),
    Case(
        "record_devices",
        campus,
        lambda store: store.record_devices(DEVICES),
        (sql_of("record_devices"),),
        None,
        None,
    ),
]
_UNDISTURBED: dict[str, dict[str, list[str]]] = {}


async def dump(database: Database) -> dict[str, list[str]]:
    """Everything in every table, without the numbers the database itself gives out."""
    async with database.session() as connection:
        columns: dict[str, list[str]] = {}
        for table, column in await connection.fetch(
            "SELECT table_name::text, column_name::text FROM information_schema.columns "
            "WHERE table_schema = 'public' AND table_name NOT IN ('schema_migration', 'audit_link') "
            "ORDER BY ordinal_position"
        ):
            if column not in ("node_id", "parent_id", "ecosystem_id", "issuer_id", "code_id", "event_id"):
                columns.setdefault(table, []).append(column)
        return {
            table: sorted(str(tuple(row)) for row in await connection.fetch(f"SELECT {', '.join(names)} FROM {table}"))
            for table, names in columns.items()
        }


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[DatabaseProxy]:
    async with database_proxy(database.socket) as proxy:
        yield proxy


@pytest.fixture
async def frail(proxy: DatabaseProxy, database: Database) -> AsyncIterator[PostgresStore]:
    """A store whose link runs through the proxy, impatient enough for a test."""
    store = PostgresStore(proxy.url(database.name), pool_size=2, clock=lambda: NOW, statement_seconds=1.0)
    await store.check()
    yield store
    await store.close()


async def undisturbed(server: PostgresServer, case: Case) -> dict[str, list[str]]:
    """What one call leads to when nothing fails."""
    if case.name not in _UNDISTURBED:
        database = await server.take()
        store = await PostgresStore.connect(database.url, clock=lambda: NOW)
        await case.prepare(store)
        await case.call(store)
        _UNDISTURBED[case.name] = await dump(database)
        await store.close()
        await server.give_back(database)
    return _UNDISTURBED[case.name]


@pytest.mark.parametrize("persisted", [False, True], ids=["failed and not persisted", "failed but persisted"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_repeating_an_unknown_outcome(
    case: Case,
    persisted: bool,
    postgres_server: PostgresServer,
    proxy: DatabaseProxy,
    frail: PostgresStore,
    database: Database,
) -> None:
    expected = await undisturbed(postgres_server, case)
    await case.prepare(frail)
    before = await dump(database)
    for sql in case.cuts:
        (proxy.cut_after if persisted else proxy.cut_before)(sql)
    with pytest.raises(Unavailable):
        await case.call(frail)
    assert proxy.exhausted
    assert await dump(database) == (expected if persisted else before)
    assert await case.call(frail) == (case.persisted if persisted else case.not_persisted)
    assert await dump(database) == expected


@pytest.mark.parametrize("persisted", [False, True], ids=["failed and not persisted", "failed but persisted"])
async def test_audit_events_are_repeated_rather_than_lost(
    persisted: bool, proxy: DatabaseProxy, frail: PostgresStore
) -> None:
    (proxy.cut_after if persisted else proxy.cut_before)(sql_of("record_events"))
    with pytest.raises(Unavailable):
        await frail.record_events(EVENTS)
    await frail.record_events(EVENTS)
    assert await frail.find_events(None, 10) == (EVENTS[::-1] * 2 if persisted else EVENTS[::-1])


@pytest.mark.parametrize(
    "statement", ["lock_ecosystem", "insert_ecosystem", "insert_issuer", "insert_version", "find_ecosystems"]
)
@pytest.mark.parametrize("answered", [False, True])
async def test_a_version_is_applied_whole_or_not_at_all(
    statement: str, answered: bool, proxy: DatabaseProxy, frail: PostgresStore, database: Database
) -> None:
    before = await dump(database)
    (proxy.cut_after if answered else proxy.cut_before)(sql_of(statement))
    with pytest.raises(Unavailable):
        await version(frail, 0)
    assert proxy.exhausted
    assert await dump(database) == before
    assert await version(frail, 0) == (1, 2)


async def test_the_second_read_of_a_reservation_may_fail_as_well(proxy: DatabaseProxy, frail: PostgresStore) -> None:
    """The batch is reserved in part, then the question why the rest was not is cut off."""
    await issued(frail)
    proxy.cut_before(sql_of("find_holders"))
    with pytest.raises(Unavailable):
        await frail.reserve_intents([INTENT, NEWCOMER])
    assert await frail.reserve_intents([INTENT, NEWCOMER]) == [Outcome.EXISTS, Outcome.RESERVED]


# --- the database is away --------------------------------------------------------------------------------------------
async def test_a_refusing_database_is_unavailable_at_once_and_used_again(
    proxy: DatabaseProxy, frail: PostgresStore
) -> None:
    await reserved(frail)
    proxy.refusing = True
    proxy.cut_all()
    started = time.monotonic()
    answers = await asyncio.gather(
        *(frail.find_issuances([INTENT.request_key]) for _ in range(50)), frail.check(), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {Unavailable}
    assert time.monotonic() - started < 1.0
    proxy.refusing = False
    assert INTENT.request_key in await frail.find_issuances([INTENT.request_key])
    await frail.check()


async def test_a_silent_database_costs_a_deadline_and_no_more(proxy: DatabaseProxy, frail: PostgresStore) -> None:
    """Its machine is gone and its links are not: nothing is ever answered or refused."""
    await reserved(frail)
    proxy.go_silent()
    started = time.monotonic()
    answers = await asyncio.gather(
        *(frail.find_issuances([INTENT.request_key]) for _ in range(20)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {Unavailable}
    assert 0.9 < time.monotonic() - started < 4.0
    proxy.speak()
    proxy.cut_all()
    assert INTENT.request_key in await frail.find_issuances([INTENT.request_key])


async def test_ended_backends_are_not_noticed(frail: PostgresStore, database: Database) -> None:
    await reserved(frail)
    await database.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    await asyncio.sleep(0.05)
    assert INTENT.request_key in await frail.find_issuances([INTENT.request_key])


async def test_a_database_without_writes_is_unavailable(database: Database) -> None:
    await database.fetch(f"ALTER ROLE estd IN DATABASE {database.name} SET default_transaction_read_only = on")
    with pytest.raises(Unavailable):
        await PostgresStore.connect(database.url)
    await database.fetch(f"ALTER ROLE estd IN DATABASE {database.name} RESET default_transaction_read_only")
    await (await PostgresStore.connect(database.url)).close()


async def test_a_locked_table_costs_a_deadline_and_no_connection(
    proxy: DatabaseProxy, frail: PostgresStore, database: Database
) -> None:
    async with database.session() as connection, connection.transaction():
        await connection.execute("LOCK TABLE intent")
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await frail.reserve_intents([INTENT])
        assert 0.8 < time.monotonic() - started < 2.0
    assert await frail.reserve_intents([INTENT]) == [Outcome.RESERVED]


# --- followers -------------------------------------------------------------------------------------------------------
async def test_a_follower_resyncs_when_its_link_is_back(proxy: DatabaseProxy, frail: PostgresStore) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await frail.subscribe(heard.put)
    proxy.refusing = True
    proxy.cut_all()
    await asyncio.sleep(0.2)
    assert heard.empty()
    proxy.refusing = False
    assert await asyncio.wait_for(heard.get(), 5) == "resync"
    await campus(frail)
    assert await asyncio.wait_for(heard.get(), 1) == "ecosystems"
    assert heard.empty()


async def test_a_follower_that_starts_without_a_database_resyncs_later(
    proxy: DatabaseProxy, frail: PostgresStore
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    proxy.refusing = True
    proxy.cut_all()
    await frail.subscribe(heard.put)
    assert heard.empty()
    proxy.refusing = False
    assert await asyncio.wait_for(heard.get(), 5) == "resync"


# --- a real server, stopped and killed -------------------------------------------------------------------------------
async def test_a_stopped_server_and_a_killed_one(tmp_path: Path) -> None:
    """One store lives through a stop, a kill and two restarts of its server; acknowledged rows are all there."""
    server = PrivatePostgres(tmp_path / "postgres")
    url = await asyncio.to_thread(server.start)
    await migrate(url)
    store = await PostgresStore.connect(url, clock=lambda: NOW)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await store.subscribe(heard.put)
    acknowledged = []
    try:
        for stop in (server.stop, lambda: _kill(server)):
            writers = [asyncio.create_task(_write_until_unavailable(store)) for _ in range(4)]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(stop)
            acknowledged += [intent for written in await asyncio.gather(*writers) for intent in written]
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await store.find_issuances([])
            assert time.monotonic() - started < 2.0
            await asyncio.to_thread(server.ensure_running)
            found = await store.find_issuances([intent.request_key for intent in acknowledged])
            assert {issuance.intent for issuance in found.values()} == set(acknowledged)
            assert await asyncio.wait_for(heard.get(), 5) == "resync"
        assert len(acknowledged) > 8
    finally:
        await store.close()
        await asyncio.to_thread(server.stop)


def _kill(server: PrivatePostgres) -> None:
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def _write_until_unavailable(store: PostgresStore) -> list[Any]:
    written = []
    while True:
        intent = make_intent()
        try:
            await store.reserve_intents([intent])
        except Unavailable:
            return written
        written.append(intent)
