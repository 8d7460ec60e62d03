"""What is particular to PostgreSQL: plans that do not depend on statistics, history that cannot be rewritten."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from postgres_fixture import Database
from store_values import make_event, make_intent, make_issued, make_new_issuer, make_revocation

from estd.errors import Unavailable
from estd.store import rows
from estd.store.contract import Outcome
from estd.store.postgres import PostgresStore, utc_now
from estd.store.queries import sql_of

HOT = [
    "reserve_intents",
    "find_holders",
    "find_issuances",
    "record_issued",
    "find_stored",
    "find_certificates_by_serial",
]


@pytest.mark.parametrize(
    "name", [*HOT, "close_unresolved", "close_issued", "find_device_certificates", "find_codes", "revoke_codes"]
)
@pytest.mark.parametrize("present", [0, 3000], ids=["empty", "analyzed"])
async def test_every_question_goes_by_an_index(name: str, present: int, database: Database) -> None:
    """Also when a plan is made while the tables are empty, and kept while they fill."""
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute(
            "INSERT INTO intent SELECT now(), NULL, NULL, 1, 1, 1, 1, int4send(n), sha256(int4send(n)), '', '', '', '', '', "
            "n::text, n::text, '', NULL FROM generate_series(1, $1::integer) n".replace("$1", str(present))
        )
        if present:
            await connection.execute("ANALYZE intent")
        await connection.fetch(sql_of("session_settings"), "5000")
        statement = await connection.prepare(sql_of(name))
        nothing = ", ".join(["NULL"] * len(statement.get_parameters()))
        await connection.execute(f"PREPARE asked AS {sql_of(name)}")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE asked({nothing})"))
    finally:
        await connection.close()
    assert "Index" in plan
    for table in ("intent", "certificate", "unresolved_intent", "enrollment_code", "revocation"):
        assert f"Seq Scan on {table}" not in plan
    assert "Hash" not in plan


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("certificate", "der"),
        ("event", "detail"),
        ("ecosystem_version", "applied_by"),
        ("issuer", "name"),
        ("revocation", "reason"),
    ],
)
async def test_history_is_not_rewritten(table: str, column: str, store: PostgresStore, database: Database) -> None:
    record = await store.record_ecosystem("campus", {}, [make_new_issuer()], 0, "ada", make_event())
    intent = make_intent(issuer_id=record.issuers[0].issuer_id)
    await store.reserve_intents([intent])
    await store.record_issued([make_issued(intent)])
    revocation = make_revocation(intent.issuer_id, intent.serial, reason="superseded")
    await store.record_revocation(revocation, make_event())
    for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = 'x'", f"TRUNCATE {table} CASCADE"):
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            await database.fetch(sql)
    assert len(await database.fetch(f"SELECT 1 FROM {table}")) >= 1


@pytest.mark.parametrize("also", ["revoked_at = now()", "serial = '\\x07'"])
async def test_nothing_of_a_revocation_changes_with_its_reason(
    also: str, store: PostgresStore, database: Database
) -> None:
    record = await store.record_ecosystem("campus", {}, [make_new_issuer()], 0, "ada", make_event())
    revocation = make_revocation(record.issuers[0].issuer_id, b"\x01", reason="superseded")
    await store.record_revocation(revocation, make_event())
    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
        await database.fetch(f"UPDATE revocation SET reason = 'keyCompromise', {also}")


async def test_a_code_freed_while_its_own_request_asks_again_is_held_again(
    store: PostgresStore, database: Database
) -> None:
    """The statement begins while an earlier intent of the same request holds the code, and ends when none does."""
    earlier = make_intent(code_id=7)
    again = make_intent(code_id=7, request_key=earlier.request_key)
    await store.reserve_intents([earlier])
    async with database.session() as connection:
        async with connection.transaction():
            assert await connection.fetch(sql_of("close_unresolved"), earlier.issuer_id, earlier.serial, "void")
            asking = asyncio.create_task(store.reserve_intents([again]))
            await asyncio.sleep(0.2)
            assert not asking.done()
        assert await asking == [Outcome.RESERVED]
    assert await store.reserve_intents([make_intent(code_id=7)]) == [Outcome.CODE_SPENT]


async def test_whoever_waited_for_a_reservation_that_is_rolled_back_gets_it(
    store: PostgresStore, database: Database
) -> None:
    first, second = make_intent(code_id=7), make_intent(code_id=7)
    async with database.session() as connection:
        transaction = connection.transaction()
        await transaction.start()
        assert await connection.fetchval(sql_of("reserve_intents"), *rows.write_intents([first])) == 1
        asking = asyncio.create_task(store.reserve_intents([second]))
        await asyncio.sleep(0.2)
        assert not asking.done()
        await transaction.rollback()
    assert await asking == [Outcome.RESERVED]


async def test_a_database_that_acknowledges_too_early_is_refused(database: Database) -> None:
    await database.fetch(f"ALTER DATABASE {database.name} SET synchronous_commit = off")
    try:
        with pytest.raises(Unavailable, match="synchronous_commit"):
            await PostgresStore.connect(database.url)
    finally:
        await database.fetch(f"ALTER DATABASE {database.name} RESET synchronous_commit")


async def test_a_database_without_schema_is_refused(bare_database: Database) -> None:
    with pytest.raises(Unavailable, match="estd serve"):
        await PostgresStore.connect(bare_database.url)


async def test_a_store_can_be_made_before_its_database() -> None:
    store = PostgresStore("postgresql://estd@/estd?host=/nonexistent")
    with pytest.raises(Unavailable):
        await store.check()
    await store.close()


def test_the_clock_says_utc_to_the_second() -> None:
    now = utc_now()
    assert (now.utcoffset().total_seconds() if now.tzinfo else None, now.microsecond) == (0.0, 0)
