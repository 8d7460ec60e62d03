from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from estd.signer.connections import Connection, read_peer
from estd.signer.frames import FrameError, Sealed, Status, request_reader, write_frame


@pytest.fixture
def pair() -> Iterator[tuple[Connection[object], socket.socket]]:
    ours, theirs = socket.socketpair()
    connection: Connection[object] = Connection(ours, request_reader(), "test", 100.0)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_messages_are_kept_until_they_are_taken(pair):
    connection, peer = pair
    assert connection.receive(101.0)
    assert not connection.inbox
    peer.sendall(write_frame(Status(1)) + write_frame(Status(2)))
    assert connection.receive(102.0)
    assert list(connection.inbox) == [Status(1), Status(2)]


def test_a_peer_that_is_gone_is_noticed(pair):
    connection, peer = pair
    peer.close()
    assert not connection.receive(101.0)
    assert not connection.send(Status(1), 101.0)


def test_garbage_is_raised(pair):
    connection, peer = pair
    peer.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(FrameError):
        connection.receive(101.0)


def test_a_peer_that_sends_faster_than_it_is_served_is_not_read(pair):
    connection, peer = pair
    peer.sendall(write_frame(Status(1)) * 40)
    connection.receive(101.0)
    assert not connection.wants_to_read
    connection.inbox.clear()
    assert connection.wants_to_read


def test_a_peer_that_does_not_read_is_congested_and_then_stalled(pair):
    connection, peer = pair
    answer = Sealed(1, (bytes(1024 * 1024),))
    at = 101.0
    while not connection.is_congested:
        assert connection.send(answer, at)
        at += 0.1
    assert connection.wants_to_write
    assert not connection.wants_to_read
    assert not connection.is_stalled(105.0, 10)
    assert connection.is_stalled(120.0, 10)
    # It reads after all: everything arrives, in order and whole.
    peer.setblocking(False)
    expected = len(write_frame(answer))
    received = 0
    while connection.wants_to_write:
        assert connection.flush(121.0)
        try:
            while True:
                received += len(peer.recv(1 << 20))
        except BlockingIOError:
            pass
    assert received % expected == 0
    assert not connection.is_congested
    assert not connection.is_stalled(500.0, 10)


def test_half_a_frame_stalls(pair):
    connection, peer = pair
    peer.sendall(write_frame(Status(1))[:3])
    connection.receive(101.0)
    assert not connection.is_stalled(110.9, 10)
    assert connection.is_stalled(111.1, 10)


def test_an_idle_peer_does_not_stall(pair):
    assert not pair[0].is_stalled(1e6, 10)


def test_closing_lets_go_of_everything(pair):
    connection, peer = pair
    peer.sendall(write_frame(Status(1)))
    connection.receive(101.0)
    connection.close()
    assert not connection.inbox
    assert not connection.wants_to_read
    assert not connection.wants_to_write


def test_the_kernel_says_who_is_at_the_other_end(pair):
    assert read_peer(pair[0].end) == (os.getpid(), os.getuid())
