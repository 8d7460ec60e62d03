"""An answer that goes out as it comes into being, for the few operations whose answers have no bound (`Reply.stream`).

Promises: nothing more is asked of its maker while the client does not take what is there, so no more than one part of it
waits here; the maker is closed whatever happens. Without the last chunk, which is not sent here, the client knows that
the answer is not whole (RFC 9112 §7.1). Must not import aiohttp.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from estd.web.response import write_response
from estd.wire.exchange import Reply


class Way(Protocol):
    """What an answer goes out by: a transport."""

    def write(self, data: bytes, /) -> None:
        """Send it."""


class AnswerStream:
    """One answer on its way. The connection tells it whether the client reads.

    Args:
        way: where it goes.
        can_write: whether the client takes what it is sent.
        is_old: whether the client speaks HTTP/1.0, which has no chunks: its answer is whole when the connection ends.
    """

    __slots__ = ("_can_write", "_is_left", "_is_old", "_news", "_way")

    def __init__(self, way: Way, *, can_write: bool, is_old: bool) -> None:
        self._way = way
        self._can_write = can_write
        self._is_old = is_old
        self._is_left = False
        self._news: asyncio.Future[None] | None = None

    async def send(self, reply: Reply) -> bool:
        """Send the head and then each part of `reply.stream`; false if the client left before the end.

        Raises:
            Exception: what the maker of the answer raises, or `write_response`.
        """
        stream = reply.stream
        assert stream is not None
        try:
            if not self._is_left:
                self._way.write(write_response(reply, is_last=False, is_old=self._is_old))
            async for part in stream:
                while not self._can_write and not self._is_left:
                    self._news = asyncio.get_running_loop().create_future()
                    await self._news
                if self._is_left:
                    return False
                self._way.write(part if self._is_old else b"%x\r\n%b\r\n" % (len(part), part))
        finally:
            await stream.aclose()
        return True

    def pause(self) -> None:
        """The client does not take what it was sent."""
        self._can_write = False

    def resume(self) -> None:
        """It does again."""
        self._can_write = True
        self._wake()

    def leave(self) -> None:
        """The client is gone: what comes now is for nobody."""
        self._is_left = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        self._news = None
