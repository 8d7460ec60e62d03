"""Journal and audit trail are changed at random; the auditor finds every change (`tests/chaos/tamper.py`).

``ESTD_TAMPER_N=1000`` asks for more changes than the 200 of every run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "chaos" / "tamper.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_change_is_found_and_nothing_else_is(tmp_path: Path) -> None:
    number = int(os.environ.get("ESTD_TAMPER_N", "200"))
    report = tmp_path / "tamper.json"
    done = subprocess.run(
        [sys.executable, PROGRAM, "--n", str(number), "--json", report], capture_output=True, text=True, timeout=550
    )
    print(done.stderr)  # the seed stands there
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["holds"]
    assert sum(found["figures"]["changes"].values()) == number
    # Every kind of change had its turn, so a missing finding would have had a chance to show.
    assert len(found["figures"]["changes"]) > 15
