from itertools import pairwise
from pathlib import Path

from estd.app.lessons import write_lessons
from estd.app.playground import Playground
from estd.app.quickstart import Running

RUNNING = Running(Playground(Path("/srv/my lab")), "::1", 8443, 8081, ("campus-north-001", "7F3KQ-0V9XW-M2C8T-HJ5RB"))


def test_lessons_name_this_server_and_this_program() -> None:
    lessons = write_lessons(RUNNING, "/opt/my estd/bin/estd")
    text = "\n".join(lesson.commands for lesson in lessons)
    assert lessons[0].commands.startswith("cd '/srv/my lab'\n")
    assert "https://[::1]:8443/.well-known/est/campus-north/cacerts" in text
    assert "-u campus-north-001:7F3KQ-0V9XW-M2C8T-HJ5RB" in text
    assert text.count("/opt/my estd/bin/estd ") == 3


def test_lines_fit_a_terminal_and_continue_where_they_break() -> None:
    for lesson in write_lessons(RUNNING, "estd"):
        lines = lesson.commands.splitlines()
        assert max(map(len, lines)) <= 100
        for line, following in pairwise(lines):
            assert following.startswith("  ") is line.endswith("\\")
