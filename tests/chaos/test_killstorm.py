"""A short storm: every role is killed, at every kind of moment, and nothing is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import killstorm
import pytest
from stage import Stage


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


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_database_that_is_killed_while_the_server_starts_comes_back() -> None:
    with Stage() as stage:
        stage.start()
        assert stage.stop() == 0
        stage.start(wait=False)
        deadline = time.monotonic() + 30
        while not stage.of_role("signer"):
            assert time.monotonic() < deadline, stage.log_tail()
            time.sleep(0.001)
        (postmaster,) = stage.of_role("postmaster")
        assert postmaster.kill()
        stage.wait_ready(40)
        assert "did not become ready" in stage.log.read_text(encoding="utf-8"), "the signers found no database"
        assert stage.stop() == 0
