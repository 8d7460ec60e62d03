"""The server's clock is wrong for a while: nothing wrong is issued, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import clock
import pytest
from live_server import judge


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_clock_that_is_wrong_and_comes_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge("cc")
    report = tmp_path / "report.json"
    status = clock.main(["--step=+1h", "--step=-2h", "--step=+10y", "--step=-10y", "--json", str(report)])
    told = json.loads(report.read_text(encoding="utf-8"))
    assert status == 0, capsys.readouterr().out
    assert told["figures"]["refusals"]["503 issuer-not-valid"] > 0
