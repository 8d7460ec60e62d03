"""``deploy/README.md``: everything shipped is in it, its links lead somewhere, its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
from test_docs import parse, read_commands

from estd.cli import estd as command_line

DEPLOY = Path(__file__).parents[2] / "deploy"
README = (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_every_file_is_explained() -> None:
    table = README.partition("\n\n**What could not be tried here.**")[0]
    shipped = [path for path in DEPLOY.rglob("*") if path.is_file() and path != DEPLOY / "README.md"]
    missing = [
        path.relative_to(DEPLOY).as_posix()
        for path in shipped
        if path.name not in table
        and f"`{path.parent.name}/`" not in table  # explained as a whole
        and not path.name.endswith(".dockerignore")  # a companion
    ]
    assert missing == []


def test_what_it_names_exists() -> None:
    named = re.findall(r"`((?:systemd|container|kubernetes|haproxy|prometheus|grafana|postgresql)/[^` ]*)`", README)
    assert named
    assert [name for name in named if not (DEPLOY / name).exists()] == []
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", README)
    assert [link for link in links if not (DEPLOY / link).exists()] == []


def test_estd_is_installed_from_its_wheel_as_in_the_container() -> None:
    """On PyPI the name is somebody else's."""
    pages = [*DEPLOY.parent.glob("*.md"), *(DEPLOY.parent / "docs").glob("*.md"), DEPLOY / "README.md"]
    for page in pages:
        for arguments in re.findall(r"\bpip install ([^`\n]*)", page.read_text(encoding="utf-8")):
            named = [word for word in arguments.split() if re.fullmatch(r"estd\b[^/]*", word)]
            assert named == [], page.name
    container = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
    packages = "--require-hashes --only-binary :all: --requirement"
    assert f"/opt/estd/bin/pip install {packages} requirements.lock" in README
    assert packages in container
    assert "/opt/estd/bin/pip install --no-deps build/wheel/estd-*.whl" in README
    assert "build/wheel/estd-*.whl" in container
    makefile = (DEPLOY.parent / "Makefile").read_text(encoding="utf-8")
    target = re.search(r"^make (\S+) .*# leaves the wheel in build/wheel$", README, re.MULTILINE)
    assert target is not None
    assert "--wheel-dir build/wheel " in makefile.partition(f"\n{target[1]}:")[2].partition("\n\n")[0]


def test_its_commands_parse() -> None:
    text = README.replace("\\\n  /opt/estd/bin/estd ", "\nestd ")  # as the last part of a longer command
    commands = [shlex.split(line, comments=True)[1:] for line in read_commands(text)]
    assert len(commands) >= 2
    problems = []
    for arguments in commands:
        try:
            parse(command_line, arguments)
        except click.UsageError as error:
            problems.append(f"{arguments}: {error.format_message()}")
    assert problems == []
