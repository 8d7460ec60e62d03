"""The documents keep up with the code: nothing an operator can set, see or be told is missing, and commands parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prometheus_client.metrics import MetricWrapperBase

from estd import config
from estd.app import expiry, own_certificate, troubles
from estd.cli import estd as command_line
from estd.errors import Code
from estd.est import messages
from estd.web import metrics
from estd.web.place import Refusal
from estd.web.tls_events import Event

ROOT = Path(__file__).parents[1]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_setting_is_explained() -> None:
    settings = {f"{table}.{key}".lstrip(".") for table, keys in config._TABLES.items() for key in keys}
    rows = set(re.findall(r"^\| `([a-z_.]+)` \| .+ \| .+ \|$", section("Settings: `estd.toml`"), re.MULTILINE))
    assert rows == settings


def test_every_metric_is_explained() -> None:
    modules = (metrics, troubles, own_certificate, expiry)
    found = [one for module in modules for one in vars(module).values() if isinstance(one, MetricWrapperBase)]
    names = {one._name + ("_total" if one._type == "counter" else "") for one in found}
    assert names
    assert set(re.findall(r"^\| `(estd_\w+)`", section("Metrics"), re.MULTILINE)) == names


def test_every_event_of_a_connection_is_explained() -> None:
    text = section("Metrics")
    assert [str(one) for one in (*Event, *Refusal) if f"`{one}`" not in text] == []


def test_every_tolerance_is_named() -> None:
    assert [name for name in messages.TOLERANCES if f"`{name}`" not in section("Metrics")] == []


def test_every_code_is_explained_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| .+ \| .+ \|$", section("What a device is told"), re.MULTILINE)
    assert {code: int(status) for code, status in rows} == {code.value: messages.STATUS[code] for code in Code}


def test_messages_of_the_log_are_really_logged() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "estd").rglob("*.py"))
    logged = re.findall(r'_log\.\w+\(\s*f?"([^"]+)"', source)
    rows = re.findall(r"^\| (.+) \| (?:info|warning|error) \|", section("Log"), re.MULTILINE)
    told = [message for row in rows for message in row.split(", ")]
    assert told
    assert [message for message in told if not any(real.startswith(message) for real in logged)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    problems = []
    for line in read_commands(page.read_text(encoding="utf-8")):
        try:
            parse(command_line, shlex.split(line, comments=True)[1:])
        except click.UsageError as error:
            problems.append(f"{line}: {error.format_message()}")
    assert problems == []


def section(heading: str) -> str:
    """What stands below a heading of the operator's page."""
    _, found, rest = OPERATIONS.partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


def read_commands(text: str) -> Iterator[str]:
    """Lines of code blocks that call estd; what a shell would do with the output is left out."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.match(r"\s*(?:\$ )?((?:\.venv/bin/)?estd [^|>;&]*)", line)
            if command is not None:
                yield command[1]


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parse as the program would, and run nothing. Files named need not exist here."""
    if "--help" in arguments:
        arguments = arguments[: arguments.index("--help")]
    context = command.make_context(command.name, list(arguments), parent, ignore_unknown_options=False)
    if isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, name
        parse(found, rest, context)
