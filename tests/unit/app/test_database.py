"""The database as the supervisor sees it: a private one is kept alive, somebody else's is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import postgres_fixture
import pytest

from estd.app.database import Database
from estd.errors import Unavailable
from estd.store.migrator import MIGRATIONS
from estd.store.private import PrivatePostgres


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a private one lies that each test finds stopped, and leaves stopped."""
    return tmp_path_factory.mktemp("private") / "postgres"


@pytest.fixture
async def private(directory: Path) -> AsyncIterator[Database]:
    database = Database(None, directory)
    assert database.directory == directory
    assert database.url == ""
    await database.start()
    yield database
    await database.stop()
    assert not PrivatePostgres(directory).status().running


async def count_migrations(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM schema_migration"))
    finally:
        await connection.close()


def kill(directory: Path) -> int:
    """Kill the private server; its process id."""
    pid = PrivatePostgres(directory).status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


async def test_a_private_one_that_is_killed_comes_back_and_is_waited_for(private: Database, directory: Path) -> None:
    await private.migrate()
    killed = kill(directory)
    watching = asyncio.create_task(private.watch())
    async with asyncio.timeout(30):
        await private.migrate()
    assert await count_migrations(private.url) == len(MIGRATIONS)
    assert PrivatePostgres(directory).status().pid not in {None, killed}
    assert not watching.done()
    watching.cancel()
    await asyncio.wait({watching})


async def test_a_private_one_that_stays_away_is_not_waited_for_for_ever(
    private: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estd.app.database._RECOVERY_SECONDS", 1.0)
    kill(directory)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await private.migrate()
    assert 1.0 < time.monotonic() - started < 10.0


async def test_one_that_cannot_be_started_now_is_tried_again(
    private: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("estd.app.database._WATCH_EVERY_SECONDS", 0.05)
    ensure_running = PrivatePostgres.ensure_running
    asked: list[None] = []

    def fail_once(server: PrivatePostgres) -> str:
        asked.append(None)
        if len(asked) == 1:
            raise OSError("no room")
        return ensure_running(server)

    monkeypatch.setattr(PrivatePostgres, "ensure_running", fail_once)
    watching = asyncio.create_task(private.watch())
    async with asyncio.timeout(10):
        while len(asked) < 3:
            await asyncio.sleep(0.02)
    watching.cancel()
    await asyncio.wait({watching})
    assert [(record.message, vars(record)["detail"]) for record in caplog.records] == [
        ("the private database could not be started again", "no room")
    ]


async def test_somebody_elses_is_migrated_and_left_alone(
    bare_database: postgres_fixture.Database, tmp_path: Path
) -> None:
    database = Database(bare_database.url, tmp_path / "postgres")
    await database.start()
    assert database.url == bare_database.url
    assert database.directory is None
    await database.migrate()
    async with asyncio.timeout(1):
        await database.watch()
    await database.stop()
    assert await count_migrations(bare_database.url) == len(MIGRATIONS)
    assert not (tmp_path / "postgres").exists()


async def test_somebody_elses_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    database = Database(f"postgresql://estd@/estd?host={tmp_path}", tmp_path / "postgres")
    await database.start()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await database.migrate()
