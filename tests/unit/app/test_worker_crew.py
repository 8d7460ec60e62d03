"""Generations of processes that stand for workers and write down what they are told, and when they come and go.

Those of a whole server are replaced in ``tests/integration/test_reload.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from estd.app import worker_crew
from estd.app.handover import Heir
from estd.app.worker import WorkerSettings
from estd.app.worker_crew import WorkerCrew
from estd.errors import Broken

PROGRAM = """
import json, signal, socket, sys
log, listener, end = sys.argv[1], int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3]))
name = "?"

def note(what, value=None):
    with open(log, "a") as file:
        file.write(json.dumps([name, what, value]) + "\\n")

def leave(*_):
    note("ended", "by signal")
    sys.exit(0)

signal.signal(signal.SIGTERM, leave)
lines = end.makefile()
settings = json.loads(lines.readline())
name = settings["name"]
if settings["log_level"] == "broken":
    sys.exit(1)
note("started", [settings["slot"], socket.socket(fileno=listener).getsockname()[1], settings["log_level"]])
if settings["log_level"] == "slow":
    signal.pause()
end.sendall(b'{"ready": true}\\n')
for line in lines:
    note("told", json.loads(line))
    if "drain" in line:
        note("ended", "as told")
        sys.exit(0)
note("ended", "left alone")
"""


class Yard:
    """A crew, what its workers are told at their start, and what they wrote down."""

    def __init__(self, directory: Path, listener: socket.socket) -> None:
        self.log = directory / "log"
        self.log.touch()
        self.log_level = "info"
        self.ended: list[int] = []
        self.killed: list[str] = []
        self.listener = listener
        self.crew = WorkerCrew(listener, self.write_settings, self.ended.append, generation=4)

    def write_settings(self, name: str, slot: int) -> WorkerSettings:
        return WorkerSettings(
            name=name,
            slot=slot,
            database_url="",
            signer_sockets=[],
            tls_chain="",
            tls_key="",
            metrics_directory="",
            log_level=self.log_level,
        )

    @property
    def notes(self) -> list[tuple[str, str, Any]]:
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]

    def names(self, what: str) -> list[str]:
        return [name for name, happened, _ in self.notes if happened == what]

    def ends(self) -> dict[str, str]:
        return {name: value for name, what, value in self.notes if what == "ended"}

    def pids(self) -> dict[str, int]:
        return {heir.name: heir.pid for heir in self.crew.heirs}


@pytest.fixture
async def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Yard]:
    script = tmp_path / "worker.py"
    script.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yard = Yard(tmp_path, listener)
        monkeypatch.setattr(worker_crew, "_PROGRAM", (str(script), str(yard.log)))
        yield yard
        await yard.crew.stop()
    assert not yard.crew.any_ready
    assert sorted(yard.names("started")) == sorted([*yard.names("ended"), *yard.killed])


async def test_a_generation_serves_until_it_is_stopped(yard: Yard) -> None:
    crew = yard.crew
    assert not crew.any_ready
    await crew.replace(2)
    assert crew.any_ready
    assert crew.generation == 5
    port = yard.listener.getsockname()[1]
    assert sorted(yard.notes) == [
        ("worker-5-0", "started", [0, port, "info"]),
        ("worker-5-1", "started", [1, port, "info"]),
    ]
    pids = yard.pids()
    crew.send({"tls_chain": "new"})
    async with asyncio.timeout(10):
        while sorted(yard.names("told")) != ["worker-5-0", "worker-5-1"]:
            await asyncio.sleep(0.02)
    await crew.stop()
    assert yard.ends() == {"worker-5-0": "by signal", "worker-5-1": "by signal"}
    assert sorted(yard.ended) == sorted(pids.values())


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_the_next_generation_is_there_before_the_one_before_goes(yard: Yard, count: int) -> None:
    await yard.crew.replace(2)
    await yard.crew.replace(count)
    assert list(yard.pids()) == [f"worker-6-{slot}" for slot in range(count)]
    await yard.crew.see_off()
    assert yard.ends() == {"worker-5-0": "as told", "worker-5-1": "as told"}
    events = [(what, name) for name, what, _ in yard.notes]
    for slot in range(min(count, 2)):
        assert events.index(("started", f"worker-6-{slot}")) < events.index(("ended", f"worker-5-{slot}"))
    yard.crew.send({"tls_chain": "new"})
    async with asyncio.timeout(10):
        while len([None for _, what, told in yard.notes if what == "told" and "tls_chain" in told]) < count:
            await asyncio.sleep(0.02)
    assert {told.get("drain", 3.0) for _, what, told in yard.notes if what == "told"} == {3.0}


async def test_those_that_were_not_replaced_stay(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    await yard.crew.replace(2)
    before = yard.pids()
    monkeypatch.setattr("estd.app.children._START_SECONDS", 1.0)
    yard.log_level = "broken"
    with pytest.raises(Broken, match="not ready after 1 seconds: worker-6-0"):
        await yard.crew.replace(2)
    assert yard.pids() == before
    assert yard.names("ended") == []
    yard.log_level = "info"
    await yard.crew.replace(2)
    assert list(yard.pids()) == ["worker-7-0", "worker-7-1"]


async def test_a_start_that_is_cancelled_leaves_no_worker_behind(yard: Yard) -> None:
    await yard.crew.replace(1)
    before = yard.pids()
    yard.log_level = "slow"
    replacing = asyncio.create_task(yard.crew.replace(1))
    async with asyncio.timeout(10):
        while "worker-6-0" not in yard.names("started"):
            await asyncio.sleep(0.02)
    replacing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replacing
    assert yard.ends() == {"worker-6-0": "by signal"}
    assert yard.pids() == before


async def test_a_killed_worker_comes_back_with_the_newest_settings(yard: Yard) -> None:
    await yard.crew.replace(1)
    (pid,) = yard.pids().values()
    yard.log_level = "debug"
    yard.killed.append("worker-5-0")
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while yard.pids().get("worker-5-0", pid) == pid:
            await asyncio.sleep(0.02)
    assert [(name, value[2]) for name, _, value in yard.notes] == [("worker-5-0", "info"), ("worker-5-0", "debug")]
    assert yard.ended == [pid]


async def test_a_predecessors_worker_is_told_to_go(yard: Yard) -> None:
    ours, theirs = socket.socketpair()
    fds = [yard.listener.fileno(), theirs.fileno()]
    argv = [sys.executable, *worker_crew._PROGRAM, *map(str, fds)]
    process = subprocess.Popen(argv, pass_fds=fds)
    theirs.close()
    ours.sendall(json.dumps({"name": "worker-4-0", "slot": 0, "log_level": "info"}).encode() + b"\n")
    assert await asyncio.to_thread(ours.recv, 100) == b'{"ready": true}\n'
    yard.crew.let_go(Heir(name="worker-4-0", pid=process.pid, control=ours.detach()))
    assert yard.ended == []
    await yard.crew.see_off()
    assert yard.ended == [process.pid]
    assert yard.ends() == {"worker-4-0": "as told"}
    process.wait()  # nothing is left to wait for; Popen only has to know
