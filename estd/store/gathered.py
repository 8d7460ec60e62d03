"""Look-ups that come at the same time, as one statement.

While one statement is on its way the next look-ups gather, so whoever comes alone waits for nobody, and a crowd shares
what a statement costs beside its rows. A crowd is waited for a little longer, because its statements would come back sooner
than it grows. Knows no SQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_AT_ONCE: Final = 128
_CROWD_FROM: Final = 3
_CROWD: Final = 24
_TURNS: Final = 8
_GATHER_SECONDS: Final = 0.005
"""After a statement for `_CROWD_FROM` keys or more the next one gathers for so many turns of the event loop, or until it has
`_CROWD`, or until a turn ends after so long."""


class Gathered(Generic[_Key, _Value]):
    """Finds values by keys through `look_up`, which is given many keys and gives back what there is."""

    def __init__(self, look_up: Callable[[Sequence[_Key]], Awaitable[Mapping[_Key, _Value]]]) -> None:
        self._look_up = look_up
        self._waiting: list[tuple[_Key, asyncio.Future[_Value | None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._asked_last = 0

    async def find(self, key: _Key) -> _Value | None:
        """The value of that key, or None; whatever `look_up` raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Value | None] = loop.create_future()
        self._waiting.append((key, answer))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                if self._asked_last >= _CROWD_FROM:
                    await self._gather()
                asked, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
                self._asked_last = len(asked)
                await self._ask([(key, answer) for key, answer in asked if not answer.done()])
        finally:
            self._task = None

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _GATHER_SECONDS
        for _ in range(_TURNS):
            if len(self._waiting) >= _CROWD or loop.time() >= until:
                return
            await asyncio.sleep(0)

    async def _ask(self, asked: list[tuple[_Key, asyncio.Future[_Value | None]]]) -> None:
        try:
            found = await self._look_up(list(dict.fromkeys(key for key, _ in asked))) if asked else {}
        except asyncio.CancelledError:
            for _, answer in asked:
                answer.cancel()
            raise
        except Exception as fault:  # noqa: BLE001 -- it is not ours: everyone who asked is told
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(fault)
            return
        for key, answer in asked:
            if not answer.done():
                answer.set_result(found.get(key))
