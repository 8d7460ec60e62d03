"""Tells a follower what changed in the database, and when it may have missed something.

A connection of its own LISTENs; when it is lost a new one is made, with growing pauses, and the follower is called with
``resync``. A follower that raises is called with ``resync`` as well, after a pause, until it returns: what it wanted to
do with the news is still to be done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from asyncpg import exceptions as pg

from estd.errors import Unavailable
from estd.store.pool import Connection, Pool
from estd.store.queries import sql_of

Follower = Callable[[str], Awaitable[None]]

CHANNEL = "estd"
RESYNC = "resync"

_log = logging.getLogger("estd.store")


class Listener:
    """Follows the channel from `start` until `close`.

    Args:
        pool: whose server to listen to; told to `evict` when the listening connection turns out to be dead.
        follower: called with one topic at a time, never twice at once.
        ping_seconds: how often an idle connection is tried.
        longest_pause_seconds: how rarely a lost server is tried.
    """

    def __init__(
        self, pool: Pool, follower: Follower, *, ping_seconds: float = 10.0, longest_pause_seconds: float = 2.0
    ) -> None:
        self._pool = pool
        self._follower = follower
        self._ping_seconds = ping_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._topics: dict[str, None] = {}  # an ordered set: a topic that waits already need not wait twice
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; returns after the first attempt, whether or not the server could be reached."""
        connection = await self._connect()
        if connection is None:
            self._tell(RESYNC)
        self._task = asyncio.create_task(self._run(connection), name="estd.store.listener")

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self, connection: Connection | None) -> None:
        pause_seconds = 0.05
        try:
            while True:
                if connection is None:
                    await asyncio.sleep(_jittered(pause_seconds))
                    pause_seconds = min(2 * pause_seconds, self._longest_pause_seconds)
                    connection = await self._connect()
                    if connection is not None:
                        self._tell(RESYNC)
                elif await self._wait_for_news(connection):
                    pause_seconds = 0.05
                    await self._pass_on()
                else:
                    connection.terminate()
                    connection = None
                    self._pool.evict()
        finally:
            if connection is not None:
                connection.terminate()

    async def _connect(self) -> Connection | None:
        try:
            connection = await self._pool.connect()
        except Unavailable:
            return None
        try:
            async with asyncio.timeout(2.0):
                await connection.add_listener(CHANNEL, self._hear)
        except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError):
            connection.terminate()
            return None
        connection.add_termination_listener(self._lost)
        return connection

    async def _wait_for_news(self, connection: Connection) -> bool:
        """Until there is news; False when the connection is dead."""
        # The loss is looked for first: news that came in the same turn is told all the same, once there is a new connection.
        while not connection.is_closed():
            if self._topics:
                return True
            try:
                async with asyncio.timeout(self._ping_seconds):
                    await self._news.wait()
            except TimeoutError:
                try:
                    async with asyncio.timeout(2.0):
                        await connection.fetch(sql_of("ping"))
                except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError):
                    return False
            self._news.clear()
        return False

    async def _pass_on(self) -> None:
        topics, self._topics = list(self._topics), {}
        self._news.clear()
        for topic in topics:
            try:
                await self._follower(topic)
            except Exception:  # noqa: BLE001 - whatever it failed with, the news must not be lost
                _log.exception("a follower of the database failed on %r and will be asked to resync", topic)
                await asyncio.sleep(_jittered(self._longest_pause_seconds / 2))
                self._tell(RESYNC)

    def _hear(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        self._tell(str(payload))

    def _lost(self, _connection: Any) -> None:
        self._news.set()

    def _tell(self, topic: str) -> None:
        self._topics[topic] = None
        self._news.set()


def _jittered(seconds: float) -> float:
    """Between half and all of it, so that many workers do not return as one."""
    return seconds * (0.5 + secrets.randbelow(1000) / 2000)
