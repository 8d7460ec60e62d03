"""Runs a command's asynchronous part so that being told to stop ends it as tidily as coming to its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Terminated(BaseException):
    """SIGTERM came; everything that was started is stopped again."""


def run_async(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of that work. SIGINT and SIGTERM cancel it, and it may clean up.

    Raises:
        KeyboardInterrupt: after SIGINT.
        Terminated: after SIGTERM.
    """
    return asyncio.run(_run(work))


async def _run(work: Coroutine[Any, Any, _Result]) -> _Result:
    loop, terminated = asyncio.get_running_loop(), False
    task = loop.create_task(work)

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise
