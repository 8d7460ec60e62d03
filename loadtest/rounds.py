"""One measured round of a workload, and the row of the table that several of them make.

A round reads the CPU clocks of a server and the generator before and after, counts the server's rows, and keeps the
time of every answer. A row is the median of the rounds with their smallest and largest; percentiles are of all answers of
all rounds. Rounds of different servers alternate, so that a host's moods hit both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import fleet
import generator
from cryptography import x509

Floor = tuple[float, float]
"""Bare CPU microseconds: (fresh, kept), see `loadtest/floor.py`."""


class Subject(Protocol):
    """A server that can be measured."""

    address: tuple[str, int]
    trust: x509.Certificate

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds so far by role."""

    def rows(self) -> int:
        """Certificates on record."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took. CPU in microseconds for each success."""

    ok: int
    failures: dict[str, int]
    rows: int
    wall_seconds: float
    seconds: list[float] = field(repr=False)
    cpu_us: dict[str, float]
    generator_us: float
    floor_us: float | None = None
    last: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def rate(self) -> float:
        """Successes a second."""
        return self.ok / self.wall_seconds

    @property
    def server_us(self) -> float:
        """CPU of all server processes and the database."""
        return sum(self.cpu_us.values())


def measure(
    subject: Subject,
    visits: Sequence[generator.Visit],
    *,
    in_flight: int,
    keep: bool,
    opened: Sequence[fleet.Connection] = (),
) -> Round:
    """Send these visits and read the clocks around them."""
    return measure_work(
        subject,
        lambda: generator.send_all(
            subject.address, subject.trust, visits, in_flight=in_flight, keep=keep, opened=opened
        ),
    )


def measure_work(subject: Subject, work: Callable[[], generator.Tally]) -> Round:
    """The same around any work of the generator."""
    rows = subject.rows()
    before = subject.cpu_seconds()
    tally = work()
    after = subject.cpu_seconds()
    rows = subject.rows() - rows
    share = 1e6 / max(1, tally.ok)
    return Round(
        ok=tally.ok,
        failures=tally.failures,
        rows=rows,
        wall_seconds=tally.wall_seconds,
        seconds=tally.seconds,
        cpu_us={role: (spent - before.get(role, 0.0)) * share for role, spent in after.items()},
        generator_us=tally.cpu_seconds * share,
        last=tally.last,
    )


def write_row(workload: str, rounds: Sequence[Round], floors: Sequence[float | None]) -> dict[str, Any]:
    """The row of one workload; `floors`: of each round, None where nothing is comparable."""
    failures: dict[str, int] = {}
    for one in rounds:
        for reason, count in one.failures.items():
            failures[reason] = failures.get(reason, 0) + count
    ratios = [one.server_us / floor for one, floor in zip(rounds, floors, strict=True) if floor]
    known = [floor for floor in floors if floor]
    ordered = sorted(second for one in rounds for second in one.seconds)
    return {
        "workload": workload,
        "certificates": sum(one.ok for one in rounds),
        "rate": _median(one.rate for one in rounds),
        "p50_ms": percentile_ms(ordered, 0.5),
        "p99_ms": percentile_ms(ordered, 0.99),
        "cpu_us": {role: _median(one.cpu_us.get(role, 0.0) for one in rounds) for role in rounds[0].cpu_us},
        "floor_us": _median(known) if known else None,
        "ratio": _median(ratios, 3) if ratios else None,
        "peer": None,
        "p999_ms": percentile_ms(ordered, 0.999),
        "generator_us": _median(one.generator_us for one in rounds),
        "rows": sum(one.rows for one in rounds),
        "failures": failures,
        "rounds": len(rounds),
        "rate_range": _range(one.rate for one in rounds),
        "server_us": _median(one.server_us for one in rounds),
        "server_us_range": _range(one.server_us for one in rounds),
        "ratio_range": _range(ratios, 3) if ratios else None,
    }


def write_peer(name: str, ours: Sequence[Round], theirs: Sequence[Round]) -> dict[str, Any]:
    """What the peer did beside a row, and how ours compares: medians of the rounds' own ratios."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "name": name,
        "rate": _median(one.rate for one in theirs),
        "cpu_us": _median(one.server_us for one in theirs),
        "cpu_us_by_role": {role: _median(one.cpu_us.get(role, 0.0) for one in theirs) for role in theirs[0].cpu_us},
        "generator_us": _median(one.generator_us for one in theirs),
        "certificates": sum(one.ok for one in theirs),
        "rows": sum(one.rows for one in theirs),
        "p50_ms": percentile_ms(sorted(second for one in theirs for second in one.seconds), 0.5),
        "rate_range": _range(one.rate for one in theirs),
        "our_rate_over_its_rate": _median((a.rate / b.rate for a, b in pairs), 2),
        "its_cpu_over_our_cpu": _median((b.server_us / a.server_us for a, b in pairs), 2),
    }


def percentile_ms(ordered: Sequence[float], part: float) -> float:
    """The smallest time that this part of all is not above, in milliseconds (nearest rank)."""
    if not ordered:
        return 0.0
    rank = -int(-len(ordered) * part // 1)
    return round(ordered[max(0, rank - 1)] * 1e3, 2)


def _median(values: Iterable[float], digits: int = 1) -> float:
    return round(statistics.median(values), digits)


def _range(values: Iterable[float], digits: int = 1) -> list[float]:
    ordered = sorted(values)
    return [round(ordered[0], digits), round(ordered[-1], digits)]
