"""A worker follows the store whatever it finds there: other ecosystems, and above all revocations."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from factory import KEK, Party, make_device, make_maker, make_rules
from patience import until
from postgres_fixture import Database
from store_values import make_event, make_revocation

from estd.app import wiring
from estd.app.apply import apply_document
from estd.app.wiring import Worker
from estd.app.worker import WorkerSettings
from estd.errors import Code, Unavailable
from estd.ra.directory import Directory
from estd.store.contract import EcosystemRecord
from estd.store.postgres import PostgresStore

NEWER = {"format": 99, "ecosystem": {"label": "campus"}}
"""A document that a newer version wrote."""


@pytest.fixture(scope="module")
def maker() -> Party:
    return make_maker()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "_RELOAD_PAUSE_SECONDS", 0.02)


@pytest.fixture
async def both(store: PostgresStore, maker: Party) -> dict[str, EcosystemRecord]:
    """Two ecosystems on record, by label."""
    for label in ("campus", "south"):
        await apply_document(store, KEK, make_rules(maker, label), "tester")
    return {record.label: record for record in await store.find_ecosystems()}


@contextlib.asynccontextmanager
async def working(database: Database, maker: Party) -> AsyncIterator[Worker]:
    device = make_device(maker)
    worker = await Worker.build(
        WorkerSettings(
            name="worker-1-0",
            slot=0,
            database_url=database.url,
            signer_sockets=["/nowhere/signer-0.sock"],
            tls_chain=device.certificate.public_bytes(Encoding.PEM).decode(),
            tls_key=device.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            metrics_directory="",
            log_level="info",
        )
    )
    try:
        yield worker
    finally:
        await worker.drain(1.0, 0.0)


def directory_of(worker: Worker) -> Directory:
    return worker._est.directory


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("estd.")]


async def test_what_it_cannot_read_of_one_ecosystem_keeps_nothing_else_from_it(
    store: PostgresStore,
    both: dict[str, EcosystemRecord],
    database: Database,
    maker: Party,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with working(database, maker) as worker:
        await store.record_ecosystem("campus", NEWER, [], 1, "a newer version", make_event())
        await until(lambda: directory_of(worker).unread == {both["campus"].ecosystem_id: 2})
        issuer = both["south"].issuers[-1].issuer_id
        await store.record_revocation(make_revocation(issuer, b"\x07"), make_event())
        await until(lambda: (issuer, b"\x07") in directory_of(worker).revoked)
        await apply_document(store, KEK, make_rules(maker, "south", 'csrattrs = "off"'), "tester")
        await until(lambda: directory_of(worker).find_place("south").ecosystem.version == 2)
        assert directory_of(worker).find_place("campus").ecosystem.version == 1
        assert messages(caplog).count("an ecosystem cannot be read") == 1


async def test_one_that_starts_then_tells_devices_to_come_back(
    store: PostgresStore, both: dict[str, EcosystemRecord], database: Database, maker: Party
) -> None:
    await store.record_ecosystem("campus", NEWER, [], 1, "a newer version", make_event())
    async with working(database, maker) as worker:
        with pytest.raises(Unavailable) as caught:
            directory_of(worker).find_place("campus")
        assert caught.value.code is Code.STORE_UNAVAILABLE
        assert directory_of(worker).find_place("south").ecosystem.version == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Unavailable(Code.STORE_UNAVAILABLE, "the database does not answer"), "ecosystems could not be read again"),
        (ZeroDivisionError("what nobody foresaw"), "ecosystems could not be read again for a fault of ours"),
    ],
)
async def test_it_follows_again_after_any_fault(
    store: PostgresStore,
    both: dict[str, EcosystemRecord],
    database: Database,
    maker: Party,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    said: str,
) -> None:
    async with working(database, maker) as worker:
        real: Callable[[], Any] = worker._store.find_revocations
        asked = 0

        async def fail_twice() -> Any:
            nonlocal asked
            asked += 1
            if asked <= 2:
                raise fault
            return await real()

        monkeypatch.setattr(worker._store, "find_revocations", fail_twice)
        issuer = both["south"].issuers[-1].issuer_id
        await store.record_revocation(make_revocation(issuer, b"\x07"), make_event())
        await until(lambda: (issuer, b"\x07") in directory_of(worker).revoked)
        assert messages(caplog).count(said) == 2
        assert asked == 3


async def test_a_server_certificate_that_is_none_changes_nothing(
    both: dict[str, EcosystemRecord], database: Database, maker: Party, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(database, maker) as worker:
        context = worker._context
        worker.use_certificate(b"no certificate", b"no key")
        assert worker._context is context
        assert messages(caplog) == ["server certificate not replaced"]


async def test_without_a_database_there_is_no_worker(database: Database, maker: Party) -> None:
    away = Database(database.url + "-that-is-not-there", database.superuser_url, database.name, database.socket)
    with pytest.raises(Unavailable):
        async with working(away, maker):
            pytest.fail("there is nothing to read")
