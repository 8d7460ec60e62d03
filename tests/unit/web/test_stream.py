"""A body on its way: in order, never too much of it, and every way it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from estd.errors import Code, Refused
from estd.est import messages
from estd.web import stream
from estd.web.site import Site
from estd.web.stream import HELD_AT_MOST_BYTES, BodyStream
from estd.wire.exchange import Exchange, Incoming, Peer, Reply


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


async def test_whoever_stops_reading_opens_the_tap_again() -> None:
    tap = Tap()
    body = BodyStream(tap)
    body.feed(bytes(HELD_AT_MOST_BYTES + 1))
    body.leave()
    body.leave()
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


# --- a connection that streams -----------------------------------------------------------------------------------------


class Wire:
    """What a connection sees of the TLS floor."""

    def __init__(self) -> None:
        self.written = b""
        self.calls: list[str] = []

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> Peer:
        assert name == "estd.peer"
        return Peer("192.0.2.7")

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)


class Echo:
    """A protocol that answers each piece it reads, and remembers how it ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.incoming: Incoming | None = None

    async def answer(self, exchange: Exchange) -> tuple[str, str, Reply]:
        self.incoming = exchange.incoming
        if exchange.path == "/stream/no":
            raise Refused(Code.NOT_AUTHORIZED, "no")
        assert exchange.incoming is not None
        return "batch", "ok", Reply(200, b"", "text/plain", (), self._lines(exchange.incoming))

    async def _lines(self, incoming: Incoming) -> AsyncGenerator[bytes, None]:
        try:
            while piece := await incoming.read():
                if piece == b"break":
                    raise ValueError("a fault of ours")
                yield b"<" + piece + b">"
            yield b"stopped" if incoming.is_stopping else b"end"
        except ConnectionError:
            pass
        finally:
            self.ended.set()


def connect(echo: Echo) -> tuple[Site, Any, Wire]:
    wire = Wire()
    site = Site(echo.answer, messages.write_refusal, lambda method, path: method == "POST" and "/stream/" in path)
    connection = site.http()
    connection.connection_made(wire)  # type: ignore[arg-type]  # as much of a transport as it asks
    return site, connection, wire


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


HEAD = b"POST /stream/x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def test_answers_go_out_while_the_body_comes_in() -> None:
    _, connection, wire = connect(Echo())
    connection.data_received(CHUNKED)
    await turns()
    head, _, rest = wire.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nTransfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    assert rest == b""
    connection.data_received(b"3\r\none\r\n")
    await turns()
    assert wire.written.endswith(b"\r\n\r\n5\r\n<one>\r\n")
    assert wire.calls == ["request_began"]
    connection.data_received(b"3\r\ntwo\r\n0\r\n\r\n")
    await turns()
    assert wire.written.endswith(b"3\r\nend\r\n0\r\n\r\n")
    assert "request_ended" in wire.calls
    assert "close" not in wire.calls
    # The next request on the same connection is one like any other.
    connection.data_received(HEAD + b"Content-Length: 2\r\n\r\nhi")
    await turns()
    assert b"<hi>" in wire.written


async def test_a_body_may_be_longer_than_any_other() -> None:
    echo = Echo()
    _, connection, wire = connect(echo)
    connection.data_received(HEAD + b"Content-Length: 10000000\r\nExpect: 100-continue\r\n\r\n")
    await turns()
    assert wire.written.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    for _ in range(20):
        connection.data_received(bytes(16384))
        await turns()
    assert wire.written.count(b"\r\n4002\r\n<") == 20
    connection.connection_lost(None)
    await asyncio.wait_for(echo.ended.wait(), 5)


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    _, connection, wire = connect(Echo())
    connection.data_received(CHUNKED)
    await turns()
    connection.pause_writing()
    connection.data_received(b"3\r\none\r\n")
    await turns()
    connection.data_received(b"3\r\ntwo\r\n")
    await turns()
    assert b"<one>" not in wire.written
    connection.resume_writing()
    await turns()
    assert b"<one>" in wire.written
    assert b"<two>" in wire.written


async def test_a_client_that_leaves_ends_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    for paused in (False, True):
        echo = Echo()
        site, connection, wire = connect(echo)
        connection.data_received(CHUNKED + b"3\r\none\r\n")
        await turns()
        if paused:
            connection.pause_writing()
            connection.data_received(b"3\r\ntwo\r\n")
            await turns()
        connection.connection_lost(None)
        await asyncio.wait_for(echo.ended.wait(), 5)
        await asyncio.wait_for(site.drain(5), 5)
        assert b"<two>" not in wire.written
    assert not caplog.records


async def test_a_refusal_does_not_wait_for_the_body() -> None:
    _, connection, wire = connect(Echo())
    connection.data_received(CHUNKED.replace(b"/stream/x", b"/stream/no"))
    await turns()
    assert wire.written.startswith(b"HTTP/1.1 403 ")
    assert b"\r\nConnection: close" in wire.written
    assert "close" in wire.calls


async def test_a_refusal_of_a_whole_body_that_nobody_read_lets_the_next_request_in() -> None:
    _, connection, wire = connect(Echo())
    connection.data_received(HEAD.replace(b"/stream/x", b"/stream/no") + b"Content-Length: 70000\r\n\r\n")
    for _ in range(7):
        connection.data_received(bytes(10_000))
    assert wire.calls[-1] == "pause_reading"
    await turns()
    assert wire.written.startswith(b"HTTP/1.1 403 ")
    assert "close" not in wire.calls
    assert [call for call in wire.calls if "reading" in call] == ["pause_reading", "resume_reading"]
    connection.data_received(HEAD + b"Content-Length: 2\r\n\r\nhi")
    await turns()
    assert b"<hi>" in wire.written


async def test_behind_a_streamed_body_little_is_read() -> None:
    echo = Echo()
    _, connection, wire = connect(echo)
    connection.data_received(CHUNKED)
    await turns()
    connection.pause_writing()
    connection.data_received(b"3\r\none\r\n0\r\n\r\n")
    await turns()
    assert not echo.ended.is_set()
    connection.data_received(HEAD + b"Content-Length: 20002\r\n\r\nhi" + bytes(10_000))
    assert "pause_reading" not in wire.calls
    connection.data_received(bytes(10_000))
    assert wire.calls[-1] == "pause_reading"
    connection.resume_writing()
    await turns()
    assert echo.ended.is_set()
    assert wire.written.partition(b"<one>")[2].count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\n<hi" in wire.written
    assert wire.calls.count("resume_reading") == 1


@pytest.mark.parametrize("mute", [b"1" + b";x=y" * 12_000, b"0\r\nX-A: " + b"a" * 8000 + b"\r\n"])
async def test_a_body_of_nothing_but_framing_is_garbled(mute: bytes) -> None:
    echo = Echo()
    _, connection, wire = connect(echo)
    connection.data_received(CHUNKED + b"3\r\none\r\n")
    await turns()
    if mute.startswith(b"0"):
        mute += mute[3:] * 5
    for at in range(0, len(mute), 1000):
        connection.data_received(mute[at : at + 1000])
    await asyncio.wait_for(echo.ended.wait(), 5)
    await turns()
    assert not wire.written.endswith(b"0\r\n\r\n")
    assert "close" in wire.calls


async def test_a_fault_half_way_leaves_the_answer_visibly_short(caplog: pytest.LogCaptureFixture) -> None:
    _, connection, wire = connect(Echo())
    connection.data_received(CHUNKED + b"5\r\nbreak\r\n")
    await turns()
    assert not wire.written.endswith(b"0\r\n\r\n")
    assert "close" in wire.calls
    assert "request failed" in caplog.text


async def test_a_head_that_cannot_be_written_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(exchange: Exchange) -> tuple[str, str, Reply]:
        return "batch", "ok", Reply(200, b"", "text/plain", (("X-Value", "a\nb"),), Echo()._lines(exchange.incoming))

    wire = Wire()
    site = Site(answer, messages.write_refusal, lambda _method, _path: True)
    connection = site.http()
    connection.connection_made(wire)  # type: ignore[arg-type]  # as much of a transport as it asks
    connection.data_received(CHUNKED + b"1\r\nx\r\n")
    await turns()
    assert wire.written == b""
    assert "close" in wire.calls
    assert "request failed" in caplog.text
    await site.drain(1.0)
    assert "cut off" not in caplog.text


async def test_a_body_that_is_garbled_is_not_taken_for_its_end() -> None:
    echo = Echo()
    _, connection, wire = connect(echo)
    connection.data_received(CHUNKED + b"3\r\none\r\n")
    await turns()
    connection.data_received(b"nonsense\r\n")
    await asyncio.wait_for(echo.ended.wait(), 5)
    await turns()
    assert not wire.written.endswith(b"0\r\n\r\n")
    assert "close" in wire.calls


async def test_a_server_that_stops_ends_bodies_early() -> None:
    site, connection, wire = connect(Echo())
    connection.data_received(CHUNKED + b"3\r\none\r\n")
    await turns()
    await asyncio.wait_for(site.drain(5), 5)
    assert wire.written.endswith(b"7\r\nstopped\r\n0\r\n\r\n")
    assert "close" in wire.calls


async def test_a_server_that_is_stopping_begins_no_stream() -> None:
    site, connection, wire = connect(Echo())
    site.draining = True
    connection.data_received(CHUNKED + b"3\r\none\r\n")
    await turns()
    assert b"<one>" not in wire.written
    assert wire.written.endswith(b"7\r\nstopped\r\n0\r\n\r\n")
    assert "close" in wire.calls
