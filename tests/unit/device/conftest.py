"""A scripted EST server on loopback with real TLS, and a small CA; dates that suit any clock."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from estd.device.answers import write_pem
from estd.device.requests import write_key
from estd.keys.software import SoftwareKey

PAST = datetime(2001, 1, 1, tzinfo=UTC)
FUTURE = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class Authority:
    """A CA that signs whatever it is asked to."""

    def __init__(self, name: str, parent: Authority | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = parent or self
        self.certificate = (
            _builder(self.subject, signer.subject, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer.key, hashes.SHA256())
        )

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    ) -> x509.Certificate:
        builder = _builder(subject, self.subject, public_key)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def answer(self, request: bytes) -> x509.Certificate:
        """A certificate for that PKCS#10."""
        csr = x509.load_der_x509_csr(request)
        assert csr.is_signature_valid
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return self.issue(key, csr.subject, tuple((one.value, one.critical) for one in csr.extensions))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(PAST)
        .not_valid_after(FUTURE)
    )


def certs_only(*certificates: x509.Certificate) -> bytes:
    """What an EST server sends, made by another hand than ours."""
    return base64.b64encode(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


Handler = Callable[[web.Request], Awaitable[web.Response]]


@dataclass
class Script:
    """What the server is to answer next, and what it was asked."""

    url: str
    trust: Path
    root: Authority
    authority: Authority
    answers: list[web.Response | Handler] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str], bytes, str]] = field(default_factory=list)
    """Method, path, headers, body, common name of the client's certificate."""
    ports: set[int] = field(default_factory=set)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        assert request.transport is not None
        peer = request.transport.get_extra_info("peercert") or {}
        name = dict(pair for rdn in peer.get("subject", ()) for pair in rdn).get("commonName", "")
        self.ports.add(request.transport.get_extra_info("peername")[1])
        self.seen.append((request.method, request.path, dict(request.headers), body, name))
        if self.answers:
            answer = self.answers.pop(0)
            return answer if isinstance(answer, web.Response) else await answer(request)
        return self.usual(request.path.rsplit("/", 1)[-1], body)

    def usual(self, operation: str, body: bytes) -> web.Response:
        """A server that grants everything."""
        match operation:
            case "cacerts":
                return pkcs7_answer(certs_only(self.root.certificate, self.authority.certificate))
            case "csrattrs":
                return web.Response(status=204)
            case _:
                return pkcs7_answer(certs_only(self.authority.answer(base64.b64decode(body))))


def pkcs7_answer(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/pkcs7-mime")


@pytest.fixture
def maker() -> Authority:
    """Whoever made the device."""
    return Authority("maker")


@pytest.fixture
def device(tmp_path: Path, maker: Authority) -> tuple[Path, Path]:
    """A birth certificate and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "birth")])
    certificate, key_file = tmp_path / "birth.pem", tmp_path / "birth.key"
    certificate.write_bytes(write_pem([maker.issue(key.public_key(), name)]))
    key_file.write_bytes(write_key(SoftwareKey(key)))
    return certificate, key_file


@pytest.fixture
async def script(tmp_path: Path, maker: Authority) -> AsyncIterator[Script]:
    """The server."""
    web_authority = Authority("web")
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    chain, key_file, trust = tmp_path / "web.pem", tmp_path / "web.key", tmp_path / "trust.pem"
    chain.write_bytes(write_pem([web_authority.issue(key.public_key(), name, ((names, False),))]))
    key_file.write_bytes(write_key(SoftwareKey(key)))
    trust.write_bytes(write_pem([web_authority.certificate]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key_file)
    root = Authority("root")
    # Optional, so that the script sees the name in whatever certificate the client shows.
    context.verify_mode = ssl.CERT_OPTIONAL
    known = write_pem([root.certificate, maker.certificate]).decode()
    context.load_verify_locations(cadata=known)
    played = Script("", trust, root, Authority("issuing", root))
    app = web.Application(client_max_size=2**22)
    app.router.add_route("*", "/{path:.*}", played.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    played.url = f"https://localhost:{runner.addresses[0][1]}"
    yield played
    await runner.cleanup()


@pytest.fixture
def make_authority() -> type[Authority]:
    return Authority


@pytest.fixture
def script_free(tmp_path: Path, device: tuple[Path, Path]) -> tuple[Path, Path, Path]:
    """A trust file, a certificate and its key, with no server behind them."""
    trust = tmp_path / "some-trust.pem"
    trust.write_bytes(write_pem([Authority("somebody").certificate]))
    return trust, *device
