"""A request's body that is handed on as it comes, for the few operations that take one of any length.

Promises: no more than `HELD_AT_MOST_BYTES` and what one read of the socket brings wait here, whatever the client sends and
however slowly it is taken: TCP holds the rest back. A client that sends nothing for `SILENCE_SECONDS` is told so. The
server may end the body early when it wants to stop. Must not import aiohttp.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from estd.errors import Code, Refused

HELD_AT_MOST_BYTES: Final = 64 * 1024
SILENCE_SECONDS: Final = 60.0


class Tap(Protocol):
    """What lets bytes in: a transport."""

    def pause_reading(self) -> None:
        """Let none in."""

    def resume_reading(self) -> None:
        """Let them in again."""


class BodyStream:
    """Implements `estd.wire.exchange.Incoming`. The connection feeds it, the protocol reads it."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._is_paused = False
        self._is_ended = False
        self._is_stopping = False
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    @property
    def is_stopping(self) -> bool:
        """See `Incoming.is_stopping`."""
        return self._is_stopping

    @property
    def is_whole(self) -> bool:
        """Whether all of the body came."""
        return self._is_ended

    async def read(self) -> bytes:
        """See `Incoming.read`."""
        while True:
            if self._is_stopping:
                return b""
            if self._parts:
                return self._take()
            if self._failure is not None:
                raise self._failure
            if self._is_ended:
                return b""
            self._news.clear()
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                detail = f"nothing came for {SILENCE_SECONDS:.0f} seconds"
                raise Refused(Code.REQUEST_TIMEOUT, detail, "RFC 9110 §15.5.9") from None

    def feed(self, data: bytes) -> None:
        """More came."""
        if not data or self._is_stopping:
            return
        self._parts.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD_AT_MOST_BYTES and not self._is_paused:
            self._is_paused = True
            self._tap.pause_reading()
        self._news.set()

    def end(self) -> None:
        """That was all."""
        self._is_ended = True
        self._news.set()

    def fail(self, reason: Exception) -> None:
        """No more will come, and that was not all."""
        if not self._is_ended and self._failure is None:
            self._failure = reason
            self._news.set()

    def stop(self) -> None:
        """Take no more, because the server wants to stop."""
        if not self._is_ended:
            self._is_stopping = True
            self._news.set()

    def leave(self) -> None:
        """Nobody reads it any more: what comes behind it is not held back for its sake."""
        if self._is_paused:
            self._take()

    def _take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self._held_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._tap.resume_reading()
        return data
