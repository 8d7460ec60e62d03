"""SIGHUP replaces the workers without a refused connection; SIGTERM leaves no request without its answer.

A request is in hand once it has come whole. What may be turned away by a stop is a connection that has asked for nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import fleet
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from OpenSSL import SSL
from patience import wait_for_file, wait_until
from postgres_fixture import Database

PATH = "/.well-known/est/campus-north/simpleenroll"
_WAITING_ORDERS = "estd_waiting_requests"


class Site:
    """A quickstart server of this test's own; with a database that outlives it, where one is given."""

    def __init__(self, directory: Path, database: Database | None = None) -> None:
        self.directory = directory / "site"
        self.log_path = directory / "log"
        if database is not None:
            self.directory.mkdir()
            (self.directory / "estd.toml").write_text(
                f'data_directory = "data"\n[database]\nurl = "{database.url}"\n'
                '[processes]\nworkers = 1\n[est]\ndefault_ecosystem = "campus-north"\n'
            )
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
        wait_for_file(run, self.process, 60, self.log_path.read_text)
        facts = json.loads(run.read_text())
        self.address = ("127.0.0.1", int(facts["port"]))
        self.ops_port = int(facts["ops_port"])
        self.trust = x509.load_pem_x509_certificate((self.directory / "trust.pem").read_bytes())
        maker = self.directory / "bootstrap" / "campus-north"
        self.devices = fleet.make_devices(maker / "maker.pem", maker / "maker.key", 400, 1)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        wait_until(condition, seconds, self.log_path.read_text)

    def wait_until_gone(self, workers: set[int]) -> None:
        self.wait_until(lambda: not self.workers() & workers, 30)

    def connect(self, device: fleet.Device) -> fleet.Connection:
        return fleet.Connection(self.address, self.trust, device)

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

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split(" ")[0] == name)

    def counters(self) -> dict[str, float]:
        """Everything that must never go back, by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/metrics", timeout=10) as answer:
            lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines if re.match(r"\w+_(total|bucket|sum|count)\b", name)}

    def counter_files(self) -> set[str]:
        """What each scrape has to read."""
        runtime = Path(next(self.directory.rglob("lock")).read_text())
        return {path.name for path in (runtime / "metrics").iterdir()}

    def forgotten(self) -> set[str]:
        """Files of workers that are gone."""
        living = self.workers()
        owners = {name: re.search(r"_(\d+)\.", name) for name in self.counter_files()}
        return {name for name, owner in owners.items() if owner is not None and int(owner[1]) not in living}

    def is_open(self) -> bool:
        """Whether somebody still accepts connections."""
        try:
            socket.create_connection(self.address, timeout=10).close()
        except ConnectionError:
            return False
        return True

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


@pytest.fixture
def lasting(tmp_path: Path, database: Database) -> Iterator[Site]:
    """A server whose database can be asked when it has stopped."""
    site = Site(tmp_path, database)
    yield site
    site.stop()


class Traffic:
    """Fresh connections, one enrollment each, until told to stop.

    What failed before a request was sent and what failed after it are told apart: a client whose handshake is done has
    been let in.
    """

    def __init__(self, site: Site, threads: int = 4) -> None:
        self._site = site
        self._devices = iter(site.devices)
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        self.answers: list[bytes] = []
        self.turned_away: list[str] = []
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        while not self.stopped.is_set():
            with self._lock:
                device = next(self._devices, None)
            if device is None:
                return
            try:
                connection = self._site.connect(device)
            except (SSL.Error, OSError) as error:
                self.turned_away.append(repr(error))
                continue
            try:
                status, answer = connection.request("POST", PATH, device.bodies[0])
                connection.close()
            except (SSL.Error, OSError) as error:
                self.failures.append(repr(error))
                continue
            if status == 200:
                self.answers.append(answer)
            else:
                self.failures.append(str(status))

    def finish(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)


def read_certificate(answer: bytes) -> bytes:
    """The DER of the certificate in an answer."""
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))
    return certificate.public_bytes(Encoding.DER)


async def find_issued(database: Database) -> list[bytes]:
    """What that database says was issued to devices."""
    rows = await database.fetch(
        "SELECT der FROM certificate JOIN ecosystem USING (ecosystem_id) WHERE label = 'campus-north'"
    )
    return [row["der"] for row in rows]


@pytest.mark.slow
def test_a_reload_refuses_nobody(site: Site) -> None:
    """And costs nothing that was counted, nor leaves files behind for each worker that was replaced."""
    traffic = Traffic(site)
    files: set[int] = set()
    counted: list[dict[str, float]] = [{}]
    for _ in range(3):
        before = site.workers()
        site.process.send_signal(signal.SIGHUP)
        site.wait_until_gone(before)
        assert site.workers()
        site.wait_until(lambda: not site.forgotten(), 10)
        counted.append(site.counters())
        files.add(len(site.counter_files()))
    traffic.finish()
    assert len(files) == 1
    for earlier, later in pairwise(counted):
        assert {name: value for name, value in earlier.items() if later[name] < value} == {}
    assert counted[-1]['estd_requests_total{operation="simpleenroll",outcome="ok"}'] > 0
    assert traffic.turned_away == []
    assert traffic.failures == []
    assert traffic.answers


def test_wrong_settings_are_not_taken_over(site: Site) -> None:
    before = site.workers()
    settings = site.directory / "estd.toml"
    good = settings.read_text()
    settings.write_text(good + '\n[colour]\nshade = "blue"\n')
    site.process.send_signal(signal.SIGHUP)
    site.wait_until(lambda: "settings not reloaded" in site.log, 10)
    assert "colour" in site.log
    assert site.workers() == before
    device = site.devices[0]
    assert site.connect(device).request("POST", PATH, device.bodies[0])[0] == 200


def test_a_reload_that_meets_a_broken_disk_is_not_the_last(site: Site) -> None:
    before = site.workers()
    trust = next((site.directory / "data").rglob("server-trust.pem"))
    kept = trust.with_name("kept")
    trust.rename(kept)
    trust.mkdir()  # stands for whatever keeps a file from being read or written
    site.process.send_signal(signal.SIGHUP)
    site.wait_until(lambda: "reload failed; the old workers stay" in site.log, 10)
    assert "a supervisor task failed" not in site.log
    assert site.workers() == before
    trust.rmdir()
    kept.rename(trust)
    site.process.send_signal(signal.SIGHUP)
    site.wait_until_gone(before)
    device = site.devices[0]
    assert site.connect(device).request("POST", PATH, device.bodies[0])[0] == 200


async def test_a_stop_answers_every_request_in_hand(lasting: Site, database: Database) -> None:
    """The database holds all commits back: one group is on its way, the others wait for theirs."""
    first, *others = lasting.devices[:25]

    def ask(device: fleet.Device) -> tuple[int, bytes]:
        connection = lasting.connect(device)
        try:
            return connection.request("POST", PATH, device.bodies[0])
        finally:
            connection.close()

    with ThreadPoolExecutor(len(others) + 1) as threads:
        async with database.session() as session, session.transaction():
            await session.execute("LOCK TABLE intent IN EXCLUSIVE MODE")
            asked = [threads.submit(ask, first)]
            while not await database.fetch("SELECT 1 FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            asked += [threads.submit(ask, device) for device in others]
            while lasting.metric(_WAITING_ORDERS) < len(others):
                await asyncio.sleep(0.05)

            os.kill(lasting.process.pid, signal.SIGTERM)
            while lasting.is_open():
                await asyncio.sleep(0.01)
            assert lasting.process.poll() is None
            assert not any(answer.done() for answer in asked)
            assert await find_issued(database) == []
        answers = [answer.result(60) for answer in asked]
    assert lasting.process.wait(40) == 0, lasting.log
    assert {status for status, _ in answers} == {200}
    assert {read_certificate(answer) for _, answer in answers} == set(await find_issued(database))
    assert await database.fetch("SELECT 1 FROM unresolved_intent") == []


async def test_a_stop_under_load_leaves_nobody_without_an_answer(lasting: Site, database: Database) -> None:
    traffic = Traffic(lasting, threads=8)
    while len(traffic.answers) < 20:
        await asyncio.sleep(0.01)
    os.kill(lasting.process.pid, signal.SIGTERM)
    assert lasting.process.wait(40) == 0, lasting.log
    traffic.finish()
    assert traffic.failures == []
    # Each answer is on record, and everything on record was an answer that arrived.
    assert sorted(map(read_certificate, traffic.answers)) == sorted(await find_issued(database))
    assert await database.fetch("SELECT 1 FROM unresolved_intent") == []
    assert traffic.turned_away, "the stop came after the last device"


def test_a_stop_hears_whoever_has_been_let_in(lasting: Site) -> None:
    devices = lasting.devices[:3]
    connections = [lasting.connect(device) for device in devices]
    os.kill(lasting.process.pid, signal.SIGTERM)
    for connection, device in zip(connections, devices, strict=True):
        assert connection.request("POST", PATH, device.bodies[0])[0] == 200
    assert lasting.process.wait(40) == 0, lasting.log
