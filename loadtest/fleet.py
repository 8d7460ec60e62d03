"""Prepared devices for load: keys, birth certificates and CSRs made before the clock runs, and a lean EST client.

The client is blocking pyOpenSSL in threads: it costs about as much CPU as a C client, and releases the interpreter during
cryptography, so that a measured run is about the server.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

_LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_FOREVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its IDevID, that key, and the bodies of the requests it will send (base64 PKCS #10)."""

    name: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    bodies: tuple[bytes, ...]


@dataclass(slots=True)
class Tally:
    """What came back."""

    ok: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    certificates: list[bytes] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take over another tally."""
        self.ok += other.ok
        for reason, count in other.failures.items():
            self.failures[reason] = self.failures.get(reason, 0) + count
        self.seconds.extend(other.seconds)
        self.certificates.extend(other.certificates)


def make_devices(maker_certificate: Path, maker_key: Path, count: int, requests_each: int) -> list[Device]:
    """Devices of one maker, each with that many different CSRs (a fresh P-256 key for each)."""
    issuer = x509.load_pem_x509_certificate(maker_certificate.read_bytes())
    issuer_key = serialization.load_pem_private_key(maker_key.read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    run = os.urandom(4).hex()
    return [make_device(issuer, issuer_key, f"load-{run}-{index}", requests_each) for index in range(count)]


def make_authority(key: ec.EllipticCurvePrivateKey, name: str) -> x509.Certificate:
    """A maker's CA certificate."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_LONG_AGO)
        .not_valid_after(_FOREVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def make_device(
    issuer: x509.Certificate, issuer_key: ec.EllipticCurvePrivateKey, name: str, requests_each: int
) -> Device:
    """One device of that maker."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.SERIAL_NUMBER, name), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    bodies = []
    for _ in range(requests_each):
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(subject)
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )
        bodies.append(base64.b64encode(csr.public_bytes(serialization.Encoding.DER)))
    return Device(name, certificate, key, tuple(bodies))


def read_body(body: bytes) -> bytes:
    """The DER request of one body."""
    return base64.b64decode(body)


def make_context(trust: x509.Certificate, device: Device | None) -> SSL.Context:
    """TLS as this device speaks it; made once and kept, so that a connection costs the generator little."""
    context = _CONTEXTS.get((trust, None if device is None else device.name))
    if context is None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(trust))
        context.set_verify(SSL.VERIFY_PEER, None)
        if device is not None:
            context.use_certificate(device.certificate)
            context.use_privatekey(device.key)
        _CONTEXTS[trust, None if device is None else device.name] = context
    return context


_CONTEXTS: dict[tuple[x509.Certificate, str | None], SSL.Context] = {}


class Connection:
    """One TLS connection of one device."""

    def __init__(self, address: tuple[str, int], trust: x509.Certificate, device: Device | None) -> None:
        self._socket = socket.create_connection(address, timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # pyOpenSSL wants a blocking socket without a Python timeout; the kernel's own timeout takes its place.
        self._socket.settimeout(None)
        self._tls = SSL.Connection(make_context(trust, device), self._socket)
        self._tls.set_connect_state()
        self._tls.do_handshake()
        self._host = f"{address[0]}:{address[1]}".encode()

    def request(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> tuple[int, bytes]:
        """Status and body of one exchange."""
        head = b"%s %s HTTP/1.1\r\nHost: %s\r\n%s" % (method.encode(), path.encode(), self._host, headers)
        if body:
            head += b"Content-Type: application/pkcs10\r\nContent-Length: %d\r\n" % len(body)
        self._tls.sendall(head + b"\r\n" + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._tls.recv(16384)
        head, _, rest = received.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(rest) < length:
            rest += self._tls.recv(16384)
        return int(head.split(b" ", 2)[1]), rest

    def close(self) -> None:
        """Say goodbye and close."""
        try:
            self._tls.shutdown()
        except SSL.Error:
            pass  # the server closed first
        self._socket.close()


def enroll_all(
    address: tuple[str, int],
    trust: x509.Certificate,
    path: str,
    devices: Sequence[Device],
    *,
    threads: int,
    keep: bool,
) -> tuple[Tally, float]:
    """Send every body of every device once; a new connection for each request unless `keep`. Tally and wall seconds."""
    queue = list(devices)
    for device in devices:
        make_context(trust, device)
    lock = threading.Lock()
    total = Tally()

    def work() -> None:
        mine = Tally()
        while True:
            with lock:
                if not queue:
                    total.add(mine)
                    return
                device = queue.pop()
            connection: Connection | None = None
            for body in device.bodies:
                started = time.perf_counter()
                try:
                    if connection is None:
                        connection = Connection(address, trust, device)
                    status, answer = connection.request("POST", path, body)
                except (SSL.Error, OSError) as error:
                    mine.failures[type(error).__name__] = mine.failures.get(type(error).__name__, 0) + 1
                    connection = None
                    continue
                mine.seconds.append(time.perf_counter() - started)
                if status == 200:
                    mine.ok += 1
                    mine.certificates.append(answer)
                else:
                    mine.failures[str(status)] = mine.failures.get(str(status), 0) + 1
                if not keep:
                    connection.close()
                    connection = None
            if connection is not None:
                connection.close()

    started = time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return total, time.perf_counter() - started
