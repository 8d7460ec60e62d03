from __future__ import annotations

import asyncio
import gc
import os
import ssl
import struct
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from tls_lab import (
    GET,
    Client,
    Recorder,
    fragment,
    make_client_context,
    make_http,
    make_identity,
    run_floor,
)

from estd.web.openssl import Connection
from estd.web.place import Limits, Refusal
from estd.web.tls import TlsServerProtocol, build_context
from estd.web.tls_events import Event

SERVER = make_identity("estd")
DEVICE = make_identity("device")
VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
UNEXPECTED_MESSAGE = bytes([21, 3, 3, 0, 2, 2, 10])


# --- a handshake however it arrives ---------------------------------------------------------------------------------


@VERSIONS
async def test_an_answer_over_a_finished_handshake(version: int) -> None:
    context = make_client_context(DEVICE, version=version)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        assert (await client.get()).endswith(b"\r\n\r\nhello")
        assert (await client.get()).endswith(b"\r\n\r\nhello")
        assert floor.events == [Event.HANDSHAKE_OK]
        assert (floor.gate.connections, floor.gate.handshakes) == (1, 0)


async def test_the_standard_librarys_client_is_answered() -> None:
    context = ssl.create_default_context(cadata=SERVER.chain_pem.decode())
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with run_floor(SERVER) as floor:
        reader, writer = await asyncio.open_connection(*floor.address, ssl=context)
        writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await reader.read()).endswith(b"hello")
        writer.close()
        await writer.wait_closed()


@VERSIONS
async def test_a_handshake_in_one_byte_segments(version: int) -> None:
    context = make_client_context(DEVICE, version=version)
    async with run_floor(SERVER) as floor, await Client.connect(floor, context) as client:
        await client.handshake(client.transmit_bytewise)
        client.tls.sendall(GET)
        await client.transmit_bytewise(client.take())
        assert (await client.receive_answer()).endswith(b"hello")


async def test_the_first_request_may_ride_with_the_finished() -> None:
    async with run_floor(SERVER) as floor, await Client.connect(floor) as client:
        with pytest.raises(SSL.WantReadError):
            client.tls.do_handshake()
        await client.flush()
        while True:
            await client.fill()
            try:
                client.tls.do_handshake()
                break
            except SSL.WantReadError:
                pass
        client.tls.sendall(GET)
        await client.flush()
        assert (await client.receive_answer()).endswith(b"hello")


# --- what is not a handshake ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", [GET, b"POST /.well-known/est/simpleenroll HTTP/1.1\r\n", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
async def test_plain_http_is_told_to_use_https(first: bytes) -> None:
    async with run_floor(SERVER) as floor, await Client.connect(floor) as client:
        await client.transmit(first)
        answer = bytearray()
        while data := await asyncio.get_running_loop().sock_recv(client.sock, 4096):
            answer += data
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"https://" in body
        assert floor.events == [Event.FAILED_PLAIN_HTTP]


@pytest.mark.parametrize("first", [b"\x00", b"\x80\x2e\x01\x03\x01", b"\x17\x03\x03\x00\x01\x00", b"SSH"[::-1].lower()])
async def test_other_bytes_get_one_alert_and_no_cryptography(first: bytes) -> None:
    async with run_floor(SERVER) as floor, await Client.connect(floor) as client:
        await client.transmit(first)
        assert await asyncio.get_running_loop().sock_recv(client.sock, 4096) == UNEXPECTED_MESSAGE
        assert await asyncio.get_running_loop().sock_recv(client.sock, 4096) == b""
        assert floor.events == [Event.FAILED_NOT_TLS]


@pytest.mark.parametrize(
    "record",
    [
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\xff\xff",
        b"\x16\xff\xff\x00\x01\x01",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x04\x00\x00\x00\x00",
    ],
)
async def test_a_malformed_record_is_answered_by_an_alert(record: bytes) -> None:
    limits = Limits(handshake_seconds=0.5)
    async with run_floor(SERVER, limits) as floor, await Client.connect(floor) as client:
        await client.transmit(record)
        client.sock.shutdown(1)
        await floor.until(lambda: bool(floor.events))
        assert floor.events[0] in {Event.FAILED_PROTOCOL, Event.FAILED_VERSION, Event.FAILED_GONE}
        assert floor.inners == []


@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(1, 500))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_raise_into_the_loop(position: int, value: int, cut: int) -> None:
    """A ClientHello with one byte changed and its end missing, then the end of the stream."""

    async def attack() -> None:
        faults: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        async with run_floor(SERVER, Limits(handshake_seconds=0.2, linger_seconds=0.1)) as floor:
            async with await Client.connect(floor, make_client_context(groups=b"P-256")) as client:
                with pytest.raises(SSL.WantReadError):
                    client.tls.do_handshake()
                hello = bytearray(client.take())
                hello[position % len(hello)] = value
                await client.transmit(bytes(hello[:cut]))
                client.sock.shutdown(1)
                if hello[0] == 22:
                    await client.until_closed()
            await floor.until(lambda: bool(floor.events))
            await floor.until(lambda: floor.gate.connections == 0)
            assert len(floor.events) == 1
            assert Event.EVICTED_INTERNAL not in floor.events
        assert faults == []

    asyncio.run(attack())


async def test_a_handshake_that_never_ends_is_cut_by_its_size() -> None:
    limits = Limits(handshake_bytes=20_000)
    async with run_floor(SERVER, limits) as floor, await Client.connect(floor) as client:
        # A ClientHello that announces 16 MiB and arrives in records of its own.
        body = b"\x01\xff\xff\xff" + bytes(16_000)
        record = struct.pack("!BHH", 22, 0x0301, len(body)) + body
        try:
            await client.transmit(record + struct.pack("!BHH", 22, 0x0301, 16_000) + bytes(16_000))
            await client.until_closed()
        except ConnectionError:
            pass  # reset while we were still sending
        assert floor.events[0] in {Event.FAILED_TOO_MUCH, Event.FAILED_PROTOCOL}


# --- deadlines and caps -----------------------------------------------------------------------------------------------


async def test_a_silent_connection_is_ended_at_the_handshake_deadline() -> None:
    async with run_floor(SERVER, Limits(handshake_seconds=0.2)) as floor, await Client.connect(floor) as client:
        started = asyncio.get_running_loop().time()
        assert await client.until_closed() == b""
        assert 0.15 < asyncio.get_running_loop().time() - started < 2
        assert floor.events == [Event.EVICTED_HANDSHAKE]


async def test_the_handshake_deadline_is_for_the_whole_of_it() -> None:
    """Bytes that keep coming do not move it."""
    async with run_floor(SERVER, Limits(handshake_seconds=0.3)) as floor, await Client.connect(floor) as client:
        with pytest.raises(SSL.WantReadError):
            client.tls.do_handshake()
        hello = fragment(client.take())
        started = asyncio.get_running_loop().time()
        try:
            for at in range(0, len(hello), 6):
                await client.transmit(hello[at : at + 6])
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        assert asyncio.get_running_loop().time() - started < 3
        await floor.until_event(Event.EVICTED_HANDSHAKE)


async def test_a_client_that_leaves_in_the_middle_is_counted() -> None:
    async with run_floor(SERVER) as floor:
        async with await Client.connect(floor) as client:
            await client.stop_midway()
        await floor.until_event(Event.FAILED_GONE)
        await floor.until(lambda: floor.gate.connections == 0)


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        (Limits(connections_in_all=1), Refusal.CONNECTIONS_IN_ALL),
        (Limits(connections_per_source=1), Refusal.CONNECTIONS_PER_SOURCE),
    ],
)
async def test_a_connection_too_many_gets_nothing(limits: Limits, refusal: Refusal) -> None:
    async with run_floor(SERVER, limits) as floor, await Client.open(floor) as first:
        async with await Client.connect(floor) as second:
            assert await second.until_closed() == b""
        assert floor.events == [Event.HANDSHAKE_OK, refusal]
        assert (await first.get()).endswith(b"hello")


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        (Limits(handshakes_at_once=1, handshakes_waiting=0), Refusal.HANDSHAKES_IN_ALL),
        (Limits(handshakes_per_source=1, handshakes_waiting_per_source=0), Refusal.HANDSHAKES_PER_SOURCE),
    ],
)
async def test_a_handshake_too_many_is_refused_before_cryptography(limits: Limits, refusal: Refusal) -> None:
    async with run_floor(SERVER, limits) as floor, await Client.connect(floor) as half_open:
        await half_open.stop_midway()
        async with await Client.connect(floor) as second:
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await second.handshake()
            assert second.received_bytes == 0
        assert floor.events == [refusal]


async def test_a_handshake_over_the_limit_waits_for_its_turn() -> None:
    limits = Limits(handshakes_at_once=1, handshakes_per_source=1)
    async with run_floor(SERVER, limits) as floor, await Client.connect(floor) as first:
        await first.stop_midway()
        async with await Client.connect(floor) as second:
            waiting = asyncio.create_task(second.handshake())
            await floor.until(lambda: floor.gate.waiting == 1)
            assert second.received_bytes == 0
            await first.handshake()
            await waiting
            assert (await second.get()).endswith(b"hello")
            assert (await first.get()).endswith(b"hello")


async def test_a_turn_is_for_whoever_has_sent_a_whole_record() -> None:
    async with run_floor(SERVER) as floor, await Client.connect(floor) as client:
        with pytest.raises(SSL.WantReadError):
            client.tls.do_handshake()
        hello = client.take()
        for part in (hello[:1], hello[1:4], hello[4:5], hello[5:-1]):
            await client.transmit(part)
            await asyncio.sleep(0.05)
            assert (floor.gate.connections, floor.gate.handshakes) == (1, 0)
        await client.transmit(hello[-1:])
        await floor.until(lambda: floor.gate.handshakes == 1)
        await client.handshake()
        assert (await client.get()).endswith(b"hello")


async def test_who_waits_too_long_is_evicted() -> None:
    limits = Limits(handshakes_at_once=1, handshake_seconds=0.6)
    async with run_floor(SERVER, limits) as floor, await Client.connect(floor) as late:
        await floor.until(lambda: floor.gate.connections == 1)
        await asyncio.sleep(0.3)
        async with await Client.connect(floor) as hoarder:
            await hoarder.stop_midway()
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await late.handshake()
            assert late.received_bytes == 0
            assert floor.events == [Event.EVICTED_HANDSHAKE]
            assert floor.gate.waiting == 0


async def test_a_hoarders_turn_goes_on_at_its_deadline() -> None:
    limits = Limits(handshakes_at_once=1, handshake_seconds=0.3)
    async with run_floor(SERVER, limits) as floor, await Client.connect(floor) as hoarder:
        await hoarder.stop_midway()
        await asyncio.sleep(0.15)
        async with await Client.open(floor) as second:
            assert (await second.get()).endswith(b"hello")
        assert floor.events[:2] == [Event.EVICTED_HANDSHAKE, Event.HANDSHAKE_OK]


async def test_a_first_flight_too_big_to_hold_does_not_wait() -> None:
    limits = Limits(handshakes_at_once=1, hello_bytes=100)
    async with run_floor(SERVER, limits) as floor, await Client.connect(floor) as first:
        await first.stop_midway()
        async with await Client.connect(floor) as second:
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await second.handshake()
        assert floor.events == [Event.FAILED_TOO_MUCH]


async def test_a_burst_of_one_source_is_served_and_not_refused() -> None:
    limits = Limits(handshakes_at_once=8, handshakes_per_source=4)
    async with run_floor(SERVER, limits) as floor:
        clients = [await Client.connect(floor) for _ in range(60)]
        await asyncio.gather(*(client.handshake() for client in clients))
        assert floor.events == [Event.HANDSHAKE_OK] * 60
        for client in clients:
            client.close()


async def test_sources_are_counted_apart() -> None:
    limits = Limits(connections_per_source=1)
    async with run_floor(SERVER, limits, address="0.0.0.0") as floor:
        floor.address = ("127.0.0.1", floor.address[1])
        async with (
            await Client.open(floor, source="127.0.0.1") as one,
            await Client.open(floor, source="127.0.0.2") as two,
        ):
            assert (await one.get()).endswith(b"hello")
            assert (await two.get()).endswith(b"hello")


# --- the server's certificate ---------------------------------------------------------------------------------------


async def test_a_renewed_certificate_serves_from_the_next_connection_on() -> None:
    renewed = make_identity("estd renewed")
    context = make_client_context(version=SSL.TLS1_3_VERSION)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as old:
        floor.context = build_context(renewed.chain_pem, renewed.key_pem)
        async with await Client.open(floor, context) as new:
            shown = new.tls.get_peer_certificate(as_cryptography=True)
            assert shown == renewed.chain[0]
            assert (await new.get()).endswith(b"hello")
        assert old.tls.get_peer_certificate(as_cryptography=True) == SERVER.chain[0]
        assert (await old.get()).endswith(b"hello")


# --- faults of ours ---------------------------------------------------------------------------------------------------


async def test_a_broken_context_costs_the_connection_and_not_the_worker() -> None:
    async with run_floor(SERVER) as floor:
        good = floor.context
        floor.context = None  # type: ignore[assignment]  # that is the fault
        async with await Client.connect(floor) as client:
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await client.handshake()
        assert floor.events == [Event.EVICTED_INTERNAL]
        floor.context = good
        async with await Client.open(floor) as client:
            assert (await client.get()).endswith(b"hello")


async def test_a_broken_http_layer_costs_the_connection_and_not_the_worker() -> None:
    class Broken(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise RuntimeError("not today")

    async with run_floor(SERVER, make_inner=Broken) as floor:
        async with await Client.open(floor) as client:
            await client.until_closed()
        assert floor.events == [Event.HANDSHAKE_OK, Event.EVICTED_INTERNAL]


# --- nothing stays behind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["goodbye", "reset", "half-open", "garbage", "server"])
async def test_a_closed_connection_lets_go_of_everything(ending: str) -> None:
    made: list[weakref.ref[Connection]] = []
    original = Connection.__init__

    def note(self: Connection, context: SSL.Context) -> None:
        original(self, context)
        made.append(weakref.ref(self))

    gc.collect()
    gc.disable()
    try:
        async with run_floor(SERVER) as floor:
            Connection.__init__ = note  # type: ignore[method-assign]  # to see every one that is made
            async with await Client.connect(floor, make_client_context(DEVICE)) as client:
                if ending == "half-open":
                    await client.stop_midway()
                elif ending == "garbage":
                    await client.transmit(b"\x16\x03\x01\x00\x05hello")
                    await client.until_closed()
                else:
                    await client.handshake()
                    await client.get(GET)
                    if ending == "goodbye":
                        await client.say_goodbye()
                        await client.until_closed()
                    elif ending == "reset":
                        client.sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: RST
                    else:
                        floor.inners[0].transport.close()
                        assert await client.receive_all() == b""
            await floor.until(lambda: floor.gate.connections == 0)
            await asyncio.sleep(0.01)
            floor.inners.clear()
            await asyncio.sleep(0.01)
            # Reference counts alone must do: a full collection is a pause for every other device.
            assert [ref() for ref in made] == [None]
    finally:
        Connection.__init__ = original  # type: ignore[method-assign]  # as it was
        gc.enable()


# --- many ------------------------------------------------------------------------------------------------------------


async def test_a_thousand_idle_connections_are_held_and_all_still_answer() -> None:
    import resource

    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2200:
        pytest.skip("needs 2,200 file descriptors; raise ulimit -n")
    if type(asyncio.get_running_loop()).__module__.startswith("asyncio"):
        pytest.skip("once, on the loop of production, is enough")
    context = make_client_context(groups=b"X25519")
    async with run_floor(SERVER) as floor:
        clients: list[Client] = []
        for _ in range(20):
            batch = [await Client.connect(floor, context) for _ in range(50)]
            await asyncio.gather(*(client.handshake() for client in batch))
            clients += batch
            # The header deadline runs from the handshake's end.
            await asyncio.gather(*(client.get() for client in batch))
        assert floor.gate.connections == 1000
        answers = await asyncio.gather(*(client.get() for client in clients))
        assert all(answer.endswith(b"hello") for answer in answers)
        for client in clients:
            client.close()


async def test_a_client_that_distrusts_us_is_counted_by_its_alert() -> None:
    context = make_client_context()
    context.set_verify(SSL.VERIFY_PEER, lambda *_: False)
    async with run_floor(SERVER) as floor, await Client.connect(floor, context) as client:
        with pytest.raises(SSL.Error):
            await client.handshake()
        await client.flush()
        await floor.until_event(Event.FAILED_PEER_ALERT)


async def test_a_unix_socket_is_a_source_too(tmp_path: os.PathLike[str]) -> None:
    async with run_floor(SERVER) as floor:
        path = os.fspath(tmp_path) + "/socket"
        http = make_http()
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: TlsServerProtocol(
                lambda: floor.context, http, floor.limits, floor.gate, floor.watch, floor.events.append
            ),
            path,
        )
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        reader, writer = await asyncio.open_unix_connection(path, ssl=context, server_hostname="estd")
        writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await reader.read()).endswith(b"hello")
        writer.close()
        server.close()
