"""HTTP as a client on the wire sees it, through the real TLS floor: caps, deadlines, framing, and what is no HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp.http_parser import HttpRequestParser
from http_lab import HEAD, House, chunked, counted, listen, post, statuses
from tls_lab import Client

from estd.errors import Broken, Code, Refused, Unavailable
from estd.est.messages import STATUS
from estd.web import connection
from estd.web.head import BODY_AT_MOST_BYTES
from estd.web.socket_transport import SocketTransport
from estd.web.tls_transport import TlsTransport
from estd.wire.exchange import Exchange, Reply

# --- what the protocol is handed ----------------------------------------------------------------------------------------


async def test_an_exchange_holds_the_request_as_sent(house: House) -> None:
    started = datetime.now(UTC)
    request = post(b"body", b"X-ThinG: a: b \r\nUser-Agent: libest\r\n").replace(b"/path", b"/a/%2e%2E//b;c?q=/d?e")
    answer = await house.say(request)
    (exchange,) = house.desk.exchanges
    assert (exchange.method, exchange.path, exchange.body) == ("POST", "/a/%2e%2E//b;c", b"body")
    assert exchange.headers["x-thing"] == "a: b"
    assert exchange.headers["user-agent"] == "libest"
    assert exchange.peer.address == "127.0.0.1"
    assert exchange.peer.certificates == ()
    assert exchange.at.tzinfo is UTC
    assert exchange.at.microsecond == 0
    assert timedelta(seconds=-1) <= exchange.at - started <= timedelta(seconds=5)
    assert len(exchange.request_id) == 16
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"body<end>"
    assert b"\r\nServer: estd\r\n" in head
    assert b"aiohttp" not in head
    assert b"Content-Length: 4" in head


async def test_requests_of_one_connection_share_its_memo_and_nothing_else(house: House) -> None:
    async with await Client.open(house.floor) as client, await Client.open(house.floor) as other:
        for _ in range(3):
            await client.get(post(b"x", last=False))
        await other.get(post(b"x"))
    first, second, third, foreign = house.desk.exchanges
    assert first.peer.memo is second.peer.memo is third.peer.memo
    assert foreign.peer.memo is not first.peer.memo
    assert len({exchange.request_id for exchange in house.desk.exchanges}) == 4


@pytest.mark.parametrize(
    ("early", "looks"),
    [
        pytest.param(0, 1, id="nothing"),
        pytest.param(10, 1, id="part of its head"),
        pytest.param(-3, 1, id="all but the end of its body"),
        pytest.param(None, 0, id="all of it"),
    ],
)
async def test_a_client_is_looked_for_again_while_it_owes_us_its_first_request(
    house: House, monkeypatch: pytest.MonkeyPatch, early: int | None, looks: int
) -> None:
    """What comes in the segment of the client's Finished is all there is to wait for, or it is not."""
    looked: list[SocketTransport] = []
    look_again = SocketTransport.look_again

    def look(transport: SocketTransport) -> None:
        looked.append(transport)
        look_again(transport)

    monkeypatch.setattr(SocketTransport, "look_again", look)
    request = post(b"body")
    flights: list[bytes] = []
    async with await Client.connect(house.floor) as client:

        async def transmit(flight: bytes) -> None:
            flights.append(flight)
            if len(flights) == 1:
                await client.transmit(flight)

        await client.handshake(transmit)
        if request[:early]:
            client.tls.sendall(request[:early])
        await client.transmit(flights[-1] + client.take())
        await asyncio.sleep(0.05)
        assert len(looked) == looks
        if early is not None:
            await client.send(request[early:])
        assert (await client.receive_answer()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert len(looked) == looks


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/x?y", "/x"),
        (b"/?", "/"),
        (b"/x?y?z=/../w", "/x"),
        (b"https://estd/x/y?z", "/x/y"),
        (b"HTTP://other:1234/x", "/x"),
        (b"//x/y", "//x/y"),
        (b"/x%00y", "/x%00y"),
        (b"/" + b"a" * 5000, "/" + "a" * 5000),
    ],
)
async def test_targets(house: House, target: bytes, path: str) -> None:
    """RFC 9112 §3.2.1 and §3.2.2; nothing is decoded."""
    assert statuses(await house.say(post(b"x").replace(b"/path", target))) == [200]
    assert house.desk.paths == [path]


@pytest.mark.parametrize("target", [b"*", b"estd:443", b"x", b"ftp://estd/x", b"https://estd", b"https:/x", b"http://"])
async def test_targets_that_hold_no_path_lead_nowhere(house: House, target: bytes) -> None:
    answer = await house.say(post(b"x").replace(b"/path", target))
    assert len(statuses(answer)) <= 1
    assert not any(path.startswith("/") for path in house.desk.paths)


# --- bodies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_full_body_arrives_whole(house: House, framing: str) -> None:
    body = bytes(range(256)) * (BODY_AT_MOST_BYTES // 256)
    request = post(body) if framing == "length" else chunked(*(body[at : at + 999] for at in range(0, len(body), 999)))
    assert statuses(await house.say(request)) == [200]
    assert house.desk.exchanges[0].body == body


@pytest.mark.parametrize("framing", ["length", "chunked", "one chunk"])
async def test_one_byte_more_is_refused(house: House, framing: str) -> None:
    body = bytes(BODY_AT_MOST_BYTES + 1)
    if framing == "length":
        request = post(body)
    else:
        size = len(body) if framing == "one chunk" else 1000
        request = chunked(*(body[at : at + size] for at in range(0, len(body), size)))
    answer = await house.say(request)
    assert statuses(answer) == [413]
    assert answer.endswith(b"<end>")
    assert house.desk.exchanges == []


async def test_a_length_that_is_too_large_is_refused_before_a_byte_of_it_comes(house: House) -> None:
    for length in (b"65537", b"9" * 18):
        answer = await house.say(HEAD + b"Content-Length: " + length + b"\r\n\r\n")
        assert statuses(answer) == [413]
        assert answer.endswith(b"<end>")


async def test_a_hundred_thousand_chunks_of_one_byte_cost_little(house: House) -> None:
    """The cap ends it after 65,536 of them, and the loop is never held for long."""
    request = chunked(*[b"x"] * 100_000)
    stalls: list[float] = []

    async def watch() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.005)
            stalls.append(time.perf_counter() - started)

    watcher = asyncio.get_running_loop().create_task(watch())
    started = time.process_time()
    answer = await house.say(request)
    spent = time.process_time() - started
    watcher.cancel()
    assert statuses(answer) == [413]
    assert spent < 2.0
    assert max(stalls) < 0.5


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "x", "gzip, gzip", "*"])
async def test_content_encodings_are_refused_before_reading(house: House, coding: str) -> None:
    """A26: a decoder is an amplifier. The body never comes, and the answer does not wait for it."""
    head = HEAD + b"Content-Encoding: " + coding.encode() + b"\r\nContent-Length: 5000\r\n\r\n"
    answer = await house.say(head)
    assert statuses(answer) == [415]
    assert answer.endswith(b"<end>")
    assert house.desk.exchanges == []


async def test_identity_is_no_encoding_and_two_are_one_too_many(house: House) -> None:
    assert statuses(await house.say(post(b"x", b"Content-Encoding: identity\r\n"))) == [200]
    assert statuses(await house.say(post(b"x", b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"))) == [400]


async def test_a_body_that_dawdles_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.3)
    async with await Client.open(house.floor) as client:
        await client.send(HEAD + b"Content-Length: 1000\r\n\r\n")
        started = time.monotonic()
        dripping = asyncio.get_running_loop().create_task(drip(client))
        answer = await listen(client, 2)
        dripping.cancel()
    assert statuses(answer) == [408]
    assert answer.endswith(b"<end>")
    assert 0.2 < time.monotonic() - started < 1.5
    assert counted("echo", Code.REQUEST_TIMEOUT.value) > 0
    assert house.desk.refusals == [("POST", "/path", Code.REQUEST_TIMEOUT)]


async def drip(client: Client) -> None:
    while True:
        await client.send(b"x")
        await asyncio.sleep(0.02)


def test_the_deadline_of_a_body() -> None:
    assert connection.BODY_SECONDS == 10.0


@pytest.mark.parametrize(
    ("more", "version", "continues"),
    [
        (b"Expect: 100-continue\r\n", b"1.1", True),
        (b"expect: 100-Continue\r\n", b"1.1", True),
        (b"Expect: 100-continue\r\n", b"1.0", False),
        (b"", b"1.1", False),
    ],
)
async def test_expectations(house: House, more: bytes, version: bytes, continues: bool) -> None:
    """RFC 9110 §10.1.1."""
    head, _, body = post(b"body", more, version).partition(b"\r\n\r\n")
    async with await Client.open(house.floor) as client:
        await client.send(head + b"\r\n\r\n")
        first = await listen(client, 0.2)
        assert first == (b"HTTP/1.1 100 Continue\r\n\r\n" if continues else b"")
        await client.send(body)
        assert statuses(await listen(client)) == [200]


@pytest.mark.parametrize(
    ("more", "status"), [(b"Content-Length: 70000\r\n", 413), (b"Content-Length: 9\r\nContent-Encoding: gzip\r\n", 415)]
)
async def test_nobody_is_told_to_go_on_with_what_will_be_refused(house: House, more: bytes, status: int) -> None:
    answer = await house.say(HEAD + more + b"Expect: 100-continue\r\n\r\n")
    assert statuses(answer) == [status]


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n\r\n",
        b"-1\r\nx\r\n",
        b"5\r\nhellohello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \nhello\r\n0\r\n\r\n",
    ],
)
async def test_a_body_that_is_not_framed_as_its_head_says_never_arrives(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)
    for pause in (0.0, 0.05):
        request = (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", body)
        answer = await house.say(*(request if pause else [b"".join(request)]), pause=pause)
        assert statuses(answer) in ([400], [408])
        assert answer.endswith(b"<end>")
    assert house.desk.exchanges == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- what is no HTTP, and what might be two requests ----------------------------------------------------------------------

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: estd\r\n\r\n"
CORPUS = {
    "length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 44\r\n\r\nhello" + SMUGGLED,
    "two equal lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello" + SMUGGLED,
    "a signed length": HEAD + b"Content-Length: +5\r\n\r\nhello" + SMUGGLED,
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\nhello" + SMUGGLED,
    "a length in hexadecimal": HEAD + b"Content-Length: 0x5\r\n\r\nhello" + SMUGGLED,
    "a length with a grouping": HEAD + b"Content-Length: 1_0\r\n\r\nhellohello" + SMUGGLED,
    "a length in other digits": HEAD + "Content-Length: ٥\r\n\r\n".encode() + b"hello" + SMUGGLED,
    "a length without digits": HEAD + b"Content-Length: \r\n\r\n" + SMUGGLED,
    "a length that overflows": HEAD + b"Content-Length: 18446744073709551621\r\n\r\nhello" + SMUGGLED,
    "two codings": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a coding twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a coding behind a tab": HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a coding of HTTP/1.0": b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "space before the colon": HEAD + b"Content-Length : 5\r\n\r\nhello" + SMUGGLED,
    "space before the name": HEAD + b" Content-Length: 5\r\n\r\nhello" + SMUGGLED,
    "a folded field": HEAD + b"X-A: a\r\n Content-Length: 5\r\n\r\nhello" + SMUGGLED,
    "no field name": HEAD + b": x\r\n\r\n" + SMUGGLED,
    "no colon": HEAD + b"Content-Length 5\r\n\r\nhello" + SMUGGLED,
    "NUL in a name": HEAD + b"X\x00A: a\r\n\r\n" + SMUGGLED,
    "NUL in a value": HEAD + b"X-A: a\x00b\r\n\r\n" + SMUGGLED,
    "a bare CR in a value": HEAD + b"X-A: a\rContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    "a bare LF after the line": b"POST /x HTTP/1.1\nHost: estd\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    "a bare LF after a field": b"POST /x HTTP/1.1\r\nHost: estd\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    "a bare LF after the head": b"POST /x HTTP/1.1\r\nHost: estd\r\nContent-Length: 5\r\n\nhello" + SMUGGLED,
    "bare LF throughout": b"POST /x HTTP/1.1\nHost: estd\nContent-Length: 5\n\nhello" + SMUGGLED,
    "no Host": b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    "two Hosts": HEAD + b"Host: other\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    "two equal Hosts": HEAD + b"Host: estd\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    "a bad version": b"POST /x HTTP/1.9x\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "version 2": b"POST /x HTTP/2.0\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "version 0.9": b"GET /x\r\n" + SMUGGLED,
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "a space in the target": b"GET /x /y HTTP/1.1\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "a method that nobody registered": b"FOO /x HTTP/1.1\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "a method that is none": b"G(T /x HTTP/1.1\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "no method": b" /x HTTP/1.1\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "a control in the target": b"GET /x\x01 HTTP/1.1\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "not HTTP at all": b"\x16\x03\x01\x02\x00\x01" + bytes(100) + SMUGGLED,
    "a chunk that lies": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloGET /smuggled HTTP/1.1\r\n\r\n",
    "a long head line": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: estd\r\n\r\n" + SMUGGLED,
    "a long field": HEAD + b"X-A: " + b"a" * 9000 + b"\r\n\r\n" + SMUGGLED,
    "a long field name": HEAD + b"X" * 9000 + b": a\r\n\r\n" + SMUGGLED,
    "many fields": HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(70)) + b"\r\n" + SMUGGLED,
    "two credentials": HEAD + b"Authorization: Basic YTpi\r\nAuthorization: Basic Yzpk\r\n\r\n" + SMUGGLED,
    "two media types": HEAD + b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
}
"""A27. Each would be one request to one reader and another, or two, to the next."""


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("cut", [None, 1])
async def test_smuggling(house: House, caplog: pytest.LogCaptureFixture, name: str, cut: int | None) -> None:
    request = CORPUS[name]
    parts = [request] if cut is None else [request[: len(HEAD)], request[len(HEAD) :]]
    before = sum(counted(one, Code.MALFORMED_REQUEST.value) for one in ("echo", "unknown"))
    answer = await house.say(*parts, pause=0.0 if cut is None else 0.01)
    assert statuses(answer) in ([400], []), answer
    assert answer.endswith(b"<end>")
    assert house.desk.exchanges == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    if statuses(answer):
        assert sum(counted(one, Code.MALFORMED_REQUEST.value) for one in ("echo", "unknown")) == before + 1
        assert [code for _, _, code in house.desk.refusals] == [Code.MALFORMED_REQUEST]
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Server: estd\r\n" in head
        assert b"X-Request-Id: " in head
        assert b"Connection: close" in head or b"HTTP/1.0" in head
        assert body.startswith(b"malformed-request: ")
        assert b"\n" not in body.removesuffix(b"<end>").rstrip(b"\n")
        assert b"smuggled" not in body
        said = body.partition(b" (request ")[0]
        assert b"aaa" not in said, "nothing of what was sent is quoted"


async def test_pipelined_requests_are_answered_one_after_another(house: House) -> None:
    house.desk.seconds = 0.02
    requests = [post(b"body %d" % number, last=number == 19).replace(b"/path", b"/%d" % number) for number in range(20)]
    answer = await house.say(b"".join(requests))
    assert statuses(answer) == [200] * 20
    assert house.desk.paths == [f"/{number}" for number in range(20)]
    assert [exchange.body for exchange in house.desk.exchanges] == [b"body %d" % number for number in range(20)]


# --- what comes behind a request in hand ----------------------------------------------------------------------------------

POURED_BYTES = 512 * 1024
"""More than a connection may hold, and less than the farewell forgets, so that the answers are read."""


def pour(framing: str) -> bytes:
    """A request whose body is far too long, or that never comes to its end."""
    filling = bytes(POURED_BYTES)
    if framing == "length":
        return HEAD + b"Content-Length: 1000000000\r\n\r\n" + filling
    if framing == "chunks":
        return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join([b"3e8\r\n" + bytes(1000) + b"\r\n"] * 500)
    if framing == "one chunk":
        return HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n" + filling
    if framing == "extensions":
        return HEAD + b"Transfer-Encoding: chunked\r\n\r\n1" + b";x=y" * (POURED_BYTES // 4)
    if framing == "trailers":
        trailers = b"".join(b"X-%d: %s\r\n" % (number, bytes([120]) * 8000) for number in range(60))
        return HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + trailers
    if framing == "head":
        return HEAD + b"".join(b"X-%d: %s\r\n" % (number, bytes([120]) * 8000) for number in range(60))
    assert framing == "empty lines"
    return b"\r\n" * (POURED_BYTES // 2)


POURED = {
    "length": 413,
    "chunks": 413,
    "one chunk": 413,
    "extensions": 400,
    "trailers": 400,
    "head": 400,
    "empty lines": 400,
}


async def hold_back(house: House) -> connection.Connection:
    """The connection, once it reads no more; by then it holds little."""
    inner = await house.floor.inner()
    await house.floor.until(lambda: not inner._transport.is_reading())
    # A read of the socket holds several records; those after the pause stay encrypted.
    assert connection.BEHIND_AT_MOST_BYTES < len(inner._behind) <= connection.BEHIND_AT_MOST_BYTES + 32 * 1024
    assert len(inner._transport._held) <= 64 * 1024
    assert not inner._transport._raw.is_reading()
    return inner


@pytest.mark.parametrize("framing", POURED)
async def test_behind_a_request_in_hand_little_is_read(house: House, framing: str) -> None:
    house.desk.gate.clear()
    async with await Client.open(house.floor) as client:
        await client.send(post(b"first", last=False))
        await house.floor.until(lambda: len(house.desk.exchanges) == 1)
        pouring = asyncio.create_task(client.send(pour(framing)))
        await hold_back(house)
        assert len(house.desk.exchanges) == 1
        house.desk.gate.set()
        answer = await listen(client)
        await pouring
    assert statuses(answer) == [200, POURED[framing]]
    assert answer.endswith(b"<end>")
    assert [exchange.body for exchange in house.desk.exchanges] == [b"first"]


@pytest.mark.parametrize("framing", POURED)
async def test_behind_answers_that_nobody_reads_little_is_read(
    house: House, monkeypatch: pytest.MonkeyPatch, framing: str
) -> None:
    async def answer(exchange: Exchange) -> tuple[str, str, Reply]:
        return "echo", "ok", Reply(200, bytes(500_000), "text/plain")

    monkeypatch.setattr(house.site, "protocol", answer)
    async with await Client.open(house.floor, buffer=2048) as client:
        inner = await house.floor.inner()
        # Nothing of this machine's may take the answers in the client's place.
        inner._transport._raw.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        pouring = asyncio.create_task(client.send(post(b"x", last=False) * 3 + pour(framing)))
        await hold_back(house)
        assert not inner._is_busy
        answer_bytes = await listen(client)
        await pouring
    assert statuses(answer_bytes) == [200, 200, 200, POURED[framing]]
    assert answer_bytes.endswith(b"<end>")


@pytest.mark.parametrize("framing", POURED)
async def test_with_nothing_in_hand_it_is_refused_at_once(house: House, framing: str) -> None:
    async with await Client.open(house.floor) as client:
        pouring = asyncio.create_task(client.send(pour(framing)))
        answer = await listen(client)
        await pouring
    assert statuses(answer) == [POURED[framing]]
    assert answer.endswith(b"<end>")
    assert house.desk.exchanges == []


@pytest.mark.parametrize("size", [0, 10, 3000, 15_000, BODY_AT_MOST_BYTES])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_reading_goes_on_until_all_that_came_is_answered(house: House, size: int, framing: str) -> None:
    """Heads and bodies lie across every pause, and whatever is read holds the end of one and the beginning of the next."""
    count = max(10, min(1000, 300_000 // (size + 150)))
    bodies = [b"%d:" % number + bytes([number % 256]) * (size - 5) for number in range(count)]
    if framing == "length":
        requests = [post(body, last=False) for body in bodies]
    else:
        keep = b"Connection: close\r\n"
        requests = [
            chunked(*(body[at : at + 999] for at in range(0, len(body), 999))).replace(keep, b"") for body in bodies
        ]
    requests.append(post(b"last"))
    house.desk.gate.clear()
    async with await Client.open(house.floor) as client:
        sending = asyncio.create_task(client.send(b"".join(requests)))
        await hold_back(house)
        house.desk.gate.set()
        answer = await listen(client)
        await sending
    assert statuses(answer) == [200] * (count + 1)
    assert [exchange.body for exchange in house.desk.exchanges] == [*bodies, b"last"]


async def test_the_rest_of_a_body_is_read_whatever_else_comes_with_it(house: House) -> None:
    first, second = post(b"a" * 40_000, last=False), post(b"b" * 60_000)
    async with await Client.open(house.floor) as client:
        await client.send(first[:20_000])
        await client.send(first[20_000:] + second[:30_000])
        await client.send(second[30_000:])
        answer = await listen(client)
    assert statuses(answer) == [200, 200]
    assert [exchange.body for exchange in house.desk.exchanges] == [b"a" * 40_000, b"b" * 60_000]


async def test_a_client_that_leaves_behind_much_is_let_go(house: House) -> None:
    house.desk.gate.clear()
    async with await Client.open(house.floor) as client:
        await client.send(post(b"first", last=False))
        pouring = asyncio.create_task(client.send(pour("length")))
        await hold_back(house)
        pouring.cancel()
    house.desk.gate.set()
    await house.floor.until(lambda: house.floor.gate.connections == 0)
    assert [exchange.body for exchange in house.desk.exchanges] == [b"first"]


@pytest.mark.parametrize("behind", [b"no request at all\r\n\r\n", SMUGGLED.replace(b"Host", b"Host "), b"\x00" * 100])
async def test_what_is_no_request_is_said_after_the_answer_before_it(house: House, behind: bytes) -> None:
    answer = await house.say(post(b"first", last=False) + behind + SMUGGLED)
    assert statuses(answer) == [200, 400]
    assert answer.endswith(b"<end>")
    assert house.desk.paths == ["/path"]


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"tcp", b"x"])
async def test_behind_a_request_for_another_protocol_nothing_is_a_request(house: House, protocol: bytes) -> None:
    more = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    answer = await house.say(post(b"x", more, last=False) + SMUGGLED + SMUGGLED)
    assert statuses(answer) == [200]
    assert answer.endswith(b"<end>")
    assert house.desk.paths == ["/path"]


@pytest.mark.parametrize(
    "head", [b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", b"POST /x HTTP/2.0\r\n\r\n"]
)
async def test_a_version_is_refused_whatever_comes_behind_it(house: House, head: bytes) -> None:
    answer = await house.say(head)
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert answer.endswith(b"<end>")
    assert house.desk.exchanges == []


async def test_nothing_behind_a_body_that_was_not_read_is_a_request(house: House) -> None:
    for more in (b"Content-Length: 70000\r\n", b"Content-Length: 9\r\nContent-Encoding: gzip\r\n"):
        assert len(statuses(await house.say(HEAD + more + b"\r\n" + SMUGGLED))) == 1
    assert house.desk.exchanges == []


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
async def test_versions_and_kept_connections(house: House, version: bytes, connection: bytes) -> None:
    async with await Client.open(house.floor) as client:
        await client.send(post(b"x", connection, version, last=False))
        answer = await listen(client, 0.3)
    assert statuses(answer) == [200]
    kept = connection.startswith(b"Connection: keep") or (version == b"1.1" and not connection)
    assert answer.endswith(b"<end>") != kept


# --- faults and ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [RuntimeError("secret 4711"), Broken("secret 4711"), TimeoutError(), ValueError("x")])
async def test_a_fault_is_an_opaque_500_and_a_traceback_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    house.desk.fault = fault
    async with await Client.open(house.floor) as client:
        answer = await client.get(post(b"x", last=False))
        house.desk.fault = None
        assert (await client.get(post(b"again", last=False))).endswith(b"again")  # the connection lives on
    assert statuses(answer) == [500]
    request_id = house.desk.exchanges[0].request_id
    assert b"X-Request-Id: " + request_id.encode() in answer
    for word in (b"4711", b"Traceback", b"RuntimeError", b"secret"):
        assert word not in answer
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is fault
    assert record.__dict__["request_id"] == request_id


@pytest.mark.parametrize("value", ["a\r\nX-Forged: b", "a\nb", "€"])
async def test_an_answer_that_cannot_be_written_is_a_fault_and_nobody_waits(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    async def answer(exchange: Exchange) -> tuple[str, str, Reply]:
        return "echo", "ok", Reply(200, b"granted", "text/plain", (("X-Value", value),))

    monkeypatch.setattr(house.site, "protocol", answer)
    before = counted("echo", "ok"), counted("echo", "internal-error")
    said = await house.say(post(b"x", last=False))
    assert statuses(said) == [500]
    assert said.endswith(b"<end>")
    assert b"granted" not in said
    assert b"X-Forged" not in said
    assert (counted("echo", "ok"), counted("echo", "internal-error")) == (before[0], before[1] + 1)
    assert "an answer cannot be written" in caplog.text
    await house.site.drain(1.0)
    assert "cut off" not in caplog.text


@pytest.mark.parametrize("reason", [Refused(Code.CREDENTIAL_MISSING, "x"), Unavailable(Code.OVERLOADED, "x", 7)])
async def test_a_refusal_that_is_raised_is_answered_like_one(house: House, reason: Refused | Unavailable) -> None:
    house.desk.fault = reason
    answer = await house.say(post(b"x"))
    assert statuses(answer) == [STATUS[reason.code]]


async def test_a_client_that_leaves_is_no_fault(house: House, caplog: pytest.LogCaptureFixture) -> None:
    before = counted("unknown", Code.INTERNAL.value), counted("unknown", "gone")
    for part in (b"", b"half", b"x" * 999):
        async with await Client.open(house.floor) as client:
            await client.send(HEAD + b"Content-Length: 1000\r\n\r\n" + part)
            await asyncio.sleep(0.02)
    house.desk.seconds = 0.1
    async with await Client.open(house.floor) as client:
        await client.send(post(b"left", last=False) * 3)
        await asyncio.sleep(0.02)
    await house.floor.until(lambda: house.floor.gate.connections == 0)
    await asyncio.sleep(0.2)
    assert counted("unknown", Code.INTERNAL.value) == before[0]
    assert counted("unknown", "gone") >= before[1] + 3
    assert [exchange.body for exchange in house.desk.exchanges] == [b"left"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("ending", ["last", "kept", "refused", "garbled", "halfway"])
async def test_a_connection_that_is_over_lets_go_of_everything(house: House, ending: str) -> None:
    requests = {
        "last": post(b"x"),
        "kept": post(b"x", last=False) * 2,
        "refused": post(b"x", b"Content-Encoding: gzip\r\n"),
        "garbled": b"no request at all\r\n\r\n",
        "halfway": post(b"x" * 100)[:-50],
    }
    kinds = (connection.Connection, HttpRequestParser, TlsTransport)
    gc.collect()
    others = {id(one): one for one in gc.get_objects() if isinstance(one, kinds)}  # whatever earlier tests left behind
    gc.disable()
    try:
        async with await Client.open(house.floor) as client:
            await client.send(requests[ending])
            if ending in ("kept", "halfway"):
                await asyncio.sleep(0.05)
            else:
                await listen(client)
        await house.floor.until(lambda: house.floor.gate.connections == 0)
        await asyncio.sleep(0.02)
        house.desk.exchanges.clear()
        house.floor.inners.clear()
        # Reference counts alone must do: what waits for a collection is memory that no cache knows any more.
        assert [one for one in gc.get_objects() if isinstance(one, kinds) and id(one) not in others] == []
    finally:
        gc.enable()


async def test_each_request_is_counted_by_operation_and_outcome(house: House) -> None:
    before = counted("echo", "ok")
    await house.say(post(b"x"))
    assert counted("echo", "ok") == before + 1
