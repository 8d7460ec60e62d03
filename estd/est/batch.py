"""The bulk lane: a registration authority sends requests line by line, and certificates come back line by line.

An operation of estd's own (RFC 7030 has none for many devices at once), for clients that RFC 7030 §3.7 calls a
registration authority. Each line of the request is ``ID,CSR`` or ``CSR``: a name of the authority's choosing, and a
PKCS #10 request in base64 on one line; a first line that ends in ``csr`` is a heading. Each line of the answer is one JSON
object: ``{"n": …, "id": …, "certificate": …}`` with DER in base64, or ``{"n": …, "id": …, "error": …, "detail": …}``, with
``"retry": true`` where the same request may succeed later; `n` counts requests from 1, and answers come in that order.
The last line has ``end``: without it the answer is not whole.

Promises: an answer is sent as soon as its certificate is committed; at no time are more than a few groups of requests in
this process, however long the batch is; a bad request is answered and the rest goes on; the authority is admitted anew
for every group, so that a revocation or new rules end a batch that has begun.
"""

from __future__ import annotations

import asyncio
import binascii
import csv
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from estd.errors import Code, Refused, Unavailable
from estd.ra.admission import Admitted
from estd.ra.bulk import GROUP_SIZE, GROUPS_AT_ONCE, Answer, Bulk
from estd.ra.vouching import Request
from estd.wire.exchange import Exchange, Incoming, Reply

LINE_AT_MOST_BYTES: Final = 64 * 1024
ITEMS_AT_MOST: Final = 1_000_000
"""How many requests one batch may hold; a client with more begins another."""
BATCHES_AT_ONCE: Final = 8
"""How many batches one worker takes; they share `GROUPS_AT_ONCE`."""
MEDIA_TYPES: Final = ("text/csv", "text/plain")
ANSWER_TYPE: Final = "application/x-ndjson"
_RETRY_AFTER_SECONDS: Final = 5


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to one request."""

    n: int
    id: str = ""
    certificate: bytes | None = None
    repeated: bool = False
    error: str | None = None
    detail: str = ""
    retry: bool = False


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last line: why there is no further one, and how many there were."""

    end: str
    """``complete``; ``interrupted``: send the rest again; ``limit``: so much for one batch; ``refused``: see `error`."""
    items: int
    issued: int
    repeated: int
    refused: int
    failed: int
    error: str | None = None
    detail: str = ""
    retry_after_seconds: int | None = None


class Batches:
    """All batches of one worker."""

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
        self._open = 0

    def answer(self, exchange: Exchange, admitted: Admitted, readmit: Callable[[], Awaitable[Admitted]]) -> Reply:
        """Begin a batch.

        Args:
            exchange: its body may be whole or on its way.
            admitted: the registration authority.
            readmit: admits it once more, by the rules in force then.

        Raises:
            Refused: MEDIA_TYPE.
            Unavailable: OVERLOADED.
        """
        media_type = (exchange.headers.get("content-type") or "").partition(";")[0].strip().lower()
        if media_type not in MEDIA_TYPES:
            detail = f"a batch is {' or '.join(MEDIA_TYPES)}, one request in base64 on each line"
            raise Refused(Code.MEDIA_TYPE, detail)
        if self._open >= BATCHES_AT_ONCE:
            raise Unavailable(Code.OVERLOADED, "too many batches are under way", _RETRY_AFTER_SECONDS)
        incoming = exchange.incoming or _Whole(exchange.body)
        batch = _Batch(self._bulk, exchange, incoming, admitted, readmit)
        headers = (("X-Request-Id", exchange.request_id), ("Cache-Control", "no-store"))
        return Reply(200, b"", ANSWER_TYPE, headers, self._count(batch))

    async def _count(self, batch: _Batch) -> AsyncGenerator[bytes, None]:
        self._open += 1
        lines = batch.carry_out()
        try:
            async for part in lines:
                yield part
        finally:
            self._open -= 1
            await lines.aclose()


class LineReader:
    """Requests out of a body that comes in pieces of any size."""

    def __init__(self) -> None:
        self.ready: deque[Request] = deque()
        self._rest = b""
        self._seen = 0

    def feed(self, data: bytes) -> None:
        """One more piece.

        Raises:
            Refused: a line is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._read(line)
        if len(self._rest) > LINE_AT_MOST_BYTES:
            raise self._too_long()

    def close(self) -> None:
        """The body is at its end; its last line may lack a line feed."""
        self._read(self._rest)
        self._rest = b""

    def _read(self, line: bytes) -> None:
        line = line.strip()
        if not line:
            return
        if len(line) > LINE_AT_MOST_BYTES:
            raise self._too_long()
        name, _, text = line.rpartition(b",")
        self._seen += 1
        if b'"' in line or (self._seen == 1 and text.strip().lower() == b"csr"):
            fields = _read_fields(line)
            if self._seen == 1 and fields[-1].strip().lower() == "csr":
                return  # the heading
            name, text = ",".join(fields[:-1]).encode(), fields[-1].encode()
        text = text.strip()
        try:
            # The strict mode overlooks excess padding.
            csr = b"" if text.endswith(b"===") else binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            csr = b""
        self.ready.append(Request(name.strip().decode("utf-8", "replace"), csr))

    def _too_long(self) -> Refused:
        detail = (
            f"a line of the batch is longer than {LINE_AT_MOST_BYTES} bytes; is the base64 of each request on its own?"
        )
        return Refused(Code.BODY_TOO_LARGE, detail)


def _read_fields(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8", "replace")]), [""])
    except csv.Error:
        # A carriage return amid the line: this is no request, but no reason to give up the others.
        return [line.rpartition(b",")[0].decode("utf-8", "replace"), ""]


@dataclass(slots=True)
class _Tally:
    items: int = 0
    issued: int = 0
    repeated: int = 0
    refused: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _Group:
    requests: list[Request]
    answers: asyncio.Task[list[Answer]]


@dataclass(slots=True)
class _Batch:
    """One batch: reads, sends groups, and tells their answers in order."""

    bulk: Bulk
    exchange: Exchange
    incoming: Incoming
    admitted: Admitted
    readmit: Callable[[], Awaitable[Admitted]]
    reader: LineReader = field(default_factory=LineReader)
    groups: deque[_Group] = field(default_factory=deque)
    tally: _Tally = field(default_factory=_Tally)
    taken: int = 0
    end: End | None = None
    """Why nothing more is read, without the numbers; None while there may be more."""
    may_repeat: bool = True
    """Whether the requests seem to have been sent before; asking about it costs a fresh batch a little."""

    async def carry_out(self) -> AsyncGenerator[bytes, None]:
        """The lines of the answer, as they come."""
        reading: asyncio.Task[bytes] | None = None
        try:
            while True:
                await self._send_groups()
                if reading is None and self.end is None and len(self.reader.ready) < GROUP_SIZE:
                    reading = asyncio.get_running_loop().create_task(self.incoming.read())
                waiting: list[asyncio.Task[bytes] | asyncio.Task[list[Answer]]] = []
                if reading is not None and self.end is None:
                    waiting.append(reading)
                if self.groups:
                    waiting.append(self.groups[0].answers)
                if not waiting:
                    break
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done():
                    self._take(reading)
                    reading = None
                while self.groups and self.groups[0].answers.done():
                    yield self._write(self.groups.popleft())
        finally:
            if reading is not None:
                reading.cancel()
        assert self.end is not None
        yield self._write_end()

    def _write_end(self) -> bytes:
        assert self.end is not None
        tally = self.tally
        numbers = {name: getattr(tally, name) for name in ("items", "issued", "repeated", "refused", "failed")}
        return _ENCODER.encode(msgspec.structs.replace(self.end, **numbers)) + b"\n"

    async def _send_groups(self) -> None:
        """A group leaves when it is full, or when there is nothing to wait for."""
        ready = self.reader.ready
        while ready and len(self.groups) < GROUPS_AT_ONCE:
            if len(ready) < GROUP_SIZE and self.groups and self.end is None:
                return
            if self.taken >= ITEMS_AT_MOST:
                self._stop("limit", detail=f"one batch holds {ITEMS_AT_MOST} requests at most")
                ready.clear()
                return
            try:
                self.admitted = await self.readmit()
            except (Refused, Unavailable) as reason:
                self._stop_for(reason)
                ready.clear()
                return
            requests = [ready.popleft() for _ in range(min(GROUP_SIZE, len(ready)))]
            self.taken += len(requests)
            answers = self.bulk.send(
                self.admitted,
                requests,
                self.exchange.peer.address,
                self.exchange.request_id,
                look_first=self.may_repeat,
            )
            self.groups.append(_Group(requests, answers))

    def _take(self, reading: asyncio.Task[bytes]) -> None:
        try:
            data = reading.result()
            if data:
                self.reader.feed(data)
                return
            if self.incoming.is_stopping:
                self._stop("interrupted", detail="this server process is stopping", retry_after_seconds=1)
            else:
                self.reader.close()
                self._stop("complete")
        except (Refused, Unavailable) as reason:
            self._stop_for(reason)
        except ConnectionError:
            self._stop("interrupted", detail="the client left")

    def _stop_for(self, reason: Refused | Unavailable) -> None:
        if isinstance(reason, Unavailable):
            wait = reason.retry_after_seconds
            self._stop("interrupted", reason.code.value, reason.detail, wait)
        elif reason.code is Code.REQUEST_TIMEOUT:
            self._stop("interrupted", reason.code.value, reason.detail, 1)
        else:
            self._stop("refused", reason.code.value, reason.detail)

    def _stop(
        self, end: str, error: str | None = None, detail: str = "", retry_after_seconds: int | None = None
    ) -> None:
        if self.end is None or self.end.end == "complete":
            self.end = End(end, 0, 0, 0, 0, 0, error, detail, retry_after_seconds)

    def _write(self, group: _Group) -> bytes:
        tally, lines = self.tally, []
        repeated = tally.repeated
        for request, answer in zip(group.requests, group.answers.result(), strict=True):
            tally.items += 1
            reason = answer.reason
            if reason is None:
                tally.repeated += answer.is_repeated
                tally.issued += not answer.is_repeated
                lines.append(Line(tally.items, request.name, answer.certificate, answer.is_repeated))
            else:
                retry = isinstance(reason, Unavailable)
                tally.failed += retry
                tally.refused += not retry
                detail = "" if reason.code is Code.INTERNAL else reason.detail
                lines.append(Line(tally.items, request.name, error=reason.code.value, detail=detail, retry=retry))
        self.may_repeat = tally.repeated > repeated
        return _ENCODER.encode_lines(lines)


class _Whole:
    """A body that came whole."""

    is_stopping: Final = False

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        """See `Incoming.read`."""
        body, self._body = self._body, b""
        return body


_ENCODER: Final = msgspec.json.Encoder()
