"""An answer on its way: no faster than the client takes it, and its maker is closed whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from estd.errors import Broken
from estd.web.answer_stream import AnswerStream
from estd.wire.exchange import Reply


class Way:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


class Maker:
    """Yields what it is given, and knows how far it was asked."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self.parts = parts
        self.made = 0
        self.is_closed = False

    def reply(self, *headers: tuple[str, str]) -> Reply:
        return Reply(200, b"", "text/plain", headers, self._make())

    async def _make(self) -> AsyncGenerator[bytes, None]:
        try:
            for part in self.parts:
                self.made += 1
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.is_closed = True


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_old", [False, True])
async def test_each_part_goes_out_behind_the_head(is_old: bool) -> None:
    way, maker = Way(), Maker(b"one", b"x" * 17)
    assert await AnswerStream(way, can_write=True, is_old=is_old).send(maker.reply())
    head, *parts = way.written
    assert head.endswith(b"\r\n\r\n")
    assert (b"Transfer-Encoding: chunked" in head) != is_old
    assert parts == ([b"one", b"x" * 17] if is_old else [b"3\r\none\r\n", b"11\r\n" + b"x" * 17 + b"\r\n"])
    assert maker.is_closed


async def test_one_part_waits_for_a_client_that_does_not_read() -> None:
    way, maker = Way(), Maker(b"1", b"2", b"3")
    answer = AnswerStream(way, can_write=False, is_old=True)
    sending = asyncio.create_task(answer.send(maker.reply()))
    await turns()
    assert (len(way.written), maker.made) == (1, 1)
    answer.resume()
    answer.pause()  # before anybody could make use of it
    await turns()
    assert (len(way.written), maker.made) == (1, 1)
    answer.resume()
    assert await sending
    assert way.written[1:] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("when", ["before", "while it waits"])
async def test_for_a_client_that_left_nothing_is_made(when: str) -> None:
    way, maker = Way(), Maker(b"1", b"2")
    answer = AnswerStream(way, can_write=False, is_old=False)
    if when == "before":
        answer.leave()
    sending = asyncio.create_task(answer.send(maker.reply()))
    await turns()
    answer.leave()
    assert not await sending
    assert len(way.written) == (0 if when == "before" else 1)
    assert maker.made == 1
    assert maker.is_closed


async def test_a_fault_of_the_maker_is_the_callers_business() -> None:
    way, maker = Way(), Maker(b"1", ValueError("a fault of ours"))
    with pytest.raises(ValueError, match="of ours"):
        await AnswerStream(way, can_write=True, is_old=False).send(maker.reply())
    assert len(way.written) == 2
    assert maker.is_closed


async def test_a_head_that_cannot_be_written_is_one_too() -> None:
    way, maker = Way(), Maker(b"1")
    with pytest.raises(Broken):
        await AnswerStream(way, can_write=True, is_old=False).send(maker.reply(("X-Value", "a\nb")))
    assert (way.written, maker.made) == ([], 0)
