"""How commands answer: tables and short lines for people, JSON for programs, never both.

Colour and width follow the terminal; where the output is not one, lines are as long as their content needs. Text that
came over the network is stripped of control characters before it is shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from estd.app.files import write_file
from estd.errors import Invalid, Problem

_PIPE_WIDTH: Final = 400


def console(*, to_stderr: bool = False) -> Console:
    """A console for standard output, or standard error."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def write_json(content: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False, default=_jsonable))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Rows under their headings; or one line that says why there are none."""
    rows = list(rows)
    if not rows:
        write_line(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console().print(table)


def write_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """A title and named values below it; values that are empty are left out."""
    facts = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in facts), default=0)
    out = console()
    out.print(Text(plain(title), style="bold"))
    for name, value in facts:
        first, *rest = plain(value, keep_lines=True).splitlines() or [""]
        out.print(Text(f"  {name:<{width}}  ", style="dim").append(first, style="default not dim"), soft_wrap=True)
        for line in rest:
            out.print(Text(f"  {'':<{width}}  {line}"), soft_wrap=True)


def write_line(text: str, style: str = "") -> None:
    """One line."""
    console().print(Text(plain(text), style=style), soft_wrap=True)


def save(path: Path, content: bytes, mode: int) -> None:
    """Write a file that the command line names.

    Raises:
        Invalid: it cannot be written.
    """
    try:
        write_file(path, content, mode)
    except OSError as error:
        remedy = "Name a file in a directory of yours."
        raise Invalid([Problem(str(path), f"cannot be written ({error.strerror})", remedy)]) from None


def note(text: str) -> None:
    """One line beside the answer proper: on standard error, so that it never ends up in a file or a pipe."""
    console(to_stderr=True).print(Text(plain(text)), soft_wrap=True)


def plain(text: str, *, keep_lines: bool = False) -> str:
    """Text without control characters: names and refusals come from devices and servers we do not know."""
    return "".join(
        character if character.isprintable() or (keep_lines and character == "\n") else "\ufffd" for character in text
    )


def write_time(at: datetime | None) -> str:
    """A time as tables show it: UTC to the minute; empty for none, ``never`` for the end of the calendar."""
    if at is None:
        return ""
    return "never" if at.year == 9999 else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}Z"


def write_count(number: int, noun: str) -> str:
    """``1 device``, ``2 devices``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def write_span(length: timedelta) -> str:
    """A length of time in one rough unit."""
    seconds = int(abs(length).total_seconds())
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"


def _jsonable(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case bytes():
            return value.hex()
        case Path():
            return str(value)
        case set() | frozenset() | tuple():
            return list(value)
        case _:
            raise TypeError(f"{type(value).__name__} has no place in JSON")
