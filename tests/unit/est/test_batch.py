"""Lines in and lines out: what a line may look like, in which order answers go, and every way a batch can end."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from factory import make_csr, make_name

from estd.errors import Code, Refused, Unavailable
from estd.est import batch
from estd.est.batch import BATCHES_AT_ONCE, LINE_AT_MOST_BYTES, Batches, LineReader
from estd.ra.admission import Admitted
from estd.ra.bulk import GROUP_SIZE, GROUPS_AT_ONCE, Answer, Bulk
from estd.ra.vouching import Request
from estd.wire.exchange import Exchange, Incoming, Peer, Reply

CSR = make_csr(make_name("device-1"))
BASE64 = base64.b64encode(CSR)
ADMITTED = cast(Admitted, object())


def read(*pieces: bytes) -> list[tuple[str, bytes]]:
    reader = LineReader()
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    return [(request.name, request.csr) for request in reader.ready]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"%s\n", ""),
        (b"pump-17,%s\n", "pump-17"),
        (b"pump-17,%s", "pump-17"),
        (b" pump-17 , %s \r\n", "pump-17"),
        (b"id,csr\npump-17,%s\n", "pump-17"),
        (b"CSR\n%s\n", ""),
        (b'"id","csr"\n"pump, 17","%s"\n', "pump, 17"),
        (b"\n\n\r\nb\xc3\xa4r,%s\n\n", "bär"),
        (b"a,b,%s\n", "a,b"),
        (b"\xff,%s\n", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_line_holds_a_name_and_a_request(text: bytes, name: str) -> None:
    assert read(text % BASE64) == [(name, CSR)]


def test_lines_come_in_pieces_of_any_size() -> None:
    text = b"id,csr\na,%s\nb,%s\n" % (BASE64, BASE64)
    expected = [("a", CSR), ("b", CSR)]
    for size in (1, 7, 100, len(text)):
        assert read(*(text[at : at + size] for at in range(0, len(text), size))) == expected


@pytest.mark.parametrize("line", [b"x,", b"x,!!!!", b"x,AAA", b"csr,x,", b"x,QUJD====", b'x,"', b'x\r1,"y",QUJD'])
def test_what_is_not_base64_is_a_request_that_will_be_refused(line: bytes) -> None:
    assert [csr for _, csr in read(b"y,%s\n%s\n" % (BASE64, line))] == [CSR, b""]


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        read(b"A" * (LINE_AT_MOST_BYTES + 1))
    assert caught.value.code is Code.BODY_TOO_LARGE
    with pytest.raises(Refused):
        read(b"A" * (LINE_AT_MOST_BYTES + 1) + b"\n")


# --- a batch -----------------------------------------------------------------------------------------------------------


class Lane:
    """In the place of `Bulk`: remembers the groups, and answers when it is told to."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.groups: list[tuple[list[Request], bool, asyncio.Future[list[Answer]]]] = []
        self._at_once = at_once

    def send(
        self, admitted: Admitted, requests: Sequence[Request], address: str, request_id: str, *, look_first: bool
    ) -> asyncio.Future[list[Answer]]:
        assert (address, request_id) == ("192.0.2.7", "request-1")
        answers: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self.groups.append((list(requests), look_first, answers))
        if self._at_once:
            self.answer(len(self.groups) - 1)
        return answers

    def answer(self, number: int, answer: Answer | None = None) -> None:
        requests, _, answers = self.groups[number]
        answers.set_result([answer or Answer(request.name.encode()) for request in requests])


class Body:
    """An `Incoming` that a test fills."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.is_stopping = False

    def put(self, piece: bytes | Exception) -> None:
        self._pieces.put_nowait(piece)

    async def read(self) -> bytes:
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece


async def readmit() -> Admitted:
    return ADMITTED


def begin(
    lane: Lane, body: bytes = b"", incoming: Incoming | None = None, again: Any = readmit, kind: str | None = "text/csv"
) -> Reply:
    headers = {} if kind is None else {"content-type": kind}
    exchange = Exchange(
        "POST", "/estd/x/batch", headers, body, Peer("192.0.2.7"), "request-1", cast(Any, None), incoming
    )
    return Batches(cast(Bulk, lane)).answer(exchange, ADMITTED, again)


async def collect(reply: Reply) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers, and the end."""
    assert reply.stream is not None
    text = b"".join([part async for part in reply.stream])
    *lines, end = [json.loads(line) for line in text.splitlines()]
    return lines, end


def lines(first: int, last: int) -> bytes:
    return b"".join(b"d%d,%s\n" % (number, BASE64) for number in range(first, last))


async def test_a_whole_batch() -> None:
    lane = Lane()
    count = 2 * GROUP_SIZE + 44
    reply = begin(lane, lines(0, count))
    assert (reply.status, reply.content_type) == (200, "application/x-ndjson")
    answers, end = await collect(reply)
    assert [len(requests) for requests, _, _ in lane.groups] == [GROUP_SIZE, GROUP_SIZE, 44]
    assert [(answer["n"], answer["id"]) for answer in answers] == [(n + 1, f"d{n}") for n in range(count)]
    assert base64.b64decode(answers[7]["certificate"]) == b"d7"
    assert end == {"end": "complete", "items": count, "issued": count, "repeated": 0, "refused": 0, "failed": 0}


async def test_an_answer_goes_out_as_soon_as_it_is_there() -> None:
    body, lane = Body(), Lane()
    stream = begin(lane, incoming=body).stream
    assert stream is not None
    for number in range(3):
        body.put(lines(number, number + 1))
        assert json.loads(await anext(stream))["id"] == f"d{number}"
    body.put(b"")
    assert json.loads(await anext(stream))["end"] == "complete"


async def test_no_more_groups_are_under_way_and_no_more_is_read_than_agreed() -> None:
    body, lane = Body(), Lane(at_once=False)
    for number in range(20):
        body.put(lines(number * 100, number * 100 + 100))
    reply = begin(lane, incoming=body)
    collecting = asyncio.create_task(collect(reply))
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(lane.groups) == GROUPS_AT_ONCE
    # What is held is one group that waits, and what one read brought.
    assert body._pieces.qsize() >= 20 - (GROUPS_AT_ONCE + 1) * GROUP_SIZE // 100 - 2
    # The second is ready first; answers keep the order of the requests.
    lane.answer(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(lane.groups) == GROUPS_AT_ONCE
    lane.answer(0)
    body.put(b"")
    while not collecting.done():
        for number, (_, _, answers) in enumerate(lane.groups):
            if not answers.done():
                lane.answer(number)
        await asyncio.sleep(0)
    answers, end = collecting.result()
    assert [answer["n"] for answer in answers] == list(range(1, 2001))
    assert end["items"] == 2000


async def test_refusals_and_failures_are_lines_of_their_own() -> None:
    lane = Lane(at_once=False)
    collecting = asyncio.create_task(collect(begin(lane, lines(0, 4))))
    await asyncio.sleep(0.01)
    lane.groups[0][2].set_result(
        [
            Answer(reason=Refused(Code.KEY_WEAK, "too short")),
            Answer(b"certificate", is_repeated=True),
            Answer(reason=Unavailable(Code.STORE_UNAVAILABLE, "away")),
            Answer(reason=Unavailable(Code.INTERNAL, "nobody's business")),
        ]
    )
    answers, end = await collecting
    assert answers[0] == {"n": 1, "id": "d0", "error": "key-weak", "detail": "too short"}
    assert answers[1]["repeated"] is True
    assert answers[2] == {"n": 3, "id": "d2", "error": "store-unavailable", "detail": "away", "retry": True}
    assert answers[3] == {"n": 4, "id": "d3", "error": "internal-error", "retry": True}
    assert end == {"end": "complete", "items": 4, "issued": 0, "repeated": 1, "refused": 1, "failed": 2}


async def test_the_store_is_asked_first_for_as_long_as_requests_repeat() -> None:
    body, lane = Body(), Lane(at_once=False)
    stream = begin(lane, incoming=body).stream
    assert stream is not None
    expected = [True, True, True, False, False]
    for number, repeated in enumerate([True, True, False, False, False]):
        body.put(lines(number, number + 1))
        line = asyncio.ensure_future(anext(stream))
        while len(lane.groups) == number:
            await asyncio.sleep(0)
        lane.answer(number, Answer(b"x", is_repeated=repeated))
        assert json.loads(await line).get("repeated", False) is repeated
    assert [look_first for _, look_first, _ in lane.groups] == expected
    await stream.aclose()


async def test_a_server_that_stops_says_so_and_keeps_its_word_for_what_it_took() -> None:
    body, lane = Body(), Lane()
    body.put(lines(0, 2) + b"d2,AA")
    collecting = asyncio.create_task(collect(begin(lane, incoming=body)))
    await asyncio.sleep(0.01)
    body.is_stopping = True
    body.put(b"")
    answers, end = await collecting
    assert [answer["id"] for answer in answers] == ["d0", "d1"]
    assert (end["end"], end["retry_after_seconds"], end["items"]) == ("interrupted", 1, 2)


@pytest.mark.parametrize(
    ("fault", "end", "code"),
    [
        (ConnectionResetError("gone"), "interrupted", None),
        (Refused(Code.REQUEST_TIMEOUT, "silence"), "interrupted", "request-timeout"),
        (Refused(Code.MALFORMED_REQUEST, "garbled"), "refused", "malformed-request"),
    ],
)
async def test_a_body_that_breaks_off(fault: Exception, end: str, code: str | None) -> None:
    body, lane = Body(), Lane()
    body.put(lines(0, 2) + b"d2,AA")
    body.put(fault)
    answers, last = await collect(begin(lane, incoming=body))
    assert len(answers) == 2
    assert (last["end"], last.get("error")) == (end, code)


async def test_an_authority_that_is_one_no_more() -> None:
    admissions = iter([None, Refused(Code.CERTIFICATE_REVOKED, "this certificate was revoked")])

    async def again() -> Admitted:
        if (reason := next(admissions)) is not None:
            raise reason
        return ADMITTED

    body, lane = Body(), Lane()
    stream = begin(lane, incoming=body, again=again).stream
    assert stream is not None
    body.put(lines(0, 1))
    assert json.loads(await anext(stream))["id"] == "d0"
    body.put(lines(1, 2))
    end = json.loads(await anext(stream))
    assert (end["end"], end["error"], end["items"]) == ("refused", "certificate-revoked", 1)
    assert len(lane.groups) == 1


async def test_a_batch_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ITEMS_AT_MOST", 2 * GROUP_SIZE)
    answers, end = await collect(begin(Lane(), lines(0, 3 * GROUP_SIZE)))
    assert (len(answers), end["end"]) == (2 * GROUP_SIZE, "limit")


@pytest.mark.parametrize("kind", [None, "application/pkcs10", "application/x-www-form-urlencoded"])
async def test_other_media_types_are_refused(kind: str | None) -> None:
    with pytest.raises(Refused) as caught:
        begin(Lane(), lines(0, 1), kind=kind)
    assert caught.value.code is Code.MEDIA_TYPE


async def test_only_so_many_batches_at_once_and_each_gives_its_place_back() -> None:
    batches, bodies = Batches(cast(Bulk, Lane())), [Body() for _ in range(BATCHES_AT_ONCE)]

    def begin_one(body: Body) -> Reply:
        exchange = Exchange(
            *("POST", "/", {"content-type": "text/csv"}, b"", Peer("192.0.2.7"), "request-1", cast(Any, None), body)
        )
        return batches.answer(exchange, ADMITTED, readmit)

    streams = [begin_one(body).stream for body in bodies]
    for body, stream in zip(bodies, streams, strict=True):
        assert stream is not None
        body.put(lines(0, 1))
        await anext(stream)
    with pytest.raises(Unavailable) as caught:
        begin_one(Body())
    assert caught.value.code is Code.OVERLOADED
    assert streams[0] is not None
    await streams[0].aclose()
    begin_one(Body())
    for stream in streams:
        assert stream is not None
        await stream.aclose()
