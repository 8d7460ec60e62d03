"""Children of the supervisor: real processes that start, die, come back and stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
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
NEVER = 1e9
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

    def let_go(_pid: int) -> None:
        if controls:
            controls[-1].abandon()  # or the next one's channel, of the same number, would not be heard

    return Child("child", [str(script)], [], greet, ended=let_go), controls


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


async def test_one_that_is_known_to_hang_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.app.children._KILL_AFTER_SECONDS", NEVER)
    monkeypatch.setattr("estd.app.children._KILL_HUNG_AFTER_SECONDS", 0.1)
    slot, _ = child(tmp_path, OBEDIENT)
    slot.start()
    assert await slot.wait_ready(10)
    pid = slot.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        await slot.stop(hung=True)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_busy_child_may_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.app.children._KILL_HUNG_AFTER_SECONDS", 0.0)
    done = tmp_path / "done"
    finishing = f"lambda *_: (__import__('time').sleep(1), open({str(done)!r}, 'w'), sys.exit(0))"
    slot, _ = child(tmp_path, OBEDIENT.replace("lambda *_: sys.exit(0)", finishing))
    slot.start()
    assert await slot.wait_ready(10)
    await asyncio.sleep(0.1)  # it sets its handler right after that
    await slot.stop()
    assert done.exists()


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


def descriptors() -> set[int]:
    """Those that this process has open; the one that looks is gone when it is told."""
    found = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}


@contextlib.contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """Only so many may be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 10, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", [0, 1, 2, 3], ids="{}-descriptors-left".format)
async def test_a_child_that_cannot_be_started_is_started_when_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    slot, controls = child(tmp_path, OBEDIENT)
    with descriptors_left(left):
        slot.start()
        await until(lambda: slot.restarts == 3)
        assert not slot.ready
        assert slot.pid is None
    assert await slot.wait_ready(20)
    assert len(controls) == 1
    await slot.stop()
    told = [vars(record) for record in caplog.records if record.message == "child could not be started"]
    assert len(told) >= 3
    assert {(one["child"], one["levelname"]) for one in told} == {("child", "ERROR")}
    assert all("LimitNOFILE" in one["remedy"] for one in told)
    pauses = [vars(record)["pause_seconds"] for record in caplog.records if record.message == "child is restarted"]
    assert pauses[:3] == pytest.approx([0.1, 0.3, 0.7])


@pytest.mark.parametrize("left", [0, 2, 3], ids="{}-descriptors-left".format)
async def test_a_child_that_cannot_be_started_leaves_nothing_open_and_can_be_stopped(tmp_path: Path, left: int) -> None:
    slot, _ = child(tmp_path, OBEDIENT)
    before = descriptors()
    with descriptors_left(left):
        slot.start()
        await until(lambda: slot.restarts == 2)
        async with asyncio.timeout(10):
            await slot.stop()
    assert descriptors() == before


async def test_a_fault_of_whoever_is_told_of_an_end_does_not_empty_the_slot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "child.py"
    script.write_text(OBEDIENT)
    ended: list[int] = []
    controls: list[Control] = []

    async def greet(end: socket.socket) -> None:
        controls.append(await Control.open(end))
        assert await controls[-1].receive() == {"ready": True}

    def note(pid: int) -> None:
        controls[-1].abandon()
        ended.append(pid)
        if len(ended) == 1:
            raise KeyError(pid)

    slot = Child("child", [str(script)], [], greet, ended=note)
    slot.start()
    assert await slot.wait_ready(10)
    first = slot.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: slot.ready and slot.pid != first)
    assert ended == [first]
    assert "child could not be kept" in {record.message for record in caplog.records}
    await slot.stop()
    assert len(ended) == 2
