"""What keeps devices from enrolling although every process runs: signers that cannot prepare, a database whose disk is full.

Asked every second rather than with each question, so that ``/readyz`` answers at once and a crowd of probes costs nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from estd.app.signers import SignerControl
from estd.errors import Broken

_EVERY_SECONDS: Final = 1.0
_ROOM_BYTES: Final = 1024 * 1024
"""With less than this left PostgreSQL cannot extend its tables, or soon cannot."""


class Readiness:
    """What was found last.

    Args:
        controls: the control channel of each signer, by name; read anew each time.
        is_ready: whether the signer of that name is there and loaded.
        directory: of the private PostgreSQL; None when the database is not ours to watch.
    """

    def __init__(
        self, controls: Mapping[str, SignerControl], is_ready: Callable[[str], bool], directory: Path | None
    ) -> None:
        self._controls = controls
        self._is_ready = is_ready
        self._directory = directory
        self.signers: str | None = None
        """Which signer cannot prepare anything, and why; None while all can that are there to be asked.

        One is enough: the workers that call it first have nothing from its neighbour.
        """
        self.database: str | None = None
        """What is wrong with the private database's disk."""

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            self.signers = await self._ask_signers()
            self.database = None if self._directory is None else find_full_disk(self._directory)
            await asyncio.sleep(_EVERY_SECONDS)

    async def _ask_signers(self) -> str | None:
        for name, control in list(self._controls.items()):
            if not self._is_ready(name):
                continue
            try:
                report = await control.status()
            except (Broken, OSError, TimeoutError):
                continue  # it ended; whoever keeps it alive says so
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
