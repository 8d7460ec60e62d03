"""What the supervisor does while everything runs; whole servers are started, reloaded and stopped in tests/integration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from one_road import Road, closings, open_road, reserve_and_die
from postgres_fixture import NOW, Database

from estd.app import supervisor
from estd.app.supervisor import Supervisor
from estd.config import Config


@pytest.fixture
async def road(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Road]:
    # A real signer goes by the real clock.
    monkeypatch.setattr("factory.NOW", datetime.now(NOW.tzinfo).replace(microsecond=0))
    async with open_road(database.url, tmp_path) as road:
        yield road


@pytest.fixture
def serving(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """One that runs nothing yet, on the store and the signer of that road; intents are old enough at once."""
    monkeypatch.setattr(supervisor, "_SETTLE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "_SETTLE_AFTER", timedelta(minutes=-1))
    monkeypatch.setattr(supervisor, "read_key_encryption_key", lambda _config: None)
    serving: Any = Supervisor(Config(tmp_path))
    serving._store, serving._enrollment = road.store, road.enrollment
    assert isinstance(serving, Supervisor)
    return serving


async def test_an_intent_that_cannot_be_settled_holds_up_no_other(
    road: Road, serving: Supervisor, database: Database
) -> None:
    foreign = await reserve_and_die(road, road.order("device-0"))
    async with database.session() as connection:
        await connection.execute("UPDATE intent SET journal = 'x' || journal, created_at = created_at - '1s'::interval")
        await connection.execute("UPDATE unresolved_intent SET created_at = created_at - '1s'::interval")
    await reserve_and_die(road, road.order("device-1"))
    await serving._settle()
    (left,) = await road.store.find_open_intents(road.now + timedelta(hours=1), 10)
    assert left.serial == foreign.serial
    assert await closings(database) == {None: 1, "void": 1}


async def test_a_database_that_is_away_is_asked_again_in_the_next_round(
    road: Road, serving: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    await road.store.close()
    await serving._settle()
    assert [record.message for record in caplog.records if record.name == supervisor.__name__] == [
        "open intents are left for later"
    ]
