"""The shipped settings, roles and rights, in force in a real PostgreSQL, with a real estd working under them."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
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
