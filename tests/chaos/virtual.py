"""Virtual devices: thousands of them in one asyncio process, each with its own certificate, name and patience.

A device costs this process about a millisecond for each call, since OpenSSL is driven through memory buffers as the server
does it, keys come from a pool of a few hundred, and everything a device will say is made before anything is measured.
Each device has a source address of its own choice, all of 127.0.0.0/8 being this machine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from OpenSSL import SSL, crypto
from stage import fleet

PATIENCE_SECONDS: Final = 30.0
"""How long a device waits for an answer, from its first packet on."""
_READ_BYTES: Final = 32_768


@dataclass(slots=True)
class Device:
    """One device. `certificate` is what it shows: first its birth certificate, later what it was given."""

    name: str
    certificate: bytes
    key: ec.EllipticCurvePrivateKey
    body: bytes
    source: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call: a status and headers, or why there is no answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    fault: str = ""
    """Why there is none: ``refused``, ``reset``, ``timeout``, ``tls`` or ``cut``."""
    before_tls: bool = False
    """Whether that happened before the handshake was finished."""

    @property
    def certificate(self) -> bytes:
        """The DER of the one certificate in it."""
        (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.body))
        return certificate.public_bytes(serialization.Encoding.DER)


def make_devices(maker: tuple[Path, Path], count: int, sources: Sequence[str], keys: int = 256) -> list[Device]:
    """So many devices of one maker, each with a name and a birth certificate of its own."""
    issuer, issuer_key = fleet.read_maker(*maker)
    pool = [ec.generate_private_key(ec.SECP256R1()) for _ in range(min(keys, count))]
    run = x509.random_serial_number()
    devices = []
    for number in range(count):
        key = pool[number % len(pool)]
        name = f"herd-{run % 10**8}-{number}"
        certificate = fleet.make_birth_certificate(issuer, issuer_key, name, key)
        devices.append(
            Device(
                name,
                certificate.public_bytes(serialization.Encoding.DER),
                key,
                fleet.make_body(certificate.subject, key),
                sources[number % len(sources)],
            )
        )
    return devices


def make_bodies(device: Device, count: int) -> list[bytes]:
    """So many requests of one device, each by a key of its own."""
    subject = x509.load_der_x509_certificate(device.certificate).subject
    return [fleet.make_body(subject, ec.generate_private_key(ec.SECP256R1())) for _ in range(count)]


def make_sources(block: int, count: int) -> list[str]:
    """So many addresses of this machine, the same for the same block (1 to 254)."""
    return [f"127.{block}.{number // 250}.{number % 250 + 1}" for number in range(count)]


def give_way() -> None:
    """Let the server go first, for the rest of this process's life: real devices have processors of their own.

    The kernel may share processors between sessions before it shares them between a session's processes (sched(7),
    autogroup), so this process leaves the session of whoever started it, and the niceness is its new session's too.
    """
    os.setsid()
    os.nice(19)
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")


class Dialler:
    """Makes connections to one server."""

    def __init__(self, address: tuple[str, int], trust: x509.Certificate) -> None:
        self.address = address
        self.host = f"{address[0]}:{address[1]}".encode()
        self._context = fleet.make_new_context(trust, None)
        self._keys: dict[int, crypto.PKey] = {}

    def make_tls(self, device: Device | None) -> SSL.Connection:
        """A client's end, over memory buffers."""
        tls = SSL.Connection(self._context, None)
        tls.set_connect_state()
        if device is not None:
            key = self._keys.get(id(device.key))
            if key is None:
                key = self._keys[id(device.key)] = crypto.PKey.from_cryptography_key(device.key)
            certificate = crypto.load_certificate(crypto.FILETYPE_ASN1, device.certificate)
            tls.use_certificate(certificate)
            tls.use_privatekey(key)
        return tls

    async def open(self, device: Device | None, source: str) -> Line:
        """A connection whose handshake is done.

        Raises:
            Lost: there is none.
        """
        line = Line(self.make_tls(device))
        try:
            await asyncio.get_running_loop().create_connection(lambda: line, *self.address, local_addr=(source, 0))
        except ConnectionRefusedError:
            raise Lost("refused", before_tls=True) from None
        except OSError:
            raise Lost("reset", before_tls=True) from None
        await line.handshake()
        return line

    async def call(self, device: Device, path: str, seconds: float = PATIENCE_SECONDS) -> Answer:
        """One request on a connection of its own."""
        line: Line | None = None
        try:
            async with asyncio.timeout(seconds):
                line = await self.open(device, device.source)
                return await line.ask(self.write_request(path, device.body))
        except Lost as fault:
            return Answer(fault=fault.reason, before_tls=fault.before_tls)
        except TimeoutError:
            return Answer(fault="timeout", before_tls=line is None)
        finally:
            if line is not None:
                line.close()

    def write_request(self, path: str, body: bytes) -> bytes:
        """A request for a certificate."""
        return b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n%b" % (
            path.encode(),
            self.host,
            len(body),
            body,
        )


class Lost(Exception):
    """The connection is over, and what was waited for has not come."""

    def __init__(self, reason: str, *, before_tls: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.before_tls = before_tls


class Line(asyncio.Protocol):
    """One TLS connection of a device."""

    __slots__ = ("_is_ready", "_over", "_received", "_tls", "_wake", "is_open", "raw")

    def __init__(self, tls: SSL.Connection) -> None:
        self._tls = tls
        self.raw: asyncio.Transport | None = None
        self._received = bytearray()
        self._is_ready = False
        self._over = ""
        self._wake: asyncio.Future[None] | None = None
        self.is_open = True
        """Whether the server has neither closed it nor said that it will."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def data_received(self, data: bytes) -> None:
        self._tls.bio_write(data)
        try:
            self._advance()
        except SSL.ZeroReturnError:
            self._end("cut")
        except SSL.Error:
            self._end("tls")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("reset" if exc is not None else "cut")

    async def handshake(self) -> None:
        self._advance()
        while not self._is_ready:
            await self._wait(before_tls=True)

    async def ask(self, request: bytes) -> Answer:
        """One request and its answer."""
        self._tls.sendall(request)
        self._flush()
        while b"\r\n\r\n" not in self._received:
            await self._wait()
        head, _, _ = bytes(self._received).partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        whole = len(head) + 4 + int(headers.get("content-length", "0"))
        while len(self._received) < whole:
            await self._wait()
        body = bytes(self._received[len(head) + 4 : whole])
        del self._received[:whole]
        if headers.get("connection", "").lower() == "close":
            self.is_open = False
        return Answer(int(lines[0].split(" ")[1]), headers, body)

    def send_plain(self, data: bytes) -> None:
        """Octets of a request, whatever they are."""
        self._tls.sendall(data)
        self._flush()

    def close(self) -> None:
        """Say goodbye, and be gone."""
        if self.raw is None:
            return
        if not self._over:
            try:
                self._tls.shutdown()
                self._flush()
            except SSL.Error:
                pass  # it was over already
            self._over = "closed"
        self.raw.close()

    def _advance(self) -> None:
        if not self._is_ready:
            try:
                self._tls.do_handshake()
                self._is_ready = True
            except SSL.WantReadError:
                pass
            self._flush()
        if self._is_ready:
            try:
                while part := self._tls.recv(_READ_BYTES):
                    self._received += part
            except SSL.WantReadError:
                pass
        if (self._is_ready or self._received) and self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _flush(self) -> None:
        try:
            while part := self._tls.bio_read(_READ_BYTES):
                assert self.raw is not None
                self.raw.write(part)
        except SSL.WantReadError:
            pass

    def _end(self, reason: str) -> None:
        self._over = self._over or reason
        self.is_open = False
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _wait(self, *, before_tls: bool = False) -> None:
        if self._over:
            raise Lost(self._over, before_tls=before_tls)
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake
        self._wake = None
