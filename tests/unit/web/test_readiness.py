from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from estd.web.readiness import READ, WRITE, Readiness


class Ear:
    """Takes notes, and does what it is told to when it hears something."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def ready(self, events: int) -> None:
        self.heard.append(events)


@pytest.fixture
async def readiness() -> AsyncIterator[Readiness]:
    readiness = Readiness()
    yield readiness
    readiness.close()


def make_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def settle() -> None:
    await asyncio.sleep(0.02)


async def test_a_socket_is_told_what_it_asked_for_and_nothing_else(readiness: Readiness) -> None:
    ours, theirs = make_pair()
    with ours, theirs:
        ear = Ear()
        readiness.watch(ours.fileno(), ear, READ)
        await settle()
        assert ear.heard == []
        theirs.send(b"x")
        await settle()
        assert set(ear.heard) == {READ}
        ours.recv(10)
        ear.heard.clear()
        readiness.watch(ours.fileno(), ear, READ | WRITE)
        await settle()
        assert set(ear.heard) == {WRITE}
        readiness.ignore(ours.fileno())
        ear.heard.clear()
        theirs.close()
        await settle()
        assert ear.heard == [], "not even the end"


async def test_the_end_of_a_connection_is_told(readiness: Readiness) -> None:
    ours, theirs = make_pair()
    with ours:
        ear = Ear()
        readiness.watch(ours.fileno(), ear, READ)
        theirs.close()
        await settle()
        assert ear.heard
        assert all(events & READ for events in ear.heard)


async def test_a_number_that_is_used_again_is_another_socket(readiness: Readiness) -> None:
    ours, theirs = make_pair()
    number, before, after = ours.fileno(), Ear(), Ear()
    readiness.watch(number, before, READ)
    readiness.forget(number)
    ours.close()
    theirs.close()
    again, other = make_pair()
    with other:
        if again.fileno() != number:
            os.dup2(again.fileno(), number)
            again.close()
            again = socket.socket(fileno=number)
        with again:
            readiness.watch(number, after, READ)
            other.send(b"x")
            await settle()
            assert (before.heard, bool(after.heard)) == ([], True)
            readiness.ignore(number)


async def test_many_are_heard_some_at_a_time(readiness: Readiness) -> None:
    pairs = [make_pair() for _ in range(150)]
    heard: list[int] = []

    class Once:
        def __init__(self, number: int, own: socket.socket) -> None:
            self.number = number
            self.own = own

        def ready(self, _events: int) -> None:
            self.own.recv(10)
            heard.append(self.number)

    for number, (ours, _) in enumerate(pairs):
        readiness.watch(ours.fileno(), Once(number, ours), READ)
    for _, theirs in pairs:
        theirs.send(b"x")
    most, before = 0, 0
    async with asyncio.timeout(10):
        while len(heard) < 150:
            await asyncio.sleep(0)
            most, before = max(most, len(heard) - before), len(heard)
    assert sorted(heard) == list(range(150))
    assert 0 < most <= 64
    for ours, theirs in pairs:
        readiness.ignore(ours.fileno())
        ours.close()
        theirs.close()


async def test_who_is_ended_by_another_in_the_same_turn_hears_nothing(readiness: Readiness) -> None:
    first, second = make_pair(), make_pair()
    heard: list[str] = []

    class Last:
        """Ends the other one."""

        def __init__(self, name: str, own: socket.socket, other: socket.socket) -> None:
            self.name, self.own, self.other = name, own, other

        def ready(self, _events: int) -> None:
            heard.append(self.name)
            readiness.ignore(self.own.fileno())
            readiness.ignore(self.other.fileno())

    readiness.watch(first[0].fileno(), Last("first", first[0], second[0]), READ)
    readiness.watch(second[0].fileno(), Last("second", second[0], first[0]), READ)
    first[1].send(b"x")
    second[1].send(b"x")
    await settle()
    assert len(heard) == 1
    for pair in (first, second):
        for end in pair:
            end.close()


async def test_a_closed_one_tells_nobody_and_may_be_closed_again() -> None:
    readiness = Readiness()
    ours, theirs = make_pair()
    with ours, theirs:
        ear = Ear()
        readiness.watch(ours.fileno(), ear, READ)
        theirs.send(b"x")
        readiness.close()
        readiness.close()
        await settle()
        assert ear.heard == []
