"""``estd audit``: every decision, refusals included; whether all of it is still true; and what to do when it is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg
import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from estd.app.access import find_user, get_ecosystem, open_database, open_store
from estd.app.reconciling import reconcile
from estd.audit import Event, write_event
from estd.auditor.auditing import Scope, audit_url
from estd.auditor.certificates import read_received
from estd.auditor.findings import Findings
from estd.cli.failures import Failed
from estd.cli.loop import run_async
from estd.cli.options import DIRECTORY, PATH, json_option, server_options
from estd.cli.output import console, plain, write_count, write_facts, write_json, write_line, write_table
from estd.config import Config
from estd.errors import Invalid, Problem, Unavailable

_CANNOT_TELL: Final = 2
_SHOWN: Final = 50


@click.group(short_help="See what was decided, and prove that the records hold.")
def audit() -> None:
    """See what was asked and what was decided, refusals included, and prove that the records hold.

    \b
      estd audit list --ecosystem campus-south --outcome refused --dir lab
      estd audit list --request 5b1f0a9c2d3e4f60 --dir lab
      estd audit list --json --limit 10000 --dir lab > audit.json
      estd audit verify --dir lab           are journal, tables and trail whole?
      estd audit reconcile --dir lab        after the database was set back to an older state
    """


@audit.command("list")
@click.option("--ecosystem", "label", metavar="LABEL", help="Only of this ecosystem.")
@click.option(
    "--outcome", type=click.Choice(("granted", "refused", "failed", "pending")), help="Only with this outcome."
)
@click.option("--request", "request_id", metavar="ID", help="Only of this request: the id that the device was told.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=50,
    show_default=True,
    metavar="N",
    help="How many to list.",
)
@server_options
@json_option
def list_events(
    label: str | None, outcome: str | None, request_id: str | None, limit: int, config: Config, as_json: bool
) -> None:
    """List decisions, newest first."""
    events, labels = run_async(_find(config, label, outcome, request_id, limit))
    if as_json:
        write_json([{**write_event(event), "ecosystem": _label(event, labels)} for event in events])
        return
    write_table(
        ("time", "what", "outcome", "ecosystem", "who", "why", "request"),
        [
            (
                f"{event.at:%Y-%m-%d %H:%M:%S}Z",
                event.kind,
                event.outcome,
                _label(event, labels) or "",
                _who(event),
                _why(event),
                event.request_id,
            )
            for event in events
        ],
        "There is no such decision." if outcome or label or request_id else "Nothing happened here yet.",
    )


@audit.command()
@click.option(
    "--journal",
    "journals",
    type=DIRECTORY,
    multiple=True,
    metavar="DIR",
    help="Directory of signers' journals (default: the server's own); repeat it for other nodes' and for archives.",
)
@click.option(
    "--received",
    type=PATH,
    multiple=True,
    metavar="PATH",
    help="Certificates that devices hold, PEM or DER: a file, or a directory of files.",
)
@click.option(
    "--settled-within",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long an intent may be without result; one whose journal is not given 15 minutes longer.",
)
@click.option("--no-signatures", is_flag=True, help="Do not verify the certificates' signatures; several times faster.")
@click.option(
    "--partial", is_flag=True, help="Other nodes' journals or oldest segments are elsewhere; tell what was not checked."
)
@server_options
@json_option
@click.pass_context
def verify(
    context: click.Context,
    journals: tuple[Path, ...],
    received: tuple[Path, ...],
    settled_within: int,
    no_signatures: bool,
    partial: bool,
    config: Config,
    as_json: bool,
) -> None:
    """Prove that nothing was lost, and that no record was touched.

    Reads the signers' journals, the audit trail and the tables by a code path of its own, while the server runs or not,
    and changes nothing. Six invariants are checked; each finding names one of them and the record that breaks it:

    \b
      i    every certificate is in the database, as the journal has it
      ii   whatever the journal says was signed has an intent, which says the same of it
      iii  no serial stands for two contents
      iv   intents without result are closed in time, with a defined status
      v    journal and audit trail are as they were written, and the tables say what they say
      vi   one request, and one single-use code, has one standing certificate

    \b
    Exit status: 0 all of them hold, 1 one does not, 2 it could not be found out.
    """
    scope = Scope(
        find_journals_of(config, journals),
        _read_received(received),
        timedelta(seconds=settled_within),
        not no_signatures,
        partial,
    )
    with _show_progress(as_json) as advance:
        findings = run_async(_verify(config, scope, advance))
    if as_json:
        write_json(findings.write())
    else:
        _write_findings(findings)
    if not findings.clean:
        context.exit(1)


@audit.command("reconcile")
@click.option(
    "--journal",
    "journals",
    type=DIRECTORY,
    multiple=True,
    metavar="DIR",
    help="Directory of signers' journals (default: the server's own).",
)
@click.option("--dry-run", is_flag=True, help="Tell what is missing, change nothing.")
@click.option(
    "--partial", is_flag=True, help="Other journals are elsewhere or lost for good; restore what these have, and tell."
)
@server_options
@json_option
@click.pass_context
def reconcile_command(
    context: click.Context, journals: tuple[Path, ...], dry_run: bool, partial: bool, config: Config, as_json: bool
) -> None:
    """Bring a database that was set back up to the signers' journals.

    After a restored backup, or a failover to a standby that was behind, the journals hold certificates that the database
    does not. Their intents are written again, the same bytes are signed again, and devices that ask again get what they
    got before. Whatever cannot be signed again ends as an orphan: it counts as issued and can be revoked. Running it twice
    changes nothing more.

    Give it the journals of all signers. One that the database's newest certificates name and that is not here may hold
    certificates that stay lost: it is named, and what the others have is restored.

    Stop the server first; a server that starts, or loses its database and finds it again, does the same by itself.
    Revocations are not in the journals: repeat those that were made after the backup.

    \b
    Exit status: 0 nothing is missing any more, 1 something could not be restored, or
    a journal is not here (unless --partial says so), 2 this must not be done.
    """
    with _show_progress(as_json) as advance:
        report = run_async(
            reconcile(
                config,
                find_journals_of(config, journals),
                find_user(),
                dry_run=dry_run,
                partial=partial,
                advance=advance,
            )
        )
    if as_json:
        write_json(report.write())
    else:
        title = "What would be restored" if dry_run else "Restored from the signers' journals"
        write_facts(title, report.describe())
    if report.failed or (report.absent and not partial) or (dry_run and report.missing):
        context.exit(1)


def find_journals_of(config: Config, given: Sequence[Path]) -> list[Path]:
    """The directories of journals: those that were named, or the server's own.

    Raises:
        Invalid: the server's signers run on their own and none was named.
    """
    if given:
        return list(given)
    own = config.data_directory / "journal"
    if not own.is_dir():
        remedy = "Name the directory of the signers' journals: --journal DIR."
        raise Invalid([Problem(str(own), "is not there", remedy)])
    return [own]


def _read_received(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    try:
        return [one for path in paths for one in read_received(path)]
    except OSError as error:
        problem = Problem(
            str(error.filename), f"cannot be read ({error.strerror})", "Name files or a directory of files."
        )
        raise Invalid([problem]) from None


async def _verify(config: Config, scope: Scope, advance: Callable[[str, int], None]) -> Findings:
    now = datetime.now(UTC)
    try:
        async with open_database(config) as url:
            return await audit_url(url, scope, now, advance)
    except (asyncpg.PostgresError, OSError, Unavailable) as error:
        detail = error.detail if isinstance(error, Unavailable) else str(error)
        remedy = "Is the database running, and may this user read it and the journals?"
        raise Failed(f"It could not be found out: {detail}", remedy, _CANNOT_TELL) from None


@contextlib.contextmanager
def _show_progress(as_json: bool) -> Iterator[Callable[[str, int], None]]:
    """What is being read and how much of it was, on a terminal; nothing where there is none."""
    target: Console = console(to_stderr=True)
    if as_json or not target.is_terminal:
        yield lambda _what, _count: None
        return
    columns = (TextColumn(" "), SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=target, transient=True) as progress:
        task = progress.add_task("reading")
        yield lambda what, count: progress.update(task, description=f"{what}: {count}")


def _write_findings(findings: Findings) -> None:
    counts = {name: number for name, number in findings.counts.items() if number}
    write_facts("Read", [(name.replace("_", " "), str(number)) for name, number in counts.items()])
    out = console()
    for notice in findings.notices:
        out.print(Text(f"  note: {plain(notice)}", style="yellow"), soft_wrap=True)
    if findings.clean:
        write_line("✓ All six invariants hold.", "bold green")
        return
    write_table(
        ("breaks", "where", "serial", "what"),
        [(one.invariant.value, one.where, one.serial or "", one.what) for one in findings.breaches[:_SHOWN]],
        "",
    )
    number = len(findings.breaches) + findings.dropped
    more = f", {number - _SHOWN} of them not shown (--json lists them)" if number > _SHOWN else ""
    write_line(f"✗ {write_count(number, 'finding')}{more}.", "bold red")


def _label(event: Event, labels: dict[int, str]) -> str | None:
    return event.ecosystem or labels.get(event.ecosystem_id or 0)


def _who(event: Event) -> str:
    device = event.extra.get("device")
    if isinstance(device, str):
        return device
    kind, colon, rest = event.identity.partition(":")
    return f"{kind}:{rest[:12]}…" if colon and len(rest) > 40 else event.identity or event.address


def _why(event: Event) -> str:
    if event.code:
        return f"{event.code}: {event.detail}" if event.detail else event.code
    if event.detail:
        return event.detail
    facts = {name: value for name, value in event.extra.items() if name in ("profile", "reason", "version")}
    return ", ".join(f"{name} {value}" for name, value in facts.items())


async def _find(
    config: Config, label: str | None, outcome: str | None, request_id: str | None, limit: int
) -> tuple[list[Event], dict[int, str]]:
    async with open_store(config) as store:
        labels = {record.ecosystem_id: record.label for record in await store.find_ecosystems()}
        wanted = None if label is None else (await get_ecosystem(store, label)).ecosystem_id
        return await store.find_events(wanted, limit, outcome=outcome, request_id=request_id), labels
