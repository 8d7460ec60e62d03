"""The short versions of ``slow`` and ``herd``: what does not depend on how busy this machine is has to hold.

docs/reliability.md has the figures of long ones, and what holds for their latencies.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def perform(tool: str, report: Path, *options: str) -> tuple[dict[str, bool], dict[str, Any], str]:
    """Whether each claim holds, the figures, and what was said."""
    argv = [sys.executable, Path(__file__).with_name(f"{tool}.py"), *options, "--json", report]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110)
    said = done.stdout + done.stderr
    assert report.exists(), said
    content = json.loads(report.read_text())
    assert not content["skipped"], said
    return {claim["text"]: claim["holds"] for claim in content["claims"]}, content["figures"], said


@pytest.mark.slow
def test_slow_connections_end_and_nobody_honest_is_refused(tmp_path: Path) -> None:
    claims, figures, said = perform(
        "slow", tmp_path / "report.json", "--connections", "60", "--seconds", "8", "--before", "2", "--rate", "5"
    )
    assert claims.pop("honest p99 is at most 250 ms") in (True, False), "a matter of the machine"
    assert all(claims.values()), said
    assert figures["honest_beside_the_attack"]["count"] > 0
    assert {"silent", "half-open", "drip"} <= set(figures["hostile_connections_lasted"])


@pytest.mark.slow
def test_a_herd_is_renewed_and_told_when_to_come_back(tmp_path: Path) -> None:
    options = ("--devices", "120", "--limit", "20", "--before", "2", "--neighbour-rate", "5", "--sites", "20")
    claims, figures, said = perform("herd", tmp_path / "report.json", *options)
    assert claims.pop("the neighbour's p99 not more than doubled") in (True, False), "a matter of the machine"
    assert all(claims.values()), said
    assert figures["renewed"] == 120
    assert figures["refused_with_an_answer"].get("503", 0) > 0, said
