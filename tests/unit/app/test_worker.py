"""What a worker does beside answering; whole ones are killed, replaced and drained in tests/chaos and tests/integration."""

from __future__ import annotations

import asyncio

import pytest
from patience import until

from estd.app import worker


class Clumsy:
    """Shows its gauges, and says its limits, unless it fails with one or the other."""

    def __init__(self) -> None:
        self.shown = 0
        self.reported = 0

    def refresh_gauges(self) -> None:
        self.shown += 1
        if self.shown == 1:
            raise OSError("no room for the counters")

    async def report_limits(self) -> None:
        self.reported += 1
        if self.reported == 1:
            raise KeyError("no such limit")


async def test_metrics_are_shown_after_any_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.app.tasks._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(worker, "_GAUGE_SECONDS", 0.0)
    clumsy = Clumsy()
    refreshing = asyncio.ensure_future(worker._refresh(clumsy))
    await until(lambda: clumsy.reported >= 3 or refreshing.done())
    assert not refreshing.done()
    refreshing.cancel()
    await asyncio.wait({refreshing})
    assert refreshing.cancelled()
