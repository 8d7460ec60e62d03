"""The database as the supervisor sees it: a private PostgreSQL that is ours to keep alive, or one that the settings name.

Nobody but us would start a private one again, so it is watched, and one that is still recovering from a kill is waited
for. One that the settings name is somebody else's: it is only migrated, and when it does not answer that is said at once.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from estd.app.tasks import keep_doing
from estd.errors import Invalid, Unavailable
from estd.store import migrator
from estd.store.private import PrivatePostgres

_log = logging.getLogger(__name__)

_RECOVERY_SECONDS: Final = 60.0
_RECOVERY_PAUSE_SECONDS: Final = 0.1
_WATCH_EVERY_SECONDS: Final = 1.0


class Database:
    """See the module.

    Args:
        url: of the one that the settings name; None: a private one.
        directory: where a private one is kept.
    """

    def __init__(self, url: str | None, directory: Path) -> None:
        self.url = url or ""
        """Where it is; empty until a private one was started."""
        self.directory = directory if url is None else None
        """Of the private one; None when the database is not ours to watch."""
        self._private: PrivatePostgres | None = None

    async def start(self) -> None:
        """Start the private one.

        Raises:
            Invalid: its directory is not ours to use.
            Unavailable: it cannot run here.
        """
        if self.directory is None:
            return
        self._private = PrivatePostgres(self.directory)
        self.url = await asyncio.to_thread(self._private.start)

    async def migrate(self) -> None:
        """Bring the schema up to date; a private database that is recovering from a kill gets the time it needs.

        Raises:
            Unavailable: it does not answer, or its schema is not one this version can start from.
        """
        give_up_at = asyncio.get_running_loop().time() + _RECOVERY_SECONDS
        while True:
            try:
                await migrator.migrate(self.url)
            except Unavailable:
                if self._private is None or asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(_RECOVERY_PAUSE_SECONDS)
            else:
                return

    async def watch(self) -> None:
        """Start the private one again whenever it ended; returns at once when the database is not ours to watch."""
        private = self._private
        if private is None:
            return

        async def look() -> None:
            await asyncio.sleep(_WATCH_EVERY_SECONDS)
            try:
                await asyncio.to_thread(private.ensure_running)
            except (Unavailable, Invalid, OSError) as reason:
                _log.error("the private database could not be started again", extra={"detail": str(reason)})

        await keep_doing("database", look)

    async def stop(self) -> None:
        """Leave the private one; it stops unless another process uses it."""
        if self._private is not None:
            await asyncio.to_thread(self._private.stop)
