"""Structured logs: one JSON object a line, with the extra fields, and never a second line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from odd_certificates import make_odd

from estd.logs import JsonLines


def record(message: str, **extra: object) -> logging.LogRecord:
    return logging.getLogger("estd.test").makeRecord(
        "estd.test", logging.WARNING, __file__, 1, message, (), None, extra=extra
    )


def test_a_line_holds_who_what_and_the_extra_fields() -> None:
    line = JsonLines("worker-1").format(record("a child ended", pid=7, detail="line\nbreak ä"))
    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("at").endswith("+00:00")
    assert fields == {
        "level": "warning",
        "process": "worker-1",
        "logger": "estd.test",
        "message": "a child ended",
        "pid": 7,
        "detail": "line\nbreak ä",
    }


def test_several_are_written_at_once_and_look_as_if_each_had_been_alone() -> None:
    fields = [{"audit": {"detail": "line\nbreak ä", "n": number}} for number in range(3)]
    several = record("audit", each=fields)
    lines = JsonLines("worker-1").format(several).split("\n")
    for line, one in zip(lines, fields, strict=True):
        alone = record("audit", **one)
        alone.created = several.created
        assert line == JsonLines("worker-1").format(alone)


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        entry = record("failed")
        entry.exc_info = sys.exc_info()
    line = JsonLines("x").format(entry)
    assert "\n" not in line
    assert "ValueError: why" in json.loads(line)["traceback"]


def test_a_value_json_does_not_know_is_written_as_text() -> None:
    assert json.loads(JsonLines("x").format(record("m", when=object)))["when"] == str(object)


def test_a_warning_of_a_library_is_a_line_like_any_other() -> None:
    """In a process of its own: the logs of a process are set up once."""
    program = (
        "import sys; from estd.logs import set_up_logs; from estd.asn1.foreign import read_certificate;"
        " set_up_logs('worker-1', 'info'); read_certificate(sys.stdin.buffer.read())"
    )
    odd = make_odd(serial=b"\x02\x01\x00")
    done = subprocess.run([sys.executable, "-c", program], input=odd, capture_output=True, check=True, timeout=60)
    (line,) = done.stderr.decode().splitlines()
    fields = json.loads(line)
    assert (fields["level"], fields["process"], fields["logger"]) == ("warning", "worker-1", "py.warnings")
    assert "serial number" in fields["message"]
