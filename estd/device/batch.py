"""The client of the bulk lane (`estd.est.batch`): a registration authority's batch, from requests to certificates on disk.

Promises: every request has a verdict in the end, or the command says that it stopped before; a verdict is on disk before
it is counted; a link that breaks, a server that restarts or is busy, and a client that is killed cost nothing but time,
because what has no verdict is sent again, and the server answers what it knows with the certificate it issued. A
certificate for another key than the one that was sent is not accepted.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from estd.asn1.certificate import read_fields
from estd.device.answers import ServerRefused, TryLater, WrongServer
from estd.device.batch_source import Item, Source
from estd.device.batch_state import BatchState, Verdict
from estd.device.client import Credential, EstClient, Patience
from estd.errors import Refused

WINDOW: Final = 1024
"""How many requests may be without an answer."""
_PIECE: Final = 64
_TRIES_EACH: Final = 5
"""How often a request is sent that the server could not finish."""
_FIRST_PAUSE_SECONDS: Final = 1


@dataclass(frozen=True, slots=True)
class BatchWish:
    """What to do."""

    url: str
    trust: Path
    label: str | None
    credential: Credential
    source: Path
    out: Path
    resume: bool = False


@dataclass(slots=True)
class BatchResult:
    """What came of it."""

    total: int = 0
    issued: int = 0
    repeated: int = 0
    """Certificates that were issued for the same request before."""
    refused: int = 0
    unfinished: int = 0
    """Requests without a verdict: the server could not be reached, or could not finish them."""
    before: int = 0
    """Requests that had their verdict when this run began."""


async def carry_out(
    wish: BatchWish,
    patience: Patience,
    on_progress: Callable[[int, int], None],
    on_wait: Callable[[str, int], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> BatchResult:
    """Send what has no verdict yet, and write the results.

    Args:
        patience: how many tries in a row may bring nothing.
        on_progress: told how many of how many requests have their verdict.
        on_wait: told about each pause: why, and how many seconds.
        sleep: pauses.

    Raises:
        Invalid: a file cannot be used.
        ServerRefused, WrongServer: the server will not take this batch; what it answered is on disk.
        TryLater: `patience` is at its end; the same command with ``--resume`` goes on.
    """
    source = Source(wish.source)
    total = source.check()
    facts = {"url": wish.url.rstrip("/"), "label": wish.label or ""}
    with BatchState(wish.out, facts, resume=wish.resume) as state:
        run = _Run(source, state, on_progress, total)
        on_progress(run.result.before, total)
        client = EstClient(wish.url, wish.trust, wish.label, wish.credential)
        try:
            async with client:
                await _try_until_done(run, client, patience, on_wait, sleep)
        finally:
            state.write_results()
        return run.count()


async def _try_until_done(
    run: _Run,
    client: EstClient,
    patience: Patience,
    on_wait: Callable[[str, int], None],
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    in_vain = 0
    while run.has_more():
        before = run.answered
        try:
            await run.send(client)
            continue
        except TryLater as later:
            reason = later
        finally:
            run.take_back()
        in_vain = 0 if run.answered > before else in_vain + 1
        wait = max(reason.retry_after_seconds, min(_FIRST_PAUSE_SECONDS << in_vain, patience.longest_pause_seconds))
        if in_vain >= patience.tries or reason.retry_after_seconds > patience.longest_pause_seconds:
            raise reason
        on_wait(reason.detail, wait)
        await sleep(wait)


class _Run:
    """One run of the command: what is still to be sent, and what is on its way."""

    def __init__(self, source: Source, state: BatchState, on_progress: Callable[[int, int], None], total: int) -> None:
        self.result = BatchResult(total=total)
        self.answered = 0
        self._state = state
        self._on_progress = on_progress
        self._items = source
        self._source: Iterator[Item] = iter(source)
        self._again: deque[Item] = deque()
        """Sent before, without an answer."""
        self._later: list[Item] = []
        """Answered with "not now"."""
        self._tries: dict[str, int] = {}
        self._on_the_way: dict[int, Item] = {}
        self._sent = 0
        self._peeked: Item | None = None
        self._room = asyncio.Event()
        for item in source:
            self.result.before += state.done.get(item.name) == item.digest

    def has_more(self) -> bool:
        """Whether anything is to be sent."""
        if self._peeked is None and not self._again:
            self._peeked = self._next_new()
        return bool(self._again or self._peeked or self._later)

    async def send(self, client: EstClient) -> None:
        """One batch on one connection, until everything is answered.

        Raises:
            TryLater: it ended before.
        """
        self._sent = 0
        self._again.extend(self._later)
        self._later = []
        rest, end = b"", None
        async with aclosing(client.send_batch(self._lines())) as pieces:
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                end = self._take(lines) or end
        if end is None:
            raise TryLater("the connection broke in the middle of a batch", _FIRST_PAUSE_SECONDS)
        if end["end"] == "refused":
            raise ServerRefused(0, f"the server ended the batch: {end.get('detail', '')}")
        if end["end"] != "complete" or self._on_the_way:
            wait = int(end.get("retry_after_seconds") or _FIRST_PAUSE_SECONDS)
            raise TryLater(f"the server interrupted the batch ({end.get('detail', '')})", wait)
        if self._later:
            raise TryLater(f"the server could not finish {len(self._later)} requests", _FIRST_PAUSE_SECONDS)

    def take_back(self) -> None:
        """What is on its way will not be answered: it is to be sent again, in its order."""
        self._again.extendleft(reversed(self._on_the_way.values()))
        self._on_the_way = {}

    def count(self) -> BatchResult:
        """What is on record of these requests, whichever run it is from."""
        result = self.result
        wanted = {item.name: item.digest for item in self._items}
        for verdict in self._state.verdicts():
            if wanted.get(verdict.name) != verdict.digest:
                continue  # the source held it in an earlier run
            if verdict.certificate is None:
                result.refused += 1
            elif verdict.is_repeated:
                result.repeated += 1
            else:
                result.issued += 1
        result.unfinished = result.total - result.issued - result.repeated - result.refused
        return result

    async def _lines(self) -> AsyncIterator[bytes]:
        while True:
            piece: list[bytes] = []
            while len(piece) < _PIECE and len(self._on_the_way) < WINDOW and (item := self._next()) is not None:
                self._sent += 1
                self._on_the_way[self._sent] = item
                piece.append(item.write_line())
            if piece:
                yield b"".join(piece)
            elif not self._on_the_way:
                return
            else:
                self._room.clear()
                await self._room.wait()

    def _next(self) -> Item | None:
        if self._again:
            return self._again.popleft()
        item, self._peeked = self._peeked or self._next_new(), None
        return item

    def _next_new(self) -> Item | None:
        """The next request that has no verdict. What cannot be read has one here and now."""
        for item in self._source:
            if self._state.done.get(item.name) == item.digest:
                continue
            if not item.problem:
                return item
            self._record([Verdict(item.name, item.digest, None, error="unreadable", detail=item.problem)])
        return None

    def _take(self, lines: list[bytes]) -> dict[str, Any] | None:
        """Keep these answers; the last line of the batch if it is among them."""
        verdicts, end = [], None
        for line in lines:
            try:
                content = json.loads(line)
                if "end" in content:
                    end = content
                    continue
                item = self._on_the_way.pop(content["n"])
                verdict = _judge(item, content)
            except (ValueError, KeyError, TypeError):
                raise WrongServer("the answer is not that of estd's bulk lane") from None
            if verdict is None:
                self._postpone(item)
            else:
                verdicts.append(verdict)
        if verdicts:
            self._record(verdicts)
        self._room.set()
        return end

    def _postpone(self, item: Item) -> None:
        """Send it again after a pause, but not for ever: then it stays without a verdict."""
        tries = self._tries[item.name] = self._tries.get(item.name, 0) + 1
        if tries < _TRIES_EACH:
            self._later.append(item)

    def _record(self, verdicts: list[Verdict]) -> None:
        self._state.record(verdicts)
        self.answered += len(verdicts)
        self._on_progress(self.result.before + self.answered, self.result.total)


def _judge(item: Item, content: dict[str, Any]) -> Verdict | None:
    """What one line of the answer says; None for "not now"."""
    if "certificate" in content:
        certificate = base64.b64decode(content["certificate"], validate=True)
        try:
            is_ours = read_fields(certificate).spki == item.spki
        except Refused:
            is_ours = False
        if not is_ours:
            raise WrongServer(f"the certificate for {item.name} is not for the key in its request")
        return Verdict(item.name, item.digest, certificate, bool(content.get("repeated", False)))
    if content.get("retry"):
        return None
    return Verdict(
        item.name, item.digest, None, error=str(content["error"])[:100], detail=str(content.get("detail", ""))[:500]
    )
