"""killstorm: SIGKILL a random process of a server under load, N times over; then count what is lost.

A real server is started with a load of devices that ask again until they have their certificate. Then one of its
processes after the other is killed:

  worker      a web worker, with the requests it has in hand
  signer      a signer, with what it has prepared, journaled and not yet signed
  backend     a connection's process of PostgreSQL, which makes PostgreSQL drop all connections and recover
  postmaster  PostgreSQL itself; the supervisor has to start it again
  supervisor  started again after 100 ms, as systemd would; every other time whatever it left behind is killed first,
              as systemd does with KillMode=mixed, and every other time that has to end by itself

at one of three moments: `random` (some time after certificates flow again), `flush` (the instant in which a signer's
journal was flushed, so between journal and signature or between signature and database) and `recovery` (before the server
has recovered from the kill before). At the end every device has to have its certificate, and a checker that shares no
code with the server compares what the devices hold with the database and the signers' journals.

  python tests/chaos/killstorm.py --kills 100
  python tests/chaos/killstorm.py --kills 2000 --json killstorm.json

Needs no privileges, about two cores and 5 to 20 seconds for ten kills. Stops by itself, leaves nothing behind unless a
claim fails.
"""

from __future__ import annotations

import argparse
import random  # noqa: TID251 - choices that a seed can repeat; nothing secret hangs on them
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from claims import Report, describe_seconds, make_parser, perform
from insist import Crowd
from ledger import check
from stage import Process, Role, Stage

Moment = Literal["random", "flush", "recovery"]

VICTIMS: Final[dict[Role, int]] = {"worker": 30, "signer": 32, "backend": 32, "postmaster": 3, "supervisor": 3}
"""How often each is chosen, of a hundred: the cheap ones often, so that a storm is dense."""
ROLES: Final = tuple(VICTIMS)
"""The first kills take one of each, so that a short storm has met them all."""
MOMENTS: Final[dict[Moment, int]] = {"random": 45, "flush": 35, "recovery": 20}
RESTART_SECONDS: Final = 0.1
"""systemd's RestartSec=."""
BACK_SECONDS: Final = 60.0
"""A server that delivers nothing for so long after a kill did not come back."""
_SLOT_SECONDS: Final = 0.25
_TRY_LATER: Final = 75
_Choice = TypeVar("_Choice", Role, Moment)


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill; `at` in monotonic seconds."""

    role: Role
    moment: Moment
    at: float
    alone: bool
    """Whether the server had recovered from the kill before."""


@dataclass(slots=True)
class Storm:
    """One storm while it rages."""

    report: Report
    stage: Stage
    crowd: Crowd
    choices: random.Random
    only: tuple[Role, ...] = ()
    """Kill these in turn and no others; empty: all, by `VICTIMS`."""
    kills: list[Kill] = field(default_factory=list)
    failed_starts: int = 0
    starts_over: int = 0
    """Starts that ended with "try again later", because their database was killed meanwhile."""
    _restart_at: float | None = None

    def rage(self, count: int, seconds: float) -> None:
        """Kill so often, or for so long."""
        until = time.monotonic() + seconds
        while len(self.kills) < count and time.monotonic() < until:
            moment = self._choose(MOMENTS)
            alone = self._wait_for_certificates() if moment != "recovery" or not self.kills else False
            self._let_pass(self.choices.random() * (0.6 if moment == "recovery" else 0.3))
            role = self._choose_role()
            victims = self.stage.of_role(role)
            if not victims:
                continue  # not there at this moment: killed before, and not back yet
            victim = self.choices.choice(victims)
            if moment == "flush" and not self._wait_for_flush():
                moment = "random"
            if not victim.kill():
                continue
            self.kills.append(Kill(role, moment, time.monotonic(), alone))
            if role == "supervisor":
                self._clear_away(victim)
            if len(self.kills) % 50 == 0:
                self.report.say(f"{len(self.kills)} kills, {self.crowd.delivered} certificates")

    def recover(self) -> None:
        """Wait until everything is back."""
        deadline = time.monotonic() + BACK_SECONDS
        while self.stage.readiness()[0] != 200:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server is not ready {BACK_SECONDS:.0f} s after the storm")
            self._let_pass(0.1)

    def _choose_role(self) -> Role:
        number = len(self.kills)
        if self.only:
            return self.only[number % len(self.only)]
        return ROLES[number] if number < len(ROLES) else self._choose(VICTIMS)

    def _choose(self, weights: dict[_Choice, int]) -> _Choice:
        return self.choices.choices(list(weights), list(weights.values()))[0]

    def _wait_for_certificates(self) -> bool:
        """Until a certificate was delivered after the last kill."""
        last = self.kills[-1].at if self.kills else 0.0
        deadline = time.monotonic() + BACK_SECONDS
        while not self.crowd.record.delivered or self.crowd.record.delivered[-1] <= last:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing was delivered for {BACK_SECONDS:.0f} s after {self.kills[-1:]}")
            self._let_pass(0.01)
        return True

    def _wait_for_flush(self) -> bool:
        """Until a signer has flushed its journal just now; False when none did for a while."""
        heads = sorted(self.stage.journals.glob("*.head"))
        before = [head.read_bytes() for head in heads]
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            if [head.read_bytes() for head in heads] != before:
                return True
        return False

    def _let_pass(self, seconds: float) -> None:
        """Time passes, and the supervisor is started again when it has to be."""
        deadline = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            status = self.stage.poll()
            if status is not None and self._restart_at is None:
                self.failed_starts += status not in (-9, _TRY_LATER)
                self.starts_over += status == _TRY_LATER
                self._restart_at = now + RESTART_SECONDS
            if self._restart_at is not None and now >= self._restart_at:
                self.stage.start(wait=False)
                self._restart_at = None
            if now >= deadline:
                return
            time.sleep(min(0.02, deadline - now))

    def _clear_away(self, supervisor: Process) -> None:
        """Every other time nothing that a killed supervisor leaves behind lives on."""
        while supervisor.alive and self.stage.poll() is None:
            time.sleep(0.001)
        if self.choices.randrange(2):
            for process in self.stage.processes():
                process.kill()


def act(report: Report, options: argparse.Namespace) -> None:
    """One run."""
    with Stage(workers=options.workers, signers=options.signers) as stage:
        stage.keep = options.keep
        stage.start()
        crowd = Crowd(stage, options.devices, pause_seconds=options.pause, patience_seconds=600.0, seed=options.seed)
        storm = Storm(report, stage, crowd, random.Random(options.seed), options.only)
        crowd.start()
        started = time.monotonic()
        storm.rage(options.kills, options.seconds)
        storm.recover()
        ended = time.monotonic()
        crowd.finish()
        report.say("the storm is over; checking")
        record = crowd.record
        describe(report, storm, started, ended)
        report.claim("every device got its certificate", record.gave_up)
        report.claim(
            "a device that was refused was told to come back (503 with Retry-After), and nothing else",
            [f"{reason}: {count}" for reason, count in record.refusals.items() if not reason.startswith("503 ")]
            + [f"503 without Retry-After: {record.without_retry_after}"] * bool(record.without_retry_after),
        )
        report.claim(
            "a killed supervisor could be started again at once",
            [f"{storm.failed_starts} starts failed"] * bool(storm.failed_starts),
        )
        runtimes = [path.parent for path in (stage.directory / "tmp").glob("estd-*/metrics")]
        report.claim("a killed supervisor's successor tidies up after it", [str(path) for path in runtimes[1:]])
        check(report, stage, record.answers, settle_seconds=120.0)
        stage.keep |= not report.holds


def describe(report: Report, storm: Storm, started: float, ended: float) -> None:
    """The figures of a storm."""
    record, kills = storm.crowd.record, storm.kills
    delivered = sorted(record.delivered)
    slots = {int((at - started) / _SLOT_SECONDS) for at in delivered if at < ended}
    report.figures["kills"] = dict(Counter(kill.role for kill in kills)) | {"all": len(kills)}
    report.figures["starts over"] = storm.starts_over
    report.figures["moments"] = dict(Counter(kill.moment for kill in kills))
    report.figures["kills a second"] = round(len(kills) / (ended - started), 2)
    report.figures["availability"] = {
        "share": round(len(slots) / max(1, int((ended - started) / _SLOT_SECONDS)), 4),
        "of": f"slots of {_SLOT_SECONDS} s with a certificate delivered",
    }
    report.figures["requests"] = {
        "certificates": len(record.answers),
        "attempts": record.attempts,
        "retries": record.retries,
        "repeated after their answer": record.asked_again,
    }
    report.figures["wait for a certificate"] = describe_seconds(record.waits)
    report.figures["refusals"] = dict(record.refusals)
    report.figures["broken connections"] = dict(record.broken)
    resumed: dict[str, list[float]] = {role: [] for role in VICTIMS}
    at = 0
    for kill in kills:
        while at < len(delivered) and delivered[at] <= kill.at:
            at += 1
        if at < len(delivered) and kill.alone:
            resumed[kill.role].append(delivered[at] - kill.at)
    report.figures["first certificate after a kill"] = {
        role: describe_seconds(values) for role, values in resumed.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = make_parser(__doc__, from_zero=["pause"])
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="how many (100)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=3600.0,
        metavar="S",
        help="end the storm after so long, however many were killed by then (3600)",
    )
    parser.add_argument("--devices", type=int, default=12, metavar="N", help="devices at work at once (12)")
    parser.add_argument(
        "--pause",
        type=float,
        default=0.3,
        metavar="S",
        help="between a device's certificate and its next request (0.3)",
    )
    parser.add_argument(
        "--only", type=_read_roles, default=(), metavar="ROLES", help=f"kill these in turn, of {','.join(ROLES)} (all)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="web workers (2)")
    parser.add_argument("--signers", type=int, default=2, metavar="N", help="signers (2)")
    options = parser.parse_args(arguments)
    return perform("killstorm", options, lambda report: act(report, options))


def _read_roles(text: str) -> tuple[Role, ...]:
    roles = tuple(role for role in ROLES if role in text.split(","))
    if len(roles) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"not all of these are roles: {text}")
    return roles


if __name__ == "__main__":
    sys.exit(main())
