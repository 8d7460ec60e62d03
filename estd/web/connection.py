"""One HTTP connection: aiohttp's parser turns bytes into requests, and here a request becomes an `Exchange`.

The caps of this floor: no request body beyond 64 KiB and none slower than ten seconds, unless the protocol takes it as it
comes (`estd.web.stream`); no head beyond 32 KiB; none with a Content-Encoding (a decoder is an amplifier); one request at a
time on a connection. What comes behind the one in hand (RFC 9112 §9.3.2) waits unparsed, and beyond 16 KiB of it nothing
is read. What is no HTTP is answered once, in our words, and the connection closed (RFC 9112 §2.2, §11.2). What a path means
is the protocol's business.

Only aiohttp's parser is used, not its request handler: that one serves files, web sockets and streams, and what it keeps
for them cost a sixth of a worker's time (docs/decisions.md).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from aiohttp import HttpVersion11, StreamReader
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage

from estd.errors import Broken, Code, Refused, Unavailable
from estd.web import metrics
from estd.web.answer_stream import AnswerStream
from estd.web.head import BODY_AT_MOST_BYTES, check_head, make_parser, read_path, say_why, too_large
from estd.web.response import write_response
from estd.web.stream import BodyStream
from estd.wire.exchange import Exchange, Peer, Reply

_log = logging.getLogger(__name__)

BODY_SECONDS: Final = 10.0
MUTE_AT_MOST_BYTES: Final = 32 * 1024
"""Of a head or of what surrounds a body's bytes (chunk extensions, trailers), until the parser has something to tell."""
BEHIND_AT_MOST_BYTES: Final = 16 * 1024
"""Behind a request in hand, beyond which nothing is read; below that the end of the connection is noticed at once."""


class _Site(Protocol):
    """What a connection knows of its `estd.web.site.Site`."""

    connections: set[Connection]
    draining: bool

    def protocol(self, exchange: Exchange, /) -> Awaitable[tuple[str, str, Reply]]: ...
    def write_refusal(self, reason: Refused | Unavailable, request_id: str, /) -> Reply: ...
    def takes_stream(self, method: str, path: str, /) -> bool: ...
    def note_refusal(self, exchange: Exchange, reason: Refused, /) -> str: ...
    def request_began(self) -> None: ...
    def request_ended(self) -> None: ...


class Connection(asyncio.Protocol):
    """One connection: a request is read whole, answered, and only then comes the next."""

    __slots__ = (
        "_answer_stream",
        "_behind",
        "_body_deadline",
        "_body_parts",
        "_can_write",
        "_is_busy",
        "_is_over",
        "_is_paused",
        "_message",
        "_mute_bytes",
        "_parser",
        "_payload",
        "_peer_is_done",
        "_request_id",
        "_site",
        "_started",
        "_stream",
        "_task",
        "_transport",
    )

    def __init__(self, site: _Site) -> None:
        self._site = site
        self._parser = make_parser()
        self._transport: Any = None  # estd.web.tls_transport.TlsTransport
        self._behind = b""  # what came behind the request in hand, or before its answer could go out
        self._is_paused = False  # because that is enough
        self._mute_bytes = 0  # parsed without anything to show for it
        self._message: RawRequestMessage | None = None
        self._payload: StreamReader | None = None  # while the body is on its way
        self._body_parts: list[bytes] = []
        self._body_deadline: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._request_id = ""
        self._started = 0.0
        self._is_busy = False
        self._is_over = False
        self._peer_is_done = False
        self._can_write = True
        self._stream: BodyStream | None = None  # while the protocol takes the body as it comes
        self._answer_stream: AnswerStream | None = None  # while an answer goes out as it comes into being

    # --- towards the TLS floor: asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        self._transport = transport
        self._site.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Plaintext, in whatever pieces."""
        if self._is_over:
            return
        if self._payload is not None or (self._can_write and not self._is_busy):
            self._parse(data)
            return
        # Nobody has use for it before the answer is out. The request in hand has come whole, so it does not wait for this.
        self._behind += data
        if len(self._behind) > BEHIND_AT_MOST_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The client sends no more, and mostly reads no more: what is in hand is answered, what waits behind it is not."""
        if self._payload is not None:
            self._end_as_gone()
            self.close()
        else:
            self._behind = b""
            self._peer_is_done = True
            if not self._is_busy:
                self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or was answered and let go."""
        self._site.connections.discard(self)
        self._is_over = True
        self._behind = b""
        if self._payload is not None:
            self._end_as_gone()
        if self._answer_stream is not None:
            self._answer_stream.leave()
        # What the protocol does for this client goes on: a certificate under way is recorded and waits for the retry.

    def pause_writing(self) -> None:
        """The client does not take what it was sent."""
        self._can_write = False
        if self._answer_stream is not None:
            self._answer_stream.pause()

    def resume_writing(self) -> None:
        """It does again."""
        self._can_write = True
        if self._answer_stream is not None:
            self._answer_stream.resume()
        self._go_on()

    # --- one request -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; a request that is still in hand is lost to it."""
        self._is_over = True
        if self._answer_stream is not None:
            self._answer_stream.leave()
        if self._transport is not None:
            self._transport.close()

    def stop_stream(self) -> None:
        """Take no more of a body that comes as a stream: the protocol ends its answer."""
        if self._stream is not None:
            self._stream.stop()

    def _parse(self, data: bytes) -> None:
        """Read on in the request that is on its way, or in what may become the next."""
        try:
            messages, _, _ = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._turn_away(say_why(error))
            return
        if messages:
            self._mute_bytes = 0
            self._begin(*messages[0])  # there is one at most
        elif self._payload is None or not self._read_body():
            self._mute_bytes += len(data)
            if self._mute_bytes > MUTE_AT_MOST_BYTES:
                self._turn_away(f"more than {MUTE_AT_MOST_BYTES} bytes of it are neither a whole head nor a body")

    def _go_on(self) -> None:
        """Turn to what came behind the request that was answered, if there is a way for the next answer."""
        if self._is_busy or self._is_over or not self._can_write:
            return
        self._parse(b"")  # what the parser kept
        if self._behind and not self._is_over and (self._payload is not None or not self._is_busy):
            behind, self._behind = self._behind, b""
            self._parse(behind)
        if self._is_paused and not self._behind and not self._is_over:
            self._is_paused = False
            self._transport.resume_reading()

    def _begin(self, message: RawRequestMessage, payload: StreamReader) -> None:
        self._transport.request_began()
        self._site.request_began()
        self._is_busy = True
        self._message = message
        self._request_id = next(_REQUEST_IDS)
        self._started = time.perf_counter()
        is_stream = self._site.takes_stream(message.method, read_path(message.path))
        try:
            check_head(message, has_cap=not is_stream)
        except Refused as reason:
            self._refuse(reason)
            return
        if is_stream:
            self._stream = BodyStream(self._transport)
            if self._site.draining:
                self._stream.stop()
            self._payload = payload
            self._agree_to_body(message)
            self._start(b"")
            self._read_body()
            return
        if payload.is_eof() or message.method == "CONNECT":  # whose payload is no body (RFC 9110 §9.3.6)
            body = payload.read_nowait()
            if len(body) > BODY_AT_MOST_BYTES:
                self._refuse(too_large())
            else:
                self._start(body)
            return
        self._payload = payload
        self._agree_to_body(message)
        self._body_deadline = asyncio.get_running_loop().call_later(BODY_SECONDS, self._miss_deadline)
        self._read_body()

    def _agree_to_body(self, message: RawRequestMessage) -> None:
        # RFC 9110 §10.1.1: a server must ignore the expectation of an HTTP/1.0 client.
        if message.headers.get("Expect", "").lower() == "100-continue" and message.version >= HttpVersion11:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read_body(self) -> bool:
        """Take what came of the body; false if that was nothing."""
        payload = self._payload
        assert payload is not None
        part = payload.read_nowait()
        if part:
            self._mute_bytes = 0
        if self._stream is not None:
            self._stream.feed(part)
            if payload.is_eof():
                self._stream.end()
                self._payload = None
            return bool(part) or self._payload is None
        self._body_parts.append(part)
        if payload.total_bytes > BODY_AT_MOST_BYTES:
            self._take_body()
            self._refuse(too_large())
        elif payload.is_eof():
            self._start(self._take_body())
        return bool(part) or self._payload is None

    def _take_body(self) -> bytes:
        assert self._body_deadline is not None
        self._body_deadline.cancel()
        self._body_deadline = self._payload = None
        body, self._body_parts = b"".join(self._body_parts), []
        return body

    def _miss_deadline(self) -> None:
        self._take_body()
        detail = f"the body did not arrive within {BODY_SECONDS:.0f} seconds"
        self._refuse(Refused(Code.REQUEST_TIMEOUT, detail, "RFC 9110 §15.5.9"))

    def _give_up_body(self) -> None:
        """What came is no body."""
        if self._stream is not None:
            self._payload = None
            self._stream.fail(Refused(Code.MALFORMED_REQUEST, "the body is cut short or garbled", "RFC 9112 §7.1"))
            return
        self._take_body()
        self._is_busy = False
        self._site.request_ended()
        self._transport.request_ended()

    def _end_as_gone(self) -> None:
        """The client left in the middle of its request."""
        if self._stream is not None:
            self._payload = None
            self._stream.fail(ConnectionResetError("the client left in the middle of its request"))
            return
        self._take_body()
        self._finish("unknown", "gone")

    def _start(self, body: bytes) -> None:
        if self._stream is None:
            self._transport.request_came()
        self._task = asyncio.get_running_loop().create_task(self._answer(body))

    async def _answer(self, body: bytes) -> None:
        exchange = self._write_exchange(body)
        operation, outcome = "unknown", Code.INTERNAL.value
        try:
            operation, outcome, reply = await self._site.protocol(exchange)
        except (Refused, Unavailable) as reason:
            outcome = reason.code.value
            reply = self._site.write_refusal(reason, self._request_id)
        except asyncio.CancelledError:
            self._finish(operation, "gone")
            raise
        except Exception:  # noqa: BLE001  # the last resort: one request's fault must not become its neighbours'
            _log.exception("request failed", extra={"request_id": self._request_id, "path": exchange.path})
            reply = self._site.write_refusal(_fault(), self._request_id)
        if reply.stream is not None:
            await self._send_stream(operation, outcome, reply)
        else:
            # A body of any length that nobody took is not worth waiting for.
            self._reply(operation, outcome, reply, is_last=self._stream is not None and not self._stream.is_whole)

    def _write_exchange(self, body: bytes) -> Exchange:
        message = self._message
        assert message is not None
        peer: Peer = self._transport.get_extra_info("estd.peer")
        at = datetime.now(UTC).replace(microsecond=0)
        path = read_path(message.path)
        return Exchange(message.method, path, message.headers, body, peer, self._request_id, at, self._stream)

    async def _send_stream(self, operation: str, outcome: str, reply: Reply) -> None:
        message = self._message
        assert message is not None
        is_old = message.version < HttpVersion11
        self._answer_stream = AnswerStream(self._transport, can_write=self._can_write, is_old=is_old)
        if self._is_over:
            self._answer_stream.leave()
        try:
            if not await self._answer_stream.send(reply):
                outcome = "gone"
        except Exception:  # noqa: BLE001  # as for every request
            _log.exception("request failed", extra={"request_id": self._request_id, "operation": operation})
            outcome = Code.INTERNAL.value
        self._answer_stream = None
        is_whole = self._stream is None or self._stream.is_whole
        is_last = is_old or not is_whole or self._is_last(message) or outcome != "ok"
        self._finish(operation, outcome)
        if self._is_over:
            return
        if outcome == "ok" and not is_old:
            self._transport.write(b"0\r\n\r\n")
        if is_last:
            self.close()
        else:
            self._go_on()

    def _refuse(self, reason: Refused) -> None:
        """Refuse what has not come whole: nothing behind it can be a request."""
        operation = self._site.note_refusal(self._write_exchange(b""), reason)
        reply = self._site.write_refusal(reason, self._request_id)
        self._reply(operation, reason.code.value, reply, is_last=True)

    def _reply(self, operation: str, outcome: str, reply: Reply, *, is_last: bool = False) -> None:
        message = self._message
        assert message is not None
        is_last = is_last or self._is_last(message) or reply.status in _CLOSING_STATUSES
        is_old, is_head = message.version < HttpVersion11, message.method == "HEAD"
        try:
            octets = write_response(reply, is_last=is_last, is_old=is_old, is_head=is_head)
        except (Broken, UnicodeError):
            _log.exception("an answer cannot be written", extra={"request_id": self._request_id})
            outcome, is_last = Code.INTERNAL.value, True
            refusal = self._site.write_refusal(_fault(), self._request_id)
            octets = write_response(refusal, is_last=True, is_old=is_old, is_head=is_head)
        self._finish(operation, outcome)
        if self._is_over:
            return
        self._transport.write(octets)
        if is_last:
            self.close()
        else:
            self._go_on()

    def _is_last(self, message: RawRequestMessage) -> bool:
        """Whether the connection ends with this request; behind one that asks for another protocol there is no telling."""
        return message.should_close or message.upgrade or self._peer_is_done or self._site.draining

    def _finish(self, operation: str, outcome: str) -> None:
        self._is_busy = False
        self._message = self._task = None
        if self._stream is not None:
            self._stream.leave()
        self._stream = self._payload = None
        self._parser.message_consumed()
        self._site.request_ended()
        self._transport.request_ended()
        metrics.count_request(operation, outcome, time.perf_counter() - self._started)

    def _turn_away(self, detail: str) -> None:
        """What comes is no HTTP, and nobody knows where the next request would begin."""
        if self._payload is not None:
            self._give_up_body()
        if self._is_busy:
            return  # with a streamed body; its answer is the last
        metrics.count_request("unknown", Code.MALFORMED_REQUEST.value)
        refusal = Refused(Code.MALFORMED_REQUEST, f"this is no HTTP request: {detail}", "RFC 9112 §2.2")
        request_id, at = next(_REQUEST_IDS), datetime.now(UTC).replace(microsecond=0)
        peer: Peer = self._transport.get_extra_info("estd.peer")
        self._site.note_refusal(Exchange("", "", {}, b"", peer, request_id, at), refusal)
        reply = self._site.write_refusal(refusal, request_id)
        self._transport.write(write_response(reply, is_last=True))
        self.close()


_CLOSING_STATUSES: Final = frozenset({400, 408, 411, 413})
"""After these the rest of the connection's bytes may not mean what they seem to."""


def _draw_request_ids() -> Iterator[str]:
    """Sixteen random hexadecimal digits each; the system is asked for many at once, because asking is what costs."""
    while True:
        drawn = secrets.token_hex(512)
        for at in range(0, len(drawn), 16):
            yield drawn[at : at + 16]


_REQUEST_IDS: Final = _draw_request_ids()


def _fault() -> Refused:
    return Refused(Code.INTERNAL, "estd could not answer; its log has this request id")
