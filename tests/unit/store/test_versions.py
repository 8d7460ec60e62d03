"""New versions inside a transaction: who holds the lock, and that nothing is left of what is rolled back."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from postgres_fixture import Database
from store_values import make_event, make_new_issuer

from estd.store.contract import Conflict, NewVersion
from estd.store.versions import write_versions


def version(label: str, *claims: str) -> NewVersion:
    document = {"profile": {f"p{number}": {"label": claim} for number, claim in enumerate(claims)}}
    return NewVersion(label, document, [make_new_issuer()], 0, "ada", make_event(ecosystem_id=None))


async def test_one_applies_at_a_time(database: Database) -> None:
    """The second waits for the first to commit, and then sees what it claimed."""
    first, second = await asyncpg.connect(database.url), await asyncpg.connect(database.url)
    try:
        ours = first.transaction()
        await ours.start()
        await write_versions(first, [version("north", "gates")])

        async def claim() -> None:
            async with second.transaction():
                await write_versions(second, [version("gates")])

        waiting = asyncio.create_task(claim())
        blocked = """
            SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
            WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
        """
        while await first.fetchval(blocked) == 0:
            assert not waiting.done()
        await ours.commit()
        with pytest.raises(Conflict, match="the label gates leads to north too"):
            await waiting
        assert [row["label"] for row in await first.fetch("SELECT label FROM ecosystem")] == ["north"]
    finally:
        await first.close()
        await second.close()


async def test_what_is_rolled_back_claims_nothing(database: Database) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await write_versions(connection, [version("north", "gates"), version("south")])
        await transaction.rollback()
        async with connection.transaction():
            (record,) = await write_versions(connection, [version("gates")])
        assert (record.label, record.version, len(record.issuers)) == ("gates", 1, 1)
    finally:
        await connection.close()
