"""News arrive once, one at a time; a dead link is noticed even when it is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from database_proxy import DatabaseProxy, database_proxy
from patience import until
from postgres_fixture import Database

from estd.store.listener import RESYNC, Listener
from estd.store.pool import Pool


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[DatabaseProxy]:
    async with database_proxy(database.socket) as proxy:
        yield proxy


@pytest.fixture
async def pool(proxy: DatabaseProxy, database: Database) -> AsyncIterator[Pool]:
    pool = Pool(proxy.url(database.name), 2, connect_seconds=0.5)
    yield pool
    await pool.close()


async def tell(database: Database, *topics: str) -> None:
    for topic in topics:
        await database.fetch("SELECT pg_notify('estd', $1)", topic)


async def test_news_that_wait_are_told_once(pool: Pool, database: Database) -> None:
    heard: list[str] = []
    at_work = 0

    async def follow(topic: str) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await asyncio.sleep(0.2)
        heard.append(topic)
        at_work -= 1

    listener = Listener(pool, follow)
    await listener.start()
    await tell(database, "a")
    await asyncio.sleep(0.05)
    await tell(database, "b", "a", "b", "b")
    await asyncio.sleep(0.7)
    await listener.close()
    assert heard == ["a", "b", "a"]


async def test_a_silent_link_is_noticed(pool: Pool, proxy: DatabaseProxy, database: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = Listener(pool, heard.put, ping_seconds=0.2, longest_pause_seconds=0.2)
    await listener.start()
    proxy.go_silent()
    await asyncio.sleep(0.1)
    await tell(database, "lost on the way")
    await asyncio.sleep(2.6)  # a ping and its deadline
    proxy.cut_all()
    proxy.speak()
    assert await asyncio.wait_for(heard.get(), 3) == RESYNC
    await tell(database, "a")
    assert await asyncio.wait_for(heard.get(), 1) == "a"
    await listener.close()


async def test_a_link_that_is_lost_together_with_news_is_noticed_at_once(
    pool: Pool, proxy: DatabaseProxy, database: Database
) -> None:
    heard: list[str] = []
    lost = asyncio.Event()

    class Watched(Listener):
        def _lost(self, connection: Any) -> None:
            super()._lost(connection)
            lost.set()

    async def follow(topic: str) -> None:
        if not heard:
            # While it is at work more news comes, and the link goes; it hears of neither before it is done.
            await tell(database, "b")
            await until(lambda: listener._topics)
            proxy.cut_all()
            await lost.wait()
        heard.append(topic)

    listener = Watched(pool, follow, ping_seconds=3600.0)
    await listener.start()
    await tell(database, "a")
    await until(lambda: RESYNC in heard)
    assert heard[0] == "a"
    assert sorted(heard[1:]) == ["b", RESYNC]
    await listener.close()


async def test_an_idle_link_is_kept(pool: Pool, proxy: DatabaseProxy, database: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = Listener(pool, heard.put, ping_seconds=0.05)
    await listener.start()
    await asyncio.sleep(0.4)
    assert proxy.links == 1
    await tell(database, "a")
    assert await asyncio.wait_for(heard.get(), 1) == "a"
    await listener.close()
    await asyncio.sleep(0.05)
    assert (proxy.links, heard.empty()) == (0, True)


async def test_closing_before_starting_is_nothing(pool: Pool) -> None:
    await Listener(pool, asyncio.Queue[str]().put).close()
