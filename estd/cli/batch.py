"""``estd batch``: a factory line's side, from a file of requests to a file of certificates."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from estd.cli.failures import REFUSED, TRY_LATER
from estd.cli.loop import run_async
from estd.cli.options import PATH, json_option
from estd.cli.output import console, note, write_facts, write_json
from estd.device.batch import BatchResult, BatchWish, carry_out
from estd.device.client import Credential, Patience

_HELP = """\
Get certificates for many devices at once, on their behalf.

\b
From a CSV file with id,csr in each row (the request in base64 or PEM, or the
name of a file that holds it) to a CSV file with id,certificate:
  estd batch --url https://ca.example:8443 --trust trust.pem --label plant \\
      --cert ra.pem --key ra.key --in requests.csv --out certificates.csv

\b
From a directory of requests to a directory of certificates:
  estd batch --url https://ca.example:8443 --trust trust.pem --label plant \\
      --cert ra.pem --key ra.key --in requests/ --out certificates/

\b
After a crash, or when it gave up; what was issued is not issued twice:
  the same command with --resume

The keys stay on the devices. Who may do this: a registration authority, whose certificate carries the key purpose cmcRA
and whose issuer the profile names in registration_authorities; docs/factory-line.md shows how to make one.

Each verdict is on disk, in a state file beside the results, before it is counted. Refusals are listed with their reasons in
OUT.refused.csv, or refused.csv in the directory.

Exit status: 0 every request has a certificate, 1 some were refused, 2 the command or a file is wrong, 75 try again later
with --resume.
"""


@click.command(help=_HELP, short_help="Get certificates for many devices at once.")
@click.option("--url", "--server", "url", required=True, metavar="URL", help="The server: https://HOST:PORT.")
@click.option(
    "--trust",
    required=True,
    metavar="FILE",
    type=PATH,
    help="CA certificates (PEM) that the server's certificate must lead to.",
)
@click.option(
    "--label", metavar="LABEL", help="The ecosystem, or a profile's own label (default: the server's default)."
)
@click.option(
    "--cert", required=True, metavar="FILE", type=PATH, help="The registration authority's certificate (PEM)."
)
@click.option("--key", required=True, metavar="FILE", type=PATH, help="Its private key (PEM).")
@click.option("--in", "source", required=True, metavar="PATH", type=PATH, help="CSV file or directory of requests.")
@click.option("--out", required=True, metavar="PATH", type=PATH, help="Where the results go: FILE.csv, or a directory.")
@click.option("--resume", is_flag=True, help="Go on with what was begun at --out.")
@click.option(
    "--tries",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    metavar="N",
    help="Give up after so many tries in a row that brought nothing.",
)
@json_option
def batch(
    url: str,
    trust: Path,
    label: str | None,
    cert: Path,
    key: Path,
    source: Path,
    out: Path,
    resume: bool,
    tries: int,
    as_json: bool,
) -> int:
    """See `_HELP`."""
    wish = BatchWish(url, trust, label, Credential(cert, key), source, out, resume)
    with _Show(as_json) as show:
        result = run_async(carry_out(wish, Patience(tries=tries), show.progress, show.wait))
    if as_json:
        write_json(_as_json(wish, result))
    else:
        _write(wish, result)
    if result.unfinished:
        return TRY_LATER
    return REFUSED if result.refused else 0


class _Show:
    """A progress bar on a terminal; elsewhere a line for each tenth. Always on standard error."""

    def __init__(self, as_json: bool) -> None:
        self._console = console(to_stderr=True)
        self._is_silent = as_json
        self._progress: Progress | None = None
        self._tenths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def progress(self, done: int, total: int) -> None:
        """So many of so many have their verdict."""
        if self._is_silent:
            return
        if not self._console.is_terminal:
            tenths = done * 10 // total
            if tenths > self._tenths:
                self._tenths = tenths
                note(f"{done} of {total}")
            return
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._progress.add_task("certificates", total=total)
        self._progress.update(self._progress.task_ids[0], completed=done)

    def wait(self, why: str, seconds: int) -> None:
        """There is a pause."""
        if not self._is_silent:
            note(f"… {why}; trying again in {seconds} s")


def _refusals(wish: BatchWish) -> Path:
    is_file = wish.out.suffix.lower() == ".csv"
    return wish.out.with_name(wish.out.stem + ".refused.csv") if is_file else wish.out / "refused.csv"


def _write(wish: BatchWish, result: BatchResult) -> None:
    certificates = result.issued + result.repeated
    write_facts(
        f"{certificates} of {result.total} devices have a certificate",
        [
            ("certificates", str(wish.out) if certificates else ""),
            ("repeated", f"{result.repeated} had been issued before, for the same request" if result.repeated else ""),
            ("refused", f"{result.refused}, see {_refusals(wish)}" if result.refused else ""),
            ("unfinished", f"{result.unfinished}; run the same command with --resume" if result.unfinished else ""),
        ],
    )


def _as_json(wish: BatchWish, result: BatchResult) -> dict[str, object]:
    return {
        "total": result.total,
        "issued": result.issued,
        "repeated": result.repeated,
        "refused": result.refused,
        "unfinished": result.unfinished,
        "already_done": result.before,
        "out": wish.out,
        "refusals": _refusals(wish) if result.refused else None,
    }
