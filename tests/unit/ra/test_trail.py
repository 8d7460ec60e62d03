"""The audit trail: at once in the log, in the store as soon as that takes it, and bounded whatever happens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from database_proxy import database_proxy
from patience import until
from postgres_fixture import Database
from store_values import make_event

from estd.audit import Event
from estd.errors import Broken, Code, Unavailable
from estd.ra import trail as module
from estd.ra.trail import Trail
from estd.store.postgres import PostgresStore


class Shelf:
    """A store of events that does as it is told."""

    def __init__(self) -> None:
        self.stored: list[Event] = []
        self.groups: list[int] = []
        self.away = False
        self.poison: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def record_events(self, events: Sequence[Event]) -> None:
        await self.gate.wait()
        if self.away:
            raise Unavailable(Code.STORE_UNAVAILABLE, "away")
        if self.poison & {event.request_id for event in events}:
            raise Broken("a value that does not fit")
        self.groups.append(len(events))
        self.stored += events


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def trail(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Trail]:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.02)
    trail = Trail(shelf)  # type: ignore[arg-type]  # as much of a store as it asks
    trail.start()
    yield trail
    await trail.stop()


async def test_an_event_is_committed_when_record_returns(store: PostgresStore) -> None:
    trail = Trail(store)
    trail.start()
    events = [make_event(request_id=f"r{number}") for number in range(5)]
    for event in events:
        await trail.record(event)
        assert (await store.find_events(None, 1)) == [event]
    await trail.stop()
    assert trail.lost == 0


async def test_events_that_come_together_are_committed_together(shelf: Shelf, trail: Trail) -> None:
    shelf.gate.clear()
    events = [make_event() for _ in range(450)]
    waiting = [asyncio.create_task(trail.record(event)) for event in events]
    await asyncio.sleep(0.02)
    shelf.gate.set()
    await asyncio.gather(*waiting)
    await until(lambda: len(shelf.stored) == 450)
    assert shelf.stored == events
    assert max(shelf.groups) <= 200
    assert len(shelf.groups) <= 4


async def test_many_events_are_recorded_together(shelf: Shelf, trail: Trail) -> None:
    await trail.record_all([])
    await trail.record_all([make_event(request_id=str(number)) for number in range(5)])
    assert shelf.groups == [5]
    assert [event.request_id for event in shelf.stored] == [str(number) for number in range(5)]


async def test_it_is_in_the_log_before_the_store_was_asked(
    shelf: Shelf, trail: Trail, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "estd.audit")
    shelf.gate.clear()
    task = asyncio.create_task(trail.record(make_event(detail="no such device", code="credential-invalid")))
    await asyncio.sleep(0)
    (line,) = [record.__dict__["audit"] for record in caplog.records]
    assert (line["code"], line["detail"]) == ("credential-invalid", "no such device")
    json.dumps(line)
    shelf.gate.set()
    await task


async def test_an_answer_does_not_wait_for_a_database_that_is_away(shelf: Shelf, trail: Trail) -> None:
    shelf.away = True
    started = time.monotonic()
    await asyncio.gather(*(trail.record(make_event()) for _ in range(50)))
    assert time.monotonic() - started < 2
    assert shelf.stored == []
    shelf.away = False
    await until(lambda: len(shelf.stored) == 50)
    assert trail.lost == 0


async def test_events_of_an_outage_are_committed_in_their_order_when_it_is_over(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with database_proxy(database.socket) as proxy:
        store = await PostgresStore.connect(proxy.url(database.name))
        trail = Trail(store)
        trail.start()
        proxy.refusing = True
        proxy.cut_all()
        caplog.set_level(logging.INFO, "estd.audit")
        events = [make_event(request_id=f"away-{number}") for number in range(3)]
        started = time.monotonic()
        await asyncio.gather(*(trail.record(event) for event in events))
        assert time.monotonic() - started < 5
        assert len([record for record in caplog.records if record.getMessage() == "audit"]) == 3
        assert await database.fetch("SELECT * FROM event") == []
        proxy.refusing = False
        async with asyncio.timeout(15):
            while len(rows := await database.fetch("SELECT request_id FROM event ORDER BY event_id")) < 3:
                await asyncio.sleep(0.05)
        assert [row["request_id"] for row in rows] == ["away-0", "away-1", "away-2"]
        await trail.stop()
        await store.close()


async def test_what_is_kept_is_bounded_and_what_is_dropped_is_in_the_log_whatever_its_level(
    shelf: Shelf, trail: Trail, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_KEPT_AT_MOST", 20)
    caplog.set_level(logging.WARNING, "estd.audit")
    shelf.away = True
    events = [make_event() for _ in range(70)]
    await asyncio.gather(*(trail.record(event) for event in events))
    assert len(trail._kept) + len(trail._in_hand) <= 40
    assert 30 <= trail.lost <= 50
    lines = [record.__dict__["audit"]["request_id"] for record in caplog.records]
    assert lines == [event.request_id for event in events[: trail.lost]]
    shelf.away = False
    await until(lambda: len(shelf.stored) == 70 - trail.lost)
    assert shelf.stored == events[trail.lost :]


def test_the_bound() -> None:
    assert module._KEPT_AT_MOST == 10_000


async def test_an_event_the_store_cannot_hold_takes_no_other_with_it(
    shelf: Shelf, trail: Trail, caplog: pytest.LogCaptureFixture
) -> None:
    events = [make_event() for _ in range(10)]
    shelf.poison = {events[4].request_id}
    await asyncio.gather(*(trail.record(event) for event in events))
    assert shelf.stored == events[:4] + events[5:]
    assert trail.lost == 1
    assert any(record.exc_info for record in caplog.records)
    after = make_event()
    await trail.record(after)
    assert shelf.stored[-1] == after


async def test_stopping_waits_for_what_is_being_written(shelf: Shelf, trail: Trail) -> None:
    shelf.gate.clear()
    task = asyncio.create_task(trail.record(make_event()))
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.03, shelf.gate.set)
    await trail.stop()
    assert len(shelf.stored) == 1
    await task
    assert trail.lost == 0


async def test_stopping_without_a_store_is_quick_and_forgets_nothing_silently(
    shelf: Shelf, trail: Trail, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.away = True
    await asyncio.gather(*(trail.record(make_event()) for _ in range(3)))
    started = time.monotonic()
    await trail.stop()
    assert time.monotonic() - started < 2
    assert trail.lost == 3
    assert len([record for record in caplog.records if "log only" in record.getMessage()]) == 3


async def test_stopping_what_never_began() -> None:
    await Trail(Shelf()).stop()  # type: ignore[arg-type]  # as much of a store as it asks
