"""Running signers, and a place for a journal, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from signer_harness import running


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Any]:
    with running(tmp_path, stall_seconds=0.6, prepared_seconds=30.0) as signer:
        yield signer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One signer for all tests that leave it as it was."""
    with running(tmp_path_factory.mktemp("signer"), stall_seconds=0.6, prepared_seconds=30.0) as signer:
        yield signer
