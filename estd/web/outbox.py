"""The way out of one connection: plaintext is encrypted no faster than the peer takes the ciphertext.

Promises: at most the high-water mark and one record of ciphertext wait in this process, however large an answer is; and
a peer that takes nothing, or next to nothing, of what waits for it is noticed within its window. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque

from estd.web.openssl import OUTPUT_BYTES, RECORD_BYTES, Connection
from estd.web.place import Limits
from estd.web.watch import NEVER


class Outbox:
    """Encrypts through one OpenSSL connection into one socket transport."""

    __slots__ = ("_limits", "_loop", "_mark", "_raw", "_tls", "_written", "backlog", "stall_at")

    def __init__(
        self, tls: Connection, raw: asyncio.Transport, limits: Limits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._tls: Connection | None = tls
        self._raw = raw
        self._limits = limits
        self._loop = loop
        self._written = 0
        self._mark = 0
        self.backlog: deque[memoryview] = deque()
        """Plaintext that waits for the peer to take what came before it."""
        self.stall_at = NEVER
        """When to ask `is_stalled`."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send plaintext, or keep what exceeds the high-water mark in `backlog`.

        Raises:
            TlsError: the connection is broken.
        """
        assert self._tls is not None
        if not data:
            return  # OpenSSL would take an empty write for a failed one
        if not self.backlog and len(data) <= RECORD_BYTES:
            self._tls.write(data)
            self.flush()
            return
        self.backlog.append(memoryview(data if isinstance(data, bytes) else bytes(data)))
        if len(self.backlog) == 1:
            self.drain()

    def drain(self) -> None:
        """Encrypt as much of the backlog as the high-water mark allows."""
        backlog, tls = self.backlog, self._tls
        assert tls is not None
        while backlog and self._raw.get_write_buffer_size() <= self._limits.high_water_bytes:
            view = backlog[0]
            sent = tls.write(view[:RECORD_BYTES])
            # After each record, so that OpenSSL's buffer, which never shrinks, holds one record and not the answer.
            self.flush()
            if sent == len(view):
                backlog.popleft()
            else:
                backlog[0] = view[sent:]

    def flush(self) -> None:
        """Hand over whatever OpenSSL has to say: records, handshake messages, alerts."""
        tls, raw = self._tls, self._raw
        assert tls is not None
        while output := tls.take():
            if not raw.get_write_buffer_size():
                self._mark = self._written
                self.stall_at = self._loop.time() + self._limits.write_stall_seconds
            self._written += len(output)
            raw.write(output)
            if len(output) < OUTPUT_BYTES:
                return

    def waiting_bytes(self) -> int:
        """What the peer has not taken yet."""
        return self._raw.get_write_buffer_size() + sum(map(len, self.backlog))

    def is_stalled(self, now: float) -> bool:
        """Whether the peer used the window that ends at `stall_at` too little; opens the next one if not."""
        waiting = self._raw.get_write_buffer_size()
        if not waiting and not self.backlog:
            self.stall_at = NEVER
            return False
        taken = self._written - waiting
        if taken - self._mark < self._limits.write_floor_bytes:
            return True
        self._mark = taken
        self.stall_at = now + self._limits.write_stall_seconds
        return False

    def release(self) -> None:
        """Nothing more is to be encrypted; let go of OpenSSL's part. What is in the transport still goes out."""
        self._tls = None
        self.backlog.clear()
