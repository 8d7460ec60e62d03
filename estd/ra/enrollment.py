"""The one road to a certificate: an `Order` becomes a certificate that is on record, or nothing.

    admitted → prepared by a signer → INTENT committed → journaled and signed → ISSUED committed → delivered

Every protocol comes this way, and so does the server's own certificate. Requests travel in groups: while one group is on
its way the next one gathers, so an idle server adds no delay and a busy one pays two commits and one journal flush for
many certificates. A full group waits only for the intents of the one before it.

Promises:

* A certificate that leaves here is committed; one that might have been signed is on record as an intent.
* The same request (ecosystem, identity, operation, CSR) within the profile's retry window gets the same bytes.
* An error from the store means "unknown": the call is repeated or looked up, and no serial is signed for two contents.
* What cannot be finished now is an `Unavailable`; the same request will find whatever became of it.

Here is the road itself; whoever has to leave it is in the hands of `estd.ra.settlement`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from estd.errors import Broken, Code, Refused, Unavailable
from estd.ra.fairqueue import FairQueue
from estd.ra.limits import IN_HAND_AT_MOST, Limit, TurnedAway, add_jitter
from estd.ra.order import Order
from estd.ra.records import write_intent, write_issued, write_item, write_seals
from estd.ra.settlement import Settlement, StartOver, insist
from estd.ra.trail import log_events
from estd.signer.client import SignerPool
from estd.signer.frames import PreparedItem, RefusedItem, read_refusal
from estd.store.contract import Intent, Issued, Outcome, Store

_log = logging.getLogger(__name__)

_GROUP_SIZE: Final = 64
_TURNS_TO_GATHER: Final = 4
"""Turns of the event loop a group waits before it leaves. A turn of an idle loop takes microseconds; a turn of a busy one
brings more requests, and each that comes along spares a share of two commits and a flush."""
_BUSY_FROM: Final = 4
_ENOUGH: Final = 32
_GATHER_SECONDS: Final = 0.02
"""After a group of `_BUSY_FROM` or more the next one gathers for as long as that one took, but no longer than this, nor
beyond `_ENOUGH`: twice as large a group halves what each certificate pays for commits and flushes."""
_WAITING_AT_MOST: Final = IN_HAND_AT_MOST
_DEADLINE_SECONDS: Final = 15.0
_PAUSES: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses before a request starts over: its signer died or had not yet heard of new rules, or another request's crashed
intent stood in its way."""


@dataclass(slots=True)
class _Waiting:
    order: Order
    answer: asyncio.Future[bytes]


class Enrollment:
    """Takes orders from all requests of one worker and carries them out in groups."""

    def __init__(
        self, store: Store, signers: SignerPool, clock: Callable[[], datetime], observe: Callable[[str, float], None]
    ) -> None:
        self._store = store
        self._signers = signers
        self._clock = clock
        self._observe = observe
        self._settlement = Settlement(store, signers, clock, observe)
        self._gathering: FairQueue[_Waiting] = FairQueue()
        self._is_leaving = False
        """A group is between its leaving and its committed intents; no other may leave."""
        self._out = 0
        """Groups that have left and not ended."""
        self._left_at = 0.0
        self._left_with = 0
        self._until_enough: asyncio.TimerHandle | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Orders that no group has taken yet."""
        return len(self._gathering)

    async def enroll(self, order: Order) -> bytes:
        """Carry out one order; the certificate's DER.

        Raises:
            Refused: the profile does not allow what is asked; nothing was recorded but the refusal.
            Unavailable: not now; nothing is lost, and the same request may be sent again.
        """
        give_up_at = asyncio.get_running_loop().time() + _DEADLINE_SECONDS
        for pause in (*_PAUSES, None):
            try:
                return await self._join_group(order, give_up_at)
            except StartOver:
                if pause is not None:
                    await asyncio.sleep(pause)
        raise Unavailable(Code.SIGNER_UNAVAILABLE, "no signer could finish this request; send it again")

    async def drain(self) -> None:
        """Wait until everything under way has an answer."""
        while self._under_way or self._gathering:
            if self._under_way:
                await asyncio.wait(self._under_way)
            else:
                await asyncio.sleep(_GATHER_SECONDS)

    async def settle(self, intent: Intent) -> bytes | None:
        """Find out what became of an intent that has no result, and record it: see `Settlement.settle`."""
        return await self._settlement.settle(intent)

    # --- groups ----------------------------------------------------------------------------------------------------

    async def _join_group(self, order: Order, give_up_at: float) -> bytes:
        if len(self._gathering) >= _WAITING_AT_MOST:
            raise TurnedAway(Limit.QUEUE, "too many requests are waiting", add_jitter(_DEADLINE_SECONDS))
        loop = asyncio.get_running_loop()
        waiting = _Waiting(order, loop.create_future())
        self._gathering.add(order.ecosystem_id, waiting)
        if not self._is_leaving:
            if len(self._gathering) >= _ENOUGH:
                self._leave()
            elif not self._out and self._until_enough is None:
                self._leave(_TURNS_TO_GATHER)
        # A timer on the answer costs a fraction of asyncio.timeout, and an order waits for nothing else.
        deadline = loop.call_at(give_up_at, _give_up, waiting)
        try:
            return await waiting.answer
        finally:
            deadline.cancel()

    def _leave(self, turns: int = 0) -> None:
        """Let what has gathered go, after so many turns of the event loop; see `_TURNS_TO_GATHER`."""
        if self._until_enough is not None:
            self._until_enough.cancel()
            self._until_enough = None
        self._is_leaving = True
        self._send_group(turns)

    def _send_group(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        if turns:
            loop.call_soon(self._send_group, turns - 1)
            return
        group = self._gathering.take(_GROUP_SIZE)
        self._left_at, self._left_with = loop.time(), len(group)
        self._out += 1
        task = loop.create_task(self._carry_out(group))
        self._under_way.add(task)
        task.add_done_callback(self._end_group)

    def _make_way(self) -> None:
        """The group that left last has its intents committed, or has failed; a full one need not wait for its end."""
        self._is_leaving = False
        if len(self._gathering) >= _ENOUGH:
            self._leave()

    def _end_group(self, task: asyncio.Task[None]) -> None:
        self._end(task)
        self._out -= 1
        if self._out or self._is_leaving or not self._gathering:
            return
        if self._left_with < _BUSY_FROM:
            self._leave(_TURNS_TO_GATHER)
            return
        loop = asyncio.get_running_loop()
        pause = min(loop.time() - self._left_at, _GATHER_SECONDS)
        self._until_enough = loop.call_later(pause, self._leave)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a group failed", exc_info=task.exception())

    async def _carry_out(self, group: list[_Waiting]) -> None:
        # Whoever stopped waiting before anything was committed is dropped; later on nobody is.
        group = [waiting for waiting in group if not waiting.answer.done()]
        if not group:
            self._make_way()
            return
        self._observe("group_size", len(group))
        try:
            try:
                journal, mine, unwanted = await self._reserve(group)
            finally:
                self._make_way()
            if mine:
                await self._sign(journal, mine, unwanted)
            elif unwanted:
                await self._forget(journal, unwanted)
        except (Unavailable, Refused) as reason:
            _fail(group, reason)
        except BaseException as fault:
            _fail(group, Broken("issuance failed"))
            raise fault

    async def _reserve(
        self, group: list[_Waiting]
    ) -> tuple[str, list[tuple[_Waiting, Intent, PreparedItem]], list[PreparedItem]]:
        """Prepare and commit the intents: the journal, what is to be signed, and what was prepared in vain."""
        mine: list[tuple[_Waiting, Intent, PreparedItem]] = []
        unwanted: list[PreparedItem] = []
        started = asyncio.get_running_loop().time()
        journal, prepared = await self._prepare(group)
        self._observe("prepare_seconds", asyncio.get_running_loop().time() - started)
        if not prepared:
            return journal, mine, unwanted
        now = self._clock()
        intents = [write_intent(waiting.order, item, journal, now) for waiting, item in prepared]
        started = asyncio.get_running_loop().time()
        try:
            outcomes = await insist(lambda: self._store.reserve_intents(intents))
        except Unavailable:
            await self._forget(journal, [item for _, item in prepared])
            raise
        self._observe("reserve_seconds", asyncio.get_running_loop().time() - started)
        for (waiting, item), intent, outcome in zip(prepared, intents, outcomes, strict=True):
            if outcome is Outcome.RESERVED:
                mine.append((waiting, intent, item))
                continue
            unwanted.append(item)
            if outcome is Outcome.EXISTS:
                self._follow(waiting, self._settlement.answer_again(waiting.order))
            else:
                _refuse(waiting, Refused(Code.CODE_SPENT, "this enrollment code was used for another certificate"))
        return journal, mine, unwanted

    async def _forget(self, journal: str, unwanted: list[PreparedItem]) -> None:
        """Give their room in the signer back: it holds so many at most, and a fleet's retries would fill it."""
        try:
            await self._signers.seal(journal, [], write_seals(unwanted))
        except Unavailable:
            pass  # it died, and they with it

    async def _prepare(self, group: list[_Waiting]) -> tuple[str, list[tuple[_Waiting, PreparedItem]]]:
        journal, results = await self._signers.prepare([write_item(waiting.order) for waiting in group])
        prepared: list[tuple[_Waiting, PreparedItem]] = []
        for waiting, result in zip(group, results, strict=True):
            if isinstance(result, RefusedItem):
                reason = read_refusal(result)
                # "Not now" before anything was reserved: the signer may simply not have heard of this version yet.
                _refuse(waiting, StartOver() if reason.code is Code.SIGNER_UNAVAILABLE else reason)
            else:
                prepared.append((waiting, result))
        return journal, prepared

    async def _sign(
        self, journal: str, mine: list[tuple[_Waiting, Intent, PreparedItem]], unwanted: list[PreparedItem]
    ) -> None:
        started = asyncio.get_running_loop().time()
        try:
            sealed: Sequence[bytes | RefusedItem] = await self._signers.seal(
                journal, write_seals([item for _, _, item in mine]), write_seals(unwanted)
            )
        except Unavailable:
            # The signer may have died before, while or after it signed: its journal will tell.
            for waiting, intent, _ in mine:
                self._follow(waiting, self._settlement.settle_or_start_over(intent))
            return
        self._observe("seal_seconds", asyncio.get_running_loop().time() - started)
        now = self._clock()
        done: list[tuple[_Waiting, bytes, Issued]] = []
        for (waiting, intent, item), result in zip(mine, sealed, strict=True):
            if isinstance(result, bytes):
                done.append((waiting, result, write_issued(waiting.order, intent, item, result, now)))
            else:
                self._follow(waiting, self._settlement.settle_or_start_over(intent))
        if not done:
            return
        started = asyncio.get_running_loop().time()
        await insist(lambda: self._store.record_issued([issued for _, _, issued in done]))
        self._observe("record_seconds", asyncio.get_running_loop().time() - started)
        log_events(issued.event for _, _, issued in done)
        for waiting, certificate, _ in done:
            if not waiting.answer.done():
                waiting.answer.set_result(certificate)

    # --- what is not the plain road --------------------------------------------------------------------------------

    def _follow(self, waiting: _Waiting, answer: Awaitable[bytes]) -> None:
        """Finish one order outside its group, so that nobody else waits for it."""

        async def finish() -> None:
            try:
                certificate = await answer
            except (Unavailable, Refused, StartOver) as reason:
                if not waiting.answer.done():
                    waiting.answer.set_exception(reason)
            except BaseException as fault:
                if not waiting.answer.done():
                    waiting.answer.set_exception(Broken("issuance failed"))
                raise fault
            else:
                if not waiting.answer.done():
                    waiting.answer.set_result(certificate)

        task = asyncio.get_running_loop().create_task(finish())
        self._under_way.add(task)
        task.add_done_callback(self._end)


# --- private -------------------------------------------------------------------------------------------------------


def _give_up(waiting: _Waiting) -> None:
    detail = "this took too long; send the same request again"
    _refuse(waiting, TurnedAway(Limit.DEADLINE, detail, add_jitter(_DEADLINE_SECONDS)))


def _refuse(waiting: _Waiting, reason: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(reason)


def _fail(group: list[_Waiting], reason: Exception) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(reason)
