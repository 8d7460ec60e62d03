"""The audit trail of one worker: decisions go to the log at once and to the store in groups.

`record` returns when the event is committed, or when that took longer than it should: an answer to a device does not
wait for a database that is away. Such events stay in a bounded list and are written when the store is back; each is in
the log in any case.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from estd.audit import Event, write_event
from estd.errors import Unavailable
from estd.store.contract import Store

_log = logging.getLogger("estd.audit")

_KEPT_AT_MOST: Final = 10_000
_GROUP_SIZE: Final = 200
_PATIENCE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 1.0


class Trail:
    """Collects events; one task writes them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: deque[tuple[Event, asyncio.Future[None]]] = deque()
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
        pending = [done for _, done in self._kept if not done.done()]
        if pending:
            await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def record(self, event: Event) -> None:
        """Log the event and commit it, waiting a moment at most."""
        log_event(event)
        done = asyncio.get_running_loop().create_future()
        if len(self._kept) >= _KEPT_AT_MOST:
            _, oldest = self._kept.popleft()
            oldest.cancel()
            self.lost += 1
        self._kept.append((event, done))
        self._wake.set()
        await asyncio.wait([done], timeout=_PATIENCE_SECONDS)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._kept:
                group = [self._kept.popleft() for _ in range(min(_GROUP_SIZE, len(self._kept)))]
                try:
                    await self._store.record_events([event for event, _ in group])
                except Unavailable:
                    # Unknown means it may be there twice later on; for an audit trail twice is better than never.
                    self._kept.extendleft(reversed(group))
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                for _, done in group:
                    if not done.done():
                        done.set_result(None)


def log_event(event: Event) -> None:
    """The event as one line of the structured log."""
    if _log.isEnabledFor(logging.INFO):
        _log.info("audit", extra={"audit": write_event(event)})
