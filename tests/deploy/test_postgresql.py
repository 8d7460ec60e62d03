"""The shipped settings, roles and rights, in force in a real PostgreSQL, with a real estd working under them."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from production_postgres import SHIPPED, ProductionPostgres

from estd.store.migrator import migrate

ECOSYSTEM = """
[ecosystem]
label = "plant"
name = "Harbour Plant"

[[issuer]]
name = "devices"

[profile.pump]
issuer = "devices"
enroll = ["code"]
validity = "90d"
"""


class Site:
    """A PostgreSQL as shipped, and estd's commands, each with the settings of the role that gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = ProductionPostgres(folder)
        key = folder / "kek"
        key.write_text("5a" * 32)
        key.chmod(0o600)
        self.data = folder / "estd"
        self.port = 0

    def settings(self, role: str) -> Path:
        path = self.folder / f"{role}.toml"
        path.write_text(
            f'data_directory = "{self.data}"\ndatabase.url = "{self.postgres.url(role)}"\nkeys.file = "{self.folder}/kek"\n'
            'listen.address = "127.0.0.1"\nlisten.port = 0\nops.port = 0\nprocesses.workers = 1\nprocesses.signers = 1\n'
        )
        return path

    def estd(self, role: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "estd", *map(str, arguments), "--config", str(self.settings(role))]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A server, as the role of servers."""
        ready, log = self.folder / "ready.json", self.folder / "estd.log"
        command = [
            sys.executable,
            "-m",
            "estd",
            "serve",
            "--config",
            str(self.settings("estd")),
            "--ready-file",
            str(ready),
        ]
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            self.port = json.loads(ready.read_text())["port"]
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()

    def enroll(self, device: str) -> Path:
        codes = self.folder / f"{device}.csv"
        done = self.estd("estd_admin", "code", "create", "--ecosystem", "plant", "--device", device, "--out", codes)
        assert done.returncode == 0, done.stderr
        with codes.open(newline="") as file:
            code = next(csv.DictReader(file))["code"]
        (self.folder / "code").write_text(code)
        (self.folder / "code").chmod(0o600)
        done = self._as_device(device, "--device", device, "--code-file", str(self.folder / "code"))
        assert done.returncode == 0, done.stderr
        return self.folder / device

    def renew(self, device: str) -> subprocess.CompletedProcess[str]:
        return self._as_device(device, "--renew")

    def _as_device(self, device: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "estd",
            "enroll",
            "--url",
            f"https://localhost:{self.port}",
            "--label",
            "plant",
        ]
        command += ["--trust", str(self.data / "server-trust.pem"), "--out", str(self.folder / device), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="estd-pg-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        site = Site(folder)
        site.postgres.create()
        try:
            yield site
        finally:
            site.postgres.stop()


@pytest.fixture(scope="module")
def migrated(site: Site) -> Site:
    """The schema made by its owner, rights given, an ecosystem applied."""
    assert asyncio.run(migrate(site.postgres.url("estd_owner")))
    site.postgres.psql("estd", "-f", str(SHIPPED / "grants.sql"), role="estd_owner")
    (site.folder / "plant.toml").write_text(ECOSYSTEM)
    done = site.estd("estd_admin", "apply", site.folder / "plant.toml")
    assert done.returncode == 0, done.stderr
    return site


def test_every_setting_is_known_and_in_force(site: Site) -> None:
    faults = site.postgres.psql("postgres", "-c", "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL")
    assert faults == ""
    shipped = dict(re.findall(r"^([a-z_]+) = (.+)$", (SHIPPED / "estd.conf").read_text(), re.MULTILINE))
    for name, value in shipped.items():
        wanted = value.strip("'").replace("/var/lib/estd-archive", str(site.postgres.archive))
        if name.startswith("tcp_"):  # of a connection, and a Unix socket has none of it
            shown = site.postgres.psql("estd", "-c", f"SHOW {name}", role="estd_auditor").strip()
        else:
            shown = site.postgres.psql("postgres", "-c", f"SHOW {name}").strip()
        assert shown in (wanted.strip(), wanted.replace("60s", "1min")), name


def test_every_rule_of_access_is_understood(site: Site) -> None:
    rows = site.postgres.psql("postgres", "-c", "SELECT type, user_name, auth_method, error FROM pg_hba_file_rules")
    assert "|scram-sha-256|" in rows
    assert [row for row in rows.splitlines() if not row.endswith("|")] == []
    shipped = (SHIPPED / "pg_hba.conf").read_text()
    assert not re.search(r"^host\s|^hostnossl|trust|md5", shipped, re.MULTILINE), "over TLS, by SCRAM"


def test_estd_serves_with_no_more_rights_than_these(migrated: Site) -> None:
    with migrated.serving():
        migrated.enroll("pump-1")
        renewed = migrated.renew("pump-1")
        assert renewed.returncode == 0, renewed.stderr
        done = migrated.estd("estd_admin", "cert", "revoke", "--ecosystem", "plant", "--device", "pump-1")
        assert done.returncode == 0, done.stderr
        refused = migrated.renew("pump-1")
        assert refused.returncode == 1
        assert "revoked" in refused.stderr
        verified = migrated.estd("estd_auditor", "audit", "verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "permission denied" not in migrated.postgres.log.read_text()


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("estd", "INSERT INTO ecosystem_version SELECT ecosystem_id, 99, document, now(), 'x' FROM ecosystem_version"),
        ("estd", "INSERT INTO issuer (ecosystem_id, created_at, name, certificate) VALUES (1, now(), 'x', '')"),
        (
            "estd",
            "INSERT INTO enrollment_code (created_at, ecosystem_id, single_use, device, secret_sha256)"
            " VALUES (now(), 1, false, 'x', '')",
        ),
        ("estd", "DELETE FROM revocation"),
        ("estd", "INSERT INTO revocation VALUES (now(), 1, '', 'x')"),
        ("estd", "UPDATE certificate SET der = ''"),
        ("estd", "DELETE FROM event"),
        ("estd", "DELETE FROM intent"),
        ("estd", "TRUNCATE audit_link"),
        ("estd", "ALTER TABLE event DISABLE TRIGGER ALL"),
        ("estd", "DROP TRIGGER append_only ON event"),
        (
            "estd",
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        ),
        ("estd", "CREATE TABLE mine ()"),
        ("estd", "CREATE ROLE mine"),
        ("estd", "COPY event TO PROGRAM 'true'"),
        ("estd", "SET ROLE estd_owner"),
        ("estd_admin", "DELETE FROM revocation"),
        ("estd_admin", "UPDATE ecosystem_version SET version = 99"),
        ("estd_admin", "UPDATE issuer SET sealed_key = NULL"),
        ("estd_admin", "DROP TABLE event"),
        ("estd_auditor", "INSERT INTO node (kind, name) VALUES ('ecosystem', 'x')"),
        ("estd_auditor", "CREATE TABLE mine ()"),
        ("estd_auditor", "DELETE FROM event"),
    ],
)
async def test_what_a_role_may_not_do(migrated: Site, role: str, statement: str) -> None:
    connection = await asyncpg.connect(migrated.postgres.url(role))
    try:
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError)):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_wrong_password_and_another_database_are_refused(site: Site) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(site.postgres.url("estd").replace(site.postgres.passwords["estd"], "wrong"))
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(site.postgres.url("estd").replace("/estd", "/postgres"))
