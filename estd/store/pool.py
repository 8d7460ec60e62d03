"""Connections to PostgreSQL, each statement with a deadline, each failure in estd's own words.

asyncpg's own pool resets a connection with a round trip of its own at each release and runs two tasks around each
statement; here a statement on an idle connection costs the statement. What it promises:

* No call waits longer than `acquire_seconds` for a connection plus `statement_seconds` for its answer. A statement that
  misses its deadline loses its connection rather than being cancelled: a cancelled COMMIT that waits for a standby
  would report success without having it.
* When no connection can be made, everyone who waits for one hears so at once.
* A connection that was lost, or leads to a server that shuts down or no longer takes writes, is never used again, nor
  are its fellows; the next call makes a new one. So a database that comes back is used again without a restart.
* A statement the server rolled back only because others were in its way is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
from asyncpg import exceptions as pg
from asyncpg.connect_utils import SessionAttribute

from estd.errors import Broken, Code, Unavailable
from estd.store.queries import sql_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

if TYPE_CHECKING:
    _Waiter: TypeAlias = asyncio.Future[Connection | None]

_log = logging.getLogger("estd.store")

_REPEATS = 5


class Pool:
    """At most `size` connections to one database, made when first needed.

    Args:
        url: ``postgresql://…``; of several hosts the one that takes writes is found.
        size: how many statements may run at once.
        statement_seconds: the deadline of one statement, or of one `transaction`.
        acquire_seconds: the deadline of waiting for a connection.
        connect_seconds: the deadline of making one.
        admit: raises `Unavailable` where the server behind a new connection must not be used.
    """

    def __init__(
        self,
        url: str,
        size: int,
        *,
        statement_seconds: float = 5.0,
        acquire_seconds: float = 2.0,
        connect_seconds: float = 1.5,
        admit: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        self._url = url
        self._size = size
        self._statement_seconds = statement_seconds
        self._acquire_seconds = acquire_seconds
        self._connect_seconds = connect_seconds
        self._admit = admit
        self._idle: list[Connection] = []
        self._used: set[Connection] = set()
        self._doomed: set[Connection] = set()
        self._connecting = 0
        self._waiting: deque[_Waiter] = deque()
        self._closed = False
        self._well = True

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own and return its rows.

        Raises:
            Unavailable: the outcome is unknown.
            Broken: the statement is wrong; nothing was changed.
        """
        attempt = 0
        while True:
            attempt += 1
            connection = await self._acquire()
            deadline = asyncio.get_running_loop().call_later(self._statement_seconds, connection.terminate)
            try:
                return await connection.fetch(sql, *arguments)
            except (pg.SerializationError, pg.DeadlockDetectedError) as error:
                if attempt == _REPEATS:
                    raise unavailable(error) from error
            except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError) as error:
                raise self._failure(error, connection) from error
            except asyncio.CancelledError:
                connection.terminate()
                raise
            finally:
                deadline.cancel()
                self._release(connection)

    async def fetch_value(self, sql: str, *arguments: Any) -> Any:
        """The first column of the first row; None without a row."""
        rows = await self.fetch(sql, *arguments)
        return rows[0][0] if rows else None

    @contextlib.asynccontextmanager
    async def transaction(self, more_seconds: float = 0.0) -> AsyncIterator[Connection]:
        """A connection in a transaction that is committed at the end, or rolled back by an exception.

        Args:
            more_seconds: how much longer than one statement all of it may take.

        Raises:
            Unavailable: the outcome is unknown.
            Broken: a statement is wrong; nothing was changed.
            asyncpg.UniqueViolationError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError: as they are, since
                the caller may know better; nothing was changed.
        """
        connection = await self._acquire()
        deadline = asyncio.get_running_loop().call_later(self._statement_seconds + more_seconds, connection.terminate)
        try:
            async with connection.transaction():
                yield connection
        except (pg.UniqueViolationError, pg.SerializationError, pg.DeadlockDetectedError):
            raise
        except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError) as error:
            raise self._failure(error, connection) from error
        except asyncio.CancelledError:
            connection.terminate()
            raise
        finally:
            deadline.cancel()
            self._release(connection)

    async def connect(self) -> Connection:
        """A connection of the caller's own, beside the pool.

        Raises:
            Unavailable: none can be made.
        """
        try:
            connection: Connection = await asyncpg.connect(
                self._url,
                timeout=self._connect_seconds,
                statement_cache_size=256,
                max_cached_statement_lifetime=0,
                server_settings={"application_name": "estd"},
                # Costs no round trip, and finds the primary among several hosts or after it has moved.
                target_session_attrs=None if "target_session_attrs" in self._url else SessionAttribute.read_write,
            )
        except (pg.PostgresError, pg.InternalClientError, OSError) as error:
            if self._well:
                _log.warning("the database cannot be reached: %s", error)
            self._well = False
            raise unavailable(error) from error
        except (pg.InterfaceError, ValueError) as error:
            raise Broken(f"the database's URL is wrong: {error}") from error
        try:
            async with asyncio.timeout(self._connect_seconds):
                await connection.fetch(sql_of("session_settings"), str(round(self._statement_seconds * 1000)))
            if self._admit is not None:
                await self._admit(connection)
        except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError) as error:
            connection.terminate()
            raise unavailable(error) from error
        except Unavailable as reason:
            connection.terminate()
            if self._well:
                _log.error("the database is not used: %s", reason.detail)
            self._well = False
            raise
        if not self._well:
            _log.warning("the database is back")
        self._well = True
        return connection

    def evict(self) -> None:
        """Use none of the present connections again: the server behind them is gone or is not the right one any more."""
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()
        self._doomed |= self._used

    async def close(self) -> None:
        """Give all connections back; those in use lose their statement."""
        self._closed = True
        for connection in self._used:
            connection.terminate()
        closing, self._idle = self._idle, []
        for connection in closing:
            try:
                await connection.close(timeout=1.0)
            except (pg.PostgresError, pg.InterfaceError, OSError):
                connection.terminate()

    async def _acquire(self) -> Connection:
        while True:
            if self._closed:
                raise unavailable(None)
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    self._used.add(connection)
                    return connection
            if len(self._used) + self._connecting < self._size:
                return await self._connect_one()
            connection_or_none = await self._wait()
            if connection_or_none is not None:
                return connection_or_none

    async def _connect_one(self) -> Connection:
        self._connecting += 1
        try:
            connection = await self.connect()
        except Unavailable as error:
            waiting, self._waiting = self._waiting, deque()
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(Unavailable(error.code, error.detail))
            raise
        except BaseException:
            self._wake()
            raise
        finally:
            self._connecting -= 1
        self._used.add(connection)
        return connection

    async def _wait(self) -> Connection | None:
        """A connection handed over, or None when one may be made."""
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        self._waiting.append(waiter)
        deadline = loop.call_later(self._acquire_seconds, _give_up, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Handed over in the very moment of the cancellation.
                connection = waiter.result()
                if connection is not None:
                    self._release(connection)
                else:
                    self._wake()
            raise
        finally:
            deadline.cancel()

    def _release(self, connection: Connection) -> None:
        if connection in self._doomed:
            self._doomed.discard(connection)
            connection.terminate()
        if connection.is_closed():
            self._used.discard(connection)
            self._wake()
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._used.discard(connection)
        self._idle.append(connection)

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _failure(self, error: Exception, connection: Connection) -> Unavailable | Broken:
        sqlstate = error.sqlstate if isinstance(error, pg.PostgresError) else None
        if isinstance(error, pg.InternalClientError):
            connection.terminate()
        if connection.is_closed() or sqlstate in _WRONG_SERVER:
            self.evict()
        elif sqlstate is None and isinstance(error, pg.InterfaceError):
            return Broken(f"asyncpg refuses the call: {error}")
        elif sqlstate is not None and not sqlstate.startswith(_PASSING):
            return Broken(f"PostgreSQL refuses the statement: {sqlstate} {error}")
        return unavailable(error)


def unavailable(error: BaseException | None) -> Unavailable:
    """What a caller is told; what exactly happened is the exception's cause and the log's business."""
    if isinstance(error, pg.InvalidCatalogNameError | pg.InvalidAuthorizationSpecificationError):
        return Unavailable(Code.STORE_UNAVAILABLE, f"The database refuses estd: {error}.", retry_after_seconds=30)
    return Unavailable(Code.STORE_UNAVAILABLE, "The database cannot be reached or is too busy at the moment.")


# A server that no longer takes writes, is shutting down, has crashed, or is starting: SQLSTATE 25006, 57P01 to 57P03.
_WRONG_SERVER = frozenset({"25006", "57P01", "57P02", "57P03"})
# Classes that say nothing against the statement: connection, resources, operator, system, lock not available.
_PASSING = ("08", "53", "57", "58", "55P03")


def _give_up(waiter: _Waiter) -> None:
    if not waiter.done():
        waiter.set_exception(unavailable(None))
