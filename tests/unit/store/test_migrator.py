"""Migrations are applied once, in order, by one at a time, and never misunderstood."""

from __future__ import annotations

import asyncio
import dataclasses

import asyncpg
import pytest
from postgres_fixture import Database

from estd.errors import Invalid, Unavailable
from estd.store.migrator import MIGRATIONS, Migration, Phase, check_schema, load_migrations, migrate

ONE = Migration(1, Phase.PRE, "one", "CREATE TABLE one (a integer);")
TWO = Migration(2, Phase.PRE, "two", "CREATE TABLE two (a integer); INSERT INTO two VALUES (7);")
THREE = Migration(3, Phase.POST, "three", "DROP TABLE one;")
FOUR = Migration(4, Phase.PRE, "four", "CREATE TABLE four (a integer);")


async def schema_of(database: Database) -> list[str]:
    """Everything that can be told apart about tables, columns, indexes, constraints, triggers and functions."""
    rows = await database.fetch(
        """
        SELECT 'column ' || table_name || ' ' || column_name || ' ' || data_type || ' ' || is_nullable || ' '
            || coalesce(column_default, '') || ordinal_position
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'applied ' || number || name || applied_at FROM schema_migration
        ORDER BY 1
        """
    )
    return [row[0] for row in rows]


async def check(database: Database, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await check_schema(connection, migrations)
    finally:
        await connection.close()


async def test_migrating_again_changes_nothing(bare_database: Database) -> None:
    with pytest.raises(Unavailable, match="empty"):
        await check(bare_database)
    assert await migrate(bare_database.url) == list(MIGRATIONS)
    schema = await schema_of(bare_database)
    assert len(schema) > 50
    assert await migrate(bare_database.url) == []
    assert await schema_of(bare_database) == schema
    await check(bare_database)


async def test_many_migrate_at_once(bare_database: Database) -> None:
    applied = await asyncio.gather(*(migrate(bare_database.url, migrations=[ONE, TWO]) for _ in range(6)))
    assert sorted(str(migration) for one in applied for migration in one) == ["001_pre_one", "002_pre_two"]
    assert [row[0] for row in await bare_database.fetch("SELECT a FROM two")] == [7]


async def test_post_migrations_wait_for_the_previous_version_to_end(bare_database: Database) -> None:
    assert await migrate(bare_database.url, include_post=False, migrations=[ONE, TWO, THREE]) == [ONE, TWO]
    await check(bare_database, (ONE, TWO, THREE))
    with pytest.raises(Unavailable, match="003_post_three comes first"):
        await migrate(bare_database.url, include_post=False, migrations=[ONE, TWO, THREE, FOUR])
    assert await migrate(bare_database.url, migrations=[ONE, TWO, THREE, FOUR]) == [THREE, FOUR]


async def test_an_edited_migration_is_refused(bare_database: Database) -> None:
    await migrate(bare_database.url, migrations=[ONE])
    edited = dataclasses.replace(ONE, sql=ONE.sql + " ")
    for work in (migrate(bare_database.url, migrations=[edited, TWO]), check(bare_database, (edited,))):
        with pytest.raises(Unavailable, match="001_pre_one with another text"):
            await work
    assert await bare_database.fetch("SELECT to_regclass('two')") == [(None,)]


async def test_a_newer_schema(bare_database: Database) -> None:
    """Beside what a newer version added this one may run; where a newer one removed something it may not."""
    await migrate(bare_database.url, migrations=[ONE, TWO])
    with pytest.raises(Unavailable, match=r"newer than this version of estd \(002_pre_two"):
        await migrate(bare_database.url, migrations=[ONE])
    await check(bare_database, (ONE,))
    await migrate(bare_database.url, migrations=[ONE, TWO, THREE])
    with pytest.raises(Unavailable, match="003_post_three: upgrade"):
        await check(bare_database, (ONE, TWO))


async def test_an_older_schema_is_refused(bare_database: Database) -> None:
    await migrate(bare_database.url, migrations=[ONE])
    with pytest.raises(Unavailable, match="lacks 002_pre_two"):
        await check(bare_database, (ONE, TWO))


async def test_a_migration_that_fails_leaves_nothing(bare_database: Database) -> None:
    wrong = dataclasses.replace(TWO, sql="CREATE TABLE two (a integer); INSERT INTO two VALUES ('x');")
    with pytest.raises(Unavailable):
        await migrate(bare_database.url, migrations=[ONE, wrong])
    assert await bare_database.fetch("SELECT to_regclass('two')") == [(None,)]
    assert await migrate(bare_database.url, migrations=[ONE, TWO]) == [TWO]


async def test_no_database_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await migrate("postgresql://estd@/estd?host=/nonexistent")


def test_the_files_are_numbered_without_gap() -> None:
    assert [migration.number for migration in load_migrations()] == list(range(1, len(MIGRATIONS) + 1))
    assert str(MIGRATIONS[0]) == "001_pre_initial"


@pytest.mark.parametrize(
    "url", ["mysql://db/estd", "postgresql://estd:pass/word@db/estd", "postgresql://db/estd?sslmode=sometimes"]
)
async def test_what_is_no_url_is_not_tried_again(url: str) -> None:
    with pytest.raises(Invalid, match=r"database\.url: cannot be") as invalid:
        await migrate(url)
    assert "pass" not in invalid.value.problems[0].what
