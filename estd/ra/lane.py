"""How orders become groups: while one group is on its way the next one gathers, and a full one need not wait.

Promises: nobody waits for a timer while nothing is under way, so an idle server adds no delay; under load a group is
large enough that each certificate pays a small part of two commits and a journal flush; an ecosystem's storm takes no
more of a group than its turn (`estd.ra.fairqueue`). What a group does on its way is `estd.ra.enrollment`'s business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from estd.ra.fairqueue import FairQueue
from estd.ra.order import Order

_log = logging.getLogger(__name__)

_GROUP_SIZE: Final = 64
_BUSY_FROM: Final = 4
_ENOUGH: Final = 48
_GATHER_SECONDS: Final = 0.02
"""After a group of `_BUSY_FROM` or more the next one gathers for as long as that one took, but no longer than this, nor
beyond `_ENOUGH`: twice as large a group halves what each certificate pays for commits and flushes."""


@dataclass(slots=True, eq=False)
class Waiting:
    """An order and who waits for its certificate, until when by the loop's clock."""

    order: Order
    answer: asyncio.Future[bytes]
    give_up_at: float


CarryOut = Callable[[list[Waiting], Callable[[], None]], Coroutine[None, None, None]]
"""Carries out a group, and calls the second argument, once, as soon as the next group may leave."""


class Lane:
    """One queue of orders and the groups that leave it. Made inside the loop.

    Args:
        carry_out: see `CarryOut`.
        turns_to_gather: turns of the event loop a group waits before it leaves. A turn of an idle loop takes microseconds;
            a turn of a busy one brings more requests, and each that comes along spares a share of two commits and a flush.
    """

    def __init__(self, carry_out: CarryOut, turns_to_gather: int) -> None:
        self._carry_out = carry_out
        self._turns_to_gather = turns_to_gather
        self._gathering: FairQueue[Waiting] = FairQueue()
        self._is_leaving = False
        """A group is between its leaving and its committed intents; no other may leave."""
        self._left_at = 0.0
        self._left_with = 0
        self._until_enough: asyncio.TimerHandle | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Orders that no group has taken yet."""
        return len(self._gathering)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._under_way and not self._gathering

    def join(self, waiting: Waiting) -> None:
        """Take one more order into the group that gathers, and let it leave if it is time."""
        self._gathering.add(waiting.order.ecosystem_id, waiting)
        if not self._is_leaving:
            if len(self._gathering) >= _ENOUGH:
                self._leave()
            elif not self._under_way and self._until_enough is None:
                self._leave(self._turns_to_gather)

    async def drain(self) -> None:
        """Wait until every group has ended."""
        while not self.is_idle:
            if self._under_way:
                await asyncio.wait(self._under_way)
            else:
                await asyncio.sleep(_GATHER_SECONDS)

    def _leave(self, turns: int = 0) -> None:
        """Let what has gathered go, after so many turns of the event loop."""
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
        task = loop.create_task(self._carry_out(group, self._make_way))
        self._under_way.add(task)
        task.add_done_callback(self._end_group)

    def _make_way(self) -> None:
        """The group that left last has its intents committed, or has failed; a full one need not wait for its end."""
        self._is_leaving = False
        if len(self._gathering) >= _ENOUGH:
            self._leave()

    def _end_group(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a group failed", exc_info=task.exception())
        if self._under_way or self._is_leaving or not self._gathering:
            return
        if self._left_with < _BUSY_FROM:
            self._leave(self._turns_to_gather)
            return
        loop = asyncio.get_running_loop()
        pause = min(loop.time() - self._left_at, _GATHER_SECONDS)
        self._until_enough = loop.call_later(pause, self._leave)
