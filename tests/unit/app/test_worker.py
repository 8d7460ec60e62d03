"""What a worker process is told; that it serves, drains and ends is in tests/integration and tests/chaos."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from patience import until

from estd.app import worker
from estd.app.worker import WorkerSettings

SETTINGS = WorkerSettings(
    name="worker-1-0",
    slot=0,
    database_url="postgresql://estd:secret-password@127.0.0.1:1/estd",
    signer_sockets=["/nowhere/signer-0.sock"],
    tls_chain="the chain",
    tls_key="the secret key",
    metrics_directory="",
    log_level="info",
)


def test_no_secret_is_shown() -> None:
    """A log line or a traceback shows `repr`, rich's tracebacks `__rich_repr__`."""
    for shown in (repr(SETTINGS), str([SETTINGS]), str(SETTINGS.__rich_repr__())):
        assert "secret" not in shown
        assert "worker-1-0" in shown
        assert "/nowhere/signer-0.sock" in shown
    assert msgspec.convert(json.loads(msgspec.json.encode(SETTINGS)), WorkerSettings) == SETTINGS, "it is told them all"


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, socket.socket]]:
    """A worker that waits for its settings, and our end of its control channel."""
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:
        descriptors = (listener.fileno(), theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "estd.app.worker",
            *map(str, descriptors),
            pass_fds=descriptors,
            stderr=asyncio.subprocess.PIPE,
        )
        theirs.close()
        try:
            yield process, ours
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_without_a_supervisor_it_ends(started: tuple[asyncio.subprocess.Process, socket.socket]) -> None:
    process, end = started
    end.close()
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")


async def test_a_database_that_is_away_is_told_without_its_password(
    started: tuple[asyncio.subprocess.Process, socket.socket], tmp_path: Path
) -> None:
    process, end = started
    end.sendall(msgspec.json.encode(msgspec.structs.replace(SETTINGS, metrics_directory=str(tmp_path))) + b"\n")
    _, said = await process.communicate()
    assert process.returncode == 1
    last = json.loads(said.splitlines()[-1])
    assert (last["message"], last["code"]) == ("cannot start", "store-unavailable")
    assert b"secret" not in said


class Clumsy:
    """Shows its gauges, and says its limits, unless it fails with one or the other."""

    def __init__(self) -> None:
        self.shown = 0
        self.reported = 0

    def refresh_gauges(self) -> None:
        self.shown += 1
        if self.shown == 1:
            raise OSError("no room for the counters")

    async def report_limits(self) -> None:
        self.reported += 1
        if self.reported == 1:
            raise KeyError("no such limit")


async def test_metrics_are_shown_after_any_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.app.tasks._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(worker, "_GAUGE_SECONDS", 0.0)
    clumsy = Clumsy()
    refreshing = asyncio.ensure_future(worker._refresh(clumsy))
    await until(lambda: clumsy.reported >= 3 or refreshing.done())
    assert not refreshing.done()
    refreshing.cancel()
    await asyncio.wait({refreshing})
    assert refreshing.cancelled()
