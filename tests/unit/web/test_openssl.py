"""One end of TLS over memory: what each call says when there is too little, too much or the wrong thing."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
from OpenSSL import SSL
from tls_lab import make_client_context, make_identity

from estd.web.openssl import (
    LIB,
    OUTPUT_BYTES,
    RECORD_BYTES,
    Connection,
    TlsError,
    make_chooser,
    use_chooser,
    use_groups,
)
from estd.web.tls_context import build_context

SERVER = make_identity("estd")
DEVICE = make_identity("device", make_identity("maker"))
CONTEXT = build_context(SERVER.chain_pem, SERVER.key_pem)


def make_client(**settings: Any) -> SSL.Connection:
    client = SSL.Connection(make_client_context(DEVICE, **settings), None)
    client.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        client.do_handshake()
    return client


def connect(**settings: Any) -> tuple[Connection, SSL.Connection]:
    server, client = Connection(CONTEXT), make_client(**settings)
    for _ in range(3):
        server.feed(client.bio_read(65_536))
        is_finished = server.handshake()
        if flight := server.take():
            client.bio_write(flight)
        if is_finished:
            return server, client
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
    raise AssertionError("no handshake in three flights")


def test_a_handshake_waits_for_as_long_as_bytes_are_missing() -> None:
    server = Connection(CONTEXT)
    assert not server.handshake()
    hello = make_client().bio_read(65_536)
    for index in range(len(hello)):
        assert not server.handshake()
        assert server.take() == b""
        server.feed(hello[index : index + 1])
    assert not server.handshake()
    assert server.take()[0] == 0x16


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
def test_what_was_agreed_on(version: int) -> None:
    server, client = connect(version=version)
    assert server.version() == client.get_protocol_version_name()
    assert server.cipher() == client.get_cipher_name()
    assert server.group() == client.get_group_name()
    assert server.certificates() == DEVICE.der
    assert server.has_extended_master_secret() is (version == SSL.TLS1_2_VERSION)
    assert server.export(b"EXPORTER-x", 32) == client.export_keying_material(b"EXPORTER-x", 32, b"")
    assert server.peer_finished() == client.get_finished()


def test_records_both_ways() -> None:
    server, client = connect()
    assert server.read() is None
    client.sendall(bytes(RECORD_BYTES + 1))
    ciphertext = client.bio_read(65_536)
    server.feed(memoryview(ciphertext)[:1000])
    assert server.read() is None
    server.feed(memoryview(ciphertext)[1000:])
    assert server.read() == bytes(RECORD_BYTES)
    assert server.read() == b"\0"
    assert server.read() is None
    for data in (b"bytes", bytearray(b"array"), memoryview(b"views")):
        assert server.write(data) == 5
        client.bio_write(server.take())
        assert client.recv(100) == bytes(data)


def test_output_is_taken_in_bounded_parts() -> None:
    server, client = connect()
    for _ in range(5):
        server.write(bytes(RECORD_BYTES))
    received = 0
    while output := server.take():
        assert len(output) <= OUTPUT_BYTES
        client.bio_write(output)
    with contextlib.suppress(SSL.WantReadError):
        while True:
            received += len(client.recv(65_536))
    assert received == 5 * RECORD_BYTES


def test_a_goodbye_is_empty_and_not_an_error() -> None:
    server, client = connect()
    client.sendall(b"last words")
    client.shutdown()
    server.feed(client.bio_read(65_536))
    assert server.read() == b"last words"
    assert server.read() == b""
    server.shut_down()
    client.bio_write(server.take())
    with pytest.raises(SSL.ZeroReturnError):
        client.recv(1)


def test_an_error_has_reasons_and_leaves_none_behind() -> None:
    server = Connection(CONTEXT)
    server.feed(b"\x16\x03\x01\x00\x05hello")
    with pytest.raises(TlsError) as caught:
        server.handshake()
    assert caught.value.reasons
    assert LIB.ERR_peek_error() == 0
    with pytest.raises(TlsError):
        server.shut_down()
    assert LIB.ERR_peek_error() == 0
    server, _ = connect()
    server.feed(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TlsError, match="bad record"):
        server.read()
    assert server.take(), "the alert that says why"
    with pytest.raises(TlsError):
        server.write(b"too late")
    assert LIB.ERR_peek_error() == 0


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([b"b"], b"b"), ([b"b", b"a"], b"a"), ([b"z", b"b"], b"b"), ([b"z"], None), ([b"ab"], None), (None, b"")],
)
def test_the_first_protocol_of_ours_that_is_offered(offered: list[bytes] | None, chosen: bytes | None) -> None:
    context, chooser = build_context(SERVER.chain_pem, SERVER.key_pem), make_chooser((b"a", b"b"))
    use_chooser(context, chooser)
    server, client = Connection(context), make_client(alpn=offered)
    server.feed(client.bio_read(65_536))
    if chosen is None:
        with pytest.raises(TlsError, match="no application protocol"):
            server.handshake()
        return
    server.handshake()
    client.bio_write(server.take())
    client.do_handshake()
    assert client.get_alpn_proto_negotiated() == chosen


def test_groups_that_openssl_lacks() -> None:
    context = build_context(SERVER.chain_pem, SERVER.key_pem)
    assert use_groups(context, b"P-256")
    assert not use_groups(context, b"P-257")
    assert LIB.ERR_peek_error() == 0


def test_a_connection_is_freed_with_its_last_reference() -> None:
    gc.disable()
    try:
        server, _ = connect()
        gone = weakref.ref(server)
        del server
        assert gone() is None
    finally:
        gc.enable()
