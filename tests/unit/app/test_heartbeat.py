"""Children that hang: real processes that are stopped, that go on, and that wait for a device. A server's: tests/faults."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from patience import until

from estd.app.children import Child
from estd.app.control import Control
from estd.app.heartbeat import Heartbeat, is_waiting_for_disk

NEVER = 1e9
ANSWERS = """
import json, os, socket, sys
end = socket.socket(fileno=int(sys.argv[-1]))
end.sendall(b'{"ready": true}\\n')
for line in end.makefile():
    number = json.loads(line)["ping"]
    if os.path.exists("FIFO"):
        # A child that shares the memory and opens a pipe nobody writes to: until it has, the kernel keeps us waiting (D).
        os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "FIFO", os.O_RDONLY, 0)])
    end.sendall(b'{"pong": %d}\\n' % number)
"""


class Yard:
    """One child that answers pings, and its newest control channel."""

    def __init__(self, directory: Path) -> None:
        self.fifo = directory / "fifo"
        script = directory / "child.py"
        script.write_text(ANSWERS.replace("FIFO", str(self.fifo)))
        self.controls: dict[str, Control] = {}
        self.child = Child("child", [str(script)], [], self._greet, ended=self._let_go)

    async def _greet(self, end: socket.socket) -> None:
        control = await Control.open(end)
        assert await control.receive() == {"ready": True}
        self.controls["child"] = control

    def _let_go(self, _pid: int) -> None:
        self.controls.pop("child").abandon()


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    made = Yard(tmp_path)
    made.child.start()
    assert await made.child.wait_ready(20)
    yield made
    made.child.kill()  # it may be stopped
    await made.child.stop()


def watch(yard: Yard, kill_seconds: float) -> tuple[Heartbeat, asyncio.Task[None]]:
    beats = Heartbeat(lambda: [yard.child], yard.controls, kill_seconds, silent_seconds=0.3, every_seconds=0.05)
    return beats, asyncio.ensure_future(beats.watch())


async def test_who_does_not_answer_when_asked_once_more_hangs(yard: Yard) -> None:
    """Also one that nobody has called silent yet, and only as long as it does not answer."""
    beats = Heartbeat(lambda: [yard.child], yard.controls, NEVER, silent_seconds=0.3)
    pid = yard.child.pid
    assert pid is not None
    assert await beats.find_hung() == set()
    os.kill(pid, signal.SIGSTOP)
    assert await beats.find_hung() == {"child"}
    os.kill(pid, signal.SIGCONT)
    await until(lambda: beats._beats["child"].question.done())
    assert await beats.find_hung() == set()


async def test_those_called_silent_hang_without_being_waited_for(yard: Yard) -> None:
    beats, watching = watch(yard, NEVER)
    pid = yard.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: beats.silent)
    beats._silent_seconds = NEVER
    async with asyncio.timeout(20):
        assert await beats.find_hung() == {"child"}
    os.kill(pid, signal.SIGCONT)
    await end(watching)


async def end(watching: asyncio.Task[None]) -> None:
    watching.cancel()
    await asyncio.wait({watching})


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "estd.app.heartbeat"]


async def test_one_that_stops_for_a_while_is_named_and_lives(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    beats, watching = watch(yard, NEVER)
    pid = yard.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: beats.silent)
    assert beats.silent["child"].startswith("it has not answered for ")
    assert beats.missing == f"child: {beats.silent['child']}"
    os.kill(pid, signal.SIGCONT)
    await until(lambda: not beats.silent)
    assert beats.missing is None
    assert (yard.child.pid, yard.child.restarts) == (pid, 0)
    assert told(caplog) == ["a child does not answer", "a child answers again"]
    await end(watching)


async def test_one_that_hangs_is_killed_and_the_next_one_heard(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    beats, watching = watch(yard, 0.6)
    first = yard.child.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    await until(lambda: yard.child.ready and yard.child.pid != first, 20)
    assert told(caplog) == ["a child does not answer", "a child hangs and is killed"]
    hung = vars(caplog.records[[record.message for record in caplog.records].index("a child hangs and is killed")])
    assert (hung["child"], hung["pid"], hung["levelno"]) == ("child", first, logging.ERROR)
    second = yard.child.pid
    await until(lambda: "child" in beats._beats and beats._beats["child"].pulse is yard.controls["child"])
    question = beats._beats["child"].question
    await question
    assert beats.silent == {}
    assert yard.child.pid == second
    await end(watching)


async def test_one_that_waits_for_a_device_is_named_and_never_killed(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    pid = yard.child.pid
    assert pid is not None
    assert not is_waiting_for_disk(pid)
    os.mkfifo(yard.fifo)
    beats, watching = watch(yard, 0.6)
    await until(lambda: "a child waits for its disk and is not killed" in told(caplog))
    assert is_waiting_for_disk(pid)
    assert beats.silent
    assert await beats.find_hung() == set()
    aside = yard.fifo.rename(yard.fifo.with_name("aside"))
    os.close(os.open(aside, os.O_WRONLY))
    await until(lambda: not beats.silent)
    assert (yard.child.pid, yard.child.restarts) == (pid, 0)
    assert told(caplog)[-1] == "a child answers again"
    await end(watching)


def test_a_process_that_is_gone_waits_for_nothing() -> None:
    assert not is_waiting_for_disk(os.getpid())
    assert not is_waiting_for_disk(2**22 + 1)


class Apart:
    """A link to a process that runs on its own."""

    name = "signer-0"
    ready = True


async def test_one_that_runs_on_its_own_is_named_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    control = await Control.open(ours)
    link = Apart()
    beats = Heartbeat(lambda: [link], {"signer-0": control}, 0.2, silent_seconds=0.1, every_seconds=0.02)
    watching = asyncio.ensure_future(beats.watch())
    await until(lambda: "signer-0" in beats._beats and beats._beats["signer-0"].quiet_seconds > 0.4)
    assert told(caplog) == ["a child does not answer"]
    assert "restart its service" in vars(caplog.records[-1])["remedy"]
    link.ready = False
    await until(lambda: not beats.silent)
    assert beats.missing is None
    await end(watching)
    control.close()
    theirs.close()


async def test_a_pause_of_our_own_is_nobodys_silence(yard: Yard) -> None:
    beats = Heartbeat(lambda: [yard.child], yard.controls, 1.0, silent_seconds=0.5, every_seconds=0.05)
    beats._look(0.05)
    pid = yard.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    watching = asyncio.ensure_future(beats.watch())
    await asyncio.sleep(0)
    blocking = asyncio.get_running_loop().time() + 1.5
    while asyncio.get_running_loop().time() < blocking:
        pass  # as a machine that was suspended
    await asyncio.sleep(0.01)
    assert beats.silent == {}
    assert beats._beats["child"].quiet_seconds <= 0.1
    os.kill(pid, signal.SIGCONT)
    await end(watching)
