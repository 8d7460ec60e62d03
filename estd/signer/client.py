"""A worker's way to the signers: one connection a slot, whole batches, and an answer or an error within the deadline.

* `SignerPool.prepare` goes to the least busy slot that answers; `SignerPool.seal` and `SignerPool.resume` go to the slot
  whose journal is named, because nobody else knows what was prepared there.
* No call hangs: a connection that breaks fails everything on its way at once, and the deadline fails the rest. Such an
  `Unavailable` means "unknown": after a seal ask `SignerPool.resume`, never prepare again on a guess.
* A slot that let a deadline pass is silent, and nothing is prepared there, until it answers something. No probe is needed:
  it owes the answers to what it was asked already, and gives them when it goes on.
* Connections come back by themselves, with a growing pause.

Must not import the server's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast

from estd.errors import Broken, Code, Unavailable
from estd.signer.blocks import journal_of
from estd.signer.frames import (
    ITEMS_MAX,
    Answer,
    FrameError,
    Prepare,
    Prepared,
    PreparedItem,
    PrepareItem,
    RefusedItem,
    Request,
    Resume,
    Resumed,
    ResumeItem,
    Seal,
    Sealed,
    SealItem,
    Status,
    StatusReport,
    Verdict,
    answer_reader,
    write_frame,
)

_log = logging.getLogger(__name__)
_Kind = TypeVar("_Kind", Prepared, Sealed, Resumed, StatusReport)


class SignerPool:
    """All signers of this node, seen from one event loop. Made inside the loop; connects by itself."""

    def __init__(
        self, paths: Sequence[str], deadline_seconds: float = 5.0, patience_seconds: float = 1.0, home: int = 0
    ) -> None:
        """`patience_seconds` is how long `prepare` waits for any slot when none answers; `home` is the slot it likes best
        among equally busy ones, another one for each worker: a signer that is called again at once is still warm.
        """
        self._patience_seconds = patience_seconds
        self._some_live = asyncio.Event()
        self._slots = [_Slot(path, deadline_seconds, self._notice) for path in paths]
        home %= len(paths)
        self._preferred = self._slots[home:] + self._slots[:home]

    @property
    def live(self) -> int:
        """How many slots answer."""
        return sum(slot.is_live for slot in self._slots)

    async def prepare(
        self, items: Sequence[PrepareItem], beside: str | None = None
    ) -> tuple[str, list[PreparedItem | RefusedItem]]:
        """Have certificates built; the mark under which they are sealed or resumed, and an answer for each.

        If the slot stops, dies or lets the deadline pass, another one is asked: without a seal nothing can come of what may
        have been prepared.

        Args:
            items: what to prepare.
            beside: an earlier mark; the slot that gave it is taken if it can be, so that both are sealed together.

        Raises:
            Unavailable: no slot answers.
        """
        slot = await self._choose(beside)
        try:
            answer = await slot.call(Prepare(slot.next_number(), tuple(items)), Prepared, len(items))
        except Unavailable:
            stayed, first_slot = slot.is_live, slot
            slot = await self._choose()
            if stayed and (slot is first_slot or slot.is_silent):
                raise  # there is no better one; whoever comes next may be luckier
            answer = await slot.call(Prepare(slot.next_number(), tuple(items)), Prepared, len(items))
        first = answer.items[0] if answer.items else None
        if isinstance(first, RefusedItem) and first.code is Code.SIGNER_UNAVAILABLE:
            # It is stopping, or has not heard of a new version yet; it may still seal what it prepared before.
            slot.avoid_until = asyncio.get_running_loop().time() + _AVOID_SECONDS
        return answer.mark, list(answer.items)

    async def seal(
        self, journal: str, items: Sequence[SealItem], unwanted: Sequence[SealItem] = ()
    ) -> list[bytes | RefusedItem]:
        """Have what was prepared signed; `journal` is the mark that `prepare` gave. What is unwanted is forgotten.

        Raises:
            Unavailable: whether anything was signed is for `resume` to find out.
        """
        slot = self._find(journal)
        return list(
            (await slot.call(Seal(slot.next_number(), tuple(items), tuple(unwanted)), Sealed, len(items))).items
        )

    async def resume(self, journal: str, items: Sequence[ResumeItem]) -> list[bytes | Verdict]:
        """Learn what became of intents; `journal` is the mark stored with them.

        Raises:
            Unavailable: the slot cannot be asked, or cannot tell now for one of them; ask again.
        """
        slot = self._find(journal)
        answer = await slot.call(Resume(slot.next_number(), journal, tuple(items)), Resumed, len(items))
        results: list[bytes | Verdict] = []
        for item in answer.items:
            if isinstance(item, RefusedItem):
                raise Unavailable(Code.SIGNER_UNAVAILABLE, item.detail, 1)
            results.append(item)
        return results

    async def status(self) -> list[StatusReport]:
        """The state of every slot that answers."""
        calls = [
            slot.call(Status(slot.next_number()), StatusReport, None)
            for slot in self._slots
            if slot.channel is not None
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, StatusReport)]

    async def find_newest(self) -> list[tuple[int, bytes]]:
        """Issuer and serial of what the slots journaled last; waits a while for slots that are not there yet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds):
                while self.live < len(self._slots):  # noqa: ASYNC110 - over in a moment, and only at a new connection
                    await asyncio.sleep(0.01)
        return [(item.issuer_id, item.serial) for report in await self.status() for item in report.newest]

    def knows(self, journal: str) -> bool:
        """Whether a slot of this node keeps, or kept since this pool was made, the journal of that mark."""
        return any(slot.journal == journal_of(journal) for slot in self._slots)

    async def close(self) -> None:
        """Break every connection; whatever is on its way fails."""
        await asyncio.gather(*(slot.close() for slot in self._slots))

    async def _choose(self, beside: str | None = None) -> _Slot:
        self._notice()  # a connection may have broken in this very turn of the loop
        if not self._some_live.is_set():
            try:
                async with asyncio.timeout(self._patience_seconds):
                    await self._some_live.wait()
            except TimeoutError:
                raise Unavailable(Code.SIGNER_UNAVAILABLE, "no signer answers") from None
        now = asyncio.get_running_loop().time()
        journal = None if beside is None else journal_of(beside)
        live = (slot for slot in self._preferred if slot.is_live)
        return min(
            live,
            key=lambda slot: (
                slot.is_silent,
                slot.avoid_until > now,
                journal is not None and slot.journal != journal,
                slot.load,
            ),
        )

    def _notice(self) -> None:
        """A slot came or went."""
        if self.live:
            self._some_live.set()
        else:
            self._some_live.clear()

    def _find(self, journal: str) -> _Slot:
        name = journal_of(journal)
        for slot in self._slots:
            if slot.journal == name:
                return slot
        raise Unavailable(Code.SIGNER_UNAVAILABLE, "no signer here keeps that journal")


class _Slot:
    """One signer: its connection while there is one, and the name of its journal once it was heard."""

    def __init__(self, path: str, deadline_seconds: float, notice: Callable[[], None]) -> None:
        self.path = path
        self.channel: _Channel | None = None
        self.journal: str | None = None
        self.load = 0
        """Items on their way."""
        self.avoid_until = 0.0
        """As long as another slot answers."""
        self._deadline_seconds = deadline_seconds
        self._number = 0
        self._notice = notice
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    @property
    def is_live(self) -> bool:
        """Whether there is a connection to it that has not broken."""
        return self.channel is not None and not self.channel.lost.done()

    @property
    def is_silent(self) -> bool:
        """Whether it let a deadline pass and has answered nothing since."""
        return self.channel is not None and self.channel.silent

    def next_number(self) -> int:
        """The number of the next request."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._number

    async def call(self, message: Request, kind: type[_Kind], items: int | None) -> _Kind:
        """One request and its answer, which must be of that kind and have so many items."""
        channel = self.channel
        if channel is None:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the signer does not answer")
        if items is not None and items > ITEMS_MAX:
            raise Broken(f"{items} items in one batch are more than {ITEMS_MAX}")
        weight = items or 1
        self.load += weight
        try:
            answer = await channel.call(message, self._deadline_seconds)
        finally:
            self.load -= weight
        if not isinstance(answer, kind) or (
            items is not None and not isinstance(answer, StatusReport) and len(answer.items) != items
        ):
            channel.abort()
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the signer answered something else")
        return answer

    async def close(self) -> None:
        """Stop reconnecting, and break the connection."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_connected(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            channel = await self._connect()
            if channel is not None:
                try:
                    report = await channel.call(Status(self.next_number()), self._deadline_seconds)
                    if isinstance(report, StatusReport):
                        pause = _FIRST_PAUSE_SECONDS
                        await self._use(channel, report)
                except Unavailable:
                    pass  # it broke before it said which journal it keeps; tried again after the pause
                finally:
                    channel.abort()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _connect(self) -> _Channel | None:
        try:
            _, channel = await asyncio.get_running_loop().create_unix_connection(lambda: _Channel(self.path), self.path)
        except OSError:
            return None
        return channel

    async def _use(self, channel: _Channel, report: StatusReport) -> None:
        """Offer this connection to callers until it breaks."""
        if self.journal not in (None, report.journal):
            _log.error("a signer keeps another journal than before", extra={"path": self.path, "was": self.journal})
        self.journal, self.channel = report.journal, channel
        self._notice()
        try:
            await channel.lost
            _log.warning("the connection to a signer broke", extra={"path": self.path})
        finally:
            self.channel = None
            self._notice()


class _Channel(asyncio.Protocol):
    """One connection: requests out, answers matched to them by number."""

    def __init__(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        self.silent = False
        """It let a deadline pass, and has answered nothing since."""
        self._path = path
        self.lost: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._reader = answer_reader()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._transport: asyncio.Transport | None = None
        self._is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # Not an isinstance check: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            answers = self._reader.feed(data)
        except FrameError as fault:
            _log.error("a signer sent something else: %s", fault)
            self.abort()
            return
        if answers and self.silent:
            self.silent = False
            _log.warning("a signer answers again", extra={"path": self._path})
        for answer in answers:
            waiting = self._waiting.pop(answer.number, None)
            # Nobody waits for an answer that comes after its deadline.
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop; fails everything on its way."""
        waiting, self._waiting = self._waiting, {}
        self._transport = None
        for future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable(Code.SIGNER_UNAVAILABLE, "the connection to the signer broke"))
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        """Called by the loop when the signer does not read what was sent."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Called by the loop when it reads again."""
        self._is_full = False

    def abort(self) -> None:
        """Break the connection now."""
        if self._transport is not None:
            self._transport.abort()

    async def call(self, message: Request, deadline_seconds: float) -> Answer:
        """Send a request and wait for its answer."""
        if self._transport is None:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the connection to the signer broke")
        if self._is_full:
            raise Unavailable(Code.OVERLOADED, "the signer does not keep up", 1)
        frame = write_frame(message)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[message.number] = future
        deadline = self._loop.call_later(deadline_seconds, self._give_up, future)
        self._transport.write(frame)
        try:
            return await future
        finally:
            deadline.cancel()
            self._waiting.pop(message.number, None)

    def _give_up(self, future: asyncio.Future[Answer]) -> None:
        if future.done():
            return
        if not self.silent:
            self.silent = True
            _log.error(
                "a signer does not answer; others are asked as long as there are any", extra={"path": self._path}
            )
        future.set_exception(Unavailable(Code.SIGNER_UNAVAILABLE, "the signer did not answer in time"))


_AVOID_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.25
