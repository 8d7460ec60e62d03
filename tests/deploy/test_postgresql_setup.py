"""The steps of ``deploy/README.md`` for PostgreSQL, carried out as they stand there, on clusters of either kind, over TLS.

With the system's PostgreSQL, since the one of the wheel is built without TLS; where there is none this is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from live_server import judge
from production_postgres import SETTINGS, SHIPPED, ProductionPostgres
from production_site import ECOSYSTEM, Site

README = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
DEBIANS_OWN = """
hba_file = '/etc/postgresql/15/main/pg_hba.conf'
ssl = on
ssl_cert_file = '/etc/ssl/certs/ssl-cert-snakeoil.pem'
ssl_key_file = '/etc/ssl/private/ssl-cert-snakeoil.key'
"""


def find_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    newest = str(found[-1]) if found and int(found[-1].parts[-3]) >= 15 else "/usr/lib/postgresql/15/bin/postgres"
    return Path(judge(newest)).parent


def read_steps() -> list[str]:
    """The blocks of that section: settings and certificate, roles, schema, rights."""
    section = README.partition("\n## PostgreSQL\n")[2]
    return re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def carry_out(step: str, site: Site) -> None:
    """Run a block as the shell of root would, with places of this machine in it."""
    postgres = site.postgres
    text = postgres.adapt(step).replace("/etc/postgresql/15/main", str(postgres.data))
    text = text.replace("cd deploy/postgresql", f"cd {site.folder}/deploy/postgresql")
    text = text.replace("db.plant.example", "localhost")
    environment = {**os.environ, "PGHOST": str(postgres.sockets), "PGPORT": str(postgres.port)}
    done = subprocess.run(
        [judge("bash"), "-euo", "pipefail", "-c", text],
        cwd=site.folder / "deploy" / "postgresql",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["", DEBIANS_OWN], ids=["initdb", "Debian"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if os.getuid() != 0:
        pytest.skip("needs root, whose steps these are")
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="estd-ps-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        site = Site(folder)
        postgres = site.postgres = ProductionPostgres(folder, programs)
        if postgres.launcher.account.name != "postgres":
            pytest.skip("another account than postgres would run it")
        postgres.make_cluster(request.param)
        shutil.copytree(SHIPPED, folder / "deploy" / "postgresql")
        for file in (folder / "deploy" / "postgresql").iterdir():
            file.write_text(postgres.adapt(file.read_text().replace("192.0.2.0/28", "127.0.0.1/32")))
        settings, roles, schema, rights = read_steps()
        try:
            before, restart, after = settings.partition("systemctl restart postgresql\n")
            assert (bool(restart), after) == (True, "")
            carry_out(before, site)
            postgres.place()
            postgres.start()
            create, loop, _ = roles.partition("for role in ")
            assert loop
            carry_out(create, site)
            postgres.give_passwords()  # typed at a terminal
            assert "/opt/estd/bin/estd ecosystem list --config /etc/estd/owner.toml" in schema
            done = site.estd("estd_owner", "ecosystem", "list")
            assert done.returncode == 0, done.stderr
            carry_out(rights, site)
            yield site
        finally:
            postgres.stop()


def test_the_shipped_files_are_in_force(site: Site) -> None:
    shown = {
        name: site.postgres.psql("postgres", "-c", f"SHOW {name}").strip()
        for name in ("hba_file", "ssl", "ssl_cert_file", "ssl_key_file")
    }
    assert shown == {
        "hba_file": f"{site.postgres.settings}/pg_hba.conf",
        "ssl": "on",
        "ssl_cert_file": f"{site.postgres.settings}/postgresql.pem",
        "ssl_key_file": f"{site.postgres.settings}/postgresql.key",
    }
    assert SETTINGS not in str(shown)


def test_an_operators_command_works_by_the_url_of_the_readme(site: Site) -> None:
    (site.folder / "plant.toml").write_text(ECOSYSTEM)
    done = site.estd("estd_admin", "apply", site.folder / "plant.toml")
    assert done.returncode == 0, done.stderr
    told = re.search(r"^postgresql://estd:PASSWORD@db\.plant\.example/estd\?(\S+)$", README, re.MULTILINE)
    assert told is not None
    assert site.postgres.adapt(told[1]) == site.postgres.url("estd").partition("?")[2]


async def test_roles_come_in_over_tls_alone(site: Site) -> None:
    url = site.postgres.url("estd")
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert await connection.fetchval("SELECT has_table_privilege('certificate', 'INSERT')")
    finally:
        await connection.close()
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(url.partition("?")[0] + "?sslmode=disable")


def test_the_nightly_base_backup_is_taken_and_verified(site: Site) -> None:
    page = (SHIPPED.parents[1] / "docs" / "backup.md").read_text(encoding="utf-8")
    block = next(
        one for one in re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "pg_basebackup" in one
    )
    backup = site.folder / "backup" / "base"
    backup.parent.mkdir()
    site.postgres.launcher.own_directory(backup)
    text = block.replace("/srv/backup/base", str(backup))
    carry_out(re.sub(r"/usr/lib/postgresql/15/bin", str(site.postgres.binaries), text), site)
    (taken,) = backup.iterdir()
    assert (taken / "backup_manifest").exists()
