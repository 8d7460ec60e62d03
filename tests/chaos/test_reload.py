"""The short version of ``tests/chaos/reload.py``; docs/reliability.md has the figures of long ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_reloads_and_an_upgrade_fail_no_request(tmp_path: Path) -> None:
    tool = Path(__file__).with_name("reload.py")
    argv = [sys.executable, tool, "--n", "3", "--upgrades", "1", "--rate", "20", "--json", tmp_path / "report.json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
