from __future__ import annotations

import asyncio
import socket
import time

import pytest
from gate_lab import Queuer
from OpenSSL import SSL
from tls_lab import (
    GET,
    Client,
    Forger,
    Recorder,
    fragment,
    make_client_context,
    make_http,
    make_identity,
    open_forger,
    run_floor,
)

from estd.web.place import SEVERAL, Limits
from estd.web.tls_events import Event
from estd.wire.exchange import HOME

SERVER = make_identity("estd")
VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])


def now() -> float:
    return asyncio.get_running_loop().time()


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_no_request_after_the_handshake_ends_the_connection() -> None:
    async with run_floor(SERVER, Limits(header_seconds=0.2)) as floor, await Client.open(floor) as client:
        started = now()
        assert await client.receive_all() == b"", "close_notify, not a reset"
        assert 0.15 < now() - started < 2
        assert floor.events == [Event.HANDSHAKE_OK, Event.EVICTED_HEADER]


async def test_a_slow_head_is_ended_however_steadily_it_comes() -> None:
    limits = Limits(header_seconds=0.3, linger_seconds=0.2)
    async with run_floor(SERVER, limits) as floor, await Client.open(floor) as client:
        started = now()
        try:
            for byte in b"GET / HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        assert now() - started < 3
        assert floor.events[1] == Event.EVICTED_HEADER


async def test_a_slow_second_head_is_ended_too() -> None:
    limits = Limits(header_seconds=0.3, idle_seconds=30)
    async with run_floor(SERVER, limits) as floor, await Client.open(floor) as client:
        await client.get()
        await asyncio.sleep(0.5)  # idle is not slow
        assert (await client.get()).endswith(b"hello")
        started = now()
        await client.send(b"GET / HT")
        assert await client.receive_all() == b""
        assert 0.2 < now() - started < 2
        assert floor.events == [Event.HANDSHAKE_OK, Event.EVICTED_HEADER]


async def test_an_idle_connection_is_ended_with_close_notify() -> None:
    limits = Limits(idle_seconds=0.3)
    async with run_floor(SERVER, limits) as floor, await Client.open(floor) as client:
        await client.get()
        started = now()
        assert await client.receive_all() == b""
        assert 0.2 < now() - started < 2
        assert floor.events == [Event.HANDSHAKE_OK, Event.EVICTED_IDLE]


async def test_a_request_in_hand_has_no_deadline_here() -> None:
    limits = Limits(header_seconds=0.2, idle_seconds=0.2)
    slow = make_http(seconds=0.7)
    async with run_floor(SERVER, limits, slow) as floor, await Client.open(floor) as client:
        assert (await client.get()).endswith(b"hello")
        assert floor.events == [Event.HANDSHAKE_OK]


def take_little(inner: Recorder) -> None:
    """Leave the kernel no room for the answer on this side."""
    inner.transport._raw.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


@pytest.mark.parametrize("answer_bytes", [300_000, 20_000_000], ids=["in the kernel and ours", "mostly unencrypted"])
async def test_a_client_that_never_reads_is_put_out(answer_bytes: int) -> None:
    limits = Limits(write_stall_seconds=0.4)
    http = make_http(bytes(answer_bytes))
    async with run_floor(SERVER, limits, http) as floor, await Client.open(floor, buffer=2048) as client:
        # Nothing of this machine's may take the answer in our place.
        take_little(await floor.inner())
        await client.send(GET)
        started = now()
        await floor.until_event(Event.EVICTED_WRITE_STALL)
        assert 0.3 < now() - started < 3
        await floor.until(lambda: floor.gate.connections == 0)


async def test_a_client_that_reads_slowly_but_reads_gets_everything() -> None:
    limits = Limits(write_stall_seconds=0.5, idle_seconds=0.2, write_floor_bytes=1024)
    http = make_http(bytes(400_000))
    async with run_floor(SERVER, limits, http) as floor, await Client.open(floor, buffer=2048) as client:
        take_little(await floor.inner())
        await client.send(GET)
        size = 0
        started = time.monotonic()
        while size < 400_000:
            size += len(await client.receive())
            if time.monotonic() - started < 1.5:
                await asyncio.sleep(0.05)
        assert size > 400_000
        assert Event.EVICTED_WRITE_STALL not in floor.events


# --- ends -----------------------------------------------------------------------------------------------------------


@VERSIONS
async def test_our_close_flushes_and_says_close_notify(version: int) -> None:
    class Greeter(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b"x" * 200_000)
            self.transport.close()
            assert self.transport.is_closing()
            self.transport.write(b"too late")

    context = make_client_context(version=version)
    async with run_floor(SERVER, make_inner=Greeter) as floor, await Client.open(floor, context) as client:
        await client.send(b"now")
        assert await client.receive_all() == b"x" * 200_000
        inner = await floor.inner()
        await floor.until(lambda: inner.lost == [None])
        await client.say_goodbye()
        client.close()
        await floor.until(lambda: floor.gate.connections == 0)


async def test_unread_bytes_do_not_turn_the_answer_into_a_reset() -> None:
    """An early refusal must reach a client that is still sending its body."""

    class Refuser(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b"HTTP/1.1 413 Content Too Large\r\n\r\n")
            self.transport.close()

    async with run_floor(SERVER, make_inner=Refuser) as floor, await Client.open(floor) as client:
        for _ in range(40):
            await client.send(bytes(16_000))
            await asyncio.sleep(0.002)
        assert await client.receive_all() == b"HTTP/1.1 413 Content Too Large\r\n\r\n"


async def test_after_our_close_nothing_is_read_until_the_last_words_are_out() -> None:
    class Greeter(Recorder):
        def data_received(self, data: bytes) -> None:
            take_little(self)
            self.transport.write(bytes(1_000_000))
            self.transport.close()
            self.transport.resume_reading()

    async with run_floor(SERVER, make_inner=Greeter) as floor, await Client.open(floor, buffer=2048) as client:
        await client.send(b"now")
        inner = await floor.inner()
        await floor.until(lambda: inner.transport.is_closing())
        raw = inner.transport._raw
        sending = asyncio.create_task(client.send(bytes(100_000)))
        assert not raw.is_reading()
        assert len(await client.receive_all()) == 1_000_000
        await sending
        await client.say_goodbye()
        client.close()
        await floor.until(lambda: inner.lost == [None])


async def test_a_peer_that_ignores_our_close_is_left_after_the_linger() -> None:
    limits = Limits(linger_seconds=0.2)
    async with run_floor(SERVER, limits, Recorder) as floor, await Client.open(floor) as client:
        (await floor.inner()).transport.close()
        assert await client.receive_all() == b""
        started = now()
        await floor.until(lambda: floor.gate.connections == 0)
        assert now() - started < 2


@VERSIONS
async def test_the_peers_close_notify_is_answered_by_ours(version: int) -> None:
    context = make_client_context(version=version)
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor, context) as client:
        await client.send(b"bye")
        await client.say_goodbye()
        assert await client.receive_all() == b""
        await floor.until(lambda: floor.gate.connections == 0)
        inner = await floor.inner()
        assert (inner.received, inner.eof, inner.lost) == (b"bye", True, [None])
        assert floor.events == [Event.HANDSHAKE_OK]


@VERSIONS
async def test_a_request_before_close_notify_is_still_answered(version: int) -> None:
    context = make_client_context(version=version)
    http = make_http(seconds=0.2)
    async with (
        run_floor(SERVER, Limits(linger_seconds=0.2), http) as floor,
        await Client.open(floor, context) as client,
    ):
        await client.send(GET)
        await asyncio.sleep(0.05)
        await client.say_goodbye()
        assert (await client.receive_all()).endswith(b"hello")
        assert floor.events == [Event.HANDSHAKE_OK]


async def test_an_end_without_close_notify_is_a_loss() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor:
        async with await Client.open(floor) as client:
            await client.send(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\nhalf")
        await floor.until_event(Event.TRUNCATED)
        inner = await floor.inner()
        await floor.until(lambda: bool(inner.lost))
        assert isinstance(inner.lost[0], ConnectionError)
        assert not inner.eof


async def test_abort_ends_at_once_and_tells_the_http_layer() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor) as client:
        inner = await floor.inner()
        inner.transport.abort()
        assert inner.transport.is_closing()
        inner.transport.close()
        inner.transport.abort()
        await floor.until(lambda: inner.lost == [None])
        with pytest.raises(ConnectionResetError):
            await client.receive()


async def test_calls_after_the_end_do_nothing() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor:
        async with await Client.open(floor) as client:
            await client.say_goodbye()
            await client.until_closed()
        inner = await floor.inner()
        await floor.until(lambda: floor.gate.connections == 0)
        transport = inner.transport
        transport.write(b"x")
        transport.pause_reading()
        transport.resume_reading()
        transport.request_began()
        transport.request_ended()
        transport.close()
        transport.abort()
        assert not transport.is_reading()
        assert transport.get_extra_info("estd.peer").address == "127.0.0.1"
        await asyncio.sleep(0.02)
        assert inner.lost == [None]


async def test_the_transport_tells_what_it_knows() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor) as client:
        transport = (await floor.inner()).transport
        assert transport.get_extra_info("peername") == client.sock.getsockname()
        assert transport.get_extra_info("sockname") == floor.address
        assert transport.get_extra_info("socket") is None, "its options are not the HTTP layer's"
        assert transport.get_extra_info("estd.peer") is transport.get_extra_info("estd.peer")
        assert transport.get_extra_info("estd.tls") is transport.get_extra_info("estd.peer").channel
        assert transport.get_extra_info("sslcontext")
        assert transport.get_extra_info("nothing", "default") == "default"
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        assert transport.get_protocol() is floor.inners[0]
        assert transport.get_write_buffer_size() == 0


# --- bytes that are none of TLS's ------------------------------------------------------------------------------------


@VERSIONS
async def test_a_forged_record_ends_the_connection_with_an_alert(version: int) -> None:
    context = make_client_context(version=version)
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor, context) as client:
        await client.send(b"good")
        await client.transmit(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(SSL.Error, match="bad record mac"):
            await client.receive()
        inner = await floor.inner()
        await floor.until(lambda: bool(inner.lost))
        assert inner.received == b"good"
        assert isinstance(inner.lost[0], ConnectionError)
        assert floor.events == [Event.HANDSHAKE_OK, Event.EVICTED_BROKEN_RECORD]


async def test_good_plaintext_before_a_forged_record_is_delivered() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor) as client:
        client.tls.sendall(b"good")
        await client.transmit(client.take() + b"\x17\x03\x03\x00\x20" + bytes(32))
        await floor.until_event(Event.EVICTED_BROKEN_RECORD)
        assert floor.inners[0].received == b"good"


async def test_plain_bytes_inside_a_connection_end_it() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor) as client:
        await client.transmit(GET)
        await floor.until_event(Event.EVICTED_BROKEN_RECORD)


async def test_renegotiation_is_refused_in_1_2() -> None:
    """RFC 5746, RFC 9325 §3.5. The connection goes on under the keys it has."""
    context = make_client_context(version=SSL.TLS1_2_VERSION)
    async with run_floor(SERVER) as floor, await Client.open(floor, context) as client:
        await client.get()
        assert client.tls.renegotiate()
        with pytest.raises(SSL.Error, match="no renegotiation"):
            await client.handshake()
        assert floor.events == [Event.HANDSHAKE_OK]
        assert len(floor.inners) == 1


async def test_a_key_update_is_answered_and_the_connection_goes_on() -> None:
    async with run_floor(SERVER) as floor:
        client, forger = await open_forger(floor)
        async with client:
            await client.transmit(forger.key_update() + forger.seal(GET, 23))
            assert (await client.receive_answer()).endswith(b"hello")
            await client.transmit(forger.key_update())
            await client.transmit(forger.seal(GET, 23))
            assert (await client.receive_answer()).endswith(b"hello")


async def test_a_flood_of_key_updates_ends_the_connection() -> None:
    """The class of CVE-2026-32283: each one costs us a key schedule and its sender next to nothing."""
    async with run_floor(SERVER, make_inner=Recorder) as floor:
        client, forger = await open_forger(floor)
        async with client:
            flood = b"".join(forger.key_update() for _ in range(3000))
            started = time.thread_time()
            try:
                await client.transmit(flood)
            except ConnectionError:
                pass
            await floor.until_event(Event.EVICTED_SILENT_FLOOD)
            assert time.thread_time() - started < 1


async def test_a_flood_of_empty_records_ends_the_connection() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor:
        client, forger = await open_forger(floor)
        async with client:
            try:
                for _ in range(200):
                    await client.transmit(b"".join(forger.seal(b"", 23) for _ in range(20)))
            except ConnectionError:
                pass
            await floor.until(lambda: len(floor.events) > 1)
            assert floor.events[1] in {Event.EVICTED_SILENT_FLOOD, Event.EVICTED_BROKEN_RECORD}


async def test_one_byte_records_are_honest() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor:
        client, forger = await open_forger(floor)
        async with client:
            await client.transmit(b"".join(forger.seal(bytes([number % 256]), 23) for number in range(8000)))
            inner = await floor.inner()
            await floor.until(lambda: len(inner.received) == 8000)
            assert inner.received == bytes(number % 256 for number in range(8000))
            assert floor.events == [Event.HANDSHAKE_OK]


async def test_a_record_in_one_byte_segments_is_honest() -> None:
    async with run_floor(SERVER) as floor, await Client.open(floor) as client:
        client.tls.sendall(GET)
        await client.transmit_bytewise(client.take())
        assert (await client.receive_answer()).endswith(b"hello")


async def test_a_forger_without_the_right_keys_is_no_peer() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor) as client:
        await client.transmit(Forger(bytes(32)).seal(GET, 23))
        await floor.until_event(Event.EVICTED_BROKEN_RECORD)
        assert floor.inners[0].received == b""


async def test_handshake_fragments_after_the_handshake_end_it() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor) as client:
        await client.transmit(fragment(b"\x16\x03\x03\x00\x04\x01\x00\x00\x00", 2))
        await floor.until_event(Event.EVICTED_BROKEN_RECORD)


# --- flow control ----------------------------------------------------------------------------------------------------


async def test_a_paused_http_layer_holds_the_peer_back_and_loses_nothing() -> None:
    class Sipper(Recorder):
        """Pauses after each delivery and goes on a little later."""

        def data_received(self, data: bytes) -> None:
            assert self.transport.is_reading()
            assert len(data) <= 2 * 16_384
            super().data_received(data)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.001, self.transport.resume_reading)

    sent = bytes(range(256)) * 8000
    async with run_floor(SERVER, make_inner=Sipper) as floor, await Client.open(floor) as client:
        sending = asyncio.create_task(client.send(sent))
        inner = await floor.inner()
        await floor.until(lambda: len(inner.received) == len(sent))
        await sending
        assert inner.received == sent
        assert floor.events == [Event.HANDSHAKE_OK]


async def test_while_paused_the_peer_fills_the_kernel_and_not_us() -> None:
    class Stopper(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async with run_floor(SERVER, make_inner=Stopper) as floor, await Client.open(floor) as client:
        client.tls.sendall(bytes(16_000))
        sending = asyncio.create_task(client.flush())
        inner = await floor.inner()
        await floor.until(lambda: bool(inner.received))
        await sending
        taken = len(inner.received)
        for _ in range(50):
            client.tls.sendall(bytes(16_000))
        flood = asyncio.create_task(client.flush())
        await asyncio.sleep(0.1)
        assert len(inner.received) == taken
        inner.transport.abort()
        flood.cancel()


async def test_a_large_answer_waits_as_plaintext_and_is_paced() -> None:
    class Giver(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b"a" * 3_000_000)
            self.transport.write(b"b" * 10)
            self.transport.write(bytearray(b"c" * 3_000_000))

    limits = Limits(high_water_bytes=65_536)
    async with run_floor(SERVER, limits, Giver) as floor, await Client.open(floor, buffer=8192) as client:
        await client.send(b"now")
        inner = await floor.inner()
        await floor.until(lambda: bool(inner.flow))
        assert inner.transport.get_write_buffer_size() > 1_000_000
        raw = inner.transport._raw
        data = bytearray()
        while len(data) < 6_000_010:
            data += await client.receive()
            assert raw.get_write_buffer_size() <= 65_536 + 16_384 + 256
        assert data == b"a" * 3_000_000 + b"b" * 10 + b"c" * 3_000_000
        await floor.until(lambda: inner.flow[-1] == "resume")
        assert inner.flow == ["pause", "resume"] * (len(inner.flow) // 2)
        assert inner.transport.get_write_buffer_size() == 0


async def test_close_waits_for_a_large_answer() -> None:
    class Giver(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b"a" * 5_000_000)
            self.transport.close()

    async with run_floor(SERVER, make_inner=Giver) as floor, await Client.open(floor, buffer=8192) as client:
        await client.send(b"now")
        assert len(await client.receive_all()) == 5_000_000


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with run_floor(SERVER) as floor, await Client.open(floor) as client:
        bodies = [f"request {number}".encode() for number in range(100)]
        await client.send(
            b"".join(
                b"POST / HTTP/1.1\r\nHost: estd\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies
            )
        )
        data = b""
        while data.count(b"HTTP/1.1 200") < 100 or not data.endswith(bodies[-1]):
            data += await client.receive()
        assert [part.rpartition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 200 OK")[1:]] == bodies


async def test_an_empty_write_sends_nothing() -> None:
    async with run_floor(SERVER, make_inner=Recorder) as floor, await Client.open(floor) as client:
        transport = (await floor.inner()).transport
        transport.write(b"")
        transport.writelines([b"one ", b"", b"two"])
        assert await client.receive() == b"one two"


# --- whose peer it is -------------------------------------------------------------------------------------------------


async def test_the_gate_learns_the_peers_home_when_a_request_ends() -> None:
    class Admitter(Recorder):
        """Admits whoever says a number, to the ecosystem of that number."""

        def data_received(self, data: bytes) -> None:
            self.transport.request_began()
            if data.isdigit():
                self.transport.get_extra_info("estd.peer").memo[HOME] = int(data)
            before = find_home()
            self.transport.request_ended()
            homes.append((before, find_home()))
            self.transport.write(b"answer")

    def find_home() -> int | None:
        """Where the next one from that address belongs."""
        visitor = Queuer(floor.gate, floor.address[0])
        visitor.place.leave()
        return visitor.place.here.home.ecosystem_id

    homes: list[tuple[int | None, int | None]] = []
    async with run_floor(SERVER, make_inner=Admitter) as floor, await Client.open(floor) as client:
        for said in (b"refused", b"7", b"refused", b"8"):
            await client.send(said)
            assert await client.receive() == b"answer"
        assert homes == [(None, None), (None, 7), (7, 7), (7, SEVERAL)], "two ecosystems admit from there"


# --- faults of the HTTP layer's --------------------------------------------------------------------------------------


async def test_a_fault_of_the_http_layer_costs_one_connection() -> None:
    class Faulty(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("not today")

    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
    async with run_floor(SERVER, make_inner=Faulty) as floor, await Client.open(floor) as client:
        await client.send(GET)
        with pytest.raises(ConnectionResetError):
            await client.receive()
        assert floor.events == [Event.HANDSHAKE_OK, Event.EVICTED_INTERNAL]
        inner = await floor.inner()
        await floor.until(lambda: bool(inner.lost))
    assert faults == []
