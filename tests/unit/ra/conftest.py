"""The one road, open, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from factory import NOW
from one_road import Road, open_road
from postgres_fixture import Database


@pytest.fixture
def valid_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issuers made now: a real signer goes by the real clock."""
    monkeypatch.setattr("factory.NOW", datetime.now(NOW.tzinfo).replace(microsecond=0))


@pytest.fixture
async def road(database: Database, tmp_path: Path, valid_now: None) -> AsyncIterator[Road]:
    async with open_road(database.url, tmp_path) as road:
        yield road
