"""The runbook of ``docs/backup.md``, carried out: its commands, on a real PostgreSQL with real certificates."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from other_users import Interpreter, find_interpreter
from production_postgres import SHIPPED
from production_site import ECOSYSTEM, Site
from transient_units import ROOT, TransientUnit, read_transient_units

from estd.store.migrator import migrate

RUNBOOK = ROOT / "docs" / "backup.md"
PAGE = RUNBOOK.read_text(encoding="utf-8")
SIGNER = "daemon"
"""Who stands for estd-signer where the tests run as root."""


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="estd-bk-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        site = Site(folder)
        site.postgres.create()
        try:
            assert asyncio.run(migrate(site.postgres.url("estd_owner")))
            site.postgres.psql("estd", "-f", str(SHIPPED / "grants.sql"), role="estd_owner")
            (folder / "plant.toml").write_text(ECOSYSTEM)
            done = site.estd("estd_admin", "apply", folder / "plant.toml")
            assert done.returncode == 0, done.stderr
            yield site
        finally:
            site.postgres.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("wal", ["all of it", "a part"])
def test_the_drill(site: Site, wal: str) -> None:
    postgres = site.postgres
    base = site.folder / "base"
    postgres.launcher.own_directory(base)
    with site.serving():
        before = site.enroll("pump-1")
        options = shipped("runuser -u postgres -- pg_basebackup --pgdata=$base")
        place = ["-h", str(postgres.sockets), "-p", str(postgres.port), "-U", "postgres"]
        postgres.run("pg_basebackup", f"--pgdata={base}", *options, *place)
        # Not pg_verifybackup: that of the wheel ends with a segmentation fault, whatever it is asked.
        after = site.enroll("pump-2")
    issued = [(folder / "device.pem").read_bytes() for folder in (before, after)]
    if wal == "all of it":
        postgres.psql("postgres", "-c", "SELECT pg_switch_wal()")
        postgres.stop()  # and the archiver takes what was switched
    else:
        postgres.stop(kill=True)  # what was not archived is gone with the machine
        for segment in postgres.archive.iterdir():
            segment.unlink()
    # Steps 2 and 3 of the runbook.
    postgres.data.rename(site.folder / "damaged")
    shutil.copytree(base, postgres.data, copy_function=shutil.copy2)
    postgres.take_over(postgres.data)
    postgres.configure(f"restore_command = 'cp {postgres.archive}/%f %p'\n")
    postgres.give("recovery.signal", "")
    postgres.start()
    postgres.wait_until_promoted()
    lost = 0 if wal == "all of it" else 1
    assert count(site) == 3 - lost, "the server's own, and the devices'"
    # Step 4.
    services = Services(site)
    tried = services.run("reconcile")
    assert tried.returncode == lost, tried.stdout
    done = services.run("reconcile", without="--dry-run")
    assert done.returncode == 0, done.stdout
    # Step 5.
    verified = services.run("verify")
    assert verified.returncode == 0, verified.stdout
    services.give_back()
    assert count(site) == 3
    with site.serving():
        for device, pem in zip(("pump-1", "pump-2"), issued, strict=True):
            der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER).hex()
            assert (
                postgres.psql("estd", "-c", f"SELECT count(*) FROM certificate WHERE der = '\\x{der}'").strip() == "1"
            )
            renewed = site.renew(device)
            assert renewed.returncode == 0, renewed.stderr


def test_the_runbook_names_what_is_tested() -> None:
    """The commands above are the page's; the page's estd commands are parsed by ``tests/test_docs.py``."""
    restore = "restore_command = 'cp /var/lib/estd-archive/%f %p'"
    for part in ("pg_basebackup ", restore, "recovery.signal", "audit reconcile --dry-run", "without `--dry-run`"):
        assert part in PAGE
    assert "/var/lib/estd-archive" in (SHIPPED / "estd.conf").read_text()


class Services:
    """The page's ``systemd-run`` lines without systemd: shipped settings, credentials where it would put them, and the user
    that owns the journals, which is another one if the tests run as root.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._journal = site.data / "journal"
        self._user = SIGNER if os.getuid() == 0 else None
        (site.folder / "python").mkdir()
        self._python = find_interpreter(site.folder / "python") if self._user else Interpreter(sys.executable)
        self._give_journals_to(self._user)
        assert self._journal.stat().st_mode & 0o077 == 0, "nobody else may read it"

    def run(self, command: str, without: str = "") -> subprocess.CompletedProcess[str]:
        """The first such command of the page."""
        unit = next(one for one in read_transient_units(RUNBOOK) if command in one.command)
        credentials = self._load(unit)
        settings = (ROOT / "deploy" / "systemd" / unit.settings.name).read_text(encoding="utf-8")
        path = self._site.folder / unit.settings.name
        path.write_text(settings.replace(f"/run/credentials/{unit.unit}.service", str(credentials)))
        places = {str(unit.settings): str(path), "/var/lib/estd-signer/journal": str(self._journal)}
        arguments = [places.get(one, one) for one in unit.command if one != without]
        given = {"CREDENTIALS_DIRECTORY": str(credentials)}
        if self._user:
            status, said = self._python.run(self._user, "-m", "estd", *arguments, env=given)
            return subprocess.CompletedProcess(arguments, status, said)
        return subprocess.run(
            [sys.executable, "-m", "estd", *arguments],
            env={**os.environ, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )

    def give_back(self) -> None:
        """The journals to whom runs the server of these tests."""
        self._give_journals_to("root")

    def _give_journals_to(self, user: str | None) -> None:
        if self._user and user:
            for path in (self._journal, *self._journal.iterdir()):
                shutil.chown(path, user)

    def _load(self, unit: TransientUnit) -> Path:
        """The credentials of that unit and no others, for its user alone."""
        url = self._site.postgres.url
        sealed = {"kek.cred": "5a" * 32, "admin-url.cred": url("estd_admin"), "auditor-url.cred": url("estd_auditor")}
        directory = self._site.folder / f"{unit.unit}.service"
        directory.mkdir(mode=0o700, exist_ok=True)
        for name, source in unit.credentials.items():
            (directory / name).write_text(sealed[source.name])
            (directory / name).chmod(0o600)  # systemd gives them no more than that
        if self._user:
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, self._user)
        return directory


def count(site: Site) -> int:
    return int(site.postgres.psql("estd", "-c", "SELECT count(*) FROM certificate"))


def shipped(beginning: str) -> list[str]:
    """The other options with which the page calls a program."""
    line = re.search(rf"^{re.escape(beginning)}(.*)$", PAGE, re.MULTILINE)
    assert line is not None, beginning
    return line[1].split()
