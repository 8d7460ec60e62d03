"""The one road to a certificate: an `Order` becomes a certificate that is on record, or nothing.

    admitted → prepared by a signer → INTENT committed → journaled and signed → ISSUED committed → delivered

Every protocol comes this way, and so does the server's own certificate. Requests travel in groups (`estd.ra.lane`), so
that a busy server pays two commits and one journal flush for many certificates. There are two lanes: while a crowd is
under way, an ecosystem that asks for little goes by the quiet one, and waits neither for the crowd's group to leave nor
for its certificates to be signed.

Promises:

* A certificate that leaves here is committed; one that might have been signed is on record as an intent.
* The same request (ecosystem, identity, operation, CSR) within the profile's retry window gets the same bytes, unless
  that certificate was revoked.
* An error from the store means "unknown": the call is repeated or looked up, and no serial is signed for two contents.
* What cannot be finished now is an `Unavailable`; the same request will find whatever became of it.

Here is the road itself; whoever has to leave it is in the hands of `estd.ra.settlement`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

from estd.errors import Broken, Code, Refused, Unavailable
from estd.ra.lane import Lane, Waiting
from estd.ra.limits import IN_HAND_AT_MOST, Limit, TurnedAway, add_jitter
from estd.ra.order import Order
from estd.ra.records import write_intent, write_issued, write_item, write_seals
from estd.ra.settlement import Settlement, StartOver, code_spent, insist
from estd.ra.trail import log_events
from estd.signer.client import SignerPool
from estd.signer.frames import PreparedItem, RefusedItem, read_refusal
from estd.store.contract import Intent, Issued, Outcome, Store

_log = logging.getLogger(__name__)

_LITTLE: Final = 1 / 8
"""An ecosystem that has less than this part of what all others have in hand goes by the quiet lane."""
_WAITING_AT_MOST: Final = IN_HAND_AT_MOST
_DEADLINE_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.25
_PAUSES: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses before a request starts over: its signer died or had not yet heard of new rules, or another request's crashed
intent stood in its way."""


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
        self._busy = Lane(self._carry_out, turns_to_gather=4)
        self._quiet = Lane(self._carry_out, turns_to_gather=0)
        self._loop = asyncio.get_running_loop()
        self._pending: set[Waiting] = set()
        """Orders that have no answer yet."""
        self._in_hand: dict[int, int] = {}
        """How many of them by ecosystem; none of them zero."""
        self._is_looking = False
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Orders that no group has taken yet."""
        return self._busy.waiting + self._quiet.waiting

    async def enroll(self, order: Order) -> bytes:
        """Carry out one order; the certificate's DER.

        Raises:
            Refused: the profile does not allow what is asked; nothing was recorded but the refusal.
            Unavailable: not now; nothing is lost, and the same request may be sent again.
        """
        give_up_at, why = self._loop.time() + _DEADLINE_SECONDS, ""
        for pause in (*_PAUSES, None):
            try:
                return await self._join_group(order, give_up_at)
            except StartOver as again:
                why = f" ({again.why})" if again.why else why
                if pause is not None:
                    await asyncio.sleep(pause)
        raise Unavailable(Code.SIGNER_UNAVAILABLE, f"no signer could finish this request{why}; send it again")

    async def drain(self) -> None:
        """Wait until everything under way has an answer."""
        while not (self._busy.is_idle and self._quiet.is_idle and not self._under_way):
            await self._busy.drain()
            await self._quiet.drain()
            if self._under_way:
                await asyncio.wait(self._under_way)

    async def settle(self, intent: Intent) -> bytes | None:
        """Find out what became of an intent that has no result, and record it: see `Settlement.settle`."""
        return await self._settlement.settle(intent)

    async def settle_all(self, intents: Sequence[Intent]) -> list[Intent]:
        """Settle each of them that can be settled now; those that are left: see `Settlement.settle_all`."""
        return await self._settlement.settle_all(intents)

    # --- groups ----------------------------------------------------------------------------------------------------

    async def _join_group(self, order: Order, give_up_at: float) -> bytes:
        if self.waiting >= _WAITING_AT_MOST:
            raise TurnedAway(Limit.QUEUE, "too many requests are waiting", add_jitter(_DEADLINE_SECONDS))
        waiting = Waiting(order, self._loop.create_future(), give_up_at)
        mine = self._in_hand.get(order.ecosystem_id, 0)
        others = len(self._pending) - mine
        self._in_hand[order.ecosystem_id] = mine + 1
        self._pending.add(waiting)
        if not self._is_looking:
            self._is_looking = True
            self._loop.call_later(_LOOK_SECONDS, self._look)
        (self._quiet if mine < others * _LITTLE else self._busy).join(waiting)
        try:
            return await waiting.answer
        finally:
            self._pending.discard(waiting)
            if self._in_hand[order.ecosystem_id] == 1:
                del self._in_hand[order.ecosystem_id]
            else:
                self._in_hand[order.ecosystem_id] -= 1

    def _look(self) -> None:
        """Whether somebody has waited too long. One timer for all: an order's own costs more than its deadline is worth."""
        now = self._loop.time()
        for waiting in self._pending:
            if now >= waiting.give_up_at:
                _give_up(waiting)
        self._is_looking = bool(self._pending)
        if self._is_looking:
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("an order failed", exc_info=task.exception())

    async def _carry_out(self, group: list[Waiting], make_way: Callable[[], None]) -> None:
        # Whoever stopped waiting before anything was committed is dropped; later on nobody is.
        group = [waiting for waiting in group if not waiting.answer.done()]
        if not group:
            make_way()
            return
        self._observe("group_size", len(group))
        try:
            try:
                journal, mine, unwanted = await self._reserve(group)
            finally:
                make_way()
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
        self, group: list[Waiting]
    ) -> tuple[str, list[tuple[Waiting, Intent, PreparedItem]], list[PreparedItem]]:
        """Prepare and commit the intents: the journal, what is to be signed, and what was prepared in vain."""
        mine: list[tuple[Waiting, Intent, PreparedItem]] = []
        unwanted: list[PreparedItem] = []
        started, asked_at = asyncio.get_running_loop().time(), self._clock()
        journal, prepared = await self._prepare(group)
        self._observe("prepare_seconds", asyncio.get_running_loop().time() - started)
        if not prepared:
            return journal, mine, unwanted
        # Nothing on this road is before what came before it, whichever way the clock is turned meanwhile.
        now = max(asked_at, self._clock())
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
                self._follow(waiting, self._settlement.answer_again(waiting.order, asked_at))
            else:
                _refuse(waiting, code_spent())
        return journal, mine, unwanted

    async def _forget(self, journal: str, unwanted: list[PreparedItem]) -> None:
        """Give their room in the signer back: it holds so many at most, and a fleet's retries would fill it."""
        try:
            await self._signers.seal(journal, [], write_seals(unwanted))
        except Unavailable:
            pass  # it died, and they with it

    async def _prepare(self, group: list[Waiting]) -> tuple[str, list[tuple[Waiting, PreparedItem]]]:
        journal, results = await self._signers.prepare([write_item(waiting.order) for waiting in group])
        prepared: list[tuple[Waiting, PreparedItem]] = []
        for waiting, result in zip(group, results, strict=True):
            if isinstance(result, RefusedItem):
                reason = read_refusal(result)
                # "Not now" before anything was reserved: the signer may simply not have heard of this version yet.
                _refuse(waiting, StartOver(reason.detail) if reason.code is Code.SIGNER_UNAVAILABLE else reason)
            else:
                prepared.append((waiting, result))
        return journal, prepared

    async def _sign(
        self, journal: str, mine: list[tuple[Waiting, Intent, PreparedItem]], unwanted: list[PreparedItem]
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
        now = max(mine[0][1].created_at, self._clock())
        done: list[tuple[Waiting, bytes, Issued]] = []
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

    def _follow(self, waiting: Waiting, answer: Awaitable[bytes]) -> None:
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


def _give_up(waiting: Waiting) -> None:
    detail = "this took too long; send the same request again"
    _refuse(waiting, TurnedAway(Limit.DEADLINE, detail, add_jitter(_DEADLINE_SECONDS)))


def _refuse(waiting: Waiting, reason: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(reason)


def _fail(group: list[Waiting], reason: Exception) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(reason)
