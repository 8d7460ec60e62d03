import asyncio
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from estd.app.control import Control
from estd.app.playground import lay_out

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


async def start(settings: Path) -> tuple[asyncio.subprocess.Process, Control]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "estd.app.served",
            str(settings),
            str(theirs.fileno()),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    return process, await Control.open(ours)


async def test_settings_that_cannot_work_are_told_as_problems(tmp_path: Path) -> None:
    (tmp_path / "estd.toml").write_text("nonsense = 1\n")
    process, control = await start(tmp_path / "estd.toml")
    message: Any = await control.receive()
    assert [len(problem) for problem in message["failed"]] == [3] * len(message["failed"])
    assert any("nonsense" in problem[0] for problem in message["failed"])
    assert await process.wait() == 1
    control.close()


@pytest.mark.parametrize("when", ["starting", "ready"])
async def test_it_ends_when_its_channel_closes(tmp_path: Path, when: str) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    process, control = await start(place.settings)
    if when == "ready":
        message: Any = await control.receive()
        assert message["ready"] is True
        assert message["port"] > 0
    else:
        await asyncio.sleep(1.5)
    control.close()
    assert await asyncio.wait_for(process.wait(), 40) == 0
    assert not list(tmp_path.rglob("postmaster.pid"))
