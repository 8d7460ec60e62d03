"""A whole server one of whose processes hangs: devices go on at once, it is named, and it is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator

import fleet
import pytest
from patience import wait_until
from stage import Process, Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage(workers=1, signers=2) as made:
        made.start()
        yield made


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if process.alive:
            os.kill(process.pid, signal.SIGCONT)


def enroll(stage: Stage, device: fleet.Device) -> int:
    connection = fleet.Connection(stage.address, stage.trust, device)
    status, _ = connection.request("POST", stage.path(), device.bodies[0])
    connection.close()
    return status


def said(stage: Stage, message: str) -> list[dict[str, object]]:
    lines = stage.log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in told if line.get("message") == message]


def readiness(stage: Stage) -> tuple[int, dict[str, dict[str, str]]]:
    status, text = stage.readiness()
    return status, json.loads(text)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_signer_that_hangs_costs_no_device_its_certificate(stage: Stage) -> None:
    devices = stage.devices(12)
    assert enroll(stage, devices[0]) == 200
    # The worker is at home at the first signer, so each that asks alone would be sent there.
    first = min(stage.of_role("signer"), key=lambda process: (process.started, process.pid))
    with stopped(first):
        assert [enroll(stage, device) for device in devices[1:8]] == [200] * 7
        # One request found out, and no other was sent there.
        assert len(said(stage, "a signer does not answer; others are asked as long as there are any")) == 1
        wait_until(lambda: readiness(stage)[1].get("impaired"), 20, stage.log_tail)
        status, told = readiness(stage)
        assert (status, told["status"], told["missing"]) == (200, "ready", {})
        assert list(told["impaired"]) == ["signer-0"]
        assert len(said(stage, "a child does not answer")) == 1
        wait_until(lambda: not first.alive, 60, stage.log_tail)
    wait_until(lambda: len(stage.of_role("signer")) == 2 and "impaired" not in readiness(stage)[1], 30, stage.log_tail)
    (killed,) = said(stage, "a child hangs and is killed")
    assert (killed["child"], killed["pid"]) == ("signer-0", first.pid)
    assert [enroll(stage, device) for device in devices[8:]] == [200] * 4
    assert stage.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_stop_is_through_in_time_although_everything_hangs(stage: Stage) -> None:
    """Before systemd's patience is over (TimeoutStopSec of the unit), or the database would be killed with the rest."""
    hung = [*stage.of_role("signer"), *stage.of_role("worker")]
    with contextlib.ExitStack() as all_of_them:
        for process in hung:
            all_of_them.enter_context(stopped(process))
        assert stage.stop() == 0  # it gives up after sixty seconds
        assert not any(process.alive for process in hung)
    killed = said(stage, "child did not stop and is killed")
    assert sorted(str(line["child"]) for line in killed) == ["signer-0", "signer-1", "worker-1-0"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_successor_does_not_wait_for_a_signer_that_hangs() -> None:
    """It is ended before the program on disk takes over, so the ops port is not away for as long as that would take."""
    with Stage(workers=1, signers=2) as stage:
        settings = stage.place.settings
        settings.write_text(settings.read_text().replace('level = "warning"', 'level = "info"'))
        stage.start()
        (device,) = stage.devices(1)
        first = min(stage.of_role("signer"), key=lambda process: (process.started, process.pid))
        with stopped(first):
            os.kill(stage.of_role("supervisor")[0].pid, signal.SIGUSR2)
            wait_until(lambda: said(stage, "the program on disk takes over"), 60, stage.log_tail)
            assert not first.alive
        wait_until(lambda: len(said(stage, "serving")) == 2, 60, stage.log_tail)
        assert readiness(stage)[0] == 200
        assert len(stage.of_role("signer")) == 2
        assert enroll(stage, device) == 200
        assert [line["child"] for line in said(stage, "child did not stop and is killed")] == ["signer-0"]
        assert stage.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_worker_that_hangs_is_replaced(stage: Stage) -> None:
    devices = stage.devices(2)
    assert enroll(stage, devices[0]) == 200
    (worker,) = stage.of_role("worker")
    with stopped(worker):
        wait_until(lambda: readiness(stage)[0] == 503, 20, stage.log_tail)
        assert readiness(stage)[1]["missing"]["workers"].startswith("worker-1-0: it has not answered for ")
        wait_until(lambda: not worker.alive, 60, stage.log_tail)
    wait_until(lambda: readiness(stage)[0] == 200, 30, stage.log_tail)
    assert enroll(stage, devices[1]) == 200
    assert stage.stop() == 0
