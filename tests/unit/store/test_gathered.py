"""Look-ups that share a statement, and what each of them gets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from estd.errors import Code, Unavailable
from estd.store.gathered import Gathered


class Desk:
    """Doubles even numbers, knows no odd ones, and holds each statement until it is told to go on."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.fault: Exception | None = None

    async def look_up(self, keys: Sequence[int]) -> dict[int, int]:
        self.asked.append(list(keys))
        await self.go_on.wait()
        if self.fault is not None:
            raise self.fault
        return {key: 2 * key for key in keys if key % 2 == 0}


async def turn(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_whoever_comes_alone_waits_for_nobody() -> None:
    desk = Desk()
    desk.go_on.set()
    gathered = Gathered(desk.look_up)
    assert [await gathered.find(4), await gathered.find(3)] == [8, None]
    assert desk.asked == [[4], [3]]


async def test_who_comes_meanwhile_goes_together_and_each_key_once() -> None:
    desk = Desk()
    gathered = Gathered(desk.look_up)
    first = asyncio.ensure_future(gathered.find(0))
    await turn()
    others = [asyncio.ensure_future(gathered.find(key)) for key in (2, 4, 2, 5)]
    await turn()
    desk.go_on.set()
    assert await first == 0
    assert await asyncio.gather(*others) == [4, 8, 4, None]
    assert desk.asked == [[0], [2, 4, 5]]


async def test_a_crowd_is_asked_for_in_parts() -> None:
    desk = Desk()
    desk.go_on.set()
    gathered = Gathered(desk.look_up)
    assert await asyncio.gather(*(gathered.find(key) for key in range(300))) == [
        None if key % 2 else 2 * key for key in range(300)
    ]
    assert max(map(len, desk.asked)) <= 128
    assert sum(map(len, desk.asked)) == 300


async def test_a_crowd_is_waited_for_and_whoever_comes_alone_after_it_is_not() -> None:
    desk = Desk()
    desk.go_on.set()
    gathered = Gathered(desk.look_up)
    await asyncio.gather(*(gathered.find(key) for key in (0, 2, 4)))
    late = []
    for key in range(6, 16, 2):  # one in each turn of the loop
        late.append(asyncio.ensure_future(gathered.find(key)))
        await asyncio.sleep(0)
    assert await asyncio.gather(*late) == [12, 16, 20, 24, 28]
    assert desk.asked == [[0, 2, 4], [6, 8, 10, 12, 14]]
    await turn(20)
    assert await gathered.find(20) == 40
    await gathered.find(22)
    desk.go_on.clear()
    alone = asyncio.ensure_future(gathered.find(24))
    await turn(2)
    assert desk.asked[2:] == [[20], [22], [24]], "asked at once"
    desk.go_on.set()
    assert await alone == 48


async def test_a_crowd_that_has_come_is_not_waited_for() -> None:
    desk = Desk()
    gathered = Gathered(desk.look_up)
    first = [asyncio.ensure_future(gathered.find(key)) for key in (0, 2, 4)]
    await turn()
    crowd = [asyncio.ensure_future(gathered.find(key)) for key in range(100, 148, 2)]
    await turn()
    desk.go_on.set()
    await asyncio.gather(*first)
    await turn(2)
    assert len(desk.asked) == 2
    assert len(desk.asked[1]) == 24
    await asyncio.gather(*crowd)


async def test_a_fault_reaches_everyone_who_asked_and_nobody_else() -> None:
    desk = Desk()
    desk.fault = Unavailable(Code.STORE_UNAVAILABLE, "away")
    gathered = Gathered(desk.look_up)
    lost = [asyncio.ensure_future(gathered.find(key)) for key in (2, 4)]
    await turn()
    desk.go_on.set()
    assert await asyncio.gather(*lost, return_exceptions=True) == [desk.fault, desk.fault]
    desk.fault = None
    assert await gathered.find(6) == 12


async def test_one_who_gives_up_takes_nobody_along() -> None:
    desk = Desk()
    gathered = Gathered(desk.look_up)
    one, other = (asyncio.ensure_future(gathered.find(key)) for key in (2, 4))
    await turn()
    one.cancel()
    desk.go_on.set()
    assert await other == 8
    with pytest.raises(asyncio.CancelledError):
        await one
    assert await gathered.find(6) == 12
