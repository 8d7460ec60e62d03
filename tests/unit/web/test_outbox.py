from __future__ import annotations

import asyncio
import contextlib
import socket

from OpenSSL import SSL
from tls_lab import make_client_context, make_identity

from estd.web.openssl import RECORD_BYTES, Connection
from estd.web.outbox import NEVER, Outbox
from estd.web.place import Limits
from estd.web.tls_context import build_context

SERVER = make_identity("estd")


class Way:
    """An outbox into one end of a socket pair, and a client's TLS at the other end, which reads when told to."""

    @classmethod
    async def build(cls, limits: Limits) -> Way:
        self = cls()
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.loop = asyncio.get_running_loop()
        self.raw, _ = await self.loop.create_connection(asyncio.Protocol, sock=ours)
        self.raw.set_write_buffer_limits(high=limits.high_water_bytes)
        self.server = Connection(build_context(SERVER.chain_pem, SERVER.key_pem))
        self.client = SSL.Connection(make_client_context(), None)
        self.client.set_connect_state()
        for _ in range(2):
            with contextlib.suppress(SSL.WantReadError):
                self.client.do_handshake()
            self.server.feed(self.client.bio_read(65_536))
            if not self.server.handshake():
                self.client.bio_write(self.server.take())
        self.outbox = Outbox(self.server, self.raw, limits, self.loop)
        return self

    async def read(self) -> bytes:
        """The plaintext of what has arrived; once, as a slow peer would."""
        self.client.bio_write(await self.loop.sock_recv(self.theirs, 65_536))
        data = b""
        while True:
            try:
                data += self.client.recv(65_536)
            except SSL.WantReadError:
                return data

    async def settle(self) -> None:
        """Let the loop hand over what it holds back."""
        for _ in range(3):
            await asyncio.sleep(0)

    def close(self) -> None:
        self.raw.abort()
        self.theirs.close()


async def test_a_small_answer_goes_at_once_and_leaves_no_window() -> None:
    way = await Way.build(Limits())
    way.outbox.write(b"small")
    assert not way.outbox.backlog
    assert await way.read() == b"small"
    await way.settle()
    assert way.outbox.waiting_bytes() == 0
    assert not way.outbox.is_stalled(way.outbox.stall_at)
    assert way.outbox.stall_at == NEVER
    way.close()


async def test_no_more_than_the_high_water_mark_and_a_record_is_encrypted() -> None:
    limits = Limits(high_water_bytes=30_000)
    way = await Way.build(limits)
    answer = bytes(range(256)) * 4000
    way.outbox.write(answer)
    way.outbox.write(b"")
    way.outbox.write(b"and this")
    received = b""
    while len(received) < len(answer) + 8:
        assert way.raw.get_write_buffer_size() <= 30_000 + RECORD_BYTES + 256
        received += await way.read()
        await way.settle()
        way.outbox.drain()
    assert received == answer + b"and this"
    assert way.outbox.waiting_bytes() == 0
    way.close()


async def test_a_buffer_that_changes_after_the_write_does_not_change_the_answer() -> None:
    way = await Way.build(Limits(high_water_bytes=1000))
    buffer = bytearray(b"a" * 40_000)
    way.outbox.write(buffer)
    buffer[:] = b"b" * 40_000
    received = b""
    while len(received) < 40_000:
        received += await way.read()
        await way.settle()
        way.outbox.drain()
    assert received == b"a" * 40_000
    way.close()


async def test_a_peer_that_takes_nothing_is_stalled_after_its_window() -> None:
    limits = Limits(write_stall_seconds=10)
    way = await Way.build(limits)
    before = way.loop.time()
    way.outbox.write(bytes(500_000))
    assert before + 10 <= way.outbox.stall_at <= way.loop.time() + 10
    await way.settle()
    way.outbox.is_stalled(way.outbox.stall_at)  # what the kernel took
    assert way.outbox.is_stalled(way.outbox.stall_at)
    way.close()


async def test_a_peer_that_takes_enough_gets_another_window() -> None:
    limits = Limits(write_stall_seconds=10, write_floor_bytes=1000)
    way = await Way.build(limits)
    way.outbox.write(bytes(500_000))
    await way.settle()
    way.outbox.is_stalled(way.outbox.stall_at)
    for _ in range(3):
        ends = way.outbox.stall_at
        await way.read()
        await asyncio.sleep(0.01)
        way.outbox.drain()
        assert not way.outbox.is_stalled(ends)
        assert way.outbox.stall_at == ends + 10
    way.close()


async def test_a_released_outbox_holds_no_connection() -> None:
    way = await Way.build(Limits(high_water_bytes=1000))
    way.outbox.write(bytes(100_000))
    assert way.outbox.backlog
    way.outbox.release()
    assert not way.outbox.backlog
    way.close()
