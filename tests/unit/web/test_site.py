"""A worker's connections as one: what it takes to begin, and an end that cuts nobody off."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp.http_parser import HttpRequestParserPy
from http_lab import Desk, House, listen, post, statuses
from tls_lab import Client

from estd.errors import Broken
from estd.est.messages import write_refusal
from estd.web import site
from estd.web.site import Site


def test_the_parser_that_aiohttp_falls_back_to_is_not_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A27: most of its smuggling bugs were in the one written in Python."""
    monkeypatch.setattr(site, "HttpRequestParser", HttpRequestParserPy)
    with pytest.raises(Broken, match="compiled parser"):
        Site(Desk().answer, write_refusal)


async def test_draining_answers_what_is_in_hand_and_closes_what_is_idle(house: House) -> None:
    house.desk.seconds = 0.2
    async with await Client.open(house.floor) as busy, await Client.open(house.floor) as idle:
        await idle.get(post(b"x", last=False))
        await busy.send(post(b"in hand", last=False))
        await house.floor.until(lambda: len(house.desk.exchanges) == 2)
        draining = asyncio.get_running_loop().create_task(house.site.drain(5))
        answer = await listen(busy, 2)
        assert statuses(answer) == [200]
        assert b"in hand" in answer
        assert b"Connection: close" in answer
        assert answer.endswith(b"<end>")
        assert await listen(idle, 2) == b"<end>"
        await draining


async def test_a_drain_answers_what_has_come_and_is_not_read_yet(house: House) -> None:
    async with await Client.open(house.floor) as client:
        await client.get(post(b"x", last=False))
        await client.send(post(b"unread", last=False))
        await house.site.drain(5)
        answer = await listen(client, 2)
        assert statuses(answer) == [200]
        assert b"unread" in answer
        assert answer.endswith(b"<end>")


async def test_a_drain_ends_at_its_deadline(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.desk.seconds = 30
    async with await Client.open(house.floor) as client:
        await client.send(post(b"x"))
        await house.floor.until(lambda: len(house.desk.exchanges) == 1)
        started = time.monotonic()
        await house.site.drain(0.1)
        assert time.monotonic() - started < 4
    assert "drain deadline" in caplog.text
