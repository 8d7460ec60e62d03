"""diskfull: the disk below the journal, the tables or the write-ahead log of a server under load is filled up and emptied.

A real server keeps the part under test on a small disk of its own (a tmpfs). Devices ask for certificates, and ask again
until they have them; then the rest of that disk is filled with ballast.

  journal   the signers' journals
  tables    the private PostgreSQL, whose tables cannot grow any more
  wal       the same, and its write-ahead log cannot grow either, so that PostgreSQL stops and cannot start

While the disk is full nothing may be signed that is not journaled, a device has to be told to come back (503 with
Retry-After) and /readyz has to name what is missing. When the ballast is gone the server has to recover by itself, every
device has to get its certificate, and database and journals have to agree.

  python tests/chaos/diskfull.py
  python tests/chaos/diskfull.py --part journal --json diskfull.json

Mounting takes root. An ordinary user can try the journal alone: there the size of the signers' files is limited instead
(RLIMIT_FSIZE). About half a minute for each part; stops by itself, leaves nothing behind unless a claim fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import asyncpg
from claims import Report, Skipped, make_parser, perform
from insist import Crowd, Record
from ledger import check
from stage import Stage

from estd.store.cluster import SUPERUSER
from estd.store.private import url_of

Part = Literal["journal", "tables", "wal"]

PARTS: Final[tuple[Part, ...]] = ("journal", "tables", "wal")
DISKS: Final[dict[Part, tuple[str, str]]] = {
    "journal": ("journal", "3m"),
    "tables": ("postgres", "160m"),
    "wal": ("postgres", "160m"),
}
"""Below the data directory; and how large. A journal on so small a disk gets its room entry by entry."""
MISSING: Final[dict[Part, str]] = {"journal": "signers", "tables": "database", "wal": "database"}
"""What /readyz calls it."""
WARM_CERTIFICATES: Final = 25
FULL_SECONDS: Final = 8.0
STOP_SECONDS: Final = 40.0
BACK_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that can be filled and emptied."""

    fill: Callable[[], None]
    """Take what room is left; called again and again, because a server gives some back."""
    free: Callable[[], None]


@contextlib.contextmanager
def small_disk(stage: Stage, part: Part) -> Iterator[Disk]:
    """A tmpfs below the server's data directory, while the server runs."""
    folder, size = DISKS[part]
    place = stage.place.data / folder
    place.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "estd-diskfull", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Skipped(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    ballast = place / "ballast"

    def fill() -> None:
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for block in (64 * 1024, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(block))

    try:
        yield Disk(fill, lambda: ballast.unlink(missing_ok=True))
    finally:
        stage.end()
        if stage.keep or sys.exc_info()[0] is not None:
            ballast.unlink(missing_ok=True)
            shutil.copytree(
                place, stage.directory / f"{folder}-as-it-was", symlinks=True, ignore_dangling_symlinks=True
            )
        subprocess.run(["umount", "--lazy", place], check=True)


@contextlib.contextmanager
def limited_files(stage: Stage) -> Iterator[Disk]:
    """No disk of its own: no file that a signer writes may become longer than its journal is."""

    def limit(soft: int) -> None:
        for signer in stage.of_role("signer"):
            with contextlib.suppress(ProcessLookupError):
                hard = resource.prlimit(signer.pid, resource.RLIMIT_FSIZE)[1]
                resource.prlimit(signer.pid, resource.RLIMIT_FSIZE, (soft, hard))

    is_full, is_over = threading.Event(), threading.Event()

    def keep_full() -> None:
        # Often: a signer that is started anew has to find the disk full, before it opens its journal.
        while not is_over.wait(0.02):
            if is_full.is_set():
                limit(1)  # a signer sets room aside 4 MiB at a time, and what is set aside may be used

    def free() -> None:
        is_full.clear()
        time.sleep(0.1)
        limit(resource.RLIM_INFINITY)

    keeper = threading.Thread(target=keep_full, daemon=True)
    keeper.start()
    try:
        yield Disk(is_full.set, free)
    finally:
        is_over.set()
        keeper.join()


class LogSwitch:
    """A connection, made while there is room, that makes PostgreSQL begin the next segment of its write-ahead log."""

    def __init__(self, stage: Stage) -> None:
        url = url_of(str(stage.place.data / "postgres" / "socket"), role=SUPERUSER, database="postgres")
        self._loop = asyncio.new_event_loop()
        self._connection = self._loop.run_until_complete(asyncpg.connect(url, timeout=5))
        self.broke = False
        """Whether PostgreSQL went down over it."""

    def switch(self) -> None:
        """Begin one, if PostgreSQL still runs."""
        if self.broke:
            return
        try:
            # A segment without a record is not left.
            call = self._connection.execute(
                "SELECT pg_logical_emit_message(false, 'x', 'x'), pg_switch_wal()", timeout=5
            )
            self._loop.run_until_complete(call)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.broke = True

    def close(self) -> None:
        """Let go."""
        self._connection.terminate()
        self._loop.close()


def act(report: Report, options: argparse.Namespace) -> None:
    """One run."""
    for part in options.part or PARTS:
        if os.geteuid() != 0 and part != "journal":
            if options.part:
                raise Skipped(f"{part}: a disk of its own takes root")
            report.say(f"{part}: skipped, a disk of its own takes root")
            report.figures.setdefault("not tried, a disk of its own takes root", []).append(part)
            continue
        report.say(part)
        all_figures, report.figures = report.figures, {}
        all_figures[part] = report.figures
        try:
            _try_part(report, part, options)
        finally:
            report.figures = all_figures


# --- private -----------------------------------------------------------------------------------------------------------


def _try_part(report: Report, part: Part, options: argparse.Namespace) -> None:
    with Stage(workers=options.workers, signers=options.signers) as stage:
        stage.keep = options.keep
        with small_disk(stage, part) if os.geteuid() == 0 else limited_files(stage) as disk:
            stage.start()
            crowd = Crowd(stage, options.devices, pause_seconds=0.05, patience_seconds=150.0, seed=options.seed)
            crowd.start()
            _wait(lambda: crowd.delivered >= WARM_CERTIFICATES, 60.0, "the devices get certificates")
            log = LogSwitch(stage) if part == "wal" else None
            readiness, seconds = _fill(stage, crowd.record, disk, log)
            if log is not None:
                report.claim("wal: PostgreSQL stopped for want of room", log.broke)
                log.close()
            before = crowd.delivered
            disk.free()
            report.say("emptied")
            freed = time.monotonic()
            _wait(lambda: crowd.delivered > before + WARM_CERTIFICATES, BACK_SECONDS, "certificates flow again")
            report.figures["seconds"] = {
                "from the first ballast to the last certificate": round(seconds, 1),
                "from the last ballast to certificates": round(time.monotonic() - freed, 1),
            }
            crowd.finish()
            _wait(lambda: stage.readiness()[0] == 200, BACK_SECONDS, "/readyz is content")
            _judge(report, part, crowd.record, readiness)
            check(report, stage, crowd.record.answers, settle_seconds=120.0)
            stage.keep |= not report.holds


def _fill(stage: Stage, record: Record, disk: Disk, log: LogSwitch | None) -> tuple[list[tuple[int, str]], float]:
    """Fill the disk until no certificate comes any more, and then for a while; what /readyz said in that while."""
    started = time.monotonic()
    readiness: list[tuple[int, str]] = []
    while True:
        disk.fill()
        if log is not None:
            log.switch()
        last = max(started, record.delivered[-1])
        if time.monotonic() - last > FULL_SECONDS:
            return readiness, last - started
        if time.monotonic() - started > STOP_SECONDS + FULL_SECONDS:
            raise RuntimeError(f"certificates still come {STOP_SECONDS:.0f} s after the disk was filled")
        if time.monotonic() - last > FULL_SECONDS / 2:
            readiness.append(stage.readiness())
        time.sleep(0.1)


def _judge(report: Report, part: Part, record: Record, readiness: list[tuple[int, str]]) -> None:
    report.figures["requests"] = {
        "certificates": len(record.answers),
        "attempts": record.attempts,
        "retries": record.retries,
    }
    report.figures["refusals"] = dict(record.refusals)
    report.figures["broken connections"] = dict(record.broken)
    report.claim(f"{part}: every device got its certificate", record.gave_up)
    report.claim(
        f"{part}: a device was told to come back (503 with Retry-After) and nothing else",
        [f"{reason}: {count}" for reason, count in record.refusals.items() if not reason.startswith("503 ")]
        + [f"503 without Retry-After: {record.without_retry_after}"] * bool(record.without_retry_after),
    )
    wrong = [f"{status} {text}" for status, text in readiness if not _names(text, MISSING[part]) or status != 503]
    report.claim(f"{part}: /readyz said 503 and named {MISSING[part]} while the disk was full", wrong)
    report.figures["readyz"] = readiness[-1][1] if readiness else "was not asked"


def _names(text: str, missing: str) -> bool:
    try:
        return missing in json.loads(text)["missing"]
    except (ValueError, KeyError):
        return False


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = make_parser(__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="what gets full (all, one after the other)")
    parser.add_argument("--devices", type=int, default=6, metavar="N", help="devices at work at once (6)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="web workers (1)")
    parser.add_argument("--signers", type=int, default=2, metavar="N", help="signers (2)")
    options = parser.parse_args(arguments)
    return perform("diskfull", options, lambda report: act(report, options))


if __name__ == "__main__":
    sys.exit(main())
