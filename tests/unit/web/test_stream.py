"""A body on its way: in order, never too much of it, and every way it can end."""

from __future__ import annotations

import asyncio

import pytest

from estd.errors import Code, Refused
from estd.web import stream
from estd.web.stream import HELD_AT_MOST_BYTES, BodyStream


class Tap:
    """Counts how often it was closed and opened."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


async def test_what_came_is_read_in_order_and_then_the_end() -> None:
    body = BodyStream(Tap())
    body.feed(b"one")
    body.feed(b"two")
    assert await body.read() == b"onetwo"
    reading = asyncio.create_task(body.read())
    await asyncio.sleep(0)
    assert not reading.done()
    body.feed(b"three")
    assert await reading == b"three"
    assert not body.is_whole
    body.end()
    assert await body.read() == b""
    assert body.is_whole
    assert not body.is_stopping


async def test_a_reader_that_does_not_read_closes_the_tap() -> None:
    tap = Tap()
    body = BodyStream(tap)
    body.feed(bytes(HELD_AT_MOST_BYTES))
    assert tap.calls == []
    body.feed(b"x")
    body.feed(b"y")
    assert tap.calls == ["pause"]
    assert len(await body.read()) == HELD_AT_MOST_BYTES + 2
    assert tap.calls == ["pause", "resume"]


async def test_what_came_before_a_failure_is_still_read() -> None:
    body = BodyStream(Tap())
    body.feed(b"part")
    body.fail(ConnectionResetError("gone"))
    assert await body.read() == b"part"
    with pytest.raises(ConnectionResetError):
        await body.read()
    assert not body.is_whole


async def test_a_failure_after_the_end_is_none() -> None:
    body = BodyStream(Tap())
    body.end()
    body.fail(ConnectionResetError("gone"))
    assert await body.read() == b""


async def test_a_server_that_stops_takes_nothing_more() -> None:
    body = BodyStream(Tap())
    reading = asyncio.create_task(body.read())
    await asyncio.sleep(0)
    body.stop()
    assert await reading == b""
    body.feed(b"late")
    assert await body.read() == b""
    assert body.is_stopping
    assert not body.is_whole


async def test_a_whole_body_is_not_stopped() -> None:
    body = BodyStream(Tap())
    body.feed(b"all")
    body.end()
    body.stop()
    assert await body.read() == b"all"
    assert not body.is_stopping


async def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE_SECONDS", 0.01)
    with pytest.raises(Refused) as caught:
        await BodyStream(Tap()).read()
    assert caught.value.code is Code.REQUEST_TIMEOUT
