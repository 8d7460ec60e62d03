from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from factory import make_order

from estd.ra.lane import Lane, Waiting


class Line:
    """A lane whose groups stop where the test wants to look at them."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.reserved: list[asyncio.Event] = []
        self.finished: list[asyncio.Event] = []
        self.lane = Lane(self._carry_out, turns_to_gather=4)

    def join(self, *names: str, ecosystem_id: int = 1) -> None:
        for name in names:
            order = make_order(name, ecosystem_id=ecosystem_id)
            self.lane.join(Waiting(order, asyncio.get_running_loop().create_future(), float("inf")))

    async def _carry_out(self, group: list[Waiting], make_way: Callable[[], None]) -> None:
        self.groups.append([waiting.order.device for waiting in group])
        self.reserved.append(asyncio.Event())
        self.finished.append(asyncio.Event())
        reserved, finished = self.reserved[-1], self.finished[-1]
        await reserved.wait()
        make_way()
        await finished.wait()

    async def end(self, number: int) -> None:
        self.reserved[number].set()
        self.finished[number].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def names(first: int, count: int) -> list[str]:
    return [f"device-{number}" for number in range(first, first + count)]


async def test_whoever_comes_alone_leaves_at_once_and_the_next_ones_gather() -> None:
    line = Line()
    line.join("device-0")
    await settle()
    line.join(*names(1, 3))
    await settle()
    assert (line.groups, line.lane.waiting) == ([["device-0"]], 3)
    await line.end(0)
    assert (line.groups[1:], line.lane.waiting) == ([names(1, 3)], 0)
    await line.end(1)
    assert line.lane.is_idle


async def test_who_comes_in_the_same_moment_leaves_together() -> None:
    line = Line()
    line.join("device-0")
    line.join("device-1")
    await settle()
    assert line.groups == [["device-0", "device-1"]]
    await line.end(0)


async def test_a_full_group_waits_for_the_intents_of_the_one_before_and_no_longer() -> None:
    line = Line()
    line.join("device-0")
    await settle()
    line.join(*names(1, 50))
    await settle()
    assert len(line.groups) == 1
    line.reserved[0].set()
    await settle()
    assert line.groups[1:] == [names(1, 50)]
    await line.end(0)
    await line.end(1)


async def test_after_a_large_group_the_next_one_gathers_for_a_moment() -> None:
    line = Line()
    line.join(*names(0, 4))
    await settle()
    await asyncio.sleep(0.05)
    line.join("device-4")
    await line.end(0)
    assert (len(line.groups), line.lane.waiting) == (1, 1)
    line.join("device-5")
    async with asyncio.timeout(5):
        while len(line.groups) == 1:
            await asyncio.sleep(0.001)
    assert line.groups[1] == ["device-4", "device-5"]
    await line.end(1)


async def test_a_storm_takes_no_more_of_a_group_than_its_turn() -> None:
    line = Line()
    line.join("device-0")
    await settle()
    line.join(*names(1, 100))
    line.join("crane-1", ecosystem_id=2)
    await line.end(0)
    assert len(line.groups[1]) == 64
    assert "crane-1" in line.groups[1]
    await line.end(1)
    async with asyncio.timeout(5):
        while len(line.groups) == 2:
            await asyncio.sleep(0.001)
    await line.end(2)


async def test_draining_waits_for_what_gathers_and_what_is_under_way() -> None:
    line = Line()
    line.join("device-0")
    await settle()
    line.join("device-1")
    drained = asyncio.create_task(line.lane.drain())
    await line.end(0)
    assert not drained.done()
    await line.end(1)
    async with asyncio.timeout(5):
        await drained
    assert line.groups == [["device-0"], ["device-1"]]


async def test_a_group_that_fails_is_logged_and_the_next_one_leaves(caplog: pytest.LogCaptureFixture) -> None:
    groups: list[int] = []

    async def carry_out(group: list[Waiting], make_way: Callable[[], None]) -> None:
        groups.append(len(group))
        make_way()
        if len(groups) == 1:
            raise ValueError("of this group alone")

    lane = Lane(carry_out, turns_to_gather=0)
    for name in ("device-0", "device-1"):
        lane.join(Waiting(make_order(name), asyncio.get_running_loop().create_future(), float("inf")))
        await settle()
    assert groups == [1, 1]
    assert [record.message for record in caplog.records] == ["a group failed"]
