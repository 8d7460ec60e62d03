"""A tool's exit status and report say what its claims say; and the checker that all tools trust finds what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from claims import SKIPPED, Report, Skipped, make_parser, perform
from stage import Stage


def run(tmp_path: Path, act: Callable[[Report], None]) -> tuple[int, dict[str, object]]:
    path = tmp_path / "report.json"
    options = make_parser("A tool.").parse_args(["--json", str(path), "--seed", "3"])
    status = perform("tool", options, act)
    return status, json.loads(path.read_text(encoding="utf-8"))


def test_a_claim_that_does_not_hold_fails_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def act(report: Report) -> None:
        report.claim("nothing is lost", [])
        assert not report.claim("nothing is double", ["serial 17"])

    status, told = run(tmp_path, act)
    assert (status, told["holds"], told["options"]) == (1, False, {"seed": 3})
    shown = capsys.readouterr().out
    assert "holds    nothing is lost" in shown
    assert "BROKEN   nothing is double: 1 times not" in shown
    assert "serial 17" in shown


def test_a_run_that_breaks_off_fails_the_tool(tmp_path: Path) -> None:
    def act(_report: Report) -> None:
        raise RuntimeError("the server is gone")

    status, told = run(tmp_path, act)
    assert (status, told["holds"]) == (1, False)


@pytest.mark.parametrize("number", ["0", "-3"])
def test_a_run_of_nothing_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("A tool.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--limit", type=int, default=0)
    assert vars(parser.parse_args(["--limit", "0"]))["kills"] == 100
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--kills", number])
    assert ended.value.code == 2
    assert f"--kills: {number} is too small" in capsys.readouterr().err


def test_a_report_that_could_not_be_written_is_refused_before_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser("A tool.").parse_args(["--json", "/nonexistent/report.json"])
    assert ended.value.code == 2
    assert "/nonexistent/report.json cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "kept"), [(KeyboardInterrupt(), False), (Skipped("no disk"), False), (RuntimeError("oh"), True)]
)
def test_a_run_leaves_something_to_look_at_only_where_something_went_wrong(
    tmp_path: Path, fault: BaseException, kept: bool
) -> None:
    where = tmp_path / "stage"
    with pytest.raises(type(fault)), Stage(directory=where):
        raise fault
    assert where.exists() is kept


def test_a_machine_that_lacks_something_is_told_apart(tmp_path: Path) -> None:
    def act(_report: Report) -> None:
        raise Skipped("no disk")

    status, told = run(tmp_path, act)
    assert (status, told["holds"], told["skipped"]) == (SKIPPED, False, "no disk")
