from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import Callable

import pytest
from tls_lab import PATIENCE, Recorder

from estd.web.readiness import READ, Listening, Readiness
from estd.web.socket_transport import SocketTransport

PEERNAME = ("192.0.2.7", 4711)


_READINESS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Readiness] = weakref.WeakKeyDictionary()


def read_readiness(loop: asyncio.AbstractEventLoop) -> Readiness:
    """The one of this loop; it ends with it."""
    if loop not in _READINESS:
        _READINESS[loop] = Readiness()
    return _READINESS[loop]


class Way:
    """A transport over one end of a connection; the test holds the other end."""

    def __init__(
        self,
        protocol: Recorder | None = None,
        ends: tuple[socket.socket, socket.socket] | None = None,
        make: type[SocketTransport] = SocketTransport,
    ) -> None:
        self.ours, self.theirs = ends or socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.protocol = protocol or Recorder()
        self.transport = make(read_readiness(self.loop), self.ours, PEERNAME, self.protocol)

    def begin(self) -> Way:
        self.transport.begin()
        return self

    def narrow(self) -> Way:
        """Leave the kernel little room for what is written."""
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return self

    def fill(self) -> bytes:
        """Write until something is kept; what was written."""
        written = b""
        while not self.transport.get_write_buffer_size():
            self.transport.write(b"0123456789abcdef" * 64)
            written += b"0123456789abcdef" * 64
        return written

    async def read(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.loop.sock_recv(self.theirs, 65_536)

    async def read_all(self) -> bytes:
        """Until the end of the stream."""
        data = b""
        while part := await self.read():
            data += part
        return data

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.loop.sock_sendall(self.theirs, data)

    def reset(self) -> None:
        """Close the peer's end so that ours is reset; over loopback alone."""
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()

    async def until_lost(self) -> None:
        await until(lambda: bool(self.protocol.lost))


def connect_over_loopback() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Turns enough for everything that has come to be seen."""
    for _ in range(10):
        await asyncio.sleep(0.001)


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_what_has_come_already_is_handed_up_at_once_and_the_rest_when_it_comes() -> None:
    way = Way()
    await way.send(b"early")
    way.begin()
    assert way.protocol.received == b"early", "before the loop was asked"
    await way.send(b", late")
    await until(lambda: way.protocol.received == b"early, late")
    way.transport.abort()


async def test_one_who_has_sent_nothing_is_waited_for() -> None:
    way = Way().begin()
    assert way.protocol.transport is way.transport
    assert (way.protocol.received, way.transport.is_reading(), way.transport.is_closing()) == (b"", True, False)
    await way.send(b"now")
    await until(lambda: way.protocol.received == b"now")
    way.transport.abort()


async def test_a_protocol_that_pauses_when_introduced_is_handed_nothing_until_it_resumes() -> None:
    class Busy(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    way = Way(Busy())
    await way.send(b"early")
    way.begin()
    await settle()
    assert (way.protocol.received, way.transport.is_reading()) == (b"", False)
    way.transport.resume_reading()
    way.transport.resume_reading()
    assert (way.protocol.received, way.transport.is_reading()) == (b"", True), "never inside the call"
    await until(lambda: way.protocol.received == b"early")
    way.transport.abort()


async def test_a_protocol_that_pauses_with_the_first_octets_is_handed_no_more() -> None:
    class Sipper(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    way = Way(Sipper())
    await way.send(b"one")
    way.begin()
    await way.send(b"two")
    await settle()
    assert way.protocol.received == b"one"
    way.transport.resume_reading()
    await until(lambda: way.protocol.received == b"onetwo")
    await way.send(b"three")
    await settle()
    assert way.protocol.received == b"onetwo"
    way.transport.abort()


async def test_more_than_the_buffer_comes_in_order() -> None:
    way = Way().begin()
    sent = bytes(range(251)) * 4000
    await way.send(sent)
    await until(lambda: len(way.protocol.received) == len(sent))
    assert way.protocol.received == sent
    way.transport.abort()


async def test_connections_share_a_buffer_and_not_what_is_in_it() -> None:
    class Keeper(Recorder):
        """Keeps the very objects."""

        def __init__(self) -> None:
            super().__init__()
            self.parts: list[bytes] = []

        def data_received(self, data: bytes) -> None:
            self.parts.append(data)

    keepers = Keeper(), Keeper()
    ways = [Way(keeper) for keeper in keepers]
    for way, said in zip(ways, (b"one's own", b"another's"), strict=True):
        await way.send(said)
        way.begin()
    assert [keeper.parts for keeper in keepers] == [[b"one's own"], [b"another's"]]
    assert type(keepers[0].parts[0]) is bytes
    for way in ways:
        way.transport.abort()


# --- writing ----------------------------------------------------------------------------------------------------------


async def test_what_the_kernel_takes_is_gone_at_once() -> None:
    way = Way().begin()
    way.transport.write(b"small")
    way.transport.write(b"")
    way.transport.write(bytearray(b", and smaller"))
    assert way.transport.get_write_buffer_size() == 0
    assert way.theirs.recv(100) == b"small, and smaller"
    way.transport.abort()


async def test_what_the_kernel_takes_in_part_goes_out_in_order() -> None:
    way = Way().narrow().begin()
    first, second = bytes(range(256)) * 2000, bytearray(b"second" * 10_000)
    way.transport.write(first)
    kept = way.transport.get_write_buffer_size()
    assert 0 < kept < len(first)
    way.transport.write(second)
    assert way.transport.get_write_buffer_size() == kept + len(second)
    way.transport.write(memoryview(b"third"))
    second[:] = bytes(len(second))  # what was written is written
    whole = first + b"second" * 10_000 + b"third"
    received = b""
    while len(received) < len(whole):
        received += await way.read()
    assert received == whole
    await until(lambda: way.transport.get_write_buffer_size() == 0)
    way.transport.write(b"fourth")
    assert await way.read() == b"fourth"
    way.transport.abort()


async def test_above_the_high_mark_the_protocol_pauses_once_and_at_the_low_one_it_resumes() -> None:
    class Measurer(Recorder):
        left = -1

        def resume_writing(self) -> None:
            super().resume_writing()
            self.left = self.transport.get_write_buffer_size()

    measurer = Measurer()
    way = Way(measurer).narrow().begin()
    written = way.fill()
    high = way.transport.get_write_buffer_size() + 40_000
    way.transport.set_write_buffer_limits(high=high, low=10_000)
    way.transport.write(b"x" * 40_000)
    assert (way.transport.get_write_buffer_size(), measurer.flow) == (high, [])
    way.transport.write(b"y")
    way.transport.write(b"z")
    assert measurer.flow == ["pause"]
    received = b""
    while way.transport.get_write_buffer_size() > 10_000:
        assert measurer.flow == ["pause"]
        received += await way.read()
    assert measurer.flow == ["pause", "resume"]
    assert measurer.left <= 10_000
    while len(received) < len(written) + 40_002:
        received += await way.read()
    assert received == written + b"x" * 40_000 + b"yz"
    assert measurer.flow == ["pause", "resume"]
    way.transport.abort()


async def test_the_marks_are_64_kib_and_a_quarter_of_the_high_one() -> None:
    class Measurer(Recorder):
        left = -1

        def resume_writing(self) -> None:
            self.left = self.transport.get_write_buffer_size()

    measurer = Measurer()
    way = Way(measurer).narrow().begin()
    way.fill()
    way.transport.write(bytes(65_536 - way.transport.get_write_buffer_size()))
    assert measurer.flow == []
    way.transport.write(b"x")
    assert measurer.flow == ["pause"]
    while measurer.left < 0:
        assert way.transport.get_write_buffer_size() > 16_384
        await way.read()
    assert measurer.left <= 16_384
    way.transport.abort()


async def test_what_a_protocol_writes_when_it_resumes_comes_last() -> None:
    class Giver(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"<last>")
            self.transport.close()

    way = Way(Giver()).narrow().begin()
    way.transport.set_write_buffer_limits(high=0)
    way.transport.write(b"first" * 20_000)
    assert await way.read_all() == b"first" * 20_000 + b"<last>"
    await way.until_lost()
    assert (way.protocol.lost, way.protocol.flow) == ([None], ["pause", "resume"])


async def test_a_protocol_that_aborts_when_it_resumes_is_told_once() -> None:
    class Quitter(Recorder):
        def resume_writing(self) -> None:
            self.transport.write(bytes(300_000))
            self.transport.abort()
            assert self.lost == []

    way = Way(Quitter()).narrow().begin()
    way.transport.set_write_buffer_limits(high=0)
    way.transport.write(b"first" * 20_000)
    received = await way.read_all()
    assert len(received) < 400_000
    assert received.startswith(b"first" * 20_000)
    await settle()
    assert way.protocol.lost == [None]


# --- ends that are ours -----------------------------------------------------------------------------------------------


async def test_close_sends_what_was_written_first() -> None:
    way = Way().narrow().begin()
    way.transport.write(b"x" * 200_000)
    way.transport.close()
    way.transport.close()
    assert way.transport.is_closing()
    assert not way.transport.is_reading()
    way.transport.write(b"too late")
    await settle()
    assert way.protocol.lost == [], "the peer has not read it"
    assert await way.read_all() == b"x" * 200_000
    await settle()
    assert way.protocol.lost == [None]
    assert way.ours.fileno() == -1


async def test_close_is_told_later_and_leaves_unread_what_comes_meanwhile() -> None:
    way = Way().begin()
    await way.send(b"unread")
    way.transport.close()
    assert (way.protocol.lost, way.ours.fileno() >= 0) == ([], True)
    await settle()
    assert (way.protocol.received, way.protocol.lost, way.ours.fileno()) == (b"", [None], -1)
    for late in (way.transport.close, way.transport.abort, way.transport.write_eof, way.transport.resume_reading):
        late()
    way.transport.write(b"late")
    await settle()
    assert way.protocol.lost == [None]


async def test_abort_drops_what_was_written() -> None:
    way = Way().narrow().begin()
    way.transport.write(b"x" * 200_000)
    way.transport.abort()
    assert (way.transport.get_write_buffer_size(), way.transport.is_closing(), way.protocol.lost) == (0, True, [])
    assert len(await way.read_all()) < 200_000
    way.transport.abort()
    await settle()
    assert way.protocol.lost == [None]


async def test_abort_ends_what_close_waits_for() -> None:
    way = Way().narrow().begin()
    way.transport.write(b"x" * 200_000)
    way.transport.close()
    way.transport.abort()
    await settle()
    assert (way.protocol.lost, way.ours.fileno()) == ([None], -1)


async def test_our_direction_alone_is_closed_behind_what_was_written() -> None:
    way = Way().narrow().begin()
    assert way.transport.can_write_eof()
    way.transport.write(b"x" * 200_000)
    way.transport.write_eof()
    way.transport.write_eof()
    assert await way.read_all() == b"x" * 200_000
    await way.send(b"still listening?")
    await until(lambda: way.protocol.received == b"still listening?")
    assert (way.transport.is_closing(), way.protocol.lost) == (False, [])
    way.transport.abort()


async def test_our_direction_is_closed_at_once_where_nothing_waits() -> None:
    way = Way().begin()
    way.transport.write(b"bye")
    way.transport.write_eof()
    assert (way.theirs.recv(100), way.theirs.recv(100)) == (b"bye", b"")
    way.transport.close()
    await settle()
    assert way.protocol.lost == [None]


# --- ends that are the peer's -----------------------------------------------------------------------------------------


async def test_the_peers_end_is_ours_too_after_what_was_written() -> None:
    way = Way().narrow().begin()
    way.transport.write(b"x" * 200_000)
    way.theirs.shutdown(socket.SHUT_WR)
    await until(lambda: way.protocol.eof)
    assert way.transport.is_closing()
    assert await way.read_all() == b"x" * 200_000
    await settle()
    assert way.protocol.lost == [None]


class Patient(Recorder):
    """Keeps its side open."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = 0

    def eof_received(self) -> bool:  # type: ignore[override]  # an end that leaves our side open
        self.ends += 1
        return True


async def test_a_protocol_may_keep_its_side_open_and_the_loop_does_not_spin() -> None:
    patient = Patient()
    way = Way(patient)
    await way.send(b"question")
    way.theirs.shutdown(socket.SHUT_WR)
    way.begin()
    await until(lambda: patient.ends == 1)
    await settle()
    assert (patient.ends, patient.received, way.transport.is_closing()) == (1, b"question", False)
    assert not way.loop.remove_reader(way.ours.fileno()), "nobody waits for what cannot come"
    way.transport.write(b"answer")
    assert await way.read() == b"answer"
    way.transport.close()
    assert await way.read() == b""
    await settle()
    assert patient.lost == [None]


async def test_the_peers_end_is_told_once_however_often_reading_is_resumed() -> None:
    patient = Patient()
    way = Way(patient).begin()
    way.theirs.shutdown(socket.SHUT_WR)
    await until(lambda: patient.ends == 1)
    for _ in range(3):
        way.transport.pause_reading()
        way.transport.resume_reading()
        await settle()
    assert patient.ends == 1
    way.transport.abort()


async def test_a_connection_that_is_reset_before_it_begins_is_lost_later() -> None:
    way = Way(ends=connect_over_loopback())
    way.reset()
    way.begin()
    assert (way.protocol.lost, way.transport.is_closing()) == ([], True)
    await settle()
    assert [type(loss) for loss in way.protocol.lost] == [ConnectionResetError]
    assert way.ours.fileno() == -1


async def test_a_reset_while_reading_is_a_loss() -> None:
    way = Way(ends=connect_over_loopback()).begin()
    await settle()
    way.reset()
    await way.until_lost()
    way.transport.abort()
    await settle()
    assert [type(loss) for loss in way.protocol.lost] == [ConnectionResetError]


async def test_a_reset_while_something_waits_is_a_loss() -> None:
    way = Way(ends=connect_over_loopback()).begin()
    way.transport.pause_reading()
    way.fill()
    way.transport.close()
    await settle()
    way.reset()
    await way.until_lost()
    await settle()
    assert [type(loss) for loss in way.protocol.lost] == [ConnectionResetError]
    assert way.ours.fileno() == -1


async def test_a_write_to_one_who_is_gone_is_a_loss_that_is_told_later() -> None:
    way = Way().begin()
    way.transport.pause_reading()
    way.theirs.close()
    way.transport.write(b"anybody there?")
    way.transport.write(b"anybody?")
    assert (way.protocol.lost, way.transport.is_closing()) == ([], True)
    await settle()
    assert [type(loss) for loss in way.protocol.lost] == [BrokenPipeError]
    assert way.transport.get_write_buffer_size() == 0


async def test_the_end_of_a_connection_that_is_gone_cannot_be_written() -> None:
    way = Way(ends=connect_over_loopback()).begin()
    way.transport.pause_reading()
    way.reset()
    with pytest.raises(OSError, match="not connected"):
        way.transport.write_eof()
    way.transport.abort()
    await settle()
    assert way.protocol.lost == [None]


class Counted(Readiness):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def watch(self, descriptor: int, who: Listening, events: int) -> None:
        self.asked.append(f"watch {events}")
        super().watch(descriptor, who, events)

    def ignore(self, descriptor: int) -> None:
        self.asked.append("ignore")
        super().ignore(descriptor)


async def test_a_pause_costs_nothing_while_nothing_comes() -> None:
    counted = Counted()
    way = Way()
    transport = SocketTransport(counted, way.ours, PEERNAME, way.protocol)
    transport.begin()
    transport.pause_reading()
    await settle()
    transport.resume_reading()
    assert counted.asked == [f"watch {READ}"]
    transport.pause_reading()
    await way.send(b"too early")
    await settle()
    assert counted.asked == [f"watch {READ}", "ignore"], "told once that something came, and no more"
    assert bytes(way.protocol.received) == b""
    transport.resume_reading()
    await until(lambda: bytes(way.protocol.received) == b"too early")
    assert counted.asked == [f"watch {READ}", "ignore", f"watch {READ}"]
    transport.abort()
    await way.until_lost()
    way.theirs.close()
    counted.close()


# --- faults, and what is left -----------------------------------------------------------------------------------------


async def test_a_protocols_fault_costs_its_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("not today")

    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
    bad, good = Way(Faulty()), Way().begin()
    await bad.send(b"hello")
    bad.begin()
    assert (bad.protocol.lost, bad.transport.is_closing()) == ([], True)
    await bad.until_lost()
    await good.send(b"hello")
    await until(lambda: good.protocol.received == b"hello")
    assert [type(loss) for loss in bad.protocol.lost] == [RuntimeError]
    assert await bad.read_all() == b""
    assert ([record.message for record in caplog.records], faults) == (["connection dropped"], [])
    good.transport.abort()


async def test_a_protocols_fault_when_introduced_costs_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise RuntimeError("not today")

    way = Way(Faulty())
    await way.send(b"hello")
    way.begin()
    assert (way.protocol.received, way.protocol.lost, way.transport.is_closing()) == (b"", [], True)
    await settle()
    assert [type(loss) for loss in way.protocol.lost] == [RuntimeError]
    assert way.ours.fileno() == -1
    assert [record.message for record in caplog.records] == ["connection dropped"]


async def test_a_protocols_fault_when_it_resumes_costs_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Recorder):
        def resume_writing(self) -> None:
            self.transport.write(bytes(300_000))
            raise RuntimeError("not today")

    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
    way = Way(Faulty()).narrow().begin()
    way.transport.set_write_buffer_limits(high=0)
    way.transport.write(b"first" * 20_000)
    assert len(await way.read_all()) < 400_000
    await settle()
    assert [type(loss) for loss in way.protocol.lost] == [RuntimeError]
    assert ([record.message for record in caplog.records], faults) == (["connection dropped"], [])


async def test_another_protocol_is_told_from_now_on() -> None:
    way = Way()
    await way.send(b"for the first")
    way.begin()
    first, second = way.protocol, Recorder()
    way.transport.set_protocol(second)
    assert way.transport.get_protocol() is second
    await way.send(b"for the second")
    await until(lambda: bool(second.received))
    way.transport.close()
    await settle()
    assert (first.received, first.lost) == (b"for the first", [])
    assert (second.received, second.lost) == (b"for the second", [None])


async def test_what_is_known_of_the_connection() -> None:
    way = Way(ends=connect_over_loopback()).begin()
    known = way.transport.get_extra_info
    assert known("peername") == PEERNAME
    assert known("socket") is way.ours
    assert known("sockname") == way.theirs.getpeername()
    assert (known("cipher"), known("cipher", "none")) == (None, "none")
    way.transport.abort()
    await settle()
    assert (known("peername"), known("socket"), known("sockname", "gone")) == (PEERNAME, None, "gone")


@pytest.mark.parametrize("end", ["close", "abort", "reset", "peer's end"])
async def test_an_ended_connection_lets_go_of_everything(end: str) -> None:
    class Weak(SocketTransport):
        __slots__ = ("__weakref__",)

    class Faithful(Recorder):
        """Keeps its transport for ever, but not the reason, whose traceback holds whoever was told."""

        def connection_lost(self, exc: Exception | None) -> None:
            over.set()

    gc.disable()
    try:
        over = asyncio.Event()
        way = Way(Faithful(), connect_over_loopback(), Weak).narrow().begin()
        if end in ("abort", "reset"):
            way.fill()
        traces = [weakref.ref(one) for one in (way.transport, way.protocol, way.ours)]
        theirs = way.theirs
        if end == "reset":
            way.reset()
        elif end == "peer's end":
            theirs.shutdown(socket.SHUT_WR)
        elif end == "close":
            way.transport.close()
        else:
            way.transport.abort()
        del way
        async with asyncio.timeout(PATIENCE):
            await over.wait()
        await settle()
        assert [trace() for trace in traces] == [None, None, None]
        theirs.close()
    finally:
        gc.enable()


# --- looking again ---------------------------------------------------------------------------------------------------


class Noting(socket.socket):
    """Notes which options are set."""

    def __init__(self, taken_over: socket.socket) -> None:
        super().__init__(taken_over.family, taken_over.type, taken_over.proto, fileno=taken_over.detach())
        self.options: list[tuple[object, ...]] = []

    def setsockopt(self, *arguments: object) -> None:  # type: ignore[override]  # both of its forms
        self.options.append(arguments)
        super().setsockopt(*arguments)  # type: ignore[arg-type]  # as they were given


def make_noted_way() -> tuple[Way, Noting]:
    ours, theirs = connect_over_loopback()
    noting = Noting(ours)
    return Way(ends=(noting, theirs)).begin(), noting


ACKNOWLEDGE_NOW = (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


async def test_looking_again_hands_up_what_has_come_and_leaves_the_acknowledgement_to_the_answer() -> None:
    way, noting = make_noted_way()
    await way.send(b"request")
    way.transport.look_again()
    assert bytes(way.protocol.received) == b"request"
    assert ACKNOWLEDGE_NOW not in noting.options
    way.transport.abort()
    await way.until_lost()
    way.theirs.close()


async def test_looking_again_in_vain_acknowledges_what_came_before() -> None:
    way, noting = make_noted_way()
    way.transport.look_again()
    assert noting.options == [ACKNOWLEDGE_NOW]
    assert bytes(way.protocol.received) == b""
    way.transport.abort()
    way.transport.look_again()
    await way.until_lost()
    assert noting.options == [ACKNOWLEDGE_NOW]
    way.theirs.close()


async def test_looking_again_does_nothing_while_reading_is_paused() -> None:
    way, noting = make_noted_way()
    way.transport.pause_reading()
    await way.send(b"later")
    way.transport.look_again()
    assert (bytes(way.protocol.received), noting.options) == (b"", [])
    way.transport.resume_reading()
    await until(lambda: bytes(way.protocol.received) == b"later")
    way.transport.abort()
    await way.until_lost()
    way.theirs.close()
