"""HTTP under EST: aiohttp's low-level server turns a request into an `Exchange` and a `Reply` into a response.

The caps of this floor: no request body beyond 64 KiB, none slower than ten seconds, none with a Content-Encoding (a
decoder is an amplifier), one request at a time on a connection. What is no HTTP is answered once, in our words, and the
connection closed (RFC 9112 §2.2, §11.2). What a path means is the protocol's business.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.web_request import BaseRequest

from estd.errors import Broken, Code, Refused, Unavailable
from estd.web import metrics
from estd.wire.exchange import Exchange, Peer, Reply

_log = logging.getLogger(__name__)

BODY_AT_MOST_BYTES: Final = 64 * 1024
BODY_SECONDS: Final = 10.0
_HEAD_AT_MOST_BYTES: Final = 8190
_HEADERS_AT_MOST: Final = 64
_SERVER_NAME: Final = "estd"
_ABSOLUTE_FORM: Final = re.compile(r"https?://[^/?#]*(?=/)", re.IGNORECASE)

Protocol = Callable[[Exchange], Awaitable[tuple[str, str, Reply]]]
"""Operation, outcome and answer of one exchange; never raises."""
WriteRefusal = Callable[[Refused | Unavailable, str], Reply]


class Site:
    """Answers HTTP requests of one worker with one protocol."""

    def __init__(self, protocol: Protocol, write_refusal: WriteRefusal) -> None:
        if HttpRequestParser is HttpRequestParserPy:
            # Nearly all of aiohttp's request smuggling was in the parser it falls back to.
            raise Broken("aiohttp lacks its compiled parser; install its wheel, without AIOHTTP_NO_EXTENSIONS")
        self._protocol = protocol
        self._write_refusal = write_refusal
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        """When set, each answer closes its connection."""
        self.http = _Server(self._handle, self._turn_away)
        """Makes the protocol of a connection."""

    async def drain(self, seconds: float) -> None:
        """Let requests in hand finish, then close what is idle."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("requests were cut off by the drain deadline", extra={"requests": self._in_hand})
        self.http.pre_shutdown()  # wakes those that wait for a next request
        await self.http.shutdown(1.0)

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left before its request's turn")
        transport.request_began()  # type: ignore[attr-defined]  # estd.web.tls.TlsTransport
        self._in_hand += 1
        self._idle.clear()
        started = time.perf_counter()
        request_id = secrets.token_hex(8)
        operation, outcome = "unknown", Code.INTERNAL.value
        try:
            operation, outcome, reply = await self._answer(request, request_id)
        except (Refused, Unavailable) as reason:
            outcome = reason.code.value
            reply = self._write_refusal(reason, request_id)
        except (ConnectionError, asyncio.CancelledError):
            outcome = "gone"
            raise
        except Exception:  # noqa: BLE001  # the last resort: one request's fault must not become its neighbours'
            _log.exception("request failed", extra={"request_id": request_id, "path": request.path})
            reply = self._write_refusal(
                Refused(Code.INTERNAL, "estd could not answer; its log has this request id"), request_id
            )
        finally:
            self._in_hand -= 1
            if self._in_hand == 0:
                self._idle.set()
            transport.request_ended()  # type: ignore[attr-defined]
            metrics.count_request(operation, outcome, time.perf_counter() - started)
        response = _write_response(reply)
        if self.draining or reply.status in _CLOSING_STATUSES:
            response.force_close()
        return response

    async def _answer(self, request: BaseRequest, request_id: str) -> tuple[str, str, Reply]:
        headers = request.headers
        for name in _SINGLE_HEADERS:
            if len(headers.getall(name, ())) > 1:
                raise Refused(Code.MALFORMED_REQUEST, f"there is more than one {name} header", "RFC 9110 §5.3")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(Code.CONTENT_ENCODING, "send the body as it is, without Content-Encoding", "RFC 9110 §8.4")
        body = b""
        if request.can_read_body:
            body = await _read_body(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        peer: Peer = transport.get_extra_info("estd.peer")
        exchange = Exchange(
            method=request.method,
            path=_read_path(request.raw_path),
            headers={name.lower(): value for name, value in headers.items()},
            body=body,
            peer=peer,
            request_id=request_id,
            at=datetime.now(UTC).replace(microsecond=0),
        )
        return await self._protocol(exchange)

    def _turn_away(self, detail: str) -> web.StreamResponse:
        """The answer to what the parser refused; nobody knows where the next request would begin."""
        metrics.REQUESTS.labels("unknown", Code.MALFORMED_REQUEST.value).inc()
        refusal = Refused(Code.MALFORMED_REQUEST, f"this is no HTTP request: {detail}", "RFC 9112 §2.2")
        return _write_response(self._write_refusal(refusal, secrets.token_hex(8)))


class _Server(web.Server):
    """Makes connections whose errors are answered by `turn_away`."""

    def __init__(
        self,
        handle: Callable[[BaseRequest], Awaitable[web.StreamResponse]],
        turn_away: Callable[[str], web.StreamResponse],
    ) -> None:
        super().__init__(handle)
        self.turn_away = turn_away

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,
            tcp_keepalive=False,  # a peer that is gone runs into the TLS floor's deadlines long before
            auto_decompress=False,
            keepalive_timeout=3600.0,  # the TLS floor ends idle connections, and counts them
            max_line_size=_HEAD_AT_MOST_BYTES,
            max_field_size=_HEAD_AT_MOST_BYTES,
            max_headers=_HEADERS_AT_MOST,
            lingering_time=0.0,
            read_bufsize=BODY_AT_MOST_BYTES,
        )


class _Connection(web.RequestHandler):
    """One connection of aiohttp's, but for the words it has for what it cannot read."""

    __slots__ = ("_turn_away",)

    def __init__(self, server: _Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._turn_away = server.turn_away

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Called for bytes that are no request; what a request runs into is answered by `Site`."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client left
        if not isinstance(exc, HttpProcessingError):
            _log.error("a connection failed", exc_info=exc)
        # The parser's message goes on to quote what was sent, in several lines.
        response = self._turn_away((message or "").partition("\n")[0].rstrip(":"))
        response.force_close()
        return response


_CLOSING_STATUSES: Final = frozenset({400, 408, 411, 413})
"""After these the rest of the connection's bytes may not mean what they seem to."""


_SINGLE_HEADERS: Final = ("Authorization", "Content-Type", "Content-Encoding")
"""Two of these would leave open which one was meant."""


async def _read_body(request: BaseRequest) -> bytes:
    length = request.content_length
    if length is not None and length > BODY_AT_MOST_BYTES:
        raise _too_large()
    # RFC 9110 §10.1.1: a server must ignore the expectation of an HTTP/1.0 client.
    expectation = request.headers.get("Expect", "").lower()
    if expectation == "100-continue" and request.version >= HttpVersion11 and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if request.content.is_eof():
        body = request.content.read_nowait()  # it came with its head, so there is nothing to wait for
        if len(body) > BODY_AT_MOST_BYTES:
            raise _too_large()
        return body
    return await _receive_body(request.content)


async def _receive_body(content: StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    deadline = asyncio.timeout(BODY_SECONDS)
    try:
        async with deadline:
            while chunk := await content.readany():
                size += len(chunk)
                if size > BODY_AT_MOST_BYTES:
                    raise _too_large()
                parts.append(chunk)
    except OSError as reason:
        if isinstance(reason, TimeoutError) and deadline.expired():
            detail = f"the body did not arrive within {BODY_SECONDS:.0f} seconds"
            raise Refused(Code.REQUEST_TIMEOUT, detail, "RFC 9110 §15.5.9") from None
        raise ConnectionResetError("the client left in the middle of its request") from reason
    return b"".join(parts)


def _too_large() -> Refused:
    return Refused(Code.BODY_TOO_LARGE, f"a body may hold {BODY_AT_MOST_BYTES} bytes at most")


def _read_path(target: str) -> str:
    """The path of a request target, as sent: RFC 9112 §3.2.1, and the absolute form of §3.2.2 that servers must take."""
    if not target.startswith("/"):
        found = _ABSOLUTE_FORM.match(target)
        if found is not None:
            target = target[found.end() :]
    return target.partition("?")[0]


def _write_response(reply: Reply) -> web.Response:
    # For HEAD aiohttp sends the same head, Content-Length included, and no body (RFC 9110 §9.3.2).
    headers = dict(reply.headers)
    headers["Server"] = _SERVER_NAME
    if reply.content_type is not None:
        headers["Content-Type"] = reply.content_type
    return web.Response(status=reply.status, body=reply.body, headers=headers)
