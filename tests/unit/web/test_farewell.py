from __future__ import annotations

import asyncio
import socket

import pytest

from estd.web.farewell import Farewell
from estd.web.gate import Gate
from estd.web.place import Limits, Place
from estd.web.tls_events import Event
from estd.web.watch import Watch


class _Nobody:
    def handshake_granted(self) -> None:
        raise AssertionError

    def handshake_revoked(self) -> None:
        raise AssertionError


class Parting:
    """A socket's transport that has something left to say, and the peer's end of it."""

    @classmethod
    async def build(cls, limits: Limits, last_words: bytes, *, send_buffer: int = 4096) -> Parting:
        self = cls()
        self.loop = asyncio.get_running_loop()
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.raw, _ = await self.loop.create_connection(asyncio.Protocol, sock=ours)
        self.gate = Gate(limits)
        place = self.gate.enter("somewhere", _Nobody())
        assert isinstance(place, Place)
        place.end()
        self.events: list[str] = []
        self.raw.write(last_words)
        self.farewell = Farewell(self.raw, place, limits, Watch(limits.look_seconds), self.events.append)
        return self

    async def read_all(self, pause: float = 0.0) -> bytes:
        data = b""
        while part := await self.loop.sock_recv(self.theirs, 4096):
            data += part
            await asyncio.sleep(pause)
        return data

    async def until_gone(self) -> float:
        started = self.loop.time()
        async with asyncio.timeout(10):
            while self.gate.connections:
                await asyncio.sleep(0.005)
        return self.loop.time() - started


async def test_the_peer_reads_everything_and_then_the_end() -> None:
    parting = await Parting.build(Limits(), b"farewell" * 10_000)
    parting.farewell.begin(peer_is_done=False)
    assert await parting.read_all() == b"farewell" * 10_000
    parting.theirs.close()
    assert await parting.until_gone() < 1
    assert parting.events == []


async def test_what_the_peer_still_sends_is_read_and_forgotten() -> None:
    parting = await Parting.build(Limits(), b"farewell")
    parting.raw.pause_reading()
    parting.farewell.begin(peer_is_done=False)
    await parting.loop.sock_sendall(parting.theirs, bytes(1_000_000))
    assert await parting.read_all() == b"farewell"
    parting.theirs.close()
    assert await parting.until_gone() < 1


async def test_a_peer_that_sends_without_end_is_left() -> None:
    limits = Limits(linger_seconds=60, linger_bytes=100_000)
    parting = await Parting.build(limits, b"farewell")
    parting.farewell.begin(peer_is_done=False)
    sending = parting.loop.create_task(parting.loop.sock_sendall(parting.theirs, bytes(100_000_000)))
    await parting.until_gone()
    with pytest.raises(ConnectionError):
        await sending
    assert parting.events == []
    parting.theirs.close()


def test_how_much_is_forgotten() -> None:
    assert Limits().linger_bytes == 1 << 20


async def test_a_peer_that_is_done_is_not_waited_for() -> None:
    parting = await Parting.build(Limits(linger_seconds=30), b"farewell")
    parting.farewell.begin(peer_is_done=True)
    assert await parting.read_all() == b"farewell"
    assert await parting.until_gone() < 1
    parting.theirs.close()


async def test_a_peer_that_has_read_all_and_stays_is_left() -> None:
    parting = await Parting.build(Limits(linger_seconds=0.1), b"farewell")
    parting.farewell.begin(peer_is_done=False)
    assert await parting.until_gone() < 1
    assert parting.events == []
    parting.theirs.close()


async def test_a_peer_that_never_reads_is_put_out() -> None:
    limits = Limits(linger_seconds=0.05, write_stall_seconds=0.3)
    parting = await Parting.build(limits, bytes(500_000))
    parting.farewell.begin(peer_is_done=False)
    assert 0.2 < await parting.until_gone() < 2
    assert parting.events == [Event.EVICTED_WRITE_STALL]
    parting.theirs.close()


async def test_a_slow_reader_gets_longer_than_the_linger() -> None:
    limits = Limits(linger_seconds=0.05, write_stall_seconds=0.3, write_floor_bytes=1000)
    parting = await Parting.build(limits, bytes(200_000))
    parting.farewell.begin(peer_is_done=False)
    assert len(await parting.read_all(pause=0.01)) == 200_000
    parting.theirs.close()
    assert await parting.until_gone() < 1
    assert parting.events == []


async def test_a_transport_that_is_closing_already_is_still_seen_off() -> None:
    parting = await Parting.build(Limits(), b"")
    parting.raw.abort()
    parting.farewell.begin(peer_is_done=False)
    assert await parting.until_gone() < 1
    parting.theirs.close()


async def test_a_peer_that_reset_the_socket_is_gone_at_once() -> None:
    parting = await Parting.build(Limits(), b"farewell")
    parting.theirs.close()
    parting.farewell.begin(peer_is_done=False)
    assert await parting.until_gone() < 1
