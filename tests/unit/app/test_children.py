"""Children of the supervisor: real processes that start, die, come back and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from patience import until

from estd.app.children import Adopted, Child
from estd.app.control import Control

OBEDIENT = """
import socket, sys
end = socket.socket(fileno=int(sys.argv[-1]))
end.sendall(b'{"ready": true}\\n')
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
end.recv(1)
"""
STUBBORN = OBEDIENT.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN").replace("end.recv(1)", "signal.pause()")
BROKEN = "raise SystemExit(3)"


def child(tmp_path: Path, source: str) -> tuple[Child, list[Control]]:
    script = tmp_path / "child.py"
    script.write_text(source)
    controls: list[Control] = []

    async def greet(end: socket.socket) -> None:
        control = await Control.open(end)
        answer = await control.receive()
        if answer != {"ready": True}:
            raise RuntimeError("no greeting")
        controls.append(control)

    return Child("child", [str(script)], [], greet), controls


async def test_a_child_becomes_ready_and_stops_when_asked(tmp_path: Path) -> None:
    slot, controls = child(tmp_path, OBEDIENT)
    slot.start()
    assert await slot.wait_ready(10)
    pid = slot.pid
    assert pid is not None
    assert len(controls) == 1
    await slot.stop()
    assert not slot.ready
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_killed_child_comes_back(tmp_path: Path) -> None:
    slot, controls = child(tmp_path, OBEDIENT)
    slot.start()
    assert await slot.wait_ready(10)
    first = slot.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: slot.ready and slot.pid != first)
    assert slot.restarts == 1
    assert len(controls) == 2
    await slot.stop()


async def test_a_child_that_always_dies_is_restarted_ever_more_slowly(tmp_path: Path) -> None:
    slot, controls = child(tmp_path, BROKEN)
    slot.start()
    assert not await slot.wait_ready(1.5)
    assert controls == []
    assert 1 <= slot.restarts <= 5
    await slot.stop()


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.app.children._KILL_AFTER_SECONDS", 0.3)
    slot, _ = child(tmp_path, STUBBORN)
    slot.start()
    assert await slot.wait_ready(10)
    async with asyncio.timeout(5):
        await slot.stop()
    assert not slot.ready


async def test_a_child_that_never_greets_is_not_ready(tmp_path: Path) -> None:
    slot, _ = child(tmp_path, "import time; time.sleep(60)")
    slot.start()
    assert not await slot.wait_ready(0.5)
    await slot.stop()


async def test_a_child_may_be_asked_in_another_way(tmp_path: Path) -> None:
    slot, controls = child(tmp_path, OBEDIENT)
    slot.start()
    assert await slot.wait_ready(10)
    assert slot.control is not None
    await slot.stop(lambda: controls[0].send({"drain": 0}))
    assert not slot.ready
    assert slot.control is None


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "by signal"])
async def test_a_child_of_a_predecessor_is_stopped_and_forgotten(tmp_path: Path, asked: bool) -> None:
    script = tmp_path / "child.py"
    script.write_text(OBEDIENT)
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, script, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    assert await asyncio.to_thread(ours.recv, 100) == b'{"ready": true}\n'
    await asyncio.sleep(0.1)  # it sets its handler right after that
    ended: list[int] = []
    adopted = Adopted("child", process.pid, ours, ended.append)
    await adopted.stop((lambda: adopted.tell(b"go\n")) if asked else None)
    assert ended == [process.pid]
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    process.wait()  # nothing is left to wait for; Popen only has to know
    await adopted.stop()  # long gone
