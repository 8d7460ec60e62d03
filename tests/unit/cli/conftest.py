"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory to be in, and nothing in the environment that names a server."""
    monkeypatch.delenv("ESTD_CONFIG", raising=False)
    monkeypatch.delenv("ESTD_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
