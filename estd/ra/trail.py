"""The audit trail of one worker: decisions go to the log at once and to the store in groups.

`record` returns when the event is committed, or when that took longer than it should: an answer to a device does not
wait for a database that is away. Such events stay in a bounded list and are written when the store is back. What the
store never takes is in the log, whatever its level.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from estd.audit import Event, write_event
from estd.errors import Unavailable
from estd.store.contract import Store

_log = logging.getLogger("estd.audit")

_KEPT_AT_MOST: Final = 10_000
_GROUP_SIZE: Final = 200
_PATIENCE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 1.0
_Kept = tuple[Event, asyncio.Future[None]]
"""An event, and whoever waits for it."""


class Trail:
    """Collects events; one task writes them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: deque[_Kept] = deque()
        self._in_hand: list[_Kept] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self.lost = 0
        """Events that are in the log only, because the store was away for too long."""

    def start(self) -> None:
        """Begin to write."""
        self._writer = asyncio.get_running_loop().create_task(self._write())

    async def stop(self) -> None:
        """Write what is kept, as far as the store takes it within a moment."""
        if self._writer is None:
            return
        pending = [done for _, done in (*self._in_hand, *self._kept) if not done.done()]
        if pending:
            await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        for event, _ in (*self._in_hand, *self._kept):
            self._lose(event)
        self._in_hand = []
        self._kept.clear()

    def note(self, event: Event) -> None:
        """Log the event and have it committed, waiting for nothing."""
        _ = self._keep(event)

    async def record(self, event: Event) -> None:
        """Log the event and commit it, waiting a moment at most."""
        await asyncio.wait([self._keep(event)], timeout=_PATIENCE_SECONDS)

    async def record_all(self, events: Sequence[Event]) -> None:
        """The same for many events, which are committed together as far as possible."""
        if events:
            await asyncio.wait([self._keep(event) for event in events][-1:], timeout=_PATIENCE_SECONDS)

    def _keep(self, event: Event) -> asyncio.Future[None]:
        log_event(event)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self._kept) >= _KEPT_AT_MOST:
            oldest, waiting = self._kept.popleft()
            waiting.cancel()
            self._lose(oldest)
        self._kept.append((event, done))
        self._wake.set()
        return done

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._kept:
                self._in_hand = [self._kept.popleft() for _ in range(min(_GROUP_SIZE, len(self._kept)))]
                try:
                    await self._store_group(self._in_hand)
                except Unavailable:
                    # Unknown means it may be there twice later on; for an audit trail twice is better than never.
                    self._kept.extendleft(reversed(self._in_hand))
                    self._in_hand = []
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                done, self._in_hand = self._in_hand, []
                for _, waiting in done:
                    if not waiting.done():
                        waiting.set_result(None)

    async def _store_group(self, group: list[_Kept]) -> None:
        try:
            await self._store.record_events([event for event, _ in group])
        except Unavailable:
            raise
        except Exception:  # noqa: BLE001 -- whatever it is, events that come later are written all the same
            # One of them the store cannot hold; it must not take its neighbours, or this task, with it.
            if len(group) == 1:
                _log.exception("an audit event cannot be stored")
                self._lose(group[0][0])
                return
            for one in group:
                await self._store_group([one])

    def _lose(self, event: Event) -> None:
        self.lost += 1
        _log.warning("this audit event is in the log only", extra={"audit": write_event(event)})


def log_event(event: Event) -> None:
    """The event as one line of the structured log."""
    if _log.isEnabledFor(logging.INFO):
        _log.info("audit", extra={"audit": write_event(event)})


def log_events(events: Iterable[Event]) -> None:
    """Each event as one line of the structured log; a group's are written at once."""
    if _log.isEnabledFor(logging.INFO):
        _log.info("audit", extra={"each": [{"audit": write_event(event)} for event in events]})
