from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from estd.web.watch import NEVER, Watch


class Loop:
    """An event loop whose time passes when told to, and which can be seen to have nothing to do."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.ready: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, call))

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.ready.append(lambda: call(*args))

    def turn(self) -> None:
        """One turn: what is ready now, and what is due."""
        calls, self.ready = self.ready, []
        calls += [call for when, call in self.timers if when <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for call in calls:
            call()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.turn()


class Item:
    """Notes when it is looked at, and then does what it was given to do."""

    def __init__(self, due: float, then: Callable[[Item], None] | None = None) -> None:
        self.due = due
        self.looked_at: list[float] = []
        self._then = then

    def look(self, now: float) -> None:
        self.looked_at.append(now)
        if self._then is None:
            self.due = NEVER
        else:
            self._then(self)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr("estd.web.watch.asyncio.get_running_loop", lambda: loop)
    return loop


def test_nothing_is_scheduled_while_nothing_is_watched(loop: Loop) -> None:
    rounds: list[float] = []
    watch = Watch(0.25, lambda: rounds.append(loop.now))
    item = Item(NEVER)
    assert (loop.timers, loop.ready) == ([], [])
    watch.add(item)
    watch.add(Item(NEVER))
    assert [when for when, _ in loop.timers] == [1000.25], "one round for all"
    watch.remove(item)
    loop.wait(0.25)
    assert len(loop.timers) == 1
    for other in list(watch._items):
        watch.remove(other)
        watch.remove(other)
    loop.wait(0.25)
    assert (loop.timers, loop.ready, rounds) == ([], [], [1000.25, 1000.5])
    watch.add(item)
    assert [when for when, _ in loop.timers] == [1000.75]


def test_what_is_due_is_looked_at_in_the_next_round_and_not_before_it_is_due(loop: Loop) -> None:
    watch = Watch(0.25)
    due, later, never = Item(1000.01), Item(1000.26), Item(NEVER)
    for item in (due, later, never):
        watch.add(item)
    loop.wait(0.2)
    assert due.looked_at == []
    loop.wait(0.05)
    loop.wait(0.25)
    assert (due.looked_at, later.looked_at, never.looked_at) == ([1000.25], [1000.5], [])


def test_what_stays_due_is_looked_at_again_once_a_round(loop: Loop) -> None:
    watch = Watch(0.25)
    item = Item(1000, lambda _item: None)
    watch.add(item)
    for _ in range(3):
        loop.wait(0.25)
        loop.turn()
    assert item.looked_at == [1000.25, 1000.5, 1000.75]


def test_forty_at_once_take_three_passes(loop: Loop) -> None:
    watch = Watch(0.25)
    items = [Item(1000) for _ in range(40)]
    for item in items:
        watch.add(item)
    counts = []
    loop.wait(0.25)
    while True:
        counts.append(sum(len(item.looked_at) for item in items))
        if not loop.ready:
            break
        assert loop.timers == [], "the next round begins when this one is over"
        loop.wait(0.01)
    assert counts == [16, 32, 40]
    assert all(len(item.looked_at) == 1 for item in items)
    assert [when for when, _ in loop.timers] == [loop.now + 0.25]


def test_what_left_or_moved_its_deadline_meanwhile_is_not_looked_at(loop: Loop) -> None:
    watch = Watch(0.25)
    items = [Item(1000) for _ in range(40)]
    for item in items:
        watch.add(item)
    loop.wait(0.25)
    left, moved, *others = (item for item in items if not item.looked_at)
    watch.remove(left)
    moved.due = loop.now + 1
    while loop.ready:
        loop.turn()
    assert (left.looked_at, moved.looked_at) == ([], [])
    assert len(others) == 22
    assert all(len(item.looked_at) == 1 for item in others)
    loop.wait(1)
    assert (left.looked_at, moved.looked_at) == ([], [1001.25])


def test_one_look_may_take_another_out_of_the_same_pass(loop: Loop) -> None:
    watch = Watch(0.25)
    first = Item(1000, lambda _: watch.remove(second))
    second = Item(1000, lambda _: watch.remove(first))
    watch.add(first)
    watch.add(second)
    loop.wait(0.25)
    assert sorted([len(first.looked_at), len(second.looked_at)]) == [0, 1]


def test_what_joins_during_a_round_is_looked_at_in_the_next_one(loop: Loop) -> None:
    watch = Watch(0.25)
    newcomer = Item(1000)

    def then(item: Item) -> None:
        watch.remove(item)
        watch.add(newcomer)

    watch.add(Item(1000, then))
    loop.wait(0.25)
    assert (newcomer.looked_at, len(loop.timers)) == ([], 1)
    loop.wait(0.25)
    assert newcomer.looked_at == [1000.5]


def test_also_is_called_before_each_round(loop: Loop) -> None:
    log: list[str] = []
    watch = Watch(0.25, lambda: log.append("also"))
    watch.add(Item(1000, lambda _: log.append("look")))
    loop.wait(0.25)
    loop.wait(0.25)
    assert log == ["also", "look", "also", "look"]


def test_a_fault_in_one_look_costs_no_other_its_deadline(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def fail(item: Item) -> None:
        item.due = NEVER
        raise RuntimeError("not today")

    watch = Watch(0.25)
    items = [Item(1000, fail) for _ in range(20)]
    for item in items:
        watch.add(item)
    loop.wait(0.25)
    loop.turn()
    assert [len(item.looked_at) for item in items] == [1] * 20
    assert [record.message for record in caplog.records] == ["a deadline's look failed"] * 20
    later = Item(1000.3)
    watch.add(later)
    loop.wait(0.25)
    assert later.looked_at == [1000.5]


def test_a_fault_of_what_is_also_called_costs_no_deadline(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("not today")

    watch = Watch(0.25, fail)
    item = Item(1000, lambda _: None)
    watch.add(item)
    loop.wait(0.25)
    loop.wait(0.25)
    assert item.looked_at == [1000.25, 1000.5]
    assert [record.message for record in caplog.records] == ["a round's other work failed"] * 2


async def test_on_a_real_loop_it_comes_by_within_a_round() -> None:
    running = asyncio.get_running_loop()
    watch = Watch(0.02)
    looked: asyncio.Future[float] = running.create_future()

    class One:
        due = running.time() + 0.05

        def look(self, now: float) -> None:
            self.due = NEVER
            looked.set_result(now)

    one = One()
    watch.add(one)
    due = one.due
    async with asyncio.timeout(5):
        assert due <= await looked
    watch.remove(one)
