"""Tasks of the supervisor that nobody waits for, so what fails in one is logged when it happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

_log = logging.getLogger(__name__)


def start_task(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """Have it done beside everything else; keep what is returned, or the task may be forgotten half done."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_log_fault)
    return task


def _log_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a supervisor task failed", exc_info=task.exception())
