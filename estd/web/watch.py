"""Looks at every connection's deadline, in one round for all of them.

A timer of its own would cost each connection more than all its deadlines are worth: it is set, moved and taken back, and
hardly ever rings. Here a deadline is a number that a connection moves, and the round comes by several times a second.

Promises: what is due is looked at one round later at most; where many are due at once, as after a flood, a few have their
turn in each pass of the event loop, so that nobody's next step waits behind them all; a look that fails costs no other
connection its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

_log = logging.getLogger(__name__)

NEVER: Final = float("inf")
_AT_ONCE: Final = 16


class Watched(Protocol):
    """Something with a deadline."""

    @property
    def due(self) -> float:
        """When to look, by the loop's clock; `NEVER` if not at all."""

    def look(self, now: float) -> None:
        """It is due. Whatever this does, it is looked at again as long as it stays due and watched."""


class Watch:
    """One for all connections of a worker. Made inside the loop.

    Args:
        seconds: between two rounds.
        also: called in each round.
    """

    def __init__(self, seconds: float, also: Callable[[], None] = lambda: None) -> None:
        self._seconds = seconds
        self._also = also
        self._items: set[Watched] = set()
        self._loop = asyncio.get_running_loop()
        self._is_walking = False

    def add(self, item: Watched) -> None:
        """Look at it from now on."""
        self._items.add(item)
        if not self._is_walking:
            self._is_walking = True
            self._loop.call_later(self._seconds, self._walk)

    def remove(self, item: Watched) -> None:
        """Look at it no more."""
        self._items.discard(item)

    def _walk(self) -> None:
        try:
            self._also()
        except Exception:  # noqa: BLE001 -- the deadlines of all connections hang on the next round
            _log.exception("a round's other work failed")
        now = self._loop.time()
        self._look([item for item in self._items if item.due <= now])

    def _look(self, late: list[Watched]) -> None:
        now = self._loop.time()
        for item in late[-_AT_ONCE:]:
            if item in self._items and item.due <= now:
                try:
                    item.look(now)
                except Exception:  # noqa: BLE001 -- as in _walk
                    _log.exception("a deadline's look failed")
        del late[-_AT_ONCE:]
        if late:
            self._loop.call_soon(self._look, late)
        elif self._items:
            self._loop.call_later(self._seconds, self._walk)
        else:
            self._is_walking = False
