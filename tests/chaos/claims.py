"""What a chaos tool says at its end: claims that hold or do not, figures, a JSON report and an exit status.

A claim is one sentence about the server that was tried in this run. A tool exits with 0 if all its claims hold, 1 if one
does not or the run did not come to its end, and 77 where this machine cannot carry it out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

SKIPPED: Final = 77
"""Exit status of a tool that cannot run here (the one that automake's test driver knows)."""
_SHOWN_VIOLATIONS: Final = 20


class Skipped(Exception):
    """This machine lacks what the tool needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence, and the cases that speak against it."""

    text: str
    violations: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.violations


class Report:
    """One run of one tool."""

    def __init__(self, tool: str, options: argparse.Namespace) -> None:
        self.tool = tool
        self.figures: dict[str, Any] = {}
        self.claims: list[Claim] = []
        self.skipped: str | None = None
        self._options = {name: value for name, value in vars(options).items() if name not in ("json", "keep")}
        self._started_at = time.time()
        self._started = time.monotonic()

    @property
    def holds(self) -> bool:
        """Whether every claim so far holds."""
        return all(claim.holds for claim in self.claims)

    def claim(self, text: str, violations: Sequence[str] | bool) -> bool:
        """Record a claim with what speaks against it (or whether it holds); whether it holds."""
        if isinstance(violations, bool):
            violations = [] if violations else ["it is not so"]
        self.claims.append(Claim(text, tuple(violations)))
        return not violations

    def say(self, what: str) -> None:
        """Progress, on standard error."""
        print(f"{time.monotonic() - self._started:7.1f} s  {what}", file=sys.stderr, flush=True)

    def as_json(self) -> dict[str, Any]:
        """The report as a program reads it."""
        return {
            "tool": self.tool,
            "options": self._options,
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started_at)),
            "seconds": round(time.monotonic() - self._started, 1),
            "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
            "holds": self.holds and self.skipped is None,
            "skipped": self.skipped,
            "claims": [{**asdict(claim), "holds": claim.holds} for claim in self.claims],
            "figures": self.figures,
        }

    def show(self) -> None:
        """The closing table, on standard output."""
        print(f"{self.tool}: {' '.join(f'{name}={value}' for name, value in self._options.items())}")
        if self.skipped is not None:
            print(f"  skipped  {self.skipped}")
        for name, value in self.figures.items():
            _show_figure(name, value, "  ")
        for claim in self.claims:
            count = len(claim.violations)
            print(f"  {'holds  ' if claim.holds else 'BROKEN '}  {claim.text}{f': {count} times not' if count else ''}")
            for violation in claim.violations[:_SHOWN_VIOLATIONS]:
                print(f"           {violation}")


class _Parser(argparse.ArgumentParser):
    """Refuses numbers that would make a run of nothing, whose claims all hold."""

    from_zero: Collection[str] = ()

    def parse_args(self, *given: Any, **more: Any) -> Any:
        options = super().parse_args(*given, **more)
        for name, value in vars(options).items():
            if name == "seed" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and self.get_default(name) != 0 and name not in self.from_zero):
                self.error(f"--{name.replace('_', '-')}: {value} is too small")
        return options


def make_parser(documentation: str, *, seeded: bool = True, from_zero: Collection[str] = ()) -> argparse.ArgumentParser:
    """The options that every tool has; its documentation is its help.

    Args:
        documentation: of the tool's module.
        seeded: whether the tool makes choices that an earlier run's seed repeats.
        from_zero: numbers that may be 0; others begin above it.
    """
    parser = _Parser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.from_zero = from_zero
    parser.add_argument("--json", type=_writable_file, metavar="FILE", help="write the report here, as JSON")
    if seeded:
        parser.add_argument("--seed", type=int, help="repeat the choices of an earlier run; its report names its seed")
    parser.add_argument("--keep", action="store_true", help="keep the directory even if every claim holds")
    return parser


def perform(tool: str, options: argparse.Namespace, act: Callable[[Report], None]) -> int:
    """Carry the run out, show and write its report; the exit status."""
    if getattr(options, "seed", 0) is None:
        options.seed = secrets.randbelow(2**32)
    report = Report(tool, options)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        act(report)
    except Skipped as reason:
        report.skipped = str(reason)
    except (Exception, KeyboardInterrupt) as fault:  # noqa: BLE001 - the report says what ended the run
        traceback.print_exception(fault)
        report.claim(
            "the run came to its end", [f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"]
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
    report.show()
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=2, default=str) + "\n", encoding="utf-8")
    if report.skipped is not None:
        return SKIPPED
    return 0 if report.holds else 1


def describe_seconds(values: Sequence[float]) -> dict[str, float]:
    """Count, median, 99th percentile and maximum, in milliseconds."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 1)

    return {"count": len(ordered), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": round(ordered[-1] * 1e3, 1)}


# --- private -----------------------------------------------------------------------------------------------------------


def _writable_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")  # better said before a long run than after it
    return path


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


def _show_figure(name: str, value: Any, indent: str) -> None:
    if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        print(f"{indent}{name}")
        for key, inner in value.items():
            _show_figure(key, inner, indent + "  ")
    elif isinstance(value, dict):
        print(f"{indent}{name:<28} {'  '.join(f'{key} {inner}' for key, inner in value.items())}")
    else:
        print(f"{indent}{name:<28} {value}")
