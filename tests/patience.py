"""Waiting for what comes to pass by itself, and no longer than a test may."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def wait_until(
    condition: Callable[[], Answer], seconds: float = 10.0, tell: Callable[[], str] = lambda: "it did not come to pass"
) -> Answer:
    """What `condition` answers once that is true; `tell` has the last word if it never is."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, tell()
        time.sleep(0.02)
    return answer


def wait_for_file(path: Path, writer: subprocess.Popen[Any], seconds: float, tell: Callable[[], str]) -> None:
    """Until that process, which must not end, has written that file."""
    wait_until(lambda: path.exists() or writer.poll() is not None, seconds, tell)
    assert writer.poll() is None, tell()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """The same for a test that is a coroutine."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
