"""Workers and signers are killed at random while 200 requests are in flight; a checker of its own counts what is left.

The devices behave like devices: they send the same CSR again until they have an answer. The checker shares no code with
the road under test: it compares what each device holds with the rows of the database.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import asyncpg
import fleet
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7
from OpenSSL import SSL

from estd.store.private import PrivatePostgres

DEVICES = 200
REQUESTS_EACH = 4
KILLS_EACH = 10
PATH = "/.well-known/est/campus-north/simpleenroll"
PATIENCE_SECONDS = 90.0


def children_of(pid: int, word: str) -> list[int]:
    """Process ids below `pid` whose command line holds `word`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            command = (status.parent / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if parent == pid and word in command:
            found.append(int(status.parent.name))
    return found


class Storm:
    """Devices that insist, and what each of them was answered."""

    def __init__(self, address: tuple[str, int], trust: x509.Certificate, devices: list[fleet.Device]) -> None:
        self._address = address
        self._trust = trust
        self._devices = devices
        self.answers: dict[bytes, list[bytes]] = {}
        self.refusals: Counter[str] = Counter()
        self.retries = 0
        self.gave_up: list[str] = []
        self._lock = threading.Lock()

    def run_device(self, device: fleet.Device) -> None:
        for body in device.bodies:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                connection = None
                try:
                    connection = fleet.Connection(self._address, self._trust, device)
                    status, answer = connection.request("POST", PATH, body)
                    # Every fourth device loses its first answer on the way and asks again.
                except (SSL.Error, OSError):
                    with self._lock:
                        self.retries += 1
                    time.sleep(0.05)
                    continue
                finally:
                    if connection is not None:
                        connection.close()
                if status == 200:
                    with self._lock:
                        self.answers.setdefault(body, []).append(answer)
                        enough = len(self.answers[body]) == 1 + (hash(device.name) % 4 == 0)
                    if enough:
                        break
                    continue
                with self._lock:
                    self.refusals[str(status)] += 1
                if status != 503:
                    break
                time.sleep(0.2)
            else:
                self.gave_up.append(device.name)

    def start(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self.run_device, args=(device,), daemon=True) for device in self._devices]
        for thread in threads:
            thread.start()
        return threads


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_every_device_ends_with_exactly_one_certificate(tmp_path: Path) -> None:
    site = tmp_path / "site"
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(
        [Path(sys.executable).parent / "estd", "quickstart", "--dir", site, "--port", "0", "--ops-port", "0"],
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
    )
    try:
        await storm(server, site, tmp_path)
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    assert status == 0, (tmp_path / "log").read_text()[-3000:]


async def storm(server: subprocess.Popen[bytes], site: Path, tmp_path: Path) -> None:
    run = site / "run.json"
    deadline = time.monotonic() + 60
    while not run.exists():
        assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    maker = site / "bootstrap" / "campus-north"
    devices = fleet.make_devices(maker / "maker.pem", maker / "maker.key", DEVICES, REQUESTS_EACH)
    trust = x509.load_pem_x509_certificate((site / "trust.pem").read_bytes())
    details = json.loads(run.read_text())
    rehearsal = Storm(("127.0.0.1", details["port"]), trust, devices)
    threads = rehearsal.start()
    kills = ["estd.app.worker"] * KILLS_EACH + ["estd.signer"] * KILLS_EACH
    killed = Counter[str]()
    while kills:
        time.sleep(0.05 + secrets.randbelow(250) / 1000)
        word = kills[secrets.randbelow(len(kills))]
        victims = children_of(server.pid, word)
        if victims:
            os.kill(victims[secrets.randbelow(len(victims))], signal.SIGKILL)
            kills.remove(word)
            killed[word] += 1
    for thread in threads:
        thread.join(PATIENCE_SECONDS * REQUESTS_EACH)
    assert killed == {"estd.app.worker": KILLS_EACH, "estd.signer": KILLS_EACH}
    assert rehearsal.retries > 0
    assert rehearsal.gave_up == []
    assert set(rehearsal.refusals) <= {"503"}, rehearsal.refusals
    assert len(rehearsal.answers) == DEVICES * REQUESTS_EACH
    url = PrivatePostgres(site / "data" / "postgres").status().url
    assert url is not None
    await check(url, rehearsal.answers)


async def check(url: str, answers: dict[bytes, list[bytes]]) -> None:
    """The checker: what the devices hold against what the database says."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT i.csr_sha256, i.request_key, i.closed, c.der AS certificate FROM intent i"
            " LEFT JOIN certificate c ON c.issuer_id = i.issuer_id AND c.serial = i.serial"
        )
    finally:
        await connection.close()
    stored = {bytes(row["certificate"]) for row in rows if row["certificate"] is not None}
    received: dict[bytes, bytes] = {}
    for body, replies in answers.items():
        certificates = {read_reply(reply) for reply in replies}
        assert len(certificates) == 1, "one request was answered with two different certificates"
        (certificate,) = certificates
        assert certificate in stored, "a device holds a certificate that is not on record"
        received[body] = certificate
    assert len(set(received.values())) == len(received), "two requests got one certificate"
    standing = Counter(bytes(row["request_key"]) for row in rows if row["closed"] is None)
    assert max(standing.values()) == 1, "two intents hold one request key"
    by_csr: dict[bytes, list[asyncpg.Record]] = {}
    for row in rows:
        by_csr.setdefault(bytes(row["csr_sha256"]), []).append(row)
    from hashlib import sha256

    for body, certificate in received.items():
        attempts = by_csr[sha256(base64.b64decode(body)).digest()]
        valid = [bytes(row["certificate"]) for row in attempts if row["certificate"] is not None]
        assert valid == [certificate], "a request left more than one certificate behind"
        # An intent that was closed was proved never to have been signed.
        assert {row["closed"] for row in attempts if row["certificate"] is None} <= {"void"}


def read_reply(reply: bytes) -> bytes:
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(reply))
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)
