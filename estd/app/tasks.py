"""Tasks that nobody waits for: what fails in one is logged when it happens, and one that has to go on for ever does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, NoReturn

from estd.errors import Unavailable

_log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 1.0


def start_task(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """Have it done beside everything else; keep what is returned, or the task may be forgotten half done."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_log_fault)
    return task


async def keep_doing(task: str, step: Callable[[], Awaitable[object]], pause_seconds: float | None = None) -> NoReturn:
    """Take one step after the other until cancelled, whatever comes of each.

    The step itself waits for its time, or for what it answers to. One that fails is logged, and the next one taken after a
    pause: a task whose end nobody would notice must not end by a fault that the next round might not meet.

    Args:
        task: what the log calls it.
        step: begins a round anew each time; what a failed round leaves undone has to be found by the next one.
        pause_seconds: after a step that failed; one second unless something else is said.
    """
    while True:
        try:
            await step()
        except Unavailable as reason:
            _log.warning("a standing task failed and goes on", extra={"task": task, "detail": reason.detail})
        except Exception:  # noqa: BLE001 - whatever it failed with, the rounds that follow are wanted all the same
            _log.exception("a standing task failed and goes on", extra={"task": task})
        else:
            continue
        await asyncio.sleep(_PAUSE_SECONDS if pause_seconds is None else pause_seconds)


def _log_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a supervisor task failed", exc_info=task.exception())
