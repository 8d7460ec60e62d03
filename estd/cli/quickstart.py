"""``estd quickstart``: a server to play with, and the commands to play with it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import click
from rich.text import Text

from estd.app.lessons import write_lessons
from estd.app.playground import LABELS
from estd.app.quickstart import Running, describe
from estd.app.quickstart import run as carry_out
from estd.cli.loop import run_async
from estd.cli.options import PATH, json_option
from estd.cli.output import console, note, save, write_json

_HELP = """\
Run a server to play with. Everything it needs is made in DIR: database, keys, two ecosystems that know nothing of each
other, devices and enrollment codes. It serves until Ctrl-C; the next start goes on with what is there.

\b
  estd quickstart --dir lab
  estd quickstart --dir lab --port 0        any free port; lab/run.json says which
  estd quickstart --dir lab --address 0.0.0.0 --name est.lab.example

In another terminal, look at it and change it:

\b
  estd cert list --dir lab
  estd apply lab/ecosystems/campus-north.toml --dir lab --dry-run

It asks for nothing to be installed and leaves nothing outside DIR.
"""


@click.command(help=_HELP, short_help="Run a server to play with.")
@click.option(
    "--dir",
    "directory",
    required=True,
    metavar="DIR",
    type=PATH,
    help="Where to keep everything.",
)
@click.option("--address", metavar="ADDRESS", help="Address to listen on (default 127.0.0.1).")
@click.option(
    "--name",
    "names",
    metavar="NAME",
    multiple=True,
    help="What clients call the server besides its addresses; may be repeated.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="PORT", help="Port for devices; 0 takes a free one (default 8443)."
)
@click.option(
    "--ops-port", type=click.IntRange(0, 65535), metavar="PORT", help="Port for health and metrics (default 8081)."
)
@click.option(
    "--ready-file",
    metavar="FILE",
    type=PATH,
    help="Write the ports here (JSON) once devices can enroll.",
)
@json_option
def quickstart(
    directory: Path,
    address: str | None,
    names: tuple[str, ...],
    port: int | None,
    ops_port: int | None,
    ready_file: Path | None,
    as_json: bool,
) -> None:
    """See `_HELP`."""

    def show(running: Running) -> None:
        facts = describe(running)
        if ready_file is not None:
            save(ready_file, f"{json.dumps(facts)}\n".encode(), 0o644)
        if as_json:
            write_json(facts)
        else:
            write_welcome(running)

    def tell(what: str) -> None:
        if not as_json:
            note(f"… {what}")

    try:
        run_async(carry_out(directory, address, port, ops_port, names=names, tell=tell, when_ready=show))
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
    if not as_json:
        note("Stopped.")


def write_welcome(running: Running) -> None:
    """Where it is, and what to do with it."""
    out = console()
    out.print(Text(f"estd serves {running.url}", style="bold green"), soft_wrap=True)
    facts = (
        ("ecosystems", ", ".join(LABELS)),
        ("trust", str(running.place.trust)),
        ("health", f"http://127.0.0.1:{running.ops_port}/readyz"),
        ("stop", "Ctrl-C; the next start goes on with what is there"),
    )
    for name, value in facts:
        out.print(Text(f"  {name:<12}", style="dim").append(value, style="default not dim"), soft_wrap=True)
    out.print(Text("\nTo try it, paste into another terminal:"))
    for lesson in write_lessons(running, find_program()):
        out.print()
        out.print(Text(f"# {lesson.title}", style="dim"), soft_wrap=True)
        out.print(Text(lesson.commands, style="cyan"), soft_wrap=True)
    out.print()
    out.file.flush()


def find_program() -> str:
    """How a shell finds the program that runs here."""
    started, found = Path(sys.argv[0]), shutil.which("estd")
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m estd"
    if found is not None and started.exists() and Path(found).samefile(started):
        return "estd"
    return shlex.quote(str(started.absolute()))
