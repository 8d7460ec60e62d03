from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL
from tls_lab import Client, fragment, make_client_context, make_identity, read_messages, run_floor

import estd.web
from estd.errors import Invalid
from estd.web.openssl import LIB
from estd.web.tls_context import build_context
from estd.web.tls_events import Event

SERVER = make_identity("estd")


def alert(number: int) -> bytes:
    return bytes([21, 3, 3, 0, 2, 2, number])


# --- what an operator can get wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [b"", b"hello", SERVER.chain_pem[:-40], SERVER.key_pem])
def test_an_unreadable_chain_is_the_operators_problem(chain: bytes) -> None:
    with pytest.raises(Invalid, match="server certificate"):
        build_context(chain, SERVER.key_pem)


@pytest.mark.parametrize("key", [b"", b"hello", SERVER.key_pem[:-40], SERVER.chain_pem])
def test_an_unreadable_key_is_the_operators_problem(key: bytes) -> None:
    with pytest.raises(Invalid, match="server key"):
        build_context(SERVER.chain_pem, key)


def test_an_encrypted_key_is_the_operators_problem() -> None:
    sealed = SERVER.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.raises(Invalid, match="server key"):
        build_context(SERVER.chain_pem, sealed)


def test_another_certificates_key_is_refused() -> None:
    with pytest.raises(Invalid, match="not for the private key"):
        build_context(SERVER.chain_pem, make_identity("other").key_pem)


def test_a_key_of_another_kind_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(Invalid, match="not for the private key"):
        build_context(SERVER.chain_pem, key)


def test_a_chain_is_shown_as_given() -> None:
    root = make_identity("root")
    leaf = make_identity("estd", make_identity("intermediate", root))
    context = build_context(leaf.chain_pem, leaf.key_pem)
    client = SSL.Connection(make_client_context(version=SSL.TLS1_2_VERSION), None)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    server = SSL.Connection(context, None)
    server.set_accept_state()
    server.bio_write(client.bio_read(65_536))
    with pytest.raises(SSL.WantReadError):
        server.do_handshake()
    certificates = read_messages(server.bio_read(65_536))[11]
    for der in leaf.der:
        assert der in certificates
    assert certificates.index(leaf.der[0]) < certificates.index(leaf.der[1]) < certificates.index(leaf.der[2])


# --- versions, suites, groups ---------------------------------------------------------------------------------------


async def refusal_of(context: SSL.Context) -> tuple[str, bytes]:
    """Event and raw answer of a handshake that must fail."""
    async with run_floor(SERVER) as floor, await Client.connect(floor, context) as client:
        with pytest.raises(SSL.Error):
            await client.handshake()
        await floor.until(lambda: bool(floor.events))
        return floor.events[0], await client.until_closed()


def write_hello(version: int, suites: list[int]) -> bytes:
    """A ClientHello as TLS 1.1 and before wrote it, without extensions."""
    offered = b"".join(struct.pack("!H", suite) for suite in suites)
    body = struct.pack("!H", version) + bytes(32) + b"\x00" + struct.pack("!H", len(offered)) + offered + b"\x01\x00"
    message = b"\x01" + len(body).to_bytes(3) + body
    return struct.pack("!BHH", 22, 0x0301, len(message)) + message


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302], ids=["SSL 3", "TLS 1.0", "TLS 1.1"])
async def test_versions_before_1_2_are_refused(version: int) -> None:
    async with run_floor(SERVER) as floor, await Client.connect(floor) as client:
        await client.transmit(write_hello(version, [0xC00A, 0xC009, 0x002F]))
        answer = await client.until_closed()
        assert (answer[0], answer[-2:]) == (21, bytes([2, 70])), "protocol_version"
        assert floor.events in ([Event.FAILED_VERSION], [Event.FAILED_PROTOCOL])


@pytest.mark.parametrize(
    "suites",
    [
        b"ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0",
        b"AES128-GCM-SHA256:AES256-SHA:@SECLEVEL=0",
        b"aNULL:@SECLEVEL=0",
        b"eNULL:@SECLEVEL=0",
        b"ECDHE-ECDSA-AES128-CCM8:@SECLEVEL=0",
    ],
    ids=["CBC", "static RSA", "anonymous", "NULL", "short tag"],
)
async def test_only_forward_secret_aead_suites_are_spoken(suites: bytes) -> None:
    context = make_client_context(version=SSL.TLS1_2_VERSION)
    context.set_cipher_list(suites)
    event, answer = await refusal_of(context)
    assert event == Event.FAILED_NOTHING_IN_COMMON
    assert answer == alert(40)


@pytest.mark.parametrize(
    "suite", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-CCM"]
)
async def test_small_stacks_find_a_suite_in_1_2(suite: str) -> None:
    context = make_client_context(version=SSL.TLS1_2_VERSION)
    context.set_cipher_list(suite.encode())
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        assert client.tls.get_cipher_name() == suite


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
        ("TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
        ("TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_SHA256"),
    ],
)
async def test_our_order_decides_but_for_a_chip_without_aes(offered: str, taken: str) -> None:
    context = make_client_context(version=SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(offered.encode())
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        assert client.tls.get_cipher_name() == taken


@pytest.mark.parametrize("group", ["X25519MLKEM768", "x25519", "secp256r1", "secp384r1"])
async def test_the_client_decides_the_group(group: str) -> None:
    async with run_floor(SERVER) as floor:
        context = make_client_context(groups=group.encode(), version=SSL.TLS1_3_VERSION)
        async with await Client.open(floor, context) as client:
            assert client.tls.get_group_name() == group


async def test_a_key_share_already_sent_is_taken_without_another_round_trip() -> None:
    context = make_client_context(groups=b"*X25519:X25519MLKEM768", version=SSL.TLS1_3_VERSION)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        assert client.tls.get_group_name() == "x25519"


async def test_finite_field_groups_are_refused() -> None:
    event, answer = await refusal_of(make_client_context(groups=b"ffdhe3072", version=SSL.TLS1_3_VERSION))
    assert (event, answer) == (Event.FAILED_NOTHING_IN_COMMON, alert(40))


# --- ALPN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, b""),
        ([b"http/1.1"], b"http/1.1"),
        ([b"h2", b"http/1.1"], b"http/1.1"),
        ([b"http/1.0"], b"http/1.0"),
    ],
)
async def test_http_1_is_chosen_where_it_is_offered(offered: list[bytes] | None, chosen: bytes) -> None:
    async with run_floor(SERVER) as floor, await Client.open(floor, make_client_context(alpn=offered)) as client:
        assert client.tls.get_alpn_proto_negotiated() == chosen
        assert (await client.get()).endswith(b"hello")


async def test_a_client_that_speaks_no_http_1_is_told() -> None:
    event, answer = await refusal_of(make_client_context(alpn=[b"h2", b"acme-tls/1"]))
    assert (event, answer) == (Event.FAILED_APPLICATION_PROTOCOL, alert(120))


# --- resumption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
async def test_no_session_is_resumed(version: int) -> None:
    context = make_client_context(make_identity("device"), version=version)
    context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
    async with run_floor(SERVER) as floor:
        async with await Client.open(floor, context) as first:
            await first.get()
            session = first.tls.get_session()
            assert session is not None
            if version == SSL.TLS1_2_VERSION:
                messages = read_messages(bytes(first.raw))
                assert 4 not in messages, "NewSessionTicket"
                assert messages[2][34] == 0, "an empty session id promises nothing"
        async with await Client.connect(floor, context) as second:
            second.tls.set_session(session)
            await second.handshake()
            assert LIB.SSL_session_reused(second.tls._ssl) == 0
            await second.get()
        sessions = [inner.transport.get_extra_info("estd.tls") for inner in floor.inners if inner.transport]
        assert all(len(session.certificates) == 1 for session in sessions), "each handshake proved possession anew"
        assert floor.events.count(Event.HANDSHAKE_OK) == 2


_COUNT_BYTES_AFTER_FINISHED = """
from OpenSSL import SSL
from tls_lab import make_client_context, make_identity
from estd.web.tls_context import build_context
identity = make_identity("estd")
ends = []
for context, role in ((make_client_context(), "connect"), (build_context(identity.chain_pem, identity.key_pem), "accept")):
    end = SSL.Connection(context, None)
    getattr(end, f"set_{role}_state")()
    ends.append(end)
client, server = ends
def step(end, other):
    try:
        end.do_handshake()
    except SSL.WantReadError:
        pass
    try:
        data = end.bio_read(65536)
    except SSL.WantReadError:
        return 0
    other.bio_write(data)
    return len(data)
step(client, server), step(server, client), step(client, server)
print(client.get_protocol_version_name(), step(server, client))
"""


@pytest.mark.parametrize("with_settings", [True, False])
def test_the_settings_file_ends_tickets_altogether(with_settings: bool) -> None:
    settings = Path(estd.web.__file__).with_name("openssl.cnf")
    paths = [str(Path(__file__).parents[2]), str(Path(estd.web.__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment["OPENSSL_CONF"] = str(settings) if with_settings else ""
    run = subprocess.run(
        [sys.executable, "-c", _COUNT_BYTES_AFTER_FINISHED],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    version, count = run.stdout.split()
    assert version == "TLSv1.3"
    assert (int(count) == 0) is with_settings, (
        "without the file two tickets are sent, and no cache holds their sessions"
    )


# --- client certificates asked for ------------------------------------------------------------------------------------


async def test_no_client_ca_names_are_sent_in_1_2() -> None:
    context = make_client_context(make_identity("device"), version=SSL.TLS1_2_VERSION)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        request = read_messages(bytes(client.raw))[13]
        types = request[0]
        algorithms = int.from_bytes(request[1 + types : 3 + types])
        assert request[3 + types + algorithms :] == b"\x00\x00", "certificate_authorities"


async def test_no_client_ca_names_are_sent_in_1_3() -> None:
    context = make_client_context(make_identity("device"), version=SSL.TLS1_3_VERSION)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        assert client.tls.get_client_ca_list() == []


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
async def test_a_hello_in_one_byte_records_gets_the_same_settings(version: int) -> None:
    """The class of CVE-2026-32305: a cut-up ClientHello must not reach other, weaker settings."""
    context = make_client_context(make_identity("device"), version=version)
    async with run_floor(SERVER) as floor, await Client.connect(floor, context) as client:
        with pytest.raises(SSL.WantReadError):
            client.tls.do_handshake()
        await client.transmit(fragment(client.take()))
        await client.handshake()
        assert (await client.get()).endswith(b"hello")
        (inner,) = floor.inners
        assert len(inner.transport.get_extra_info("estd.peer").certificates) == 1
