"""What tests of this floor start from."""

from __future__ import annotations

import pytest
from applying import KEK

from estd.app.identity import ensure_ecosystem
from estd.store.postgres import PostgresStore


@pytest.fixture
async def own(store: PostgresStore) -> PostgresStore:
    """A store that holds the server's own ecosystem, sealed under `KEK`."""
    await ensure_ecosystem(store, KEK)
    return store
