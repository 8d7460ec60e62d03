"""A full disk below journal or database costs nothing but time, and /readyz says where it is."""

from __future__ import annotations

import json
from pathlib import Path

import diskfull
import pytest
from claims import SKIPPED


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", diskfull.PARTS)
def test_a_full_disk_costs_nothing_but_time(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    status = diskfull.main(["--part", part, "--json", str(report)])
    told = json.loads(report.read_text(encoding="utf-8"))
    if status == SKIPPED:
        pytest.skip(told["skipped"])
    assert status == 0, capsys.readouterr().out
    assert told["figures"][part]["requests"]["retries"] > 0
