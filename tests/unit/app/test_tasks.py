from __future__ import annotations

import asyncio
import logging

import pytest

from estd.app.tasks import start_task


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
