"""A TLS connection to a running server, on which a test may write any bytes and read the answers one by one."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7
from live_server import NAME

EST = "/.well-known/est/"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The stable reason of a refusal."""
        return self.body.decode().partition(":")[0]

    @property
    def certificate(self) -> x509.Certificate:
        """The one certificate that was delivered."""
        assert self.status == 200, self.body
        (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.body))
        return certificate


class Line:
    """A connection; another one like it follows where the server said that it would close the first."""

    def __init__(
        self,
        port: int,
        trust: Path,
        certificate: Path | None = None,
        key: Path | None = None,
        *,
        name: str | None = NAME,
        version: ssl.TLSVersion | None = None,
    ) -> None:
        """`name` is the SNI, None for none; that the server's certificate is valid is checked all the same."""
        self._port = port
        self._name = name
        self._context = ssl.create_default_context(cafile=trust)
        self._context.check_hostname = False
        if version is not None:
            self._context.minimum_version = self._context.maximum_version = version
        if certificate is not None:
            self._context.load_cert_chain(certificate, key)
        self.tls = self.connect()
        self._is_over = False

    def connect(self, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        """A new connection with the same settings."""
        raw = socket.create_connection(("127.0.0.1", self._port), timeout=15)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(raw, server_hostname=self._name, session=session)

    def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.tls.sendall(data)

    def receive(self, method: str = "GET") -> Answer:
        """Read one answer."""
        response = http.client.HTTPResponse(self.tls, method=method)
        response.begin()
        body = response.read()
        self._is_over = response.will_close
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def rest(self) -> bytes:
        """Everything until the server closes."""
        data = b""
        try:
            while part := self.tls.recv(65536):
                data += part
        except (ConnectionError, ssl.SSLError, TimeoutError) as reason:
            return data + f"<{type(reason).__name__}>".encode()
        return data

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """One request and its answer."""
        fields = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **(headers or {})}
        if self._is_over:
            self.tls.close()
            self.tls = self.connect()
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.send(head.encode() + b"\r\n" + body)
        return self.receive(method)

    def enroll(
        self,
        label: str | None,
        csr: bytes,
        authorization: str | None = None,
        operation: str = "simpleenroll",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """POST a request (DER) as base64."""
        fields = {"Content-Type": "application/pkcs10", **(headers or {})}
        if authorization is not None:
            fields["Authorization"] = authorization
        path = f"{EST}{label + '/' if label else ''}{operation}"
        return self.ask("POST", path, base64.b64encode(csr), fields)

    def close(self) -> None:
        """Hang up without a word."""
        self.tls.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def basic(user: str, secret: str) -> str:
    """RFC 7617."""
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()
