"""The shipped settings, roles and rights, in force in a real PostgreSQL, with a real estd working under them."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from patience import wait_until
from production_postgres import SHIPPED
from production_site import ECOSYSTEM, Site

from estd.store.migrator import migrate


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
    assert shipped["ssl"] == "on"
    assert shipped["listen_addresses"] == "'*'"
    for name, value in shipped.items():
        if name.startswith("ssl") or name == "listen_addresses":
            continue  # the wheel's has no TLS and listens on loopback; see test_postgresql_tls.py
        wanted = site.postgres.adapt(value.strip("'"))
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


def test_base_backups_are_let_in(site: Site) -> None:
    """The superuser's by its socket, as docs/backup.md takes it, and a standby's by its role."""
    postgres = site.postgres
    options = ("--checkpoint=fast", "--wal-method=stream", "-p", str(postgres.port))
    for name, host, role in (("base", str(postgres.sockets), "postgres"), ("standby", "127.0.0.1", "estd_standby")):
        place = ("-h", host, "-U", role)
        target = site.folder / name
        postgres.launcher.own_directory(target)
        postgres.run("pg_basebackup", "-D", str(target), *options, *place, password=postgres.passwords.get(role))
        assert (target / "backup_manifest").exists()


def test_every_role_that_is_let_in_exists(site: Site) -> None:
    lines = [line.split() for line in (SHIPPED / "pg_hba.conf").read_text().splitlines() if line[:1].isalpha()]
    roles = site.postgres.psql("postgres", "-c", "SELECT rolname, rolreplication FROM pg_roles").split()
    existing = dict(row.split("|") for row in roles)
    assert {line[2] for line in lines} <= set(existing)
    assert {name for name, may in existing.items() if may == "t"} == {
        line[2] for line in lines if line[1] == "replication"
    }


def archive(folder: Path, source: Path) -> int:
    """The shipped command's exit status, as PostgreSQL gives it."""
    found = re.search(r"^archive_command = '(.+)'$", (SHIPPED / "estd.conf").read_text(), re.MULTILINE)
    assert found is not None
    command = found[1].replace("/var/lib/estd-archive", str(folder))
    command = command.replace("%p", source.name).replace("%f", source.name)
    return subprocess.run(["/bin/sh", "-c", command], cwd=source.parent, check=False).returncode


def test_a_segment_may_be_archived_again_and_no_other_in_its_place(tmp_path: Path) -> None:
    """PostgreSQL asks again when it crashed before it noted that a segment is archived."""
    source, folder = tmp_path / "00000001000000000000000A", tmp_path / "archive"
    source.write_bytes(b"wal" * 1000)
    assert archive(folder, source) != 0, "there is no archive"
    folder.mkdir()
    (folder / f"{source.name}.part").write_bytes(b"half of another crash")
    assert archive(folder, source) == 0
    assert archive(folder, source) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {source.name: source.read_bytes()}
    source.write_bytes(b"other" * 600)
    assert archive(folder, source) != 0
    assert (folder / source.name).read_bytes() == b"wal" * 1000


def test_archiving_goes_on_after_a_crash_between_the_copy_and_its_note(site: Site) -> None:
    postgres = site.postgres
    archived = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver"
    switched = postgres.psql("postgres", "-c", "SELECT pg_walfile_name(pg_switch_wal())").strip()
    done = postgres.data / "pg_wal" / "archive_status" / f"{switched}.done"
    wait_until(done.exists, 60, postgres.log.read_text)
    postgres.stop(kill=True)
    done.rename(done.with_suffix(".ready"))
    postgres.start()
    wait_until(lambda: not done.with_suffix(".ready").exists(), 60, postgres.log.read_text)
    after = postgres.psql("postgres", "-c", "SELECT pg_walfile_name(pg_switch_wal())").strip()
    wait_until(lambda: postgres.psql("postgres", "-c", archived).strip() >= after, 60, postgres.log.read_text)
    assert "archive command failed" not in postgres.log.read_text()


def test_estd_serves_with_no_more_rights_than_these(migrated: Site) -> None:
    with migrated.serving():
        migrated.enroll("pump-1")
        renewed = migrated.renew("pump-1")
        assert renewed.returncode == 0, renewed.stderr
        revoke = ("cert", "revoke", "--ecosystem", "plant", "--device", "pump-1", "--yes")
        for reason in ("unspecified", "keyCompromise"):
            done = migrated.estd("estd_admin", *revoke, "--reason", reason)
            assert done.returncode == 0, done.stderr
        code = migrated.estd("estd_admin", "code", "create", "--ecosystem", "plant", "--device", "pump-9")
        assert code.returncode == 0, code.stderr
        revoked = migrated.estd("estd_admin", "code", "revoke", "pump-9", "--ecosystem", "plant")
        assert revoked.returncode == 0, revoked.stderr
        (migrated.folder / "devices.csv").write_text("device,subject\npump-9,CN=Pump 9\n")
        for command in (("import", migrated.folder / "devices.csv"), ("remove", "pump-9")):
            done = migrated.estd("estd_admin", "inventory", *command, "--ecosystem", "plant")
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
        ("estd", "UPDATE revocation SET reason = 'keyCompromise'"),
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
        ("estd_admin", "UPDATE revocation SET revoked_at = now()"),
        ("estd_admin", "UPDATE ecosystem_version SET version = 99"),
        ("estd_admin", "UPDATE issuer SET sealed_key = NULL"),
        ("estd_admin", "UPDATE enrollment_code SET secret_sha256 = ''"),
        ("estd_admin", "DELETE FROM enrollment_code"),
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
