"""An EST client (RFC 7030) for a device: one server, one label, one credential.

What it insists on: TLS 1.2 or newer with a server certificate that leads to the trust file given and names the host
(RFC 7030 §3.3.1, §3.6.1), no redirects, a Content-Length on every request, and a certificate for the very key that was
sent. What it puts up with: base64 in any wrapping (RFC 8951 §3.1), CA certificates beside the issued one, 202, 429 and
503 with Retry-After, and a connection that breaks; the same request is then sent again, which a server answers with the
same certificate. Must not import the server's floors above `keys`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
from cryptography import x509
from yarl import URL

from estd import __version__
from estd.device.answers import (
    ServerRefused,
    TryLater,
    WrongServer,
    choose_certificate,
    read_certificates,
    read_refusal,
    read_retry_after,
    read_wanted,
)
from estd.device.requests import SigningRequest
from estd.errors import Invalid, Problem
from estd.wire.csrattrs import Wanted

ROOT: Final = "/.well-known/est"
BATCH_ROOT: Final = "/estd"
BODY_AT_MOST_BYTES: Final = 1024 * 1024
_DEFAULT_PAUSE_SECONDS: Final = 5
_BROKEN_PAUSE_SECONDS: Final = 1
_ANSWER_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 15.0
_BATCH_SILENCE_SECONDS: Final = 45.0
"""Longer than a server needs for whatever it was sent; shorter than its own patience with a batch that sends nothing."""


@dataclass(frozen=True, slots=True)
class Credential:
    """How a device shows who it is: a certificate with its key (PEM files), or a name with an enrollment code."""

    certificate: Path | None = None
    """The device's certificate, followed by its intermediates."""
    key: Path | None = None
    device: str | None = None
    code: str | None = field(default=None, repr=False)


NOBODY: Final = Credential()
"""Enough for `EstClient.cacerts` and `EstClient.csrattrs`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long to try."""

    tries: int = 5
    """Requests in all, the first one included."""
    longest_pause_seconds: int = 60
    """A server that asks for more than this is left alone: `TryLater` says how long it wanted."""


DEFAULT_PATIENCE: Final = Patience()


class EstClient:
    """A connection to one EST server. Use it as ``async with``.

    Args:
        url: ``https://host:port``; nothing else is accepted.
        trust: PEM file with the CA certificates the server's own certificate must lead to; nothing else is trusted.
        label: the ecosystem or profile on that server; None for its default one.
        credential: what to show.
        patience: how often and how long to try.
        on_wait: told about each pause: why, and how many seconds.
        sleep: pauses.

    Raises:
        Invalid: the URL or one of the files cannot be used.
    """

    def __init__(
        self,
        url: str,
        trust: Path,
        label: str | None = None,
        credential: Credential = NOBODY,
        *,
        patience: Patience = DEFAULT_PATIENCE,
        on_wait: Callable[[str, int], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._origin = read_origin(url)
        self._base = f"{ROOT}/{label}" if label else ROOT
        self._label = label or ""
        self._context = _build_context(trust, credential)
        self._authorization = _write_basic(credential)
        self._patience = patience
        self._on_wait = on_wait
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._context, limit=1, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS, sock_connect=_CONNECT_SECONDS),
            headers={"User-Agent": f"estd/{__version__}", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def cacerts(self) -> tuple[x509.Certificate, ...]:
        """RFC 7030 §4.1: the CA certificates of the ecosystem.

        Raises:
            ServerRefused, TryLater, WrongServer: see `estd.device.answers`.
        """
        return read_certificates(await self._ask("GET", "cacerts"))

    async def csrattrs(self) -> Wanted | None:
        """RFC 7030 §4.5: what a request should hold; None when the server does not say."""
        body = await self._ask("GET", "csrattrs")
        return read_wanted(body) if body else None

    async def simpleenroll(self, request: SigningRequest) -> x509.Certificate:
        """RFC 7030 §4.2.1: a certificate for the key of that request."""
        return await self._enroll("simpleenroll", request)

    async def simplereenroll(self, request: SigningRequest) -> x509.Certificate:
        """RFC 7030 §4.2.2: a successor of the certificate that this client shows in TLS."""
        return await self._enroll("simplereenroll", request)

    async def send_batch(self, lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Send lines of a batch; what the server answers meanwhile, in pieces of any size (`estd.est.batch`).

        One try, with a server that is estd: what is to be sent again is for the caller to say.

        Raises:
            ServerRefused, TryLater, WrongServer: see `estd.device.answers`; at the beginning or half-way.
        """
        assert self._session is not None, "use the client as `async with`"
        url = self._origin.with_path(f"{BATCH_ROOT}/{self._label}/batch" if self._label else f"{BATCH_ROOT}/batch")
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=_BATCH_SILENCE_SECONDS)
        with self._explained():
            async with self._session.post(
                url, data=lines, headers={"Content-Type": "text/csv"}, allow_redirects=False, timeout=timeout
            ) as response:
                if response.status != 200:
                    self._judge(response, "batch", await _read_capped(response))
                    raise WrongServer(f"the server answered a batch with status {response.status}")
                async for piece in response.content.iter_any():
                    yield piece

    async def _enroll(self, operation: str, request: SigningRequest) -> x509.Certificate:
        body = await self._ask("POST", operation, base64.b64encode(request.der))
        return choose_certificate(read_certificates(body), request.spki)

    # --- one request, as often as it takes ---------------------------------------------------------------------------

    async def _ask(self, method: str, operation: str, body: bytes | None = None) -> bytes:
        for attempt in range(1, self._patience.tries + 1):
            try:
                return await self._ask_once(method, operation, body)
            except TryLater as later:
                if attempt == self._patience.tries or later.retry_after_seconds > self._patience.longest_pause_seconds:
                    raise
                if self._on_wait is not None:
                    self._on_wait(later.detail, later.retry_after_seconds)
                await self._sleep(later.retry_after_seconds)
        raise AssertionError("the last try either answers or raises")

    async def _ask_once(self, method: str, operation: str, body: bytes | None) -> bytes:
        assert self._session is not None, "use the client as `async with`"
        headers = {}
        if body is not None:
            headers["Content-Type"] = "application/pkcs10"
            headers["Content-Transfer-Encoding"] = "base64"
            if self._authorization is not None:
                headers["Authorization"] = self._authorization
        url = self._origin.with_path(f"{self._base}/{operation}")
        with self._explained():
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return self._judge(response, operation, await _read_capped(response))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever breaks in here is told in our words."""
        try:
            yield
        except aiohttp.ClientSSLError as error:
            raise WrongServer(_explain_tls(error, self._origin)) from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if isinstance(error.__cause__, ssl.SSLError):
                # With TLS 1.3 a client certificate is refused after the handshake, so that it looks like a read error.
                raise ServerRefused(0, f"the TLS connection was refused ({error.__cause__.reason})") from None
            raise TryLater(_explain_network(error, self._origin), _BROKEN_PAUSE_SECONDS) from None

    def _judge(self, response: aiohttp.ClientResponse, operation: str, body: bytes) -> bytes:
        status, headers = response.status, response.headers
        request_id = headers.get("X-Request-Id", "")
        words = read_refusal(body) if response.content_type.startswith("text/plain") else ""
        words = words.removesuffix(f" (request {request_id})")  # estd says it in both places
        match status:
            case 200:
                return body
            case 204 | 404 if operation == "csrattrs":
                # RFC 7030 §4.5.2: either says that there are no attributes.
                return b""
            case 202 | 429 | 503:
                wait = read_retry_after(headers.get("Retry-After"), _DEFAULT_PAUSE_SECONDS, datetime.now(UTC))
                raise TryLater(words or _STATUS_WORDS[status], wait, request_id)
            case _ if 300 <= status < 400:
                # RFC 7030 §3.2.1 lets a client follow after checking the new origin; sending a code there is not worth it.
                raise WrongServer(
                    f"the server redirects to {headers.get('Location', 'nowhere')!r}; use that address if it is meant"
                )
            case _ if status >= 500:
                raise TryLater(words or f"the server failed with status {status}", _DEFAULT_PAUSE_SECONDS, request_id)
        if status == 401 and self._authorization is not None:
            words = words or "the server does not know this device name with this enrollment code"
        raise ServerRefused(
            status, words or _STATUS_WORDS.get(status, f"the server answered with status {status}"), request_id
        )


def read_origin(url: str) -> URL:
    """The server's ``https://host:port``.

    Raises:
        Invalid: anything else; without TLS there is no EST (RFC 7030 §3.3).
    """
    try:
        origin = URL(url)
    except ValueError:
        origin = URL()
    remedy = "Write https://HOST:PORT; the label has its own option."
    if origin.scheme != "https":
        raise Invalid([Problem(f"URL {url!r}", "is not an https URL", remedy)])
    if not origin.host or origin.path not in ("", "/") or origin.query_string or origin.fragment or origin.user:
        raise Invalid([Problem(f"URL {url!r}", "is more or less than a host and a port", remedy)])
    return origin.origin()


# --- private -------------------------------------------------------------------------------------------------------


def _build_context(trust: Path, credential: Credential) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # What stands in the trust file is trusted, be it a root or not (RFC 5280 §6.1.1 (d)).
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=trust)
    except ssl.SSLError:
        problem = Problem(str(trust), "holds no CA certificate", "Name the PEM file that verifies the server.")
        raise Invalid([problem]) from None
    except OSError as error:
        problem = Problem(
            str(trust), f"cannot be read ({error.strerror})", "Name the PEM file that verifies the server."
        )
        raise Invalid([problem]) from None
    if credential.certificate is not None:
        try:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(credential.certificate, credential.key, password="")
        except ssl.SSLError as error:
            what = (
                f"and {credential.key} are no certificate and key that belong together ({error.reason or 'unreadable'})"
            )
            remedy = "Name the device's certificate and its unencrypted key, both in PEM."
            raise Invalid([Problem(str(credential.certificate), what, remedy)]) from None
        except OSError as error:
            where = f"{credential.certificate}, {credential.key}"
            raise Invalid([Problem(where, f"cannot be read ({error.strerror})", "Name readable files.")]) from None
    return context


def _write_basic(credential: Credential) -> str | None:
    """RFC 7617 §2, in UTF-8."""
    if credential.code is None:
        return None
    device = credential.device or ""
    if ":" in device:
        raise Invalid([Problem(f"device {device!r}", "holds a colon", "HTTP Basic cannot carry it (RFC 7617 §2).")])
    return "Basic " + base64.b64encode(f"{device}:{credential.code}".encode()).decode("ascii")


async def _read_capped(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > BODY_AT_MOST_BYTES:
            raise WrongServer(f"the answer is longer than {BODY_AT_MOST_BYTES} bytes")
    return bytes(body)


_STATUS_WORDS: Final = {
    202: "the request is accepted and waits for approval",
    429: "the server asks for fewer requests",
    503: "the server is busy",
    401: "the server wants a credential it accepts: a client certificate, or a device name with its enrollment code",
    403: "the server knows who asks and does not allow it",
    404: "the server knows no such label or operation",
}


def _explain_tls(error: aiohttp.ClientSSLError, origin: URL) -> str:
    cause: BaseException | None = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    with contextlib.suppress(AttributeError):
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorSSLError) else cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        said = cause.verify_message.rstrip(".")
        return f"the certificate of {origin} does not pass: {said}; the trust file must be that of this server"
    said = getattr(cause, "reason", None) or str(cause)
    return f"no TLS connection to {origin}: {said}"


def _explain_network(error: Exception, origin: URL) -> str:
    if isinstance(error, TimeoutError):
        return f"{origin} did not answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the host name {origin.host!r} cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        said = os.strerror(number) if number else str(error.os_error)
        return f"{origin} cannot be reached ({said})"
    return f"the connection to {origin} broke ({type(error).__name__})"
