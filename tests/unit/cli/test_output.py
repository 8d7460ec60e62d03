import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from estd.cli.output import (
    plain,
    write_count,
    write_facts,
    write_json,
    write_line,
    write_span,
    write_table,
    write_time,
)

AT = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def test_json_holds_times_bytes_and_paths(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"at": AT, "serial": b"\x01\xff", "file": Path("a/b"), "san": ("dns:ä",)})
    text = capsys.readouterr().out
    assert json.loads(text) == {"at": "2031-05-06T07:08:09Z", "serial": "01ff", "file": "a/b", "san": ["dns:ä"]}
    assert "ä" in text
    with pytest.raises(TypeError):
        write_json(object())


def test_a_table_is_not_cut_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("device", "why"), [("pump", "x" * 200), ("[red]valve", "y")], "empty")
    text = capsys.readouterr().out
    assert "x" * 200 in text
    assert "[red]valve" in text
    assert "\x1b" not in text


def test_an_empty_table_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("device",), [], "Nothing yet: do this.")
    assert capsys.readouterr().out == "Nothing yet: do this.\n"


def test_facts_leave_out_what_is_empty_and_align_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    write_facts("pump", [("a", "1"), ("empty", ""), ("names", "x\ny")])
    assert capsys.readouterr().out.splitlines() == ["pump", "  a      1", "  names  x", "         y"]


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain("a\x1b[31m\x00\u202eb\nc") == "a\ufffd[31m\ufffd\ufffdb\ufffdc"
    write_line("evil\x1b]0;title\x07")
    write_facts("t", [("k", "v\x1b[2J")])
    write_table(("d",), [("x\x9b31m",)], "")
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(out)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, ""),
        (AT, "2031-05-06 07:08Z"),
        (AT.astimezone(), "2031-05-06 07:08Z"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), "never"),
    ],
)
def test_times(at: datetime | None, text: str) -> None:
    assert write_time(at) == text


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(days=90), "90 days"),
        (timedelta(hours=47), "47 hours"),
        (timedelta(minutes=90), "90 minutes"),
        (timedelta(seconds=100), "100 seconds"),
        (timedelta(days=-3), "3 days"),
    ],
)
def test_spans(length: timedelta, text: str) -> None:
    assert write_span(length) == text


def test_one_is_not_many() -> None:
    assert [write_count(number, "device") for number in (0, 1, 2)] == ["0 devices", "1 device", "2 devices"]
