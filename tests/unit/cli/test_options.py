"""Options that commands share: which server is meant, which file, and whether to ask."""

import io
import json
from pathlib import Path

import click
import pytest

from estd.cli import run
from estd.cli.options import may_ask, read_device
from estd.errors import Invalid

pytestmark = pytest.mark.usefixtures("nowhere")


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    return str(error["problems"][0]["where"] if "problems" in error else error["message"])


def test_a_server_must_be_named(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    assert complaint(capsys, "cert", "list") == "The server"
    assert complaint(capsys, "cert", "list", "--dir", str(nowhere)) == str(nowhere)
    assert complaint(capsys, "cert", "list", "--config", "absent.toml") == "absent.toml"
    assert "not both" in complaint(capsys, "cert", "list", "--config", "absent.toml", "--dir", str(nowhere))


def test_the_environment_names_it_too_and_the_command_line_wins(
    capsys: pytest.CaptureFixture[str], nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTD_CONFIG", "from-environment.toml")
    assert complaint(capsys, "cert", "list") == "from-environment.toml"
    assert complaint(capsys, "cert", "list", "--config", "typed.toml") == "typed.toml"
    assert complaint(capsys, "cert", "list", "--dir", str(nowhere)) == str(nowhere)
    monkeypatch.setenv("ESTD_DIR", "/from/environment")
    assert complaint(capsys, "cert", "list", "--config", "typed.toml") == "typed.toml"


def test_settings_here_are_used_when_nothing_else_is_said(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    (nowhere / "estd.toml").write_text("nonsense = 1\n")
    assert "nonsense" in complaint(capsys, "cert", "list")


@pytest.mark.parametrize(
    "arguments",
    [
        ("quickstart", "--dir", ""),
        ("quickstart", "--dir", " "),
        ("cert", "list", "--dir", ""),
        ("cert", "list", "--config", ""),
        ("serve", "--ready-file", "", "--check"),
        ("apply", ""),
        ("demo", "--keep", ""),
        ("audit", "verify", "--journal", ""),
        ("issuer", "export", "--ecosystem", "x", "--out", ""),
        ("enroll", "--url", "https://localhost", "--trust", "t", "--out", "", "--renew"),
    ],
)
def test_a_file_or_directory_without_a_name_is_a_usage_error(arguments: tuple[str, ...], nowhere: Path) -> None:
    (nowhere / "estd.toml").write_text('data_directory = "data"\n')
    assert run(arguments) == 2
    assert [path.name for path in nowhere.iterdir()] == ["estd.toml"], "nothing was started"


def test_a_directory_that_is_a_file(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    (nowhere / "estd.toml").write_text('data_directory = "data"\n')
    assert "is a file" in complaint(capsys, "audit", "verify", "--journal", "estd.toml")


def test_a_device_has_one_spelling() -> None:
    assert read_device("Pump-17") == "pump-17"
    with pytest.raises(Invalid) as caught:
        read_device("a\nb")
    (problem,) = caught.value.problems
    assert problem.where == "device 'a\\nb'"
    assert problem.what.startswith("is no name: ")


def test_where_nobody_can_be_asked_the_answer_is_not_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(click.UsageError, match="add --yes"):
        may_ask(yes=False, as_json=False)
    assert not may_ask(yes=True, as_json=False)
    assert not may_ask(yes=False, as_json=True)
