"""Every answer is lost once; every retry gets the same certificate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import retry


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whoever_loses_an_answer_gets_the_same_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    status = retry.main(["--n", "300", "--seed", "7", "--json", str(report)])
    told = json.loads(report.read_text(encoding="utf-8"))
    assert status == 0, capsys.readouterr().out
    assert set(told["figures"]["lost answers"]) == {"answered", "broken", "unread", "copied"}
    assert told["figures"]["copies compared"] > 0
