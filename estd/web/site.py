"""HTTP under EST as one worker serves it: its connections, its requests in hand, and an orderly end to both.

Promises: a drain lets what is in hand, and what is on its way already, have its answer before a connection is closed, and
ends at its deadline. What a request says is `estd.web.connection`'s business, and what its path means the protocol's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from estd.errors import Broken, Refused, Unavailable
from estd.web.connection import Connection
from estd.wire.exchange import Exchange, Reply

_log = logging.getLogger(__name__)

_DRAIN_LOOK_SECONDS: Final = 0.02

Protocol = Callable[[Exchange], Awaitable[tuple[str, str, Reply]]]
"""Operation, outcome and answer of one exchange; never raises."""
WriteRefusal = Callable[[Refused | Unavailable, str], Reply]


class Site:
    """Answers HTTP requests of one worker with one protocol."""

    def __init__(
        self,
        protocol: Protocol,
        write_refusal: WriteRefusal,
        takes_stream: Callable[[str, str], bool] = lambda _method, _path: False,
        note_refusal: Callable[[Exchange, Refused], str] = lambda _exchange, _reason: "unknown",
    ) -> None:
        """Args:
        protocol: answers whole requests.
        write_refusal: writes what is answered where there is none.
        takes_stream: whether, by method and path, the protocol wants the body as it comes, whatever its length.
        note_refusal: told of what was refused before it was a whole request; names the operation.
        """
        if HttpRequestParser is HttpRequestParserPy:
            # Nearly all of aiohttp's request smuggling was in the parser it falls back to.
            raise Broken("aiohttp lacks its compiled parser; install its wheel, without AIOHTTP_NO_EXTENSIONS")
        self.protocol = protocol
        self.write_refusal = write_refusal
        self.takes_stream = takes_stream
        self.note_refusal = note_refusal
        self.connections: set[Connection] = set()
        self.draining = False
        """When set, each answer closes its connection."""
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def http(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return Connection(self)

    async def drain(
        self, seconds: float, grace_seconds: float = 0.0, is_quiet: Callable[[], bool] = lambda: True
    ) -> None:
        """Let requests in hand, and those about to come, finish; then close what is idle.

        Args:
            seconds: for all of it.
            grace_seconds: for clients that keep their connection: the next request is answered, with Connection: close.
            is_quiet: whether every connection has finished its handshake and had the answer to its first request.
        """
        self.draining = True
        for connection in self.connections:
            connection.stop_stream()
        try:
            async with asyncio.timeout(seconds):
                if self.connections:
                    await asyncio.sleep(grace_seconds)
                # One look at least: what the kernel and the loop hold, no protocol has been told of yet.
                await asyncio.sleep(_DRAIN_LOOK_SECONDS)
                while self._in_hand or not is_quiet():
                    await self._idle.wait()
                    await asyncio.sleep(_DRAIN_LOOK_SECONDS)
        except TimeoutError:
            if self._in_hand:
                _log.warning("requests were cut off by the drain deadline", extra={"requests": self._in_hand})
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)  # they say goodbye on the loop's next turn

    def request_began(self) -> None:
        """A request's head is complete."""
        self._in_hand += 1
        self._idle.clear()

    def request_ended(self) -> None:
        """Its answer is decided."""
        self._in_hand -= 1
        if self._in_hand == 0:
            self._idle.set()
