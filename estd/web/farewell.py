"""The end of a connection after its last byte was handed to the socket.

Closing a socket that still has unread bytes resets it, and the reset may destroy an answer or an alert that the peer has
not read yet. So only our direction is closed at first; what the peer still sends is read and forgotten, for a bounded
time and up to a bounded size. Knows neither TLS nor HTTP.
"""

from __future__ import annotations

import asyncio

from estd.web.place import Limits, Place
from estd.web.tls_events import Event, Observe
from estd.web.watch import NEVER, Watch


class Farewell(asyncio.Protocol):
    """Takes over a socket's transport and sees it closed."""

    __slots__ = ("_allowed", "_limits", "_loop", "_observe", "_patience", "_place", "_raw", "_waiting", "_watch", "due")

    def __init__(self, raw: asyncio.Transport, place: Place, limits: Limits, watch: Watch, observe: Observe) -> None:
        self._raw = raw
        self._place = place
        self._limits = limits
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._watch = watch
        self.due = NEVER
        self._waiting = raw.get_write_buffer_size()
        self._patience = 0.0
        self._allowed = limits.linger_bytes

    def begin(self, *, peer_is_done: bool) -> None:
        """Close our direction; both, where the peer has already said that it is done."""
        raw = self._raw
        raw.set_protocol(self)
        now = self._loop.time()
        self._patience = now + self._limits.write_stall_seconds
        self.due = now + self._limits.linger_seconds
        self._watch.add(self)
        if raw.is_closing():
            return
        if peer_is_done or not raw.can_write_eof():
            raw.close()
            return
        try:
            raw.write_eof()
        except OSError:
            raw.abort()  # the peer has reset it meanwhile
            return
        if not raw.is_reading():
            raw.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Too late: nobody is left to read it. Whoever sends without end does not listen for our last words either."""
        self._allowed -= len(data)
        if self._allowed < 0:
            self._leave()

    def eof_received(self) -> bool:
        """The peer is done as well."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._watch.remove(self)
        self._place.leave()

    def look(self, now: float) -> None:
        """A peer that took everything has had its time; one that still reads gets more, as long as it does read."""
        waiting = self._raw.get_write_buffer_size()
        if not waiting:
            self._leave()
            return
        if self._waiting - waiting >= self._limits.write_floor_bytes:
            self._waiting = waiting
            self._patience = now + self._limits.write_stall_seconds
        if now >= self._patience:
            self._observe(Event.EVICTED_WRITE_STALL)
            self._leave()
            return
        self.due = min(now + self._limits.linger_seconds, self._patience)

    def _leave(self) -> None:
        self.due = NEVER
        self._raw.abort()
