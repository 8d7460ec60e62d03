"""A database that fails on cue: a proxy before PostgreSQL that cuts links at chosen points.

It understands enough of the frontend/backend protocol to know which statement a client runs and when the server has
finished it (ReadyForQuery, which comes after the commit). So it makes both halves of every failure:

* `cut_before`: the link is cut and the statement never reached the server, failed and not persisted;
* `cut_after`: the server has committed and the answer is lost, failed but persisted.

It can also refuse everybody, cut all links at once, or go silent (the server's machine is gone, its links are not).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

_SOCKET_NAME = ".s.PGSQL.5432"


@dataclass(eq=False)
class _Link:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    prepared: dict[bytes, str] = field(default_factory=dict)
    bound: str = ""
    cut_when_ready: bool = False

    def cut(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class DatabaseProxy:
    """Stands in `directory` as a PostgreSQL server does, and passes on to the server at `upstream`."""

    def __init__(self, directory: Path, upstream: str) -> None:
        self._directory = directory
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._before: deque[str] = deque()
        self._after: deque[str] = deque()
        self._speaking = asyncio.Event()
        self._speaking.set()
        self.refusing = False
        """New connections are closed at once."""
        self.statements: list[str] = []
        """Every statement that was run, in order."""

    def url(self, database: str) -> str:
        """How to reach a database through the proxy, as estd's own role."""
        return f"postgresql://estd@/{database}?host={self._directory}"

    @property
    def links(self) -> int:
        """How many clients are connected."""
        return len(self._links)

    def cut_before(self, sql: str) -> None:
        """Cut the link of the next client that runs this statement; the server does not see it."""
        self._before.append(sql)

    def cut_after(self, sql: str) -> None:
        """Cut the link of the next client that runs this statement, when the server has finished it."""
        self._after.append(sql)

    def cut_all(self) -> None:
        """Cut every link."""
        for link in tuple(self._links):
            link.cut()

    def go_silent(self) -> None:
        """Pass nothing on, in either direction, and close nothing."""
        self._speaking.clear()

    def speak(self) -> None:
        """End the silence."""
        self._speaking.set()

    @property
    def exhausted(self) -> bool:
        """Whether every cut that was asked for has been made."""
        return not self._before and not self._after

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self._directory / _SOCKET_NAME)

    async def stop(self) -> None:
        """Cut everything and go."""
        assert self._server is not None
        self._server.close()
        self.speak()
        self.cut_all()
        await asyncio.gather(*self._serving)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        if self.refusing:
            to_client.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            to_client.transport.abort()
            return
        link = _Link(to_client, to_server)
        self._links.add(link)
        ways = [
            asyncio.create_task(self._pass_requests(link, from_client)),
            asyncio.create_task(self._pass_answers(link, from_server)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.cut()
            self._links.discard(link)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            length = await reader.readexactly(4)  # the start-up message has no type
            link.server.write(length + await reader.readexactly(struct.unpack("!i", length)[0] - 4))
            while True:
                kind, body = await _read_message(reader)
                await self._speaking.wait()
                sql = self._follow(link, kind, body)
                if sql is not None:
                    self.statements.append(sql)
                    if _take(self._before, sql):
                        return
                    link.cut_when_ready |= _take(self._after, sql)
                link.server.write(kind + struct.pack("!i", len(body) + 4) + body)

    async def _pass_answers(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, body = await _read_message(reader)
                await self._speaking.wait()
                if kind == b"Z" and link.cut_when_ready:
                    return
                if not link.cut_when_ready:
                    link.client.write(kind + struct.pack("!i", len(body) + 4) + body)

    @staticmethod
    def _follow(link: _Link, kind: bytes, body: bytes) -> str | None:
        """The statement this message makes the server run, if any."""
        if kind == b"Q":
            return body.rstrip(b"\0").decode()
        if kind == b"P":
            name, sql, _ = body.split(b"\0", 2)
            link.prepared[name] = sql.decode()
        elif kind == b"B":
            _, name, _ = body.split(b"\0", 2)
            link.bound = link.prepared[name]
        elif kind == b"E":
            return link.bound
        return None


@contextlib.asynccontextmanager
async def database_proxy(upstream: str) -> AsyncIterator[DatabaseProxy]:
    """A proxy before the server whose socket is `upstream`."""
    with tempfile.TemporaryDirectory(prefix="estd-proxy-") as directory:  # short enough for a socket
        proxy = DatabaseProxy(Path(directory), upstream)
        await proxy.start()
        try:
            yield proxy
        finally:
            await proxy.stop()


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)


def _take(cues: deque[str], sql: str) -> bool:
    if cues and cues[0] == sql:
        cues.popleft()
        return True
    return False
