"""A database that was set back to an older state: what is missing is told exactly, and everything comes back.

A real server, whose private cluster is copied while it is stopped; more certificates; the copy put in its place. Then either
``estd audit reconcile`` is run, or the server is simply started again. What devices hold is the judge.
"""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from factory import make_csr, make_name
from line import Line, basic
from live_server import Device, make_device
from patience import wait_for_file

from estd.store.private import PrivatePostgres

LABEL = "campus-north"


class Site:
    """A quickstart server that is stopped and started, and whose database is taken away."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / "site"
        self.log_path = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        run = self.directory / "run.json"
        run.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [ESTD, "quickstart", "--dir", self.directory, "--port", "0", "--ops-port", "0"],
            stdout=self.log_path.open("ab"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        wait_for_file(run, self.process, 90, self.log_path.read_text)
        self.port = int(json.loads(run.read_text())["port"])

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0, self.log
            self.process = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def keep_database(self, name: str) -> None:
        """Copy the database; the server does not run."""
        source = self.directory / "data" / "postgres" / "data"
        subprocess.run(["cp", "-a", source, source.with_name(name)], check=True)

    def set_back(self, name: str) -> None:
        """Put a copy in the place of the database."""
        source = self.directory / "data" / "postgres" / "data"
        shutil.rmtree(source)
        source.with_name(name).rename(source)

    def audit(self, *arguments: str | Path) -> tuple[int, dict[str, Any], str]:
        """``estd audit …``: its status, its answer, and what it complained of."""
        done = subprocess.run(
            [ESTD, "audit", *arguments, "--dir", self.directory, "--json"], capture_output=True, text=True, timeout=100
        )
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    async def execute(self, statement: str) -> None:
        """Change the database of a server that does not run."""
        private = PrivatePostgres(self.directory / "data" / "postgres")
        connection = await asyncpg.connect(await asyncio.to_thread(private.start))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()
            await asyncio.to_thread(private.stop)

    def line(self, device: Device | None = None) -> Line:
        trust = self.directory / "trust.pem"
        return Line(self.port, trust) if device is None else Line(self.port, trust, device.certificate, device.key)


ESTD = Path(sys.executable).with_name("estd")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # A short path, which the account that PostgreSQL runs under may enter.
    with tempfile.TemporaryDirectory(prefix="estd-rec-") as temporary:
        path = Path(temporary)
        path.chmod(0o755)
        yield path


class Fleet:
    """Devices of one maker, what each of them asked for, and what it got."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        bootstrap = site.directory / "bootstrap" / LABEL
        maker = x509.load_pem_x509_certificate((bootstrap / "maker.pem").read_bytes())
        key: Any = load_pem_private_key((bootstrap / "maker.key").read_bytes(), None)
        self.devices = [make_device(folder, f"d{number:03d}", maker, key) for number in range(12)]
        self.requests: dict[str, bytes] = {}
        self.answers: dict[str, bytes] = {}
        with (bootstrap / "codes.csv").open(encoding="utf-8", newline="") as file:
            self.codes = [(row["device"], row["code"]) for row in csv.DictReader(file)]

    def enroll(self, device: Device) -> bytes:
        """Ask, with the same request as before if there was one; the certificate, DER."""
        request = self.requests.setdefault(device.name, make_csr(device.x509.subject))
        with self.site.line(device) as line:
            answer = line.enroll(LABEL, request)
        return answer.certificate.public_bytes(Encoding.DER)

    def enroll_by_code(self, number: int, request: bytes) -> Any:
        device, code = self.codes[number]
        with self.site.line() as line:
            return line.enroll(LABEL, request, basic(device, code))


def serials(certificates: list[bytes]) -> set[str]:
    return {_serial(certificate) for certificate in certificates}


def _serial(certificate: bytes) -> str:
    number = x509.load_der_x509_certificate(certificate).serial_number
    return number.to_bytes(number.bit_length() // 8 + 1, "big").hex()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_the_database_forgot_comes_back_byte_for_byte(folder: Path) -> None:
    site = Site(folder)
    site.start()
    try:
        fleet = Fleet(site, folder)
        before = {device.name: fleet.enroll(device) for device in fleet.devices[:4]}
        site.stop()
        site.keep_database("older")
        site.keep_database("older-still")
        site.start()
        after = {device.name: fleet.enroll(device) for device in fleet.devices[4:]}
        name, _ = fleet.codes[0]
        coded = make_csr(make_name(name))
        by_code = fleet.enroll_by_code(0, coded).certificate.public_bytes(Encoding.DER)
        # A retry that spans the loss: asked for before, and again after.
        assert fleet.enroll(fleet.devices[0]) == before[fleet.devices[0].name]
        site.stop()
        lost = [*after.values(), by_code]

        received = folder / "received"
        received.mkdir(exist_ok=True)
        for number, certificate in enumerate([*before.values(), *lost]):
            (received / f"{number}.der").write_bytes(certificate)
        status, found, complaint = site.audit("verify", "--received", received)
        assert (status, found["breaches"]) == (0, []), complaint
        site.keep_database("newest")

        # --- set back, and reconciled by hand --------------------------------------------------------------------------
        site.set_back("older")
        status, found, _ = site.audit("verify", "--received", received)
        assert status == 1
        missing = [one for one in found["breaches"] if one["invariant"] == "ii"]
        assert {one["serial"] for one in missing} == serials(lost)
        assert len(missing) == len(lost)
        assert all("journal-" in one["where"] and ".log:" in one["where"] for one in missing)
        assert {one["serial"] for one in found["breaches"] if one["invariant"] == "i"} == serials(lost)

        status, planned, _ = site.audit("reconcile", "--dry-run")
        assert (status, planned["missing"], planned["restored"]) == (1, len(lost), [])
        status, done, complaint = site.audit("reconcile")
        assert status == 0, complaint
        assert set(done["restored"]) == serials(lost), (done, complaint)
        assert (done["orphans"], done["doubles"], done["failed"]) == ([], [], [])
        status, again, _ = site.audit("reconcile")
        assert (status, again["missing"], again["restored"]) == (0, 0, [])

        status, found, _ = site.audit("verify", "--received", received)
        assert (status, found["breaches"]) == (0, [])
        assert found["counts"]["received"] == len(before) + len(lost)
        assert any("set back" in notice for notice in found["notices"])

        site.start()
        for device in fleet.devices[4:]:
            assert fleet.enroll(device) == after[device.name]
        assert fleet.enroll_by_code(0, coded).certificate.public_bytes(Encoding.DER) == by_code
        refused = fleet.enroll_by_code(0, make_csr(make_name(name)))
        assert (refused.status, refused.code) == (403, "code-spent")
        site.stop()

        # --- set back, and simply started ------------------------------------------------------------------------------
        site.set_back("older-still")
        site.start()
        assert "the database was reconciled" in site.log
        for device in fleet.devices[4:]:
            assert fleet.enroll(device) == after[device.name]
        new = make_csr(make_name(fleet.codes[1][0]))
        assert fleet.enroll_by_code(1, new).status == 200
        site.stop()
        status, found, _ = site.audit("verify", "--received", received)
        assert (status, found["breaches"]) == (0, [])

        # --- what must not be done -------------------------------------------------------------------------------------
        journal = site.directory / "data" / "journal"
        kept = journal.with_name("journal-kept")
        shutil.copytree(journal, kept)
        site.start()
        fleet.requests.clear()
        for device in fleet.devices:
            fleet.enroll(device)
        site.stop()
        newest = journal.with_name("journal-newest")
        journal.rename(newest)
        kept.rename(journal)
        journal.chmod(0o700)
        status, _, complaint = site.audit("reconcile")
        assert status == 2
        assert "older than the database" in complaint
        # The server does not go on from it either: the signer whose journal is older says so, and nothing is issued.
        with pytest.raises(AssertionError):
            site.start()
        assert "had reached" in site.log
        site.kill()
        shutil.rmtree(journal)
        newest.rename(journal)

        # --- journals that are not here --------------------------------------------------------------------------------
        status, found, _ = site.audit("reconcile")
        assert (status, found["journals_absent"]) == (0, [])
        gone = f"1-{'0' * 16}"
        asyncio.run(
            site.execute(
                f"UPDATE intent SET journal = '{gone}.5.{'0' * 16}' WHERE serial = "
                "(SELECT serial FROM certificate ORDER BY issued_at DESC LIMIT 1)"
            )
        )
        status, found, _ = site.audit("reconcile")
        assert (status, found["journals_absent"]) == (1, [gone])
        status, found, _ = site.audit("reconcile", "--partial")
        assert (status, found["journals_absent"]) == (0, [gone])
        asyncio.run(site.execute(f"UPDATE intent SET journal = '{gone}.5.{'0' * 16}'"))
        status, _, complaint = site.audit("reconcile")
        assert (status, "--partial" in complaint) == (2, True)
        status, found, _ = site.audit("reconcile", "--partial")
        assert (status, found["journals_absent"]) == (0, [gone])
    finally:
        site.stop()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_another_systems_journals_are_refused(folder: Path) -> None:
    sites = [Site(folder / name) for name in ("one", "other")]
    for site in sites:
        site.directory.parent.mkdir()
        site.directory.parent.chmod(0o755)
        site.start()
        site.stop()
    strange = sites[1].directory / "data" / "journal"
    status, _, complaint = sites[0].audit("reconcile", "--journal", strange)
    assert status == 2
    assert "not those of this database" in complaint
    status, found, _ = sites[0].audit("verify", "--journal", strange)
    assert status == 1
    assert {one["invariant"] for one in found["breaches"]} >= {"i", "ii"}
