"""A short storm: every role is killed, at every kind of moment, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import killstorm
import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_storm_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    arguments = ["--kills", "10", "--seconds", "60", "--devices", "8", "--seed", "7", "--json", str(report)]
    status = killstorm.main(arguments)
    told = json.loads(report.read_text(encoding="utf-8"))
    assert status == 0, capsys.readouterr().out
    assert set(told["figures"]["kills"]) == {*killstorm.ROLES, "all"}
    assert told["figures"]["requests"]["certificates"] > 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_in_flight_lose_nothing_to_ten_kills_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    crowd = ["--devices", "200", "--pause", "0"]
    storm = ["--only", "worker,signer", "--kills", "20", "--seconds", "120", "--json", str(report)]
    status = killstorm.main([*crowd, *storm])
    told = json.loads(report.read_text(encoding="utf-8"))
    assert status == 0, capsys.readouterr().out
    assert told["figures"]["kills"] == {"worker": 10, "signer": 10, "all": 20}
    assert told["figures"]["requests"]["certificates"] > 200
