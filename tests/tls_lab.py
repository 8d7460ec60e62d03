"""Both ends of a TLS connection for tests: a server around `estd.web.tls` on a loopback socket, and a client whose bytes
a test can hold back, cut up and forge."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto

from estd.web.door import Door
from estd.web.openssl import LIB
from estd.web.readiness import Readiness
from estd.web.tls import Gate, Limits, TlsServerProtocol, Watch, build_context

PATIENCE = 20.0
"""How long a test waits for something that must happen."""
EARLIER = datetime(2020, 1, 1, tzinfo=UTC)
LATER = datetime(2999, 1, 1, tzinfo=UTC)
GET = b"GET / HTTP/1.1\r\nHost: estd\r\n\r\n"


# --- certificates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """A key and the certificates that are shown with it, leaf first."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def der(self) -> tuple[bytes, ...]:
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in self.chain)

    @property
    def chain_pem(self) -> bytes:
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_identity(
    name: str,
    issuer: Identity | None = None,
    *,
    since: datetime = EARLIER,
    until: datetime = LATER,
    signed_by: ec.EllipticCurvePrivateKey | None = None,
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> Identity:
    """A self-signed certificate, or one of that issuer's followed by the issuer's chain."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.chain[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    certificate = builder.sign(signed_by or (key if issuer is None else issuer.key), hashes.SHA256())
    return Identity(key, (certificate, *(() if issuer is None else issuer.chain)))


def make_client_context(
    identity: Identity | None = None,
    *,
    version: int | None = None,
    groups: bytes | None = None,
    alpn: list[bytes] | None = None,
    key: crypto.PKey | None = None,
) -> SSL.Context:
    """A client's settings; `key` stands in for the identity's own."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if identity is not None:
        context.use_certificate(identity.chain[0])
        for certificate in identity.chain[1:]:
            context.add_extra_chain_cert(certificate)
        if key is None:
            context.use_privatekey(identity.key)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.use_privatekey(key)
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if groups is not None:
        assert LIB.SSL_CTX_set1_curves_list(context._context, groups) == 1
    if alpn is not None:
        context.set_alpn_protos(alpn)
    return context


# --- the server -------------------------------------------------------------------------------------------------------


class Floor:
    """A listening socket whose connections run through `TlsServerProtocol` into an HTTP layer of the test's."""

    def __init__(
        self, make_inner: Callable[[], asyncio.Protocol], identity: Identity, limits: Limits, source: str
    ) -> None:
        self.limits = limits
        self.gate = Gate(limits)
        self.context = build_context(identity.chain_pem, identity.key_pem)
        self.events: list[str] = []
        self.inners: list[Any] = []
        self._make_inner = make_inner
        self._listener = socket.socket()
        self._listener.bind((source, 0))
        self._listener.listen(4096)
        self.address: tuple[str, int] = self._listener.getsockname()

    async def start(self) -> None:
        self.watch = Watch(self.limits.look_seconds, self.gate.press)
        self._readiness = Readiness()
        self._door = Door(self._listener, self._readiness, self._accept)
        self._door.open()

    async def stop(self) -> None:
        self._door.close()
        for inner in self.inners:
            transport = getattr(inner, "transport", None)
            if transport is not None:
                transport.abort()
        await self.until(lambda: self.gate.connections == 0)
        assert (self.gate.handshakes, self.gate.waiting) == (0, 0)
        self._readiness.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)

    async def inner(self) -> Any:
        """The HTTP layer of the newest connection; in TLS 1.3 a client is done before its server is."""
        await self.until(lambda: bool(self.inners))
        return self.inners[-1]

    async def until_event(self, event: str) -> None:
        await self.until(lambda: event in self.events)

    def _accept(self) -> asyncio.Protocol:
        return TlsServerProtocol(
            lambda: self.context, self._inner, self.limits, self.gate, self.watch, self.events.append
        )

    def _inner(self) -> asyncio.Protocol:
        inner = self._make_inner()
        self.inners.append(inner)
        return inner


@contextlib.asynccontextmanager
async def run_floor(
    identity: Identity,
    limits: Limits | None = None,
    make_inner: Callable[[], asyncio.Protocol] | None = None,
    address: str = "127.0.0.1",
) -> AsyncIterator[Floor]:
    """A floor for the duration of a test; it must end with every connection given back."""
    floor = Floor(make_inner or make_http(), identity, limits or Limits(), address)
    await floor.start()
    try:
        yield floor
    finally:
        await floor.stop()


def make_http(answer: bytes = b"hello", seconds: float = 0.0) -> web.Server:
    """aiohttp, telling the transport of its requests as `estd.web.connection` does."""

    async def handle(request: web.BaseRequest) -> web.Response:
        transport: Any = request.transport
        assert transport is not None
        transport.request_began()
        body = await request.read()
        await asyncio.sleep(seconds)
        transport.request_ended()
        return web.Response(body=body or answer)

    return web.Server(handle, access_log=None, keepalive_timeout=3600.0, lingering_time=0.0)


class Recorder(asyncio.Protocol):
    """An HTTP layer that only takes notes."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = bytearray()
        self.eof = False
        self.lost: list[Exception | None] = []
        self.flow: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> None:
        self.eof = True

    def pause_writing(self) -> None:
        self.flow.append("pause")

    def resume_writing(self) -> None:
        self.flow.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


# --- the client -------------------------------------------------------------------------------------------------------


class Client:
    """A pyOpenSSL client over a socket of its own; every byte passes through the test's hands."""

    def __init__(self, sock: socket.socket, context: SSL.Context) -> None:
        self.sock = sock
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self._loop = asyncio.get_running_loop()
        self.closed = False
        self.received_bytes = 0
        self.raw = bytearray()

    @classmethod
    async def connect(
        cls, floor: Floor, context: SSL.Context | None = None, *, source: str | None = None, buffer: int | None = None
    ) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if source is not None:
            sock.bind((source, 0))
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, floor.address)
        return cls(sock, context or make_client_context())

    @classmethod
    async def open(cls, floor: Floor, context: SSL.Context | None = None, **kwargs: Any) -> Client:
        """Connected, and the handshake done."""
        client = await cls.connect(floor, context, **kwargs)
        await client.handshake()
        return client

    async def handshake(self, transmit: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except SSL.WantReadError:
                await self.flush(transmit)
                if not await self.fill():
                    raise ConnectionResetError("closed during the handshake") from None
            else:
                await self.flush(transmit)
                return

    async def stop_midway(self) -> None:
        """Say hello, hear the server's answer, and leave it at that."""
        with pytest.raises(SSL.WantReadError):
            self.tls.do_handshake()
        await self.flush()
        await self.fill()

    async def flush(self, transmit: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        data = self.take()
        if data:
            await (self.transmit(data) if transmit is None else transmit(data))

    def take(self) -> bytes:
        """What the client's TLS has to say and has not sent."""
        data = b""
        while True:
            try:
                data += self.tls.bio_read(65_536)
            except SSL.WantReadError:
                return data

    async def transmit(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(self.sock, data)

    async def transmit_bytewise(self, data: bytes) -> None:
        """Each byte a TCP segment of its own, as far as a kernel can be made to."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            await self.transmit(data[at : at + 1])

    async def fill(self) -> bool:
        """Feed what the server sent to the client's TLS; false at the end of the stream."""
        async with asyncio.timeout(PATIENCE):
            data = await self._loop.sock_recv(self.sock, 65_536)
        if not data:
            self.tls.bio_shutdown()
            return False
        self.received_bytes += len(data)
        self.raw += data
        self.tls.bio_write(data)
        return True

    async def send(self, data: bytes) -> None:
        self.tls.sendall(data)
        await self.flush()

    async def receive(self) -> bytes:
        """Some plaintext; empty at the server's close_notify."""
        while True:
            try:
                return self.tls.recv(65_536)
            except SSL.ZeroReturnError:
                return b""
            except SSL.WantReadError:
                if not await self.fill():
                    raise ConnectionResetError("closed without close_notify") from None

    async def receive_all(self) -> bytes:
        data = b""
        while part := await self.receive():
            data += part
        return data

    async def get(self, request: bytes = GET) -> bytes:
        """One answer with a Content-Length, its head included."""
        await self.send(request)
        return await self.receive_answer()

    async def receive_answer(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            part = await self.receive()
            assert part, data
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(body) < length:
            part = await self.receive()
            assert part
            body += part
        return head + b"\r\n\r\n" + body

    async def until_closed(self) -> bytes:
        """Raw bytes until the server closes or resets."""
        with contextlib.suppress(ConnectionResetError):
            while await self.fill():
                pass
        return bytes(self.raw)

    async def say_goodbye(self) -> None:
        self.tls.shutdown()
        await self.flush()

    def close(self) -> None:
        self.sock.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def fragment(records: bytes, size: int = 1) -> bytes:
    """The same plaintext TLS messages in records that hold `size` bytes each."""
    out = b""
    while records:
        kind, version, length = struct.unpack("!BHH", records[:5])
        body, records = records[5 : 5 + length], records[5 + length :]
        for at in range(0, length, size):
            piece = body[at : at + size]
            out += struct.pack("!BHH", kind, version, len(piece)) + piece
    return out


def read_messages(records: bytes) -> dict[int, bytes]:
    """Plaintext handshake messages (TLS 1.2) by type."""
    stream = b""
    while len(records) >= 5:
        kind, _, length = struct.unpack("!BHH", records[:5])
        if kind == 20:
            break  # what follows ChangeCipherSpec is encrypted, and any octet of it may look like a type
        if kind == 22:
            stream += records[5 : 5 + length]
        records = records[5 + length :]
    messages = {}
    while len(stream) >= 4:
        length = int.from_bytes(stream[1:4])
        messages[stream[0]] = stream[4 : 4 + length]
        stream = stream[4 + length :]
    return messages


class Forger:
    """Writes TLS 1.3 records in a client's name, from the secrets its key log gave away (AES-128-GCM, SHA-256)."""

    KEY_UPDATE = b"\x18\x00\x00\x01\x01"  # update_requested, RFC 8446 §4.6.3

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._use()

    def seal(self, content: bytes, kind: int) -> bytes:
        """One record, RFC 8446 §5.2."""
        inner = content + bytes([kind])
        head = struct.pack("!BHH", 23, 0x0303, len(inner) + 16)
        nonce = bytes(a ^ b for a, b in zip(self._iv, self._sequence.to_bytes(12), strict=True))
        self._sequence += 1
        return head + self._aead.encrypt(nonce, inner, head)

    def key_update(self) -> bytes:
        """A record that asks for an update and begins one, RFC 8446 §7.2."""
        record = self.seal(self.KEY_UPDATE, 22)
        self._secret = _expand_label(self._secret, b"traffic upd", 32)
        self._use()
        return record

    def _use(self) -> None:
        self._aead = AESGCM(_expand_label(self._secret, b"key", 16))
        self._iv = _expand_label(self._secret, b"iv", 12)
        self._sequence = 0


def _expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    full = b"tls13 " + label
    info = struct.pack("!HB", length, len(full)) + full + b"\x00"
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


async def open_forger(floor: Floor) -> tuple[Client, Forger]:
    """A client with a finished TLS 1.3 handshake, and a forger that goes on in its place."""
    context = make_client_context(version=SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
    secrets: dict[bytes, bytes] = {}

    def note(_connection: SSL.Connection, line: bytes) -> None:
        label, _, secret = line.split(b" ")
        secrets[label] = bytes.fromhex(secret.decode())

    context.set_keylog_callback(note)
    client = await Client.open(floor, context)
    return client, Forger(secrets[b"CLIENT_TRAFFIC_SECRET_0"])
