"""A connection whose handshake is done: an `asyncio.Transport` for the HTTP layer over a socket's transport.

Promises: a deadline for a request's head, for the pause between requests and for a peer that does not read; flow control
both ways; close_notify on every orderly end, and a missing one told apart (RFC 8446 §6.1, RFC 5246 §7.2.1). Must not
import aiohttp.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Any, Final, cast

from estd.web.farewell import Farewell
from estd.web.openssl import RECORD_BYTES, Connection, TlsError
from estd.web.outbox import Outbox
from estd.web.place import Limits, Place
from estd.web.tls_events import Event, Observe
from estd.web.tls_session import TlsSession
from estd.web.watch import NEVER, Watch
from estd.wire.exchange import HOME, Peer

_log = logging.getLogger(__name__)

# The dearest honest traffic is one byte a record: 22 bytes of TLS 1.3 around each byte of plaintext.
_OVERHEAD_PER_BYTE: Final = 32


class _State(enum.Enum):
    HEAD = enum.auto()  # a request's head is expected or under way
    BUSY = enum.auto()  # the HTTP layer works on a request
    IDLE = enum.auto()  # between requests


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """Towards the socket a protocol, towards the HTTP layer a transport.

    Besides `asyncio.Transport` the HTTP layer calls `request_began` when a request's head is complete, `request_came` when
    the whole of it is in hand and `request_ended` when its answer is decided. `get_extra_info` knows ``estd.peer`` (the
    `Peer`, one per connection), ``estd.tls`` (the `TlsSession`) and what the socket's own transport knows.
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_deadline",
        "_held",
        "_inner",
        "_inner_is_paused",
        "_limits",
        "_loop",
        "_loss",
        "_observe",
        "_outbox",
        "_overhead",
        "_peer",
        "_peer_is_done",
        "_place",
        "_raw",
        "_raw_is_full",
        "_reading",
        "_session",
        "_state",
        "_tls",
        "_watch",
        "awaits_peer",
    )

    def __init__(
        self,
        raw: asyncio.Transport,
        tls: Connection,
        session: TlsSession,
        peer: Peer,
        place: Place,
        limits: Limits,
        watch: Watch,
        observe: Observe,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._raw = raw
        self._tls: Connection | None = tls
        self._session = session
        self._peer = peer
        self._place = place
        self._limits = limits
        self._watch = watch
        self._observe = observe
        self._outbox = Outbox(tls, raw, limits, self._loop)
        # None before `open` and once the HTTP layer was told, or is about to be told, that the connection is lost.
        self._inner: asyncio.Protocol | None = None
        self._state = _State.HEAD
        self.awaits_peer = True
        """Until a whole request is in hand: whether all there is to do is to wait for the peer's first."""
        self._deadline = NEVER
        self._closing = False
        self._peer_is_done = False
        self._loss: Exception | None = None
        self._reading = True
        self._held = b""
        self._overhead = 0
        self._raw_is_full = False
        self._inner_is_paused = False

    def open(self, inner: asyncio.Protocol, unread_bytes: int, rest: bytes | memoryview) -> None:
        """Take the socket over and let the HTTP layer begin.

        A client may send its first request in the segment of its Finished: some of the last `unread_bytes` that were
        given to OpenSSL may be records of ours, and `rest` are such that were not given to it.
        """
        self._inner = inner
        self._overhead = unread_bytes
        self._raw.set_write_buffer_limits(high=self._limits.high_water_bytes)
        self._raw.set_protocol(self)
        self._deadline = self._loop.time() + self._limits.header_seconds
        self._watch.add(self)
        inner.connection_made(self)
        if self._tls is not None and self._tls.has_input():
            self.data_received(b"")
        if rest:
            self.data_received(rest)

    # --- towards the socket: asyncio.Protocol -----------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview) -> None:
        """Records from the peer. Between two pieces of a record's size the HTTP layer may have said pause, or close."""
        try:
            if len(data) <= RECORD_BYTES:
                self._decrypt(data)
                return
            view = memoryview(data)
            for start in range(0, len(data), RECORD_BYTES):
                self._decrypt(view[start : start + RECORD_BYTES])
        except Exception:  # noqa: BLE001 -- a fault of ours or of the HTTP layer's costs this connection and no other
            _log.exception("connection dropped", extra={"peer": self._peer.address})
            self._drop(Event.EVICTED_INTERNAL)

    def eof_received(self) -> bool:
        """The peer closed its direction of the socket; true keeps ours open."""
        if self._peer_is_done:
            # It said so before by close_notify: what it asked for is still answered.
            return self._closing or self._state is _State.BUSY
        # RFC 8446 §6.1: without close_notify the end may be an attacker's, so a request cut short is not a request.
        self._observe(Event.TRUNCATED)
        self._loss = ConnectionAbortedError("the peer closed the connection without close_notify")
        self._closing = True
        self._deadline = NEVER
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone: give everything back."""
        self._place.leave()
        inner = self._release()
        if inner is not None:
            inner.connection_lost(exc or self._loss)

    def pause_writing(self) -> None:
        """The socket's buffer is above its high-water mark."""
        self._raw_is_full = True
        self._pause_inner()

    def resume_writing(self) -> None:
        """The socket's buffer has drained."""
        self._raw_is_full = False
        self._drain()

    # --- towards the HTTP layer: asyncio.Transport ------------------------------------------------------------------

    def request_began(self) -> None:
        """A request's head is complete; from here the HTTP layer answers for its own time."""
        self._state = _State.BUSY
        self._deadline = NEVER
        self._place.work()

    def request_came(self) -> None:
        """The whole request is in hand; what comes next is the answer."""
        self.awaits_peer = False

    def request_ended(self) -> None:
        """The answer is decided and about to be written."""
        self._state = _State.IDLE
        home = self._peer.memo.get(HOME)
        if home is not None:
            self._place.belongs(home)
        if self._inner is None:
            return
        if self._peer_is_done:
            self._deadline = self._loop.time() + self._limits.linger_seconds
        else:
            self._deadline = self._loop.time() + self._limits.idle_seconds
            self._place.rest(self)

    def place_revoked(self) -> None:
        """`estd.web.place.Idler`: somebody else needs our place."""
        self._observe(Event.EVICTED_IDLE_FOR_ROOM)
        self._loop.call_soon(self.close)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``estd.peer``, ``estd.tls``, ``sslcontext`` (for whoever asks whether this is TLS), or the socket's.

        The socket itself is not for the HTTP layer, which would only set the option that the event loop has set.
        """
        if name == "estd.peer":
            return self._peer
        if name == "estd.tls" or name == "sslcontext":
            return self._session
        if name == "socket":
            return default
        return self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the plaintext to another protocol."""
        self._inner = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that gets the plaintext."""
        assert self._inner is not None
        return self._inner

    def is_closing(self) -> bool:
        """Whether writing is pointless."""
        return self._closing

    def close(self) -> None:
        """Send what was written, then close_notify, then end the connection."""
        if self._closing:
            return
        self._closing = True
        self._deadline = NEVER  # until the backlog is gone the write window is the bound
        if not self._outbox.backlog:
            self._end()
        elif self._raw.is_reading():
            self._raw.pause_reading()  # nobody is left to read it; the farewell listens for the peer's end

    def abort(self) -> None:
        """End the connection now, whatever waits; `connection_lost` follows."""
        self._closing = True
        self._raw.abort()

    def is_reading(self) -> bool:
        """Whether plaintext is handed up."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Hand up no more plaintext, and let TCP slow the peer down."""
        self._reading = False
        if self._raw.is_reading() and not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Undo `pause_reading`; what was held comes on the loop's next turn, never inside this call."""
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._resume)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send, or keep for when the peer has taken what came before."""
        if self._closing:
            return
        try:
            self._outbox.write(data)
        except TlsError as error:
            self._break(error)
            return
        if self._outbox.backlog:
            self._pause_inner()
            self._drain_soon()

    def can_write_eof(self) -> bool:
        """TLS has no half-close that HTTP/1.1 could use."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The socket's own limits, which `Limits.high_water_bytes` set before."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken."""
        return self._outbox.waiting_bytes()

    # --- reading ----------------------------------------------------------------------------------------------------

    def _decrypt(self, data: bytes | memoryview) -> None:
        tls, inner = self._tls, self._inner
        if tls is None or inner is None or self._closing:
            return
        if not self._reading:
            self._held += data
            return
        if data:
            tls.feed(data)
        parts: list[bytes] = []
        failure: TlsError | None = None
        try:
            while part := tls.read():
                parts.append(part)
                if not tls.has_input():
                    break
            if part == b"":
                self._peer_is_done = True
        except TlsError as error:
            failure = error
        plaintext = parts[0] if len(parts) == 1 else b"".join(parts)
        # A KeyUpdate, a renegotiation attempt and an empty record cost us work and bring nothing; an honest peer's
        # plaintext pays for the overhead of its records.
        self._overhead = max(0, self._overhead + len(data) - _OVERHEAD_PER_BYTE * len(plaintext))
        if self._overhead > self._limits.silent_bytes:
            self._drop(Event.EVICTED_SILENT_FLOOD)
            return
        if plaintext:
            if self._state is _State.IDLE:
                self._state = _State.HEAD
                self._deadline = self._loop.time() + self._limits.header_seconds
                self._place.work()
            inner.data_received(plaintext)
            if self._tls is None:
                return
        elif failure is None:
            self._outbox.flush()  # the answer to a KeyUpdate or to a renegotiation attempt
        if failure is not None:
            self._break(failure)
        elif self._peer_is_done:
            self._bow_out()

    def _resume(self) -> None:
        if not self._reading or self._inner is None:
            return
        held, self._held = self._held, b""
        self.data_received(held)
        if self.is_reading() and not self._raw.is_reading() and not self._raw.is_closing():
            self._raw.resume_reading()

    def _bow_out(self) -> None:
        """The peer sent close_notify. A request in hand is still answered, as RFC 8446 §6.1 allows."""
        if self._inner is not None and not self._inner.eof_received() and self._state is not _State.BUSY:
            self.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        if self._inner is None:
            return
        try:
            self._outbox.drain()
        except TlsError as error:
            self._break(error)
            return
        if self._outbox.backlog:
            self._drain_soon()
        elif self._closing:
            self._end()
        elif self._inner_is_paused and not self._raw_is_full:
            self._inner_is_paused = False
            self._inner.resume_writing()

    def _drain_soon(self) -> None:
        # Some loops hold a write back to the end of their turn. Then the buffer was full without `pause_writing`, and
        # nobody would say that it has drained.
        if not self._raw_is_full:
            self._loop.call_soon(self._drain)

    def _pause_inner(self) -> None:
        if not self._inner_is_paused and self._inner is not None:
            self._inner_is_paused = True
            self._inner.pause_writing()

    # --- ending -----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Say close_notify."""
        assert self._tls is not None
        try:
            self._tls.shut_down()
            self._outbox.flush()
        except TlsError:
            pass  # OpenSSL has already given the connection up and sent its alert
        self._part()

    def _break(self, error: TlsError) -> None:
        """The stream is broken, by an alert of the peer's or by bytes that are no record of this connection."""
        self._observe(Event.PEER_ALERT if " alert " in error.reasons else Event.EVICTED_BROKEN_RECORD)
        self._loss = ConnectionAbortedError("the TLS connection broke")
        try:
            self._outbox.flush()
        except TlsError:
            pass  # then there is no alert to send
        self._part()

    def _part(self) -> None:
        """Nothing more is said: the HTTP layer is done with this connection, and the socket gets its farewell."""
        self._closing = True
        if self._peer_is_done and not self._raw.get_write_buffer_size():
            self._raw.close()  # both have said that they are done, and nothing is on its way
            return
        Farewell(self._raw, self._place, self._limits, self._watch, self._observe).begin(
            peer_is_done=self._peer_is_done
        )
        inner = self._release()
        if inner is not None:
            self._loop.call_soon(inner.connection_lost, self._loss)

    def _drop(self, event: Event) -> None:
        """End the connection without a word."""
        self._observe(event)
        self.abort()

    def _release(self) -> asyncio.Protocol | None:
        self._closing = True
        self._watch.remove(self)
        self._session.release()
        self._outbox.release()
        self._held = b""
        self._tls = None
        inner, self._inner = self._inner, None
        return inner

    # --- deadlines --------------------------------------------------------------------------------------------------

    @property
    def due(self) -> float:
        """See `estd.web.watch.Watched`."""
        return min(self._deadline, self._outbox.stall_at)

    def look(self, now: float) -> None:
        """A deadline has passed."""
        if now >= self._outbox.stall_at and self._outbox.is_stalled(now):
            self._drop(Event.EVICTED_WRITE_STALL)
        elif now >= self._deadline:
            if not self._peer_is_done:
                self._observe(Event.EVICTED_HEADER if self._state is _State.HEAD else Event.EVICTED_IDLE)
            self.close()
