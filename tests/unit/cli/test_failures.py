import json
import os
import subprocess
import sys

import click
import pytest

from estd.cli import failures
from estd.cli.failures import Failed, explain, report
from estd.cli.loop import Terminated
from estd.device.answers import ServerRefused, TryLater, WrongServer
from estd.errors import Broken, Code, Invalid, Problem, Refused, Unavailable
from estd.store.contract import Conflict

PROBLEMS = [
    Problem("estd.toml: listen.port", "is not a port", "Use 1 to 65535."),
    Problem("estd.toml: tls", "names only one of two files", "Name both."),
]

CASES = [
    (Invalid(PROBLEMS), 2, "invalid", "Use 1 to 65535."),
    (Refused(Code.SUBJECT_REFUSED, "no name", "RFC 5280 §7.1"), 1, "subject-refused", "No name."),
    (Unavailable(Code.STORE_UNAVAILABLE, "the database is away"), 75, "store-unavailable", "The database is away."),
    (Broken("an invariant does not hold"), 1, "broken", "An invariant does not hold."),
    (Failed("it did not work", "Do otherwise."), 1, "failed", "Do otherwise."),
    (click.UsageError("no such option"), 2, "usage", "--help"),
    (click.ClickException("cannot"), 1, "failed", "Cannot."),
    (click.Abort(), 130, "interrupted", "Stopped."),
    (KeyboardInterrupt(), 130, "interrupted", "Stopped."),
    (Terminated(), 143, "terminated", "Stopped."),
    (PermissionError(13, "Permission denied", "/secret"), 1, "permission", "/secret: permission denied."),
    (FileNotFoundError(2, "No such file or directory", "/x"), 1, "system", "/x: No such file or directory."),
    (ServerRefused(403, "not-authorized: no", "ab12"), 1, "refused", "refused: not-authorized: no."),
    (TryLater("busy", 7), 75, "try-later", "Try again in 7 s"),
    (WrongServer("the certificate does not pass"), 1, "wrong-server", "The certificate does not pass."),
    (Conflict("x"), 1, "conflict", "estd ecosystem show"),
    (ZeroDivisionError("oops"), 1, "unexpected", "ZeroDivisionError: oops"),
]


@pytest.mark.parametrize(("fault", "status", "code", "said"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_every_failure_has_a_status_a_code_and_words(
    fault: BaseException, status: int, code: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (explain(fault).status, explain(fault).code) == (status, code)
    assert report(fault, as_json=False) == status
    text = capsys.readouterr()
    assert said in text.err
    assert text.out == ""
    assert "Traceback" not in text.err


@pytest.mark.parametrize("fault", [case[0] for case in CASES], ids=[type(case[0]).__name__ for case in CASES])
def test_json_says_the_same_on_standard_error(fault: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    report(fault, as_json=True)
    text = capsys.readouterr()
    error = json.loads(text.err)["error"]
    assert text.out == ""
    assert (error["status"], error["code"]) == (explain(fault).status, explain(fault).code)
    assert error.get("message") or error.get("problems")


def test_all_problems_are_told_at_once_with_their_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    report(Invalid(PROBLEMS), as_json=False)
    assert capsys.readouterr().err.splitlines() == [
        "estd: estd.toml: listen.port is not a port.",
        "  Use 1 to 65535.",
        "estd: estd.toml: tls names only one of two files.",
        "  Name both.",
    ]
    report(Invalid(PROBLEMS), as_json=True)
    problems = json.loads(capsys.readouterr().err)["error"]["problems"]
    assert problems[1] == {"where": "estd.toml: tls", "what": "names only one of two files", "remedy": "Name both."}


def test_a_refusal_shows_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    report(ServerRefused(403, "no", "ab12"), as_json=False)
    assert "request id: ab12" in capsys.readouterr().err


def test_a_traceback_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTD_TRACEBACK", "1")
    report(ZeroDivisionError("oops"), as_json=False)
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the server refused: no", "The server refused: no."),
        ("https://host cannot be reached", "https://host cannot be reached."),
        ("code-spent: used", "code-spent: used."),
        ("pump.pem is missing", "pump.pem is missing."),
        ("Done.", "Done."),
        ("", "."),
    ],
)
def test_sentences(text: str, expected: str) -> None:
    assert failures._sentence(text) == expected


@pytest.mark.parametrize("command", [("profile", "ready"), ("profile", "ready", "--json"), ("--help",)])
def test_a_reader_that_has_seen_enough_is_no_fault(command: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "estd", *command], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_remedies_name_what_exists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESTD_TRACEBACK", "1")
    report(Broken("an invariant does not hold"), as_json=False)
    said = capsys.readouterr().err
    assert 'log.level = "debug" in estd.toml' in said
    assert "--log-level" not in said
    assert "Broken: an invariant does not hold" in said, "the traceback"
    assert "--trust" in explain(WrongServer("the certificate does not pass")).remedy
