"""Reconciling by a command with signers of its own, and below a server with its signers.

What is restored, and what must not be, is in tests/unit/ra/test_reconciliation.py; whole servers whose databases are set
back are in tests/integration/test_reconcile.py.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from factory import KEK
from one_road import Road, forget, open_road
from postgres_fixture import NOW, Database

from estd.app import reconciling
from estd.app.reconciling import catch_up, is_behind, reconcile
from estd.config import Config, default_key_path
from estd.errors import Invalid, Unavailable
from estd.ra.reconciliation import Report
from estd.signer.journal import Journal
from estd.store.postgres import PostgresStore


@dataclass
class Site:
    """What is left of a server that was stopped: settings, database, journals."""

    config: Config
    database: Database
    journals: Path
    runtime: Path
    """Where a command puts what it needs for a while."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Road]:
        """Its one road, open for a while, on the same database and the same journal."""
        async with open_road(self.database.url, self.journals.parent) as road:
            yield road

    async def reconcile(self, **options: Any) -> Report:
        made: dict[str, Any] = {"dry_run": False, "partial": False, "advance": lambda _what, _count: None} | options
        return await reconcile(self.config, made.pop("journals", [self.journals]), "ada", **made)

    async def problem(self, **options: Any) -> str:
        """Why it is refused; nothing was changed then."""
        before = await self.look()
        with pytest.raises(Invalid) as caught:
            await self.reconcile(**options)
        assert await self.look() == before
        (problem,) = caught.value.problems
        return str(problem)

    async def certificates(self) -> list[bytes]:
        return [row["der"] for row in await self.database.fetch("SELECT der FROM certificate ORDER BY serial")]

    async def look(self) -> tuple[list[str], dict[str, bytes]]:
        """Everything that a reconciliation could write."""
        tables = ("intent", "certificate", "event", "audit_link", "unresolved_intent")
        rows = [
            str(row["row"])
            for table in tables
            for row in await self.database.fetch(f"SELECT t::text AS row FROM {table} t ORDER BY 1")
        ]
        files = {str(path): path.read_bytes() for path in sorted(self.journals.glob("journal-*"))}
        return rows, files

    def assert_left_alone(self) -> None:
        """No signer of the command is left, and none of its files."""
        assert list(self.runtime.iterdir()) == []
        Journal.open(self.journals, 0, datetime.now(NOW.tzinfo)).close(datetime.now(NOW.tzinfo))  # nobody holds it


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="estd-t-") as directory:  # short, as the paths of sockets have to be
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)
        monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def site(database: Database, tmp_path: Path, valid_now: None, runtime: Path) -> Site:
    config = Config(tmp_path / "data", database_url=database.url, log_level="error")
    config.data_directory.mkdir()
    key = default_key_path(config.data_directory)
    key.write_text(KEK.hex())
    key.chmod(0o600)
    return Site(config, database, tmp_path / "journal", runtime)


@pytest.fixture
def valid_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issuers made now: a real signer goes by the real clock."""
    monkeypatch.setattr("factory.NOW", datetime.now(NOW.tzinfo).replace(microsecond=0))


async def issue(site: Site, count: int = 3) -> list[bytes]:
    """Certificates of a server that has stopped, by serial."""
    async with site.running() as road:
        for number in range(count):
            await road.enrollment.enroll(road.order(f"device-{number}"))
    return await site.certificates()


# --- by a command ------------------------------------------------------------------------------------------------------


async def test_what_is_gone_comes_back_and_no_signer_is_left(site: Site) -> None:
    certificates = await issue(site)
    await forget(site.database, *certificates[:2])
    told: list[str] = []
    report = await site.reconcile(advance=lambda what, _count: told.append(what))
    assert (report.missing, len(report.restored), report.orphans, report.failed) == (2, 2, [], [])
    assert await site.certificates() == certificates
    assert set(told) == {"journal entries", "restored"}
    (event,) = await site.database.fetch("SELECT * FROM event WHERE kind = 'audit.reconcile'")
    assert (event["outcome"], event["identity"]) == ("granted", "ada")
    site.assert_left_alone()
    before = (await site.look())[0]
    report = await site.reconcile()
    assert (report.missing, report.restored) == (0, [])
    assert (await site.look())[0] == before


async def test_a_dry_run_tells_and_changes_nothing_even_beside_a_server(site: Site) -> None:
    certificates = await issue(site)
    await forget(site.database, certificates[1])
    before = await site.look()
    with (site.config.data_directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = await site.reconcile(dry_run=True)
    assert (report.missing, report.restored) == (1, [])
    assert await site.look() == before
    assert list(site.runtime.iterdir()) == []


async def test_beside_a_server_that_runs_nothing_is_done(site: Site) -> None:
    certificates = await issue(site)
    await forget(site.database, certificates[1])
    with (site.config.data_directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await site.problem() == (
            f"{site.config.data_directory}: is in use by a running estd. "
            "Stop it first, or let it be: a server that finds its database set back reconciles it by itself."
        )
    assert len((await site.reconcile()).restored) == 1  # it has stopped


async def test_where_nothing_is_missing_no_signer_is_started(site: Site) -> None:
    """Nor is the key asked for, which whoever only looks may not have."""
    await issue(site)
    default_key_path(site.config.data_directory).unlink()
    before = await site.look()
    report = await site.reconcile()
    assert (report.entries, report.missing) == (3, 0)
    assert await site.look() == before
    (directory,) = {path.parent for path in site.journals.iterdir()}
    assert directory == site.journals


async def test_without_the_key_nothing_is_begun(site: Site) -> None:
    certificates = await issue(site)
    await forget(site.database, certificates[0])
    key = default_key_path(site.config.data_directory)
    key.unlink()
    assert str(key) in await site.problem()
    site.assert_left_alone()


async def test_with_another_key_nothing_is_half_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its issuers would not open could not be signed again: a signer that is not whole is none."""
    monkeypatch.setattr(reconciling, "_START_SECONDS", 3.0)
    certificates = await issue(site)
    await forget(site.database, certificates[0])
    default_key_path(site.config.data_directory).write_text(bytes(32).hex())
    with pytest.raises(Invalid) as caught:
        await site.reconcile()
    (problem,) = caught.value.problems
    assert str(problem) == "signer-0: did not start. Look at its last lines above; docs/signer.md explains them."
    assert await site.certificates() == certificates[1:]
    site.assert_left_alone()


async def test_each_journal_of_each_directory_has_a_signer(site: Site) -> None:
    certificates = await issue(site, 1)
    first = site.journals
    site.journals = first.parent / "other" / "journal"
    site.journals.parent.mkdir()
    store = await PostgresStore.connect(site.database.url)
    (record,) = await store.find_ecosystems()
    await store.close()
    async with open_road(site.database.url, site.journals.parent, record=record) as road:
        await road.enrollment.enroll(road.order("device-9"))
    everything = await site.certificates()
    assert len(everything) == 2
    await forget(site.database, *everything)
    report = await site.reconcile(journals=[first, site.journals])
    assert len(report.restored) == 2
    assert await site.certificates() == everything
    assert set(certificates) < set(everything)


async def test_journals_that_are_not_here_are_another_matter_in_part(site: Site) -> None:
    certificates = await issue(site)
    await forget(site.database, certificates[0])
    async with site.database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE intent SET journal = $1", f"1-{'0' * 16}.5.{'0' * 16}")
    assert "--partial" in await site.problem()
    report = await site.reconcile(partial=True, dry_run=True)
    assert (report.missing, report.absent) == (1, [f"1-{'0' * 16}"])


@pytest.mark.parametrize("wrong", ["none", "empty"])
async def test_a_directory_without_journals_is_named(site: Site, wrong: str) -> None:
    await issue(site, 1)
    directory = site.journals.parent / wrong
    if wrong == "empty":
        directory.mkdir()
    assert await site.problem(journals=[site.journals, directory]) == (
        f"{directory}: cannot be read (No such file or directory). Name the directory of the signers' journals, and be "
        "their user."
        if wrong == "none"
        else f"{directory}: holds no journal. Name the directory of the signers' journals."
    )


async def test_a_database_that_is_away_is_unavailable(site: Site) -> None:
    await issue(site, 1)
    site.config = replace(site.config, database_url=site.database.url.replace(site.database.name, "no_such"))
    with pytest.raises(Unavailable):
        await site.reconcile()
    site.assert_left_alone()


# --- below a server ----------------------------------------------------------------------------------------------------


async def test_a_database_is_behind_when_the_signers_know_more(site: Site) -> None:
    async with site.running() as road:
        assert not await is_behind(road.store, road.pool)  # nothing was ever signed
        certificate = await road.enrollment.enroll(road.order("device-1"))
        assert not await is_behind(road.store, road.pool)
        await forget(site.database, certificate)
        assert await is_behind(road.store, road.pool)


async def test_a_server_catches_up_with_its_own_signers(site: Site) -> None:
    async with site.running() as road:
        orders = [road.order(f"device-{number}") for number in range(3)]
        certificates = [await road.enrollment.enroll(order) for order in orders]
        await forget(site.database, *certificates)
        report = await catch_up(road.store, road.enrollment, site.journals, "estd serve")
        assert (len(report.restored), report.failed) == (3, [])
        assert not await is_behind(road.store, road.pool)
        # Whoever asks again gets what it got.
        assert [await road.enrollment.enroll(order) for order in orders] == certificates
    (event,) = await site.database.fetch("SELECT identity FROM event WHERE kind = 'audit.reconcile'")
    assert event["identity"] == "estd serve"


async def test_a_server_leaves_more_than_its_signers_hold_to_a_person(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.running() as road:
        certificates = [await road.enrollment.enroll(road.order(f"device-{number}")) for number in range(3)]
        await forget(site.database, *certificates)
        monkeypatch.setattr(reconciling, "_WHILE_SERVING", 2)
        before = await site.look()
        with pytest.raises(Invalid) as caught:
            await catch_up(road.store, road.enrollment, site.journals, "estd serve")
        (problem,) = caught.value.problems
        assert str(problem) == (
            "the database: lacks 3 certificates of the journals. Stop the server and run: estd audit reconcile."
        )
        assert await site.look() == before
        monkeypatch.setattr(reconciling, "_WHILE_SERVING", 3)
        assert len((await catch_up(road.store, road.enrollment, site.journals, "estd serve")).restored) == 3


async def test_other_nodes_journals_hinder_no_server(site: Site) -> None:
    """They are where those are: what this node's journals hold is restored, and the rest is left to them."""
    async with site.running() as road:
        kept = await road.enrollment.enroll(road.order("device-1"))
        async with site.database.session() as connection:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute("UPDATE intent SET journal = $1", f"1-{'0' * 16}.5.{'0' * 16}")
        lost = await road.enrollment.enroll(road.order("device-3"))
        await forget(site.database, lost)
        report = await catch_up(road.store, road.enrollment, site.journals, "estd serve")
        assert (len(report.restored), report.absent) == (1, [f"1-{'0' * 16}"])
        assert set(await site.certificates()) == {kept, lost}


async def test_a_database_that_does_not_answer_is_not_taken_for_one_that_is_whole(site: Site) -> None:
    async with site.running() as road:
        await road.enrollment.enroll(road.order("device-1"))
        away = await PostgresStore.connect(site.database.url)
        await away.close()
        with pytest.raises(Unavailable):
            await is_behind(away, road.pool)
        with pytest.raises(Unavailable):
            await catch_up(away, road.enrollment, site.journals, "estd serve")
