from __future__ import annotations

import warnings
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto
from tls_lab import EARLIER, LATER, Client, Floor, Identity, make_client_context, make_identity, run_floor

from estd.web.openssl import LIB
from estd.web.place import Limits
from estd.web.tls import TlsSession
from estd.web.tls_events import Event
from estd.wire.exchange import Channel, Peer

SERVER = make_identity("estd")
ROOT = make_identity("maker root", extensions=(x509.BasicConstraints(ca=True, path_length=None),))
ISSUER = make_identity("maker issuer", ROOT)
VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])


def peer_of(floor: Floor) -> Peer:
    peer = floor.inners[-1].transport.get_extra_info("estd.peer")
    assert isinstance(peer, Peer)
    return peer


def without_rest(identity: Identity) -> Identity:
    return Identity(identity.key, identity.chain[:1])


# --- the certificates presented ---------------------------------------------------------------------------------------

PRESENTED = {
    "self-signed": make_identity("device"),
    "expired": make_identity("device", without_rest(ROOT), until=datetime(2020, 6, 1, tzinfo=UTC)),
    "not yet valid": make_identity("device", without_rest(ROOT), since=datetime(2998, 1, 1, tzinfo=UTC)),
    "unknown issuer, alone": without_rest(make_identity("device", ROOT)),
    "chain of two": make_identity("device", without_rest(ROOT)),
    "chain of three": make_identity("device", ISSUER),
    "chain whose link is false": make_identity("device", ISSUER, signed_by=ec.generate_private_key(ec.SECP256R1())),
    "unknown critical extension": make_identity(
        "device",
        extensions=(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"),),
    ),
    "for servers only": make_identity(
        "device", extensions=(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]),)
    ),
    "an authority's own": ROOT,
}


@VERSIONS
@pytest.mark.parametrize("presented", PRESENTED)
async def test_whatever_is_presented_reaches_the_application_as_it_is(presented: str, version: int) -> None:
    identity = PRESENTED[presented]
    context = make_client_context(identity, version=version)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        assert (await client.get()).endswith(b"hello")
        assert peer_of(floor).certificates == identity.der
        assert peer_of(floor).address == "127.0.0.1"
        assert LIB.ERR_peek_error() == 0, "no link of the chain was verified, so none left an error behind"


@VERSIONS
async def test_no_certificate_is_no_certificate(version: int) -> None:
    context = make_client_context(version=version)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        assert (await client.get()).endswith(b"hello")
        assert peer_of(floor).certificates == ()


@pytest.mark.parametrize("kind", ["RSA-1024", "RSA-2048", "P-521", "Ed25519"])
async def test_keys_that_admission_may_refuse_still_prove_possession(kind: str) -> None:
    key = {
        "RSA-1024": lambda: rsa.generate_private_key(65537, 1024),
        "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
        "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(EARLIER)
        .not_valid_after(LATER)
        .sign(key, None if kind == "Ed25519" else hashes.SHA256())
    )
    context = make_client_context()
    context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")
    context.use_certificate(certificate)
    context.use_privatekey(key)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        await client.get()
        assert peer_of(floor).certificates == (certificate.public_bytes(Encoding.DER),)


@VERSIONS
async def test_a_certificate_without_its_key_gets_nowhere(version: int) -> None:
    """RFC 8446 §4.4.3, RFC 5246 §7.4.8: the CertificateVerify signature is the one thing that counts here."""
    identity = make_identity("device")
    der = identity.key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    secret = identity.key.private_numbers().private_value.to_bytes(32)
    stranger = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # The victim's public key beside a stranger's private one.
        forged = crypto.load_privatekey(crypto.FILETYPE_ASN1, der.replace(secret, stranger))
    context = make_client_context(identity, version=version, key=forged)
    async with run_floor(SERVER) as floor, await Client.connect(floor, context) as client:
        try:
            await client.handshake()
            await client.receive()
        except (SSL.Error, ConnectionResetError):
            pass
        else:
            pytest.fail("the server accepted a false CertificateVerify")
        await floor.until_event(Event.FAILED_POSSESSION)
        assert floor.inners == []


@pytest.mark.parametrize("limits", [Limits(certificates=2), Limits(certificate_bytes=700)], ids=["count", "bytes"])
async def test_too_many_certificates_are_refused(limits: Limits) -> None:
    async with run_floor(SERVER, limits) as floor:
        few = make_client_context(without_rest(ROOT))
        async with await Client.open(floor, few) as client:
            await client.get()
        async with await Client.open(floor, make_client_context(PRESENTED["chain of three"])) as client:
            assert await client.receive_all() == b""
            assert floor.events[-1] == Event.FAILED_CERTIFICATES_TOO_BIG
            assert len(floor.inners) == 1


# --- what the channel tells -------------------------------------------------------------------------------------------


@VERSIONS
async def test_the_session_describes_the_channel(version: int) -> None:
    context = make_client_context(version=version, groups=b"X25519:P-256")
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        await client.get()
        session = peer_of(floor).channel
        assert isinstance(session, TlsSession)
        assert session.version == client.tls.get_protocol_version_name()
        assert session.cipher == client.tls.get_cipher_name()
        assert session.group == "x25519"
        channel: Channel = session
        assert channel.version in {"TLSv1.2", "TLSv1.3"}


@VERSIONS
async def test_both_ends_export_the_same_binding(version: int) -> None:
    """RFC 9266 §4.2."""
    context = make_client_context(version=version)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        await client.get()
        channel = peer_of(floor).channel
        assert channel is not None
        binding = channel.channel_binding("tls-exporter")
        assert binding == client.tls.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        assert binding is not None
        assert len(binding) == 32
        absent = client.tls.export_keying_material(b"EXPORTER-Channel-Binding", 32, None)
        assert (absent == binding) is (version == SSL.TLS1_3_VERSION), "RFC 5705 §4: in 1.2 empty is not absent"


async def test_two_connections_have_two_bindings() -> None:
    async with run_floor(SERVER) as floor:
        seen = set()
        for _ in range(2):
            async with await Client.open(floor) as client:
                await client.get()
                channel = peer_of(floor).channel
                assert channel is not None
                seen.add(channel.channel_binding("tls-exporter"))
        assert len(seen) == 2


async def test_tls_unique_is_the_clients_finished_in_1_2() -> None:
    """RFC 5929 §3.1."""
    context = make_client_context(version=SSL.TLS1_2_VERSION)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        await client.get()
        channel = peer_of(floor).channel
        assert channel is not None
        unique = channel.channel_binding("tls-unique")
        assert unique is not None
        assert unique == client.tls.get_finished()
        assert len(unique) == 12


async def test_tls_unique_is_undefined_in_1_3() -> None:
    context = make_client_context(version=SSL.TLS1_3_VERSION)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        await client.get()
        channel = peer_of(floor).channel
        assert channel is not None
        assert channel.channel_binding("tls-unique") is None
        assert channel.channel_binding("tls-server-end-point") is None


async def test_without_extended_master_secret_nothing_is_exported() -> None:
    """RFC 9266 §4.2, RFC 7627."""
    context = make_client_context(version=SSL.TLS1_2_VERSION)
    context.set_options(_OP_NO_EXTENDED_MASTER_SECRET)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        await client.get()
        channel = peer_of(floor).channel
        assert channel is not None
        assert channel.channel_binding("tls-exporter") is None
        assert channel.channel_binding("tls-unique") == client.tls.get_finished()


async def test_a_closed_channel_keeps_the_bindings_it_gave() -> None:
    async with run_floor(SERVER) as floor:
        async with await Client.open(floor) as client:
            await client.get()
            channel = peer_of(floor).channel
            assert channel is not None
            binding = channel.channel_binding("tls-exporter")
            await client.say_goodbye()
            await client.until_closed()
        await floor.until(lambda: floor.gate.connections == 0)
        assert channel.channel_binding("tls-exporter") == binding
        assert channel.channel_binding("tls-unique") is None


async def test_a_channel_closed_before_it_was_asked_gives_no_binding() -> None:
    async with run_floor(SERVER) as floor:
        async with await Client.open(floor) as client:
            await client.get()
            channel = peer_of(floor).channel
            assert channel is not None
            await client.say_goodbye()
            await client.until_closed()
        await floor.until(lambda: floor.gate.connections == 0)
        assert channel.channel_binding("tls-exporter") is None


_OP_NO_EXTENDED_MASTER_SECRET = 1
"""SSL_OP_NO_EXTENDED_MASTER_SECRET, which pyOpenSSL does not name."""
