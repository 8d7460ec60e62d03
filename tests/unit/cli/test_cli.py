"""The tree of commands as a whole: everything has help with an example, JSON, and a way to fail that helps."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from estd.cli import estd, run

pytestmark = pytest.mark.usefixtures("nowhere")


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, (*path, name))


COMMANDS = list(walk(estd))
LEAVES = [(path, command) for path, command in COMMANDS if not isinstance(command, click.Group)]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) or "estd" for path, _ in COMMANDS])
def test_help_fits_and_explains(
    path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: estd")
    assert command.help
    assert max(map(len, text.splitlines())) <= 100
    if isinstance(command, click.Group) or len(path) == 1:
        assert f"  {' '.join(('estd', *path))}" in text, "examples first"


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_answers_in_json_and_every_option_has_help(path: tuple[str, ...], command: click.Command) -> None:
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert any("--json" in one.opts for one in options)
    assert [one.name for one in options if not one.help] == []
    assert command.get_short_help_str(200).endswith(".")


def test_a_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["code"]) == 2
    assert "create" in capsys.readouterr().err


def test_an_unknown_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["frob"]) == 2
    assert run(["cert", "list", "--frob"]) == 2
    assert "Try: estd cert list --help" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("estd ")


def test_how_commands_end_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ((), ("enroll",)):
        assert run([*command, "--help"]) == 0
        assert "130 or 143 stopped by a signal" in " ".join(capsys.readouterr().out.split())


# --- words that do not fit together ------------------------------------------------------------------------------------

ENROLL = ("enroll", "--url", "https://localhost", "--trust", "t", "--out", "d")


@pytest.mark.parametrize(
    "arguments",
    [
        ENROLL,
        (*ENROLL, "--device", "a", "--certificate", "c", "--key", "k"),
        (*ENROLL, "--certificate", "c"),
        (*ENROLL, "--code-file", "f"),
        (*ENROLL, "--renew", "--device", "a"),
        (*ENROLL, "--renew", "--subject", "CN=a"),
        (*ENROLL, "--renew", "--same-key", "--key-type", "ec-p256"),
        (*ENROLL, "--same-key", "--certificate", "c", "--key", "k"),
        (*ENROLL, "--renew", "--key-type", "ec-p255"),
        ("code", "create", "--ecosystem", "x"),
        ("code", "create", "--ecosystem", "x", "--device", "a", "--count", "3"),
        ("code", "create", "--ecosystem", "x", "--device", "a", "--prefix", "p"),
        ("code", "create", "--ecosystem", "x", "--device", "a:b"),
        ("code", "create", "--ecosystem", "x", "--device", "a", "--device", "a"),
        ("code", "create", "--ecosystem", "x", "--device", "a", "--expires", "soon"),
        ("cert", "revoke"),
        ("cert", "revoke", "00", "--device", "a", "--ecosystem", "x"),
        ("cert", "revoke", "--device", "a"),
        ("cert", "revoke", "00", "--reason", "certificateHold"),
        ("apply",),
        ("apply", "absent.toml"),
        ("demo", "--devices", "1"),
        ("inventory", "import", "absent.csv", "--ecosystem", "x"),
    ],
)
def test_a_command_line_that_cannot_work_is_a_usage_error(arguments: tuple[str, ...], nowhere: Path) -> None:
    (nowhere / "estd.toml").write_text('data_directory = "data"\n')
    assert run(arguments) == 2
    assert [path.name for path in nowhere.iterdir()] == ["estd.toml"], "nothing was started"
