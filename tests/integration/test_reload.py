"""SIGHUP replaces the workers without a refused connection, and SIGTERM under load ends in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fleet
import pytest
from cryptography import x509
from OpenSSL import SSL

PATH = "/.well-known/est/campus-north/simpleenroll"


class Site:
    """A quickstart server of this test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "site"
        self.log_path = directory / "log"
        self.process = subprocess.Popen(
            [
                Path(sys.executable).parent / "estd",
                "quickstart",
                "--dir",
                self.directory,
                "--port",
                "0",
                "--ops-port",
                "0",
            ],
            stdout=self.log_path.open("wb"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        run = self.directory / "run.json"
        deadline = time.monotonic() + 60
        while not run.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)
        self.address = ("127.0.0.1", int(json.loads(run.read_text())["port"]))
        self.trust = x509.load_pem_x509_certificate((self.directory / "trust.pem").read_bytes())
        maker = self.directory / "bootstrap" / "campus-north"
        self.devices = fleet.make_devices(maker / "maker.pem", maker / "maker.key", 400, 1)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def workers(self) -> set[int]:
        found = set()
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
                command = (status.parent / "cmdline").read_text()
            except (OSError, IndexError):
                continue
            if parent == self.process.pid and "estd.app.worker" in command:
                found.add(int(status.parent.name))
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    if site.process.poll() is None:
        site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(60) == 0, site.log


class Traffic:
    """Fresh connections, one enrollment each, until told to stop; every failure is kept."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._devices = iter(site.devices)
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        self.granted = 0
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        while not self.stopped.is_set():
            with self._lock:
                device = next(self._devices, None)
            if device is None:
                return
            try:
                connection = fleet.Connection(self._site.address, self._site.trust, device)
                status, _ = connection.request("POST", PATH, device.bodies[0])
                connection.close()
            except (SSL.Error, OSError) as error:
                self.failures.append(repr(error))
                continue
            if status == 200:
                self.granted += 1
            else:
                self.failures.append(str(status))

    def finish(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)


@pytest.mark.slow
def test_a_reload_refuses_nobody(site: Site) -> None:
    traffic = Traffic(site)
    for _ in range(3):
        before = site.workers()
        site.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while site.workers() & before:
            assert time.monotonic() < deadline, site.log
            time.sleep(0.05)
        assert site.workers()
    traffic.finish()
    assert traffic.failures == []
    assert traffic.granted > 0


def test_wrong_settings_are_not_taken_over(site: Site) -> None:
    before = site.workers()
    settings = site.directory / "estd.toml"
    good = settings.read_text()
    settings.write_text(good + '\n[colour]\nshade = "blue"\n')
    site.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while "settings not reloaded" not in site.log:
        assert time.monotonic() < deadline, site.log
        time.sleep(0.05)
    assert "colour" in site.log
    assert site.workers() == before
    device = site.devices[0]
    assert fleet.Connection(site.address, site.trust, device).request("POST", PATH, device.bodies[0])[0] == 200


def test_a_stop_under_load_is_orderly_and_nobody_is_answered_with_a_fault(site: Site) -> None:
    traffic = Traffic(site)
    while traffic.granted < 20:
        time.sleep(0.01)
    os.kill(site.process.pid, signal.SIGTERM)
    assert site.process.wait(40) == 0, site.log
    traffic.finish()
    # Whoever came too late finds a closed door; nobody is answered with a fault.
    assert all("Refused" in failure or "SysCall" in failure or "Reset" in failure for failure in traffic.failures)
    assert traffic.granted >= 20
