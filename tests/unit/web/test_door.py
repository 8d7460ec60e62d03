from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest
from tls_lab import PATIENCE, Recorder

from estd.web.door import Door
from estd.web.readiness import Readiness


class Listener(socket.socket):
    """A listening socket whose `accept` fails when told to."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        super().__init__(family)
        self.failures: list[int] = []
        self.asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        if self.failures:
            number = self.failures.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class House:
    """A door, and everybody who came in by it."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.inside: list[Recorder] = []
        self.outside: list[socket.socket] = []
        self.readiness = Readiness()
        self.door = Door(listener, self.readiness, self._make)

    def knock(self, count: int = 1) -> None:
        """Connect, which the kernel does without the door."""
        for _ in range(count):
            self.outside.append(socket.create_connection(self.listener.getsockname()))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.001)

    def _make(self) -> asyncio.Protocol:
        self.inside.append(Recorder())
        return self.inside[-1]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    listener = Listener()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    house = House(listener)
    yield house
    house.door.close()
    for protocol in house.inside:
        protocol.transport.abort()
    for client in house.outside:
        client.close()
    await asyncio.sleep(0.001)
    house.readiness.close()


async def test_a_crowd_comes_in_over_several_turns(house: House) -> None:
    loop = asyncio.get_running_loop()
    turns: list[int] = []

    def take_notes() -> None:
        turns.append(len(house.inside))
        if turns[-1] < 40:
            loop.call_soon(take_notes)

    house.knock(40)
    house.door.open()
    take_notes()
    await house.until(lambda: len(house.inside) == 40 == turns[-1])
    steps = Counter(later - earlier for earlier, later in pairwise(turns) if later > earlier)
    assert steps == {16: 2, 8: 1}


async def test_who_comes_in_is_introduced_with_what_it_has_said(house: House) -> None:
    house.knock(2)
    house.outside[0].sendall(b"hello")
    house.door.open()
    await house.until(lambda: len(house.inside) == 2)
    first, second = house.inside
    assert (first.received, second.received) == (b"hello", b"")
    assert [protocol.transport.get_extra_info("peername") for protocol in house.inside] == [
        client.getsockname() for client in house.outside
    ]
    second.transport.write(b"and hello to you")
    assert house.outside[1].recv(100) == b"and hello to you"
    house.outside[1].sendall(b"thanks")
    await house.until(lambda: second.received == b"thanks")


async def test_what_is_written_is_not_held_back_for_more(house: House) -> None:
    house.door.open()
    house.knock()
    await house.until(lambda: bool(house.inside))
    connection = house.inside[0].transport.get_extra_info("socket")
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert connection.getblocking() is False


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
async def test_without_descriptors_those_outside_wait_and_everything_else_goes_on(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("estd.web.door._PAUSE_SECONDS", 0.3)  # long enough to look at
    house.door.open()
    house.knock()
    await house.until(lambda: len(house.inside) == 1)
    asked = house.listener.asked
    house.listener.failures = [number]
    house.knock()
    await house.until(lambda: house.listener.asked == asked + 1)
    house.outside[0].sendall(b"still there?")
    await house.until(lambda: house.inside[0].received == b"still there?")
    await asyncio.sleep(0.02)
    assert (len(house.inside), house.listener.asked) == (1, asked + 1), "asked once, and not again and again"
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("ERROR", "no connection can be taken for now")
    assert vars(record)["detail"] == os.strerror(number)
    assert "LimitNOFILE" in vars(record)["remedy"]
    await house.until(lambda: len(house.inside) == 2)
    assert len(caplog.records) == 1


async def test_who_is_gone_before_coming_in_is_passed_over(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.listener.failures = [errno.ECONNABORTED, errno.EPROTO]
    house.knock()
    house.door.open()
    await house.until(lambda: bool(house.inside))
    assert house.listener.asked == 4, "two who were gone, the third, and the end of the queue"
    assert caplog.records == []


async def test_a_fault_of_one_who_comes_in_costs_nobody_else(house: House, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            if len(house.inside) == 1:
                raise RuntimeError("not today")

    def make() -> asyncio.Protocol:
        house.inside.append(Faulty())
        return house.inside[-1]

    door = Door(house.listener, house.readiness, make)
    house.knock(3)
    door.open()
    await house.until(lambda: len(house.inside) == 3 and bool(house.inside[0].lost))
    assert [[type(loss) for loss in protocol.lost] for protocol in house.inside] == [[RuntimeError], [], []]
    assert [record.message for record in caplog.records] == ["connection dropped"]


async def test_a_closed_door_lets_nobody_in_and_may_be_closed_again(house: House) -> None:
    other = socket.socket(fileno=os.dup(house.listener.fileno()))
    house.door.open()
    house.knock()
    await house.until(lambda: len(house.inside) == 1)
    house.door.close()
    house.door.close()
    assert house.listener.fileno() == -1
    house.outside.append(socket.create_connection(other.getsockname()))
    await asyncio.sleep(0.02)
    assert len(house.inside) == 1
    other.setblocking(True)
    other.settimeout(PATIENCE)
    other.accept()[0].close()  # another worker's descriptor of the same socket has it
    house.outside[0].sendall(b"still in")
    await house.until(lambda: house.inside[0].received == b"still in")
    other.close()


async def test_a_door_that_is_closed_while_it_rests_stays_closed(house: House) -> None:
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
    house.listener.failures = [errno.EMFILE]
    house.knock()
    house.door.open()
    await house.until(lambda: house.listener.asked == 1)
    house.door.close()
    await asyncio.sleep(0.15)  # longer than it rests
    assert (house.inside, house.listener.asked, faults) == ([], 1, [])


async def test_a_unix_socket_has_a_door_too(tmp_path: os.PathLike[str]) -> None:
    listener = Listener(socket.AF_UNIX)
    listener.bind(os.fspath(tmp_path) + "/socket")
    house = House(listener)
    house.door.open()
    client = socket.socket(socket.AF_UNIX)
    client.connect(listener.getsockname())
    client.sendall(b"hello")
    await house.until(lambda: bool(house.inside) and house.inside[0].received == b"hello")
    client.close()
    await house.until(lambda: house.inside[0].lost == [None])
    house.door.close()
