"""``estd demo``: a fleet enrolls before your eyes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from estd.app.demo import Outcome, Proof
from estd.app.demo import run as carry_out
from estd.app.fleet import OPERATIONS
from estd.audit import write_event
from estd.cli.failures import Failed
from estd.cli.loop import run_async
from estd.cli.options import PATH, json_option
from estd.cli.output import console, plain, write_json

_HELP = """\
Watch a fleet of devices get their certificates. A private server starts in a temporary directory, with two ecosystems
that know nothing of each other; each device fetches CA certificates, enrolls with its birth certificate or a code,
reconnects with what it got, and renews. Then every certificate is verified, and one device tries the ecosystem next
door. Everything is gone afterwards.

\b
  estd demo
  estd demo --devices 500
  estd demo --keep lab        keep it; then go on with: estd quickstart --dir lab

Exit status: 0 if everything went as it should, 1 if anything did not.
"""


@click.command(help=_HELP, short_help="Watch a fleet of devices enroll, renew and be refused.")
@click.option(
    "--devices", type=click.IntRange(2, 100_000), default=100, show_default=True, metavar="N", help="How many."
)
@click.option("--keep", metavar="DIR", type=PATH, help="Keep everything in this directory.")
@json_option
def demo(devices: int, keep: Path | None, as_json: bool) -> None:
    """See `_HELP`."""
    started = time.monotonic()
    with _Screen(silent=as_json) as screen:
        outcome = run_async(carry_out(devices, keep, screen))
    seconds = time.monotonic() - started
    if as_json:
        write_json(_as_json(outcome, seconds))
    else:
        _write(outcome, seconds, keep)
    if not outcome.good:
        raise Failed("The demonstration did not go as it should.", "The lines above say what failed.")


class _Screen:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._console = console(to_stderr=True)
        self._progress: Progress | None = None
        self._task = None
        self._last = 0

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def stage(self, what: str) -> None:
        """See `estd.app.demo.Watch`."""
        self._close()
        if not self._silent:
            self._console.print(Text(f"… {what}"), soft_wrap=True)

    def progress(self, done: int, total: int) -> None:
        """See `estd.app.demo.Watch`."""
        if self._silent:
            return
        if not self._console.is_terminal:
            step = max(1, total // 4)
            if done // step > self._last or done == total:
                self._last = done // step
                self._console.print(Text(f"  {done} of {total} devices"))
            return
        if self._progress is None:
            self._progress = _build_progress(self._console)
            self._progress.start()
            self._progress.add_task("devices", total=total)
        self._progress.update(self._progress.task_ids[0], completed=done)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _build_progress(target: Console) -> Progress:
    return Progress(
        TextColumn(" "),
        SpinnerColumn(),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("devices"),
        TimeElapsedColumn(),
        console=target,
    )


def _write(outcome: Outcome, seconds: float, keep: Path | None) -> None:
    out, tally = console(), outcome.tally
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("operation")
    for column in ("devices", "failed", "p50", "p99"):
        table.add_column(column, justify="right")
    for operation in OPERATIONS:
        times, failed = tally.seconds[operation], tally.count_failures(operation)
        style = "red" if failed else ""
        table.add_row(operation, str(len(times)), Text(str(failed), style=style), _ms(times, 0.5), _ms(times, 0.99))
    out.print()
    out.print(table)
    rate = 2 * len(tally.lives) / tally.elapsed_seconds if tally.elapsed_seconds else 0.0
    out.print(Text(f"\n{2 * len(tally.lives)} certificates in {tally.elapsed_seconds:.1f} s, {rate:.0f} a second"))
    if outcome.proof is not None:
        for good, text in _describe_proof(outcome.proof):
            _tick(out, good, text)
    if (neighbour := outcome.neighbour) is not None:
        answer = "was refused" if neighbour.status == 403 else "was NOT refused"
        _tick(out, neighbour.refused, f"{neighbour.device} tried {neighbour.label} and {answer} ({neighbour.status})")
        out.print(Text(f"    server: {plain(neighbour.detail)}", style="dim"), soft_wrap=True)
        if neighbour.event is not None:
            event = neighbour.event
            text = (
                f"audit:  {event.at:%H:%M:%S}Z {event.kind} {event.outcome}, {event.code}, request {event.request_id}"
            )
            out.print(Text(f"    {text}", style="dim"), soft_wrap=True)
        rows = neighbour.certificates or "no"
        out.print(Text(f"    store:  {rows} certificate of that device in {neighbour.label}", style="dim"))
    for device, operation, detail in tally.failures[:_FAILURES_SHOWN]:
        _tick(out, False, f"{device}, {operation}: {detail}")
    if len(tally.failures) > _FAILURES_SHOWN:
        out.print(Text(f"    and {len(tally.failures) - _FAILURES_SHOWN} more"))
    out.print(Text(f"\n{'All good' if outcome.good else 'Not good'}, {seconds:.0f} s in all.", style="bold"))
    go_on = f"estd quickstart --dir {keep or 'lab'}"
    out.print(Text(f"Everything is in {keep}; go on with: {go_on}" if keep else f"Next: {go_on}"), soft_wrap=True)


_FAILURES_SHOWN = 5


def _describe_proof(proof: Proof) -> list[tuple[bool, str]]:
    every = proof.certificates
    lines = [
        (proof.by_cryptography == every, f"{proof.by_cryptography} of {every} verified by cryptography"),
        (proof.in_store == every, f"{proof.in_store} of {every} found in the database, byte for byte"),
        (proof.strangers == 0, f"{proof.strangers or 'none'} of {every} passes in the other ecosystem"),
    ]
    if proof.by_openssl is None:
        lines.insert(1, (True, "openssl is not installed here, so it was not asked"))
    else:
        lines.insert(1, (proof.by_openssl == every, f"{proof.by_openssl} of {every} verified by openssl"))
    return lines


def _tick(out: Console, good: bool, text: str) -> None:
    mark = Text("  ✓ ", style="green") if good else Text("  ✗ ", style="red")
    out.print(mark.append(plain(text), style="default"), soft_wrap=True)


def _ms(times: list[float], share: float) -> str:
    return f"{_quantile(times, share) * 1000:.1f} ms" if times else "–"


def _quantile(times: list[float], share: float) -> float:
    if share == 0.5:
        return statistics.median(times)
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _as_json(outcome: Outcome, seconds: float) -> dict[str, object]:
    tally, proof, neighbour = outcome.tally, outcome.proof, outcome.neighbour
    return {
        "good": outcome.good,
        "devices": outcome.devices,
        "certificates": 2 * len(tally.lives),
        "seconds": round(seconds, 2),
        "fleet_seconds": round(tally.elapsed_seconds, 3),
        "certificates_per_second": round(2 * len(tally.lives) / max(tally.elapsed_seconds, 1e-9), 1),
        "operations": {
            operation: {
                "count": len(tally.seconds[operation]),
                "failed": tally.count_failures(operation),
                "p50_ms": round(_quantile(tally.seconds[operation], 0.5) * 1000, 2)
                if tally.seconds[operation]
                else None,
                "p99_ms": round(_quantile(tally.seconds[operation], 0.99) * 1000, 2)
                if tally.seconds[operation]
                else None,
            }
            for operation in OPERATIONS
        },
        "failures": [
            {"device": device, "operation": operation, "detail": detail} for device, operation, detail in tally.failures
        ],
        "proof": None
        if proof is None
        else {
            "certificates": proof.certificates,
            "cryptography": proof.by_cryptography,
            "openssl": proof.by_openssl,
            "in_database": proof.in_store,
            "accepted_by_neighbour": proof.strangers,
        },
        "neighbour": None
        if neighbour is None
        else {
            "device": neighbour.device,
            "ecosystem": neighbour.label,
            "status": neighbour.status,
            "detail": neighbour.detail,
            "audit": None if neighbour.event is None else write_event(neighbour.event),
            "certificates": neighbour.certificates,
        },
    }
