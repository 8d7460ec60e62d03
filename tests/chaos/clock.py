"""clock: the server's clock is set forward and back under load; then it comes right again.

A real server runs on a clock that this tool turns (a small library is preloaded into the server alone: devices, checker and
PostgreSQL keep the true time). For each step the clock is wrong for some seconds while devices ask for certificates, then
right:

  +1h    certificates go on; none begins or ends at another time than the server's clock says
  -1h    the same: an hour is within the tolerance
  -2h    refused: behind the newest certificate by more than the tolerance
  +10y   refused: the issuer has ended
  -10y   refused: the issuer has not begun

A refusal is 503 with Retry-After, never one that a device would take for an answer. Nothing may hang or be cut off by the
step, so every answer has to come within the time that a healthy server takes; and when the clock is right again the server
has to issue by itself, all devices have to get their certificates, and database and journals have to agree.

  python tests/chaos/clock.py
  python tests/chaos/clock.py --step=-10y --json clock.json

Needs a C compiler (Debian: apt-get install gcc libc6-dev) and no privileges. Ten seconds for each
step; stops by itself, leaves nothing behind unless a claim fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from claims import Report, Skipped, describe_seconds, make_parser, perform
from cryptography import x509
from insist import Crowd
from ledger import check
from stage import Stage

STEPS: Final[dict[str, tuple[timedelta, bool]]] = {
    "+1h": (timedelta(hours=1), True),
    "-1h": (timedelta(hours=-1), True),
    "-2h": (timedelta(hours=-2), False),
    "+10y": (timedelta(days=3653), False),
    "-10y": (timedelta(days=-3653), False),
}
"""How far the clock is wrong, and whether certificates go on."""
WARM_CERTIFICATES: Final = 10
WRONG_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 1.5
"""What was under way when the clock was turned may still be answered."""
BACK_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 20.0
"""A server that lost its sense of time would answer at its deadline, or never."""
TOLERANCE: Final = timedelta(seconds=5)
SOURCE: Final = Path(__file__).with_name("wrong_clock.c")
_SECONDS: Final = struct.Struct("=q")


@dataclass(frozen=True, slots=True)
class Turn:
    """One time that the clock was wrong; the rest is in monotonic seconds."""

    step: str
    began: float
    ended: float
    back: float
    """When the first certificate came after it."""


class Clock:
    """The server's clock: the server looks at the time through a library that adds what stands in a file."""

    def __init__(self, directory: Path) -> None:
        compiler = find_compiler()
        if compiler is None:
            raise Skipped("a C compiler is not installed (Debian: apt-get install gcc libc6-dev)")
        library, file = directory / "wrong_clock.so", directory / "wrong_clock"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
        file.write_bytes(_SECONDS.pack(0))
        self._descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        self.environment = {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(file)}

    def turn(self, wrong_by: timedelta) -> None:
        """From now on the clock is wrong by so much."""
        os.pwrite(self._descriptor, _SECONDS.pack(int(wrong_by.total_seconds())), 0)


def find_compiler() -> str | None:
    """What makes a library of the clock's source."""
    return shutil.which("cc")


def act(report: Report, options: argparse.Namespace) -> None:
    """One run."""
    with Stage(workers=options.workers, signers=options.signers) as stage:
        stage.keep = options.keep
        clock = Clock(stage.directory)
        stage.environment.update(clock.environment)
        for document in (stage.place.directory / "ecosystems").glob("*.toml"):
            # A step of an hour would carry a retry past the window of an hour that is the default.
            text = document.read_text(encoding="utf-8")
            document.write_text(
                text.replace('renew = "either"', 'retry_window = "1d"\nrenew = "either"'), encoding="utf-8"
            )
        stage.start()
        crowd = Crowd(stage, options.devices, pause_seconds=0.1, patience_seconds=180.0, seed=options.seed)
        crowd.start()
        _wait_for_more(crowd, WARM_CERTIFICATES)
        turns = [_turn(report, stage, clock, crowd, step) for step in options.step or STEPS]
        crowd.finish()
        record = crowd.record
        report.figures["requests"] = {"certificates": len(record.answers), "retries": record.retries}
        report.figures["refusals"] = dict(record.refusals)
        report.figures["broken connections"] = dict(record.broken)
        report.figures["answer"] = describe_seconds(record.answer_seconds)
        report.figures["seconds until certificates came after the clock was right"] = {
            turn.step: round(turn.back - turn.ended, 1) for turn in turns
        }
        _judge(report, crowd, turns)
        check(report, stage, record.answers, settle_seconds=120.0)
        stage.keep |= not report.holds


# --- private -----------------------------------------------------------------------------------------------------------


def _turn(report: Report, stage: Stage, clock: Clock, crowd: Crowd, step: str) -> Turn:
    wrong_by, goes_on = STEPS[step]
    report.say(step)
    began = time.monotonic()
    clock.turn(wrong_by)
    time.sleep(WRONG_SECONDS)
    status, text = stage.readiness()
    if not goes_on and step.startswith("-"):
        report.claim(f"{step}: /readyz named the signers", status == 503 and "signers" in text)
    clock.turn(timedelta())
    ended = time.monotonic()
    _wait_for_more(crowd, WARM_CERTIFICATES)
    return Turn(step, began, ended, next(at for at in crowd.record.delivered if at > ended))


def _judge(report: Report, crowd: Crowd, turns: Sequence[Turn]) -> None:
    record = crowd.record
    report.claim("every device got its certificate", record.gave_up)
    report.claim(
        "a device was told to come back (503 with Retry-After) and nothing else",
        [f"{reason}: {count}" for reason, count in record.refusals.items() if not reason.startswith("503 ")]
        + [f"503 without Retry-After: {record.without_retry_after}"] * bool(record.without_retry_after),
    )
    report.claim(
        f"no answer took longer than {ANSWER_SECONDS:.0f} s and no connection was cut off",
        [f"{seconds:.1f} s" for seconds in record.answer_seconds if seconds > ANSWER_SECONDS]
        + [f"{what}: {count}" for what, count in record.broken.items()],
    )
    for turn in turns:
        goes_on = STEPS[turn.step][1]
        came = sum(turn.began + SETTLE_SECONDS < at < turn.ended for at in record.delivered)
        if goes_on:
            report.claim(f"{turn.step}: certificates went on", came > 0)
        else:
            report.claim(f"{turn.step}: nothing was issued", [f"{came} certificates"] * bool(came))
    allowed = [timedelta()] + [wrong_by for wrong_by, goes_on in STEPS.values() if goes_on]
    first = datetime.now(UTC) - timedelta(seconds=time.monotonic() - turns[0].began) - timedelta(minutes=5)
    report.claim(
        "every certificate begins at a time the server's clock showed, and is valid for as long as its profile says",
        [problem for ders in record.answers.values() if (problem := _find_wrong_dates(ders[0], first, allowed))],
    )


def _find_wrong_dates(der: bytes, first: datetime, allowed: Sequence[timedelta]) -> str | None:
    """What is wrong with the dates of a certificate made in this run, by a clock that was wrong by one of these."""
    certificate = x509.load_der_x509_certificate(der)
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    # A certificate begins when it is made, or earlier by what the profile says; never later than the clock.
    shown = any(first + wrong_by - _BACKDATE <= starts <= now + wrong_by + TOLERANCE for wrong_by in allowed)
    if not shown or ends - starts != _VALIDITY:
        return f"serial {certificate.serial_number:x}: {starts} to {ends}"
    return None


def _wait_for_more(crowd: Crowd, count: int) -> None:
    wanted = crowd.delivered + count
    deadline = time.monotonic() + BACK_SECONDS
    while crowd.delivered < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no certificates for {BACK_SECONDS:.0f} s under a clock that is right")
        time.sleep(0.05)


_VALIDITY: Final = timedelta(days=90) - timedelta(seconds=1)
"""What the playground's profile says; both ends belong to it (RFC 5280 §4.1.2.5)."""
_BACKDATE: Final = timedelta(hours=1)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = make_parser(__doc__)
    parser.add_argument("--step", action="append", choices=STEPS, help="by how much (all, one after the other)")
    parser.add_argument("--devices", type=int, default=6, metavar="N", help="devices at work at once (6)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="web workers (1)")
    parser.add_argument("--signers", type=int, default=2, metavar="N", help="signers (2)")
    options = parser.parse_args(arguments)
    return perform("clock", options, lambda report: act(report, options))


if __name__ == "__main__":
    sys.exit(main())
