"""Database and journals bear witness to each other; a whole server that meets an older database is in tests/integration."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from one_road import open_road
from patience import until
from postgres_fixture import NOW, Database

from estd.app.signers import SignerControl
from estd.app.witness import Witness
from estd.auditor.journal import ANCHORED, find_journals
from estd.errors import Unavailable
from estd.store.postgres import PostgresStore

NEVER = 1e9


@pytest.fixture
async def road(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    # A real signer goes by the real clock.
    monkeypatch.setattr("factory.NOW", datetime.now(NOW.tzinfo).replace(microsecond=0))
    async with open_road(database.url, tmp_path) as road:
        yield road


async def set_back(database: Database) -> None:
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(
            "DELETE FROM certificate; DELETE FROM intent; DELETE FROM event; DELETE FROM audit_link"
        )


def anchors(directory: Path) -> list[int]:
    (reader,) = find_journals(directory)
    return [block.items[0] for block in reader.blocks() if block.kind == ANCHORED]


async def test_a_worker_uses_no_older_database_and_the_supervisor_mends_it(
    road: Any, database: Database, tmp_path: Path
) -> None:
    order = road.order()
    certificate = await road.enrollment.enroll(order)
    worker = await PostgresStore.connect(database.url, witness=road.pool.find_newest)
    assert (await worker.find_issuances([order.request_key]))[order.request_key].certificate == certificate
    await worker.close()
    await set_back(database)
    with pytest.raises(Unavailable, match="older state"):
        await PostgresStore.connect(database.url, witness=road.pool.find_newest)

    witness = Witness(road.store, road.pool, road.enrollment, tmp_path / "journal", {})
    await witness.check()
    assert witness.problem is None
    worker = await PostgresStore.connect(database.url, witness=road.pool.find_newest)
    assert (await worker.find_issuances([order.request_key]))[order.request_key].certificate == certificate
    await worker.close()


async def test_a_signer_that_takes_no_anchor_is_named_with_the_reason(
    road: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("estd.app.signers._ANSWER_SECONDS", 0.1)
    ours, theirs = socket.socketpair()
    control = await SignerControl.open(ours)
    witness = Witness(road.store, road.pool, road.enrollment, tmp_path / "journal", {"signer-0": control})
    await road.enrollment.enroll(road.order())
    await witness.anchor()
    (told,) = [vars(record) for record in caplog.records if record.message == "a signer did not take an anchor"]
    assert (told["child"], told["detail"]) == ("signer-0", "it did not answer in time")
    control.close()
    theirs.close()


@pytest.fixture
async def hung() -> AsyncIterator[SignerControl]:
    """The control channel of a signer that never answers."""
    ours, theirs = socket.socketpair()
    with theirs:
        control = await SignerControl.open(ours)
        yield control
        control.close()


async def test_a_signer_that_hangs_keeps_no_other_from_an_anchor(
    road: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hung: SignerControl
) -> None:
    monkeypatch.setattr("estd.app.witness._ANCHOR_SECONDS", NEVER)
    monkeypatch.setattr("estd.app.signers._ANSWER_SECONDS", NEVER)
    controls = {"signer-0": hung, "signer-1": road.signer._control}
    witness = Witness(road.store, road.pool, road.enrollment, tmp_path / "journal", controls)
    await road.enrollment.enroll(road.order())
    newest = await road.store.find_newest_link()
    anchoring = asyncio.create_task(witness.anchor())
    await until(lambda: anchors(tmp_path / "journal") == [newest[0]])
    assert not anchoring.done()
    anchoring.cancel()
    await asyncio.wait({anchoring})
    # Who is known to hang is not even asked.
    async with asyncio.timeout(20):
        await witness.anchor({"signer-0"})
    assert not [record for record in caplog.records if record.message == "a signer did not take an anchor"]


async def test_a_signer_that_hangs_does_not_hold_up_the_look_at_a_database_that_came_back(
    road: Any, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hung: SignerControl
) -> None:
    monkeypatch.setattr("estd.app.witness._ANCHOR_EVERY_SECONDS", 0.05)
    monkeypatch.setattr("estd.app.witness._ANCHOR_SECONDS", NEVER)
    monkeypatch.setattr("estd.app.signers._ANSWER_SECONDS", NEVER)
    certificate = await road.enrollment.enroll(road.order())
    witness = Witness(road.store, road.pool, road.enrollment, tmp_path / "journal", {"signer-0": hung})
    running = asyncio.create_task(witness.run())
    await until(hung._turn.locked)  # it is being told
    await set_back(database)
    witness.notice("resync")
    async with asyncio.timeout(20):
        while await road.certificates() != [certificate]:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait({running})
    await until(lambda: not hung._turn.locked())


async def test_the_newest_link_goes_into_the_journal_once(road: Any, tmp_path: Path) -> None:
    controls = {"signer-0": road.signer._control}
    witness = Witness(road.store, road.pool, road.enrollment, tmp_path / "journal", controls)
    await road.enrollment.enroll(road.order())
    for _ in range(3):
        await witness.anchor()
    newest = await road.store.find_newest_link()
    assert anchors(tmp_path / "journal") == [newest[0]]
    await road.enrollment.enroll(road.order("device-2"))
    await witness.anchor()
    assert len(anchors(tmp_path / "journal")) == 2


class Unexpected:
    """Stands for a fault of ours somewhere below: fails once, and then is as before."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.calls = 0

    async def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise KeyError("no such thing")
        return await self._call(*arguments)


async def test_a_fault_that_nobody_expected_ends_neither_the_watch_nor_the_question(
    road: Any, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estd.app.tasks._PAUSE_SECONDS", 0.0)
    certificate = await road.enrollment.enroll(road.order())
    await set_back(database)
    monkeypatch.setattr(road.store, "find_unintended", Unexpected(road.store.find_unintended))
    witness = Witness(road.store, road.pool, road.enrollment, tmp_path / "journal", {})
    running = asyncio.ensure_future(witness.run())
    witness.notice("resync")
    async with asyncio.timeout(20):
        while not running.done() and await road.certificates() != [certificate]:
            await asyncio.sleep(0.02)
    assert not running.done()
    assert await road.certificates() == [certificate]
    running.cancel()
    await asyncio.wait({running})
