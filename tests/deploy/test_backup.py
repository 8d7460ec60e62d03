"""The runbook of ``docs/backup.md``, carried out: its commands, on a real PostgreSQL with real certificates."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from production_postgres import SHIPPED
from production_site import ECOSYSTEM, Site

from estd.store.migrator import migrate

PAGE = (Path(__file__).parents[2] / "docs" / "backup.md").read_text(encoding="utf-8")


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
        options = shipped("pg_basebackup --pgdata=/srv/backup/base")
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
    journal = site.data / "journal"
    tried = site.estd("estd_admin", "audit", "reconcile", "--dry-run", "--journal", journal)
    assert tried.returncode == lost, tried.stdout + tried.stderr
    done = site.estd("estd_admin", "audit", "reconcile", "--journal", journal)
    assert done.returncode == 0, done.stdout + done.stderr
    # Step 5.
    verified = site.estd("estd_auditor", "audit", "verify", "--journal", journal)
    assert verified.returncode == 0, verified.stdout + verified.stderr
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
    for part in ("pg_basebackup ", restore, "recovery.signal", "audit reconcile --dry-run"):
        assert part in PAGE
    assert "/var/lib/estd-archive" in (SHIPPED / "estd.conf").read_text()


def count(site: Site) -> int:
    return int(site.postgres.psql("estd", "-c", "SELECT count(*) FROM certificate"))


def shipped(beginning: str) -> list[str]:
    """The other options with which the page calls a program."""
    line = re.search(rf"^{re.escape(beginning)}(.*)$", PAGE, re.MULTILINE)
    assert line is not None, beginning
    return line[1].split()
