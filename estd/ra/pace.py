"""Keeps a part of a worker's time free while there are others than a crowd.

A worker that works without a pause answers nobody soon: whoever comes waits for what is in hand at each of a request's ten
steps. So while somebody asks who is no part of a crowd, the crowd gets a share of the worker's time and the rest is left
idle, which costs the crowd a longer queue and spares everybody else theirs. Without such company a crowd gets everything;
and where others alone work for more than that share, it still gets a step now and then.

`Pace` decides when; the door (`estd.web.gate`) asks it for each step of a crowd's handshakes, and `Turnstile` for each of
its requests, which come first: a handshake whose request then waits was begun too early.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from estd.ra.fairqueue import FairQueue
from estd.ra.limits import Limit, TurnedAway, add_jitter

_COMPANY_SECONDS: Final = 1.0
"""So long after somebody else's last step the crowd is held back."""
_CREDIT_SECONDS: Final = 0.005
"""The most that time without work counts for: a longer burst would be felt."""
_DEBT_SECONDS: Final = 0.02
"""The most that work beyond the share counts against: others' work is in it too."""
_LITTLE: Final = 1 / 8
"""An ecosystem with less than this part of all requests in hand is no crowd."""
_FEW: Final = 2
_LOOK_SECONDS: Final = 0.001
_WAIT_AT_MOST_SECONDS: Final = 15.0
"""Longer than a device waits for its answer anyway; nothing was spent on its request yet."""


class Pace:
    """Weighs the time that this thread worked against the time that passed.

    Args:
        share: the part of its time that the thread may work before a crowd has to wait.
        wait_seconds: after so long a wait a crowd gets one step whatever others do, or two busy connections could shut it
            out for good.
        clock: a monotonic one.
        worked: CPU seconds of this thread.
    """

    def __init__(
        self,
        share: float,
        wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        self.waiting = 0
        """Requests of crowds that wait for a step; while there are any, no crowd's handshake begins."""
        self._share = share
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._worked = worked
        # The last two who took a step and were no part of a crowd, and when.
        self._latest: object = None
        self._latest_at = self._earlier_at = float("-inf")
        self._credit = 0.0
        self._waits_since: float | None = None
        """When a crowd was first told to wait, since one last got a step."""
        self._at = clock()
        self._worked_by_then = worked()

    def notice(self, who: object) -> None:
        """Somebody who is no part of a crowd takes a step: an ecosystem's id, or whatever stands for one."""
        if who != self._latest:
            self._latest, self._earlier_at = who, self._latest_at
        self._latest_at = self._clock()

    def allows(self, crowd: object) -> bool:
        """Whether this crowd may take its next step now. It is no company to itself."""
        now = self._clock()
        if now - (self._earlier_at if crowd == self._latest else self._latest_at) > _COMPANY_SECONDS:
            self._waits_since = None
            return True
        worked = self._worked()
        earned = self._share * (now - self._at) - (worked - self._worked_by_then)
        self._credit = max(-_DEBT_SECONDS, min(_CREDIT_SECONDS, self._credit + earned))
        self._at, self._worked_by_then = now, worked
        if self._credit > 0 or (self._waits_since is not None and now - self._waits_since > self._wait_seconds):
            self._waits_since = None
            return True
        if self._waits_since is None:
            self._waits_since = now
        return False


class Turnstile:
    """Where requests of a crowd wait for their step, an ecosystem's turn after the other's. Made inside the loop."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._queue: FairQueue[tuple[int, asyncio.Future[None]]] = FairQueue()
        self._loop = asyncio.get_running_loop()

    def lets_in(self, ecosystem_id: int, in_hand: int, in_all: int) -> bool:
        """Whether a request may take its step at once; if not, it has to `wait`.

        Args:
            ecosystem_id: whom it is for.
            in_hand: requests of that ecosystem, this one included, that have no answer yet.
            in_all: the same of all ecosystems.
        """
        if in_hand <= _FEW or in_hand < in_all * _LITTLE:
            self._pace.notice(ecosystem_id)
            return True
        return not self._queue and self._pace.allows(ecosystem_id)

    async def wait(self, ecosystem_id: int) -> None:
        """Wait for a request's step.

        Raises:
            TurnedAway: it did not come soon enough.
        """
        step: asyncio.Future[None] = self._loop.create_future()
        if not self._queue:
            self._loop.call_later(_LOOK_SECONDS, self._look)
        self._queue.add(ecosystem_id, (ecosystem_id, step))
        self._pace.waiting += 1
        end = self._loop.call_later(_WAIT_AT_MOST_SECONDS, _give_up, step)
        try:
            await step
        finally:
            end.cancel()

    def _look(self) -> None:
        """One at a time: what its step costs is known in the next turn of the loop."""
        while self._queue and self._queue.peek()[1].done():
            self._queue.take(1)  # who waited for it has given up
            self._pace.waiting -= 1
        if not self._queue:
            return
        if not self._pace.allows(self._queue.peek()[0]):
            self._loop.call_later(_LOOK_SECONDS, self._look)
            return
        ((_, step),) = self._queue.take(1)
        self._pace.waiting -= 1
        step.set_result(None)
        if self._queue:
            self._loop.call_soon(self._look)


def _give_up(step: asyncio.Future[None]) -> None:
    if not step.done():
        detail = "too many requests of this ecosystem are waiting; send the same request again"
        step.set_exception(TurnedAway(Limit.DEADLINE, detail, add_jitter(_WAIT_AT_MOST_SECONDS)))
