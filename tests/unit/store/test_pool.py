"""Connections are made when needed, shared in order, and left when they are no good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from database_proxy import DatabaseProxy, database_proxy
from postgres_fixture import Database

from estd.errors import Broken, Code, Unavailable
from estd.store.pool import Pool

SLEEP = "SELECT pg_sleep($1)"
PID = "SELECT pg_backend_pid()"


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    pool = Pool(database.url, 2, statement_seconds=1.0, acquire_seconds=0.5)
    yield pool
    await pool.close()


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[DatabaseProxy]:
    async with database_proxy(database.socket) as proxy:
        yield proxy


async def test_one_connection_serves_one_after_the_other(pool: Pool) -> None:
    assert len({await pool.fetch_value(PID) for _ in range(5)}) == 1
    assert await pool.fetch_value("SELECT 1 WHERE false") is None
    assert [tuple(row) for row in await pool.fetch("SELECT $1::integer + n FROM generate_series(1, 2) n", 7)] == [
        (8,),
        (9,),
    ]


async def test_no_more_connections_than_asked_for(pool: Pool) -> None:
    pids = await asyncio.gather(*(pool.fetch_value("SELECT pg_backend_pid() FROM pg_sleep(0.02)") for _ in range(10)))
    assert len(set(pids)) == 2


async def test_waiting_for_a_connection_has_a_deadline(pool: Pool) -> None:
    busy = [asyncio.create_task(pool.fetch(SLEEP, 0.8)) for _ in range(2)]
    await asyncio.sleep(0.1)
    started = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        await pool.fetch(PID)
    assert 0.4 < time.monotonic() - started < 2
    assert refused.value.code is Code.STORE_UNAVAILABLE
    await asyncio.gather(*busy)


async def test_a_statement_has_a_deadline(pool: Pool) -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await pool.fetch(SLEEP, 30)
    assert 0.9 < time.monotonic() - started < 4
    assert await pool.fetch_value("SELECT 1") == 1


async def test_a_wrong_statement_is_broken_and_costs_nothing(pool: Pool) -> None:
    pid = await pool.fetch_value(PID)
    for sql, arguments in [
        ("SELECT nonsense", ()),
        ("SELECT 1 / 0", ()),
        ("SELECT $1::integer", ("x",)),
        ("SELECT $1::integer", ()),
        ("SELECT $1::text", ("\0",)),
        ("SELECT $1::text", ("\ud800",)),
    ]:
        with pytest.raises(Broken):
            await pool.fetch(sql, *arguments)
    assert await pool.fetch_value(PID) == pid


async def test_a_cancelled_statement_loses_its_connection_and_nothing_else(pool: Pool) -> None:
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await pool.fetch(SLEEP, 10)
    assert await pool.fetch_value("SELECT 1") == 1


async def test_a_cancelled_wait_passes_the_connection_on(pool: Pool) -> None:
    busy = [asyncio.create_task(pool.fetch(SLEEP, 0.1)) for _ in range(2)]
    await asyncio.sleep(0.02)
    waiting = [asyncio.create_task(pool.fetch_value("SELECT 1")) for _ in range(4)]
    await asyncio.sleep(0.02)
    waiting[0].cancel()
    waiting[2].cancel()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [answers[1], answers[3]] == [1, 1]
    await asyncio.gather(*busy)


async def test_a_cancellation_at_the_moment_of_handing_over_leaks_nothing(database: Database) -> None:
    pool = Pool(database.url, 1, acquire_seconds=0.5)
    async with pool.transaction():
        waiting = asyncio.create_task(pool.fetch("SELECT 2"))
        await asyncio.sleep(0.05)
    # The connection has been handed over, and its new holder has not run since.
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await pool.fetch_value("SELECT 1") == 1
    await pool.close()


async def test_a_deadline_met_is_forgotten(database: Database) -> None:
    pool = Pool(database.url, 1, statement_seconds=0.3)
    pid = await pool.fetch_value(PID)
    async with pool.transaction() as connection:
        assert await connection.fetchval(PID) == pid
    await asyncio.sleep(0.5)
    assert await pool.fetch_value(PID) == pid
    await pool.close()


async def test_a_backend_ended_at_work_is_an_unknown_outcome(pool: Pool, database: Database) -> None:
    working = asyncio.create_task(pool.fetch(SLEEP, 10))
    await asyncio.sleep(0.2)
    await database.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = $1", SLEEP)
    with pytest.raises(Unavailable):
        await working
    assert await pool.fetch_value("SELECT 1") == 1


async def test_a_server_that_takes_no_more_writes_is_left(pool: Pool) -> None:
    """A demoted primary answers every write with SQLSTATE 25006 and keeps its links; none may be used again."""
    read_only = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    async with pool.transaction() as one, pool.transaction() as other:
        await one.execute(read_only)
        await other.execute(read_only)
    with pytest.raises(Unavailable):
        await pool.fetch("CREATE TABLE written (a integer)")
    await pool.fetch("CREATE TABLE written (a integer)")
    await pool.fetch("DROP TABLE written")


async def test_a_deadlock_is_repeated(database: Database) -> None:
    """Two statements that lock two rows in opposite order: one is rolled back, and done again."""
    await database.fetch(f"ALTER ROLE estd IN DATABASE {database.name} SET deadlock_timeout = '20ms'")
    pool = Pool(database.url, 2, statement_seconds=20.0)
    await pool.fetch("CREATE TABLE account (a integer PRIMARY KEY, n integer)")
    await pool.fetch("INSERT INTO account VALUES (1, 0), (2, 0)")
    add = (
        "WITH first AS (UPDATE account SET n = n + 1 WHERE a = $1::integer RETURNING pg_sleep(0.1)), "
        "slept AS (SELECT count(*) AS n FROM first) "
        "UPDATE account SET n = account.n + slept.n FROM slept WHERE a = $2::integer RETURNING 1"
    )
    answers = await asyncio.gather(pool.fetch_value(add, 1, 2), pool.fetch_value(add, 2, 1))
    rows = await pool.fetch("SELECT n FROM account ORDER BY a")
    await pool.fetch("DROP TABLE account")
    await pool.close()
    await database.fetch(f"ALTER ROLE estd IN DATABASE {database.name} RESET deadlock_timeout")
    assert (answers, [row[0] for row in rows]) == ([1, 1], [2, 2])


async def test_a_transaction_is_whole(pool: Pool) -> None:
    async def insert(then: str) -> None:
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO written VALUES (1)")
            if then == "fail":
                raise ZeroDivisionError
            await connection.execute(then)

    await pool.fetch("CREATE TABLE written (a integer PRIMARY KEY)")
    try:
        for then, failure in (("fail", ZeroDivisionError), ("SELECT nonsense", Broken)):
            with pytest.raises(failure):
                await insert(then)
            assert await pool.fetch_value("SELECT count(*) FROM written") == 0
        await insert("SELECT 1")
        assert await pool.fetch_value("SELECT count(*) FROM written") == 1
    finally:
        await pool.fetch("DROP TABLE written")


async def test_a_transaction_has_a_deadline(pool: Pool) -> None:
    async def dawdle() -> None:
        async with pool.transaction() as connection:
            for _ in range(50):
                await connection.execute("SELECT pg_sleep(0.1)")

    started = time.monotonic()
    with pytest.raises(Unavailable):
        await dawdle()
    assert 0.9 < time.monotonic() - started < 4


async def test_all_who_wait_hear_at_once_that_no_connection_can_be_made(
    proxy: DatabaseProxy, database: Database
) -> None:
    pool = Pool(proxy.url(database.name), 1, connect_seconds=0.3, acquire_seconds=5.0)
    proxy.go_silent()
    started = time.monotonic()
    answers = await asyncio.gather(*(pool.fetch(PID) for _ in range(20)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {Unavailable}
    assert time.monotonic() - started < 3
    proxy.speak()
    assert await pool.fetch_value("SELECT 1") == 1
    await pool.close()


async def test_eviction_spares_the_statement_at_work(pool: Pool) -> None:
    pid = await pool.fetch_value(PID)
    working = asyncio.create_task(pool.fetch_value("SELECT pg_backend_pid() FROM pg_sleep(0.1)"))
    await asyncio.sleep(0.03)
    pool.evict()
    assert await working == pid
    assert await pool.fetch_value(PID) != pid


async def test_closing_ends_everything(pool: Pool, database: Database) -> None:
    await pool.fetch(PID)
    working = asyncio.create_task(pool.fetch(SLEEP, 10))
    await asyncio.sleep(0.05)
    await pool.close()
    with pytest.raises(Unavailable):
        await working
    with pytest.raises(Unavailable):
        await pool.fetch(PID)
    await asyncio.sleep(0.05)
    assert (
        await database.fetch("SELECT 1 FROM pg_stat_activity WHERE application_name = 'estd' AND state = 'idle'") == []
    )


async def test_what_an_operator_got_wrong_is_said(database: Database) -> None:
    with pytest.raises(Unavailable, match='database "nowhere" does not exist'):
        await Pool(database.url.replace(database.name, "nowhere"), 1).fetch(PID)
    with pytest.raises(Unavailable, match="refuses estd"):
        await Pool(database.url.replace("estd@", "stranger@"), 1).fetch(PID)
    with pytest.raises(Broken, match="URL"):
        await Pool("mysql://estd@/estd", 1).fetch(PID)
