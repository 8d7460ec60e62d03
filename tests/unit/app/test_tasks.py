from __future__ import annotations

import asyncio
import logging

import pytest

from estd.app.tasks import keep_doing, start_task
from estd.errors import Broken, Code, Unavailable


async def fail() -> None:
    raise RuntimeError("no such luck")


async def test_a_fault_is_logged_though_nobody_waits(caplog: pytest.LogCaptureFixture) -> None:
    task = start_task(fail())
    await asyncio.wait({task})
    await asyncio.sleep(0)
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "a supervisor task failed")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no such luck"


async def test_an_end_that_was_wanted_is_not(caplog: pytest.LogCaptureFixture) -> None:
    endless, short = start_task(asyncio.sleep(60)), start_task(asyncio.sleep(0))
    endless.cancel()
    await asyncio.wait({endless, short})
    await asyncio.sleep(0)
    assert endless.cancelled()
    assert caplog.records == []


class Rounds:
    """Steps that come to what they are told to, one after the other; then they wait for ever."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes = list(outcomes)
        self.all_taken = asyncio.Event()

    async def step(self) -> None:
        if not self._outcomes:
            self.all_taken.set()
            await asyncio.Event().wait()
        outcome = self._outcomes.pop(0)
        if outcome is not None:
            raise outcome


async def test_what_has_to_go_on_goes_on_after_any_fault(caplog: pytest.LogCaptureFixture) -> None:
    away = Unavailable(Code.STORE_UNAVAILABLE, "the database is away")
    rounds = Rounds(None, away, None, Broken("two certificates"), KeyError("x"), None)
    task = start_task(keep_doing("rounds", rounds.step, 0.0))
    async with asyncio.timeout(10):
        await rounds.all_taken.wait()
    assert not task.done()
    assert {record.message for record in caplog.records} == {"a standing task failed and goes on"}
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [
        ("WARNING", False),
        ("ERROR", True),
        ("ERROR", True),
    ]
    assert [vars(record)["task"] for record in caplog.records] == ["rounds"] * 3
    assert vars(caplog.records[0])["detail"] == "the database is away"
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("where", ["in a step", "in the pause"])
async def test_what_has_to_go_on_ends_when_cancelled(where: str) -> None:
    rounds = Rounds(*([] if where == "in a step" else [RuntimeError("no such luck")]))
    task = start_task(keep_doing("rounds", rounds.step, 3600.0))
    for _ in range(3):
        await asyncio.sleep(0)
    assert rounds.all_taken.is_set() == (where == "in a step")
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait({task})
    assert task.cancelled()
