"""TLS between a socket and the HTTP layer: pyOpenSSL through memory buffers, under asyncio or uvloop.

A connection is three protocols in turn: `TlsServerProtocol` here, from the accepted socket to the finished handshake;
`estd.web.tls_transport`, which carries the requests; `estd.web.farewell`, which sees the socket closed.

Promises: nothing is handed up before a handshake within `Limits`; every wait on the peer has a deadline; neither side can
make the other hold more than a bounded number of bytes; close_notify is sent on every orderly end (RFC 8446 §6.1,
RFC 5246 §7.2.1); no bytes from outside raise an exception into the event loop; a closed connection lets go of
everything. The certificates presented are handed up in `Peer` and judged elsewhere (`estd.ra.admission`).
Must not import a protocol, aiohttp or the standard library's `ssl`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from OpenSSL import SSL

from estd.web.farewell import Farewell
from estd.web.gate import Gate
from estd.web.openssl import OUTPUT_BYTES, RECORD_BYTES, Connection, TlsError
from estd.web.place import Limits, Place, Refusal, read_source
from estd.web.socket_transport import SocketTransport
from estd.web.tls_context import build_context
from estd.web.tls_events import Event, Observe, read_failure
from estd.web.tls_session import TlsSession
from estd.web.tls_transport import TlsTransport
from estd.web.watch import NEVER, Watch
from estd.wire.exchange import Peer

__all__ = [
    "Event",
    "Gate",
    "Limits",
    "Observe",
    "Refusal",
    "TlsServerProtocol",
    "TlsSession",
    "Watch",
    "build_context",
]

_log = logging.getLogger(__name__)

_HANDSHAKE_RECORD: Final = 0x16
_HEADER_BYTES: Final = 5
_ALERT_UNEXPECTED_MESSAGE: Final = b"\x15\x03\x03\x00\x02\x02\x0a"
_PLAIN_HTTP_TEXT: Final = b"This port speaks TLS. Use https:// instead of http://.\n"
_PLAIN_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    % (len(_PLAIN_HTTP_TEXT), _PLAIN_HTTP_TEXT)
)


class TlsServerProtocol(asyncio.Protocol):
    """A connection up to its finished handshake; `estd.web.door.Door` takes a function that makes these.

    Args:
        current_context: asked at each handshake's start, so a renewed certificate serves from the next connection on.
        make_inner: makes the HTTP layer's protocol, once the handshake is done.
        limits: deadlines and caps.
        watch: looks at the deadlines.
        gate: counts the connections and handshakes of this worker.
        observe: hears of each `Event` and `Refusal`.
    """

    __slots__ = (
        "_address",
        "_current_context",
        "_early",
        "_flight",
        "_gate",
        "_hello",
        "_is_over",
        "_limits",
        "_loop",
        "_make_inner",
        "_observe",
        "_place",
        "_raw",
        "_received",
        "_tls",
        "_watch",
        "due",
    )

    def __init__(
        self,
        current_context: Callable[[], SSL.Context],
        make_inner: Callable[[], asyncio.Protocol],
        limits: Limits,
        gate: Gate,
        watch: Watch,
        observe: Observe,
    ) -> None:
        self._current_context = current_context
        self._make_inner = make_inner
        self._limits = limits
        self._gate = gate
        self._watch = watch
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._address = ""
        self._raw: asyncio.Transport | None = None
        self._place: Place | None = None
        self.due = NEVER
        """See `estd.web.watch.Watched`."""
        self._early = b""  # of a first record that is not whole yet
        self._hello: bytes | None = None  # held while it waits for its turn
        self._flight: bytes | None = None  # held while others go on
        self._tls: Connection | None = None
        self._received = 0
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A socket was accepted; the gate decides whether it stays."""
        raw = cast(asyncio.Transport, transport)
        self._raw = raw
        self._address, source = read_source(raw.get_extra_info("peername"))
        place = self._gate.enter(source, self)
        if isinstance(place, Refusal):
            self._drop(place)
            return
        self._place = place
        self.due = self._loop.time() + self._limits.handshake_seconds
        self._watch.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer, whatever they are."""
        try:
            if self._flight is not None:
                self._flight += data  # what was on its way when reading was paused
            elif self._tls is not None:
                self._go_on(self._tls, data)
            elif not self._is_over:
                self._greet(data)
        except Exception:  # noqa: BLE001 -- a fault of ours or of the HTTP layer's costs this connection and no other
            self._drop_as_broken()

    def eof_received(self) -> bool:
        """The peer gave up."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone before the handshake was done."""
        if not self._is_over:
            self._observe(Event.FAILED_GONE)
            self._finish()
        if self._place is not None:
            self._place.leave()
        self._raw = None

    def look(self, _now: float) -> None:
        """The handshake took too long."""
        self._drop(Event.EVICTED_HANDSHAKE)

    def handshake_granted(self) -> None:
        """`estd.web.place.Guest`: our turn has come."""
        self._loop.call_soon(self._start_held)

    def handshake_resumed(self) -> None:
        """`estd.web.place.Guest`: the crowd before us has had its turn."""
        flight, self._flight = self._flight, None
        if flight is None or self._tls is None or self._raw is None:
            return  # it gave up meanwhile
        self._raw.resume_reading()
        try:
            self._advance(self._tls, flight)
        except Exception:  # noqa: BLE001 -- as in data_received
            self._drop_as_broken()

    def handshake_revoked(self) -> None:
        """`estd.web.place.Guest`: somebody else needs our place."""
        self._drop(Event.EVICTED_FOR_ROOM)

    def _greet(self, data: bytes) -> None:
        """The first bytes: what is not TLS is turned away before any cryptography, and what is waits for its turn."""
        assert self._raw is not None
        assert self._place is not None
        if self._early:
            data = self._early + data
        if data[0] != _HANDSHAKE_RECORD:
            is_http = 0x41 <= data[0] <= 0x5A  # every HTTP method begins with a capital letter
            self._raw.write(_PLAIN_HTTP if is_http else _ALERT_UNEXPECTED_MESSAGE)
            self._part(Event.FAILED_PLAIN_HTTP if is_http else Event.FAILED_NOT_TLS)
            return
        if len(data) < _HEADER_BYTES or len(data) < _HEADER_BYTES + min(int.from_bytes(data[3:5]), RECORD_BYTES):
            # A turn is for whoever has sent a whole record; at an octet a second it would be held for nothing.
            self._early = data
            return
        self._early = b""
        turn = self._place.begin()
        if turn is True:
            self._start(data)
        elif turn is not False:
            self._drop(turn)
        elif len(data) > self._limits.hello_bytes:
            self._drop(Event.FAILED_TOO_MUCH)
        else:
            self._hello = data
            self._raw.pause_reading()

    def _start_held(self) -> None:
        hello, self._hello = self._hello, None
        if hello is None or self._raw is None:
            return  # it gave up between the grant and now
        self._raw.resume_reading()
        try:
            self._start(hello)
        except Exception:  # noqa: BLE001 -- as in data_received
            self._drop_as_broken()

    def _go_on(self, tls: Connection, data: bytes) -> None:
        assert self._raw is not None
        assert self._place is not None
        if self._place.proceed():
            self._advance(tls, data)
        else:
            self._flight = data
            self._raw.pause_reading()

    def _start(self, hello: bytes) -> None:
        self._tls = Connection(self._current_context())
        self._advance(self._tls, hello)

    def _advance(self, tls: Connection, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._limits.handshake_bytes:
            self._drop(Event.FAILED_TOO_MUCH)
            return
        rest: bytes | memoryview = data if len(data) <= RECORD_BYTES else memoryview(data)
        while rest:
            # In pieces, so that what follows the handshake is not decrypted before anybody can count it.
            piece, rest = rest[:RECORD_BYTES], rest[RECORD_BYTES:]
            tls.feed(piece)
            try:
                is_finished = tls.handshake()
            except TlsError as error:
                self._flush(tls)  # the alert that says why
                self._part(read_failure(error.reasons))
                return
            self._flush(tls)
            if is_finished:
                self._hand_over(tls, len(piece), rest)
                return

    def _hand_over(self, tls: Connection, last_bytes: int, rest: bytes | memoryview) -> None:
        """The handshake is done: requests are another object's work."""
        raw, place, limits = self._raw, self._place, self._limits
        assert raw is not None
        assert place is not None
        session = TlsSession(tls)
        certificates = session.certificates
        if len(certificates) > limits.certificates or sum(map(len, certificates)) > limits.certificate_bytes:
            tls.shut_down()
            self._flush(tls)
            self._part(Event.FAILED_CERTIFICATES_TOO_BIG)
            return
        self._finish()
        self._observe(Event.HANDSHAKE_OK)
        peer = Peer(self._address, certificates, session)
        transport = TlsTransport(raw, tls, session, peer, place, limits, self._watch, self._observe)
        transport.open(self._make_inner(), last_bytes, rest)
        if transport.awaits_peer and isinstance(raw, SocketTransport):
            raw.look_again()

    def _flush(self, tls: Connection) -> None:
        assert self._raw is not None
        while flight := tls.take():
            self._raw.write(flight)
            if len(flight) < OUTPUT_BYTES:
                return

    def _part(self, event: Event) -> None:
        """End it so that the peer can read why."""
        assert self._raw is not None
        assert self._place is not None
        self._finish()
        self._observe(event)
        Farewell(self._raw, self._place, self._limits, self._watch, self._observe).begin(peer_is_done=False)

    def _drop_as_broken(self) -> None:
        _log.exception("connection dropped", extra={"peer": self._address})
        self._drop(Event.EVICTED_INTERNAL)

    def _drop(self, event: Event | Refusal) -> None:
        """End it without a word."""
        self._finish()
        self._observe(event)
        if self._raw is not None:
            self._raw.abort()

    def _finish(self) -> None:
        self._is_over = True
        self._watch.remove(self)
        if self._place is not None:
            self._place.end()
        self._hello = self._flight = None
        self._early = b""
        self._tls = None
