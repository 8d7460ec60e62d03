"""What keeps devices from enrolling although every process runs: signers that cannot prepare, a database whose disk is full.

Signers and disk are asked every second rather than with each question, so ``/readyz`` has their answer at once. Whether the
database answers is found out when somebody wants to know, and what was found holds for a second: a crowd of probes costs one
transaction in that time, and nobody's probe none.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from estd.app.signers import SignerControl
from estd.app.tasks import keep_doing
from estd.errors import Broken, Unavailable

_EVERY_SECONDS: Final = 1.0
_ROOM_BYTES: Final = 1024 * 1024
"""With less than this left PostgreSQL cannot extend its tables, or soon cannot."""


class Readiness:
    """What was found last.

    Args:
        controls: the control channel of each signer, by name; read anew each time.
        is_ready: whether the signer of that name is there and loaded.
        directory: of the private PostgreSQL; None when the database is not ours to watch.
        check: raises Unavailable when the database does not answer, or must not be used.
    """

    def __init__(
        self,
        controls: Mapping[str, SignerControl],
        is_ready: Callable[[str], bool],
        directory: Path | None,
        check: Callable[[], Awaitable[None]],
    ) -> None:
        self._controls = controls
        self._is_ready = is_ready
        self._directory = directory
        self._check = check
        self._look: asyncio.Task[str | None] | None = None
        self._looked_at = 0.0
        self.signers: str | None = None
        """Which signer cannot prepare anything, and why; None while all can that are there to be asked.

        One is enough: the workers that call it first have nothing from its neighbour.
        """
        self.database: str | None = None
        """What is wrong with the private database's disk."""

    async def watch(self) -> None:
        """Look again and again."""
        await keep_doing("readiness", self._watch_once)

    async def ask_database(self) -> str | None:
        """Why the database cannot be used; None when it can. What others found within the last second is taken."""
        if self._look is None or (self._look.done() and time.monotonic() - self._looked_at >= _EVERY_SECONDS):
            self._look = asyncio.get_running_loop().create_task(self._look_at_database())
        return await asyncio.shield(self._look)  # the one that is cancelled is not the only one that waits

    async def _watch_once(self) -> None:
        self.signers = await self._ask_signers()
        self.database = None if self._directory is None else find_full_disk(self._directory)
        await asyncio.sleep(_EVERY_SECONDS)

    async def _look_at_database(self) -> str | None:
        try:
            await self._check()
        except Unavailable as reason:
            return reason.detail
        except Broken as fault:
            return str(fault)
        finally:
            self._looked_at = time.monotonic()
        return None

    async def _ask_signers(self) -> str | None:
        for name, control in list(self._controls.items()):
            if not self._is_ready(name):
                continue
            try:
                report = await control.status()
            except (Broken, OSError, TimeoutError):
                continue  # it ended or does not answer; whoever keeps it alive says so (`estd.app.heartbeat`)
            if report.hindrance:
                return f"{name}: {report.hindrance}"
        return None


def find_full_disk(directory: Path) -> str | None:
    """A sentence about the disk below that directory, if it has no room left."""
    try:
        disk = os.statvfs(directory)
    except OSError as error:
        return f"{directory} cannot be looked at ({error.strerror})"
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < _ROOM_BYTES:
        return f"the disk below {directory} is full"
    return None
