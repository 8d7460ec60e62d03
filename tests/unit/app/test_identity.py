"""The server's own certificate on a real store and a real signer: issued when it has to be, and left alone when not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from factory import KEK
from one_road import SignerProcess

from estd.app.identity import ensure_certificate, ensure_ecosystem
from estd.config import Config
from estd.errors import Invalid
from estd.ra.enrollment import Enrollment
from estd.signer.client import SignerPool
from estd.store.postgres import PostgresStore

NAMES = ("localhost", "127.0.0.1")


class Server:
    """Its data directory, and everything that issues its certificate."""

    def __init__(self, store: PostgresStore, pool: SignerPool, directory: Path) -> None:
        self.store = store
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.config = Config(directory)
        self._enrollment = Enrollment(store, pool, lambda: self.now, lambda _what, _value: None)

    @property
    def chain(self) -> Path:
        return self.config.data_directory / "server.pem"

    @property
    def key(self) -> Path:
        return self.config.data_directory / "server.key"

    async def ensure(self, *names: str) -> x509.Certificate:
        """The certificate that is shown from now on; its key is beside it."""
        config = replace(self.config, tls_names=names)
        chain, key = await ensure_certificate(config, self.store, self._enrollment, self.now)
        assert (self.chain.read_bytes(), self.key.read_bytes()) == (chain, key)
        certificate = x509.load_pem_x509_certificate(chain)
        assert load_pem_private_key(key, None).public_key() == certificate.public_key()
        return certificate

    async def count(self) -> int:
        """How many were issued."""
        return len(await self.store.find_certificates(None, None, 100))


@pytest.fixture
async def server(store: PostgresStore, tmp_path: Path) -> AsyncIterator[Server]:
    await ensure_ecosystem(store, KEK)
    (record,) = await store.find_ecosystems()
    (tmp_path / "journal").mkdir(mode=0o700)
    (tmp_path / "data").mkdir()
    signer = SignerProcess(tmp_path, record)
    await signer.start()
    pool = SignerPool([signer.socket])
    try:
        yield Server(store, pool, tmp_path / "data")
    finally:
        await pool.close()
        await signer.kill()


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (("localhost", "127.0.0.1"), ("127.0.0.1", "localhost")),
        (("localhost", "2001:DB8::1"), ("localhost", "2001:db8:0:0:0:0:0:1")),
        (("0:0:0:0:0:0:0:1",), ("::1",)),
        (("CA.Plant.example",), ("ca.plant.EXAMPLE",)),
        (("*.plant.example", "::ffff:192.0.2.1"), ("*.plant.example", "::ffff:c000:201")),
    ],
    ids=["order", "address", "shortened address", "case", "wildcard and mapped address"],
)
async def test_one_certificate_is_kept_however_its_names_are_spelled(
    server: Server, names: tuple[str, ...], others: tuple[str, ...]
) -> None:
    certificate = await server.ensure(*names)
    assert await server.ensure(*names) == certificate
    assert await server.ensure(*others) == certificate
    assert await server.count() == 1


async def test_it_says_what_the_settings_say(server: Server) -> None:
    certificate = await server.ensure("localhost", "2001:DB8::1")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("2001:db8::1")]
    root = x509.load_pem_x509_certificate((server.config.data_directory / "server-trust.pem").read_bytes())
    certificate.verify_directly_issued_by(root)


@pytest.mark.parametrize(
    "others",
    [("localhost",), ("localhost", "127.0.0.2"), (*NAMES, "::1"), ("127.0.0.1", "elsewhere")],
    ids=["one less", "another address", "one more", "another host"],
)
async def test_other_names_are_another_certificate(server: Server, others: tuple[str, ...]) -> None:
    first = await server.ensure(*NAMES)
    second = await server.ensure(*others)
    assert second != first
    assert await server.ensure(*others) == second
    assert await server.count() == 2


async def test_a_third_of_its_life_is_left_for_who_has_to_notice(server: Server) -> None:
    first = await server.ensure(*NAMES)
    life = first.not_valid_after_utc - first.not_valid_before_utc
    server.now = first.not_valid_before_utc + life * 2 / 3 - timedelta(seconds=1)
    assert await server.ensure(*NAMES) == first
    server.now += timedelta(seconds=1)
    assert await server.ensure(*NAMES) != first


def write_foreign(server: Server, names: list[x509.GeneralName] | None) -> None:
    """A certificate with its key that looks like ours but for its names."""
    present = x509.load_pem_x509_certificate(server.chain.read_bytes())
    key = load_pem_private_key(server.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(present.subject)
        .issuer_name(present.issuer)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(present.not_valid_before_utc)
        .not_valid_after(present.not_valid_after_utc)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    server.chain.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def make_pem_of_nothing() -> bytes:
    return b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda server: server.chain.unlink(),
        lambda server: server.key.unlink(),
        lambda server: server.chain.write_bytes(b""),
        lambda server: server.chain.write_bytes(make_pem_of_nothing()),
        lambda server: server.key.write_bytes(server.key.read_bytes()[:60]),
        lambda server: server.key.write_bytes(server.chain.read_bytes()),
        lambda server: write_foreign(server, None),
        lambda server: write_foreign(server, [x509.DNSName("localhost"), x509.DirectoryName(x509.Name([]))]),
        lambda server: write_foreign(server, [x509.DNSName("not a name")]),
    ],
    ids=[
        "no certificate",
        "no key",
        "empty",
        "no certificate in it",
        "half a key",
        "a certificate for a key",
        "no names",
        "names of another kind",
        "a name that is none",
    ],
)
async def test_what_cannot_be_shown_is_made_anew(server: Server, damage: object) -> None:
    first = await server.ensure(*NAMES)
    assert callable(damage)
    damage(server)
    second = await server.ensure(*NAMES)
    assert second != first
    assert await server.ensure(*NAMES) == second


async def test_a_key_of_another_certificate_is_replaced_with_it(server: Server) -> None:
    await server.ensure(*NAMES)
    kept = server.key.read_bytes()
    server.chain.unlink()
    second = await server.ensure(*NAMES)
    server.key.write_bytes(kept)
    assert await server.ensure(*NAMES) != second


async def test_what_is_no_name_is_a_wrong_setting(server: Server) -> None:
    with pytest.raises(Invalid) as caught:
        await server.ensure("localhost", "not a name")
    (problem,) = caught.value.problems
    assert problem.where == "tls.names"
    assert not server.chain.exists()


async def test_one_name_twice_is_one_name(server: Server) -> None:
    certificate = await server.ensure("::1", "0:0:0:0:0:0:0:1", "localhost", "LOCALHOST")
    assert await server.ensure("localhost", "::1") == certificate


async def test_the_operators_own_is_read_as_it_is(server: Server, tmp_path: Path) -> None:
    await server.ensure(*NAMES)
    own = replace(server.config, tls_certificate=tmp_path / "own.pem", tls_key=server.key)
    with pytest.raises(Invalid) as caught:
        await ensure_certificate(own, server.store, server._enrollment, server.now)
    assert caught.value.problems[0].where == f"tls: {tmp_path / 'own.pem'}"
    chain = b"as the operator has it\n" + server.chain.read_bytes()
    (tmp_path / "own.pem").write_bytes(chain)
    assert await ensure_certificate(own, server.store, server._enrollment, server.now) == (
        chain,
        server.key.read_bytes(),
    )
    assert await server.count() == 1


async def test_the_first_ecosystem_wants_the_key_that_seals(store: PostgresStore) -> None:
    with pytest.raises(Invalid, match="no ecosystem yet"):
        await ensure_ecosystem(store, None)
    await ensure_ecosystem(store, KEK)
    (first,) = await store.find_ecosystems()
    await ensure_ecosystem(store, None)
    assert await store.find_ecosystems() == [first]
