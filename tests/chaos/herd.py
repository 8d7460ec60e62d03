"""herd: N virtual devices of one ecosystem come for their renewal in the same second; a neighbour must hardly notice.

First every device of the herd gets its first certificate, and a neighbour ecosystem's steady load is measured alone. Then
all of the herd ask for their renewal within one second, each on a connection of its own, while the neighbour goes on. A
device that is told to come back (429 or 503 with Retry-After) comes back then; one whose connection is refused or reset
before there was HTTP, which cannot say when, tries again after 2, 4, 8 ... seconds, half of it at random. The herd comes
from the addresses of a few hundred sites; its process gives way to the server's (nice 19), because real devices have
processors of their own.

  python tests/chaos/herd.py --devices 500
  python tests/chaos/herd.py --devices 20000 --json herd.json

Needs no privileges, about two cores and, for 20,000 devices, 2 GB and some five minutes. Stops by itself, leaves nothing
behind unless a claim fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import os
import random  # noqa: TID251 - pauses and moments; nothing secret hangs on them
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import uvloop
from claims import Report, describe_seconds, make_parser, perform
from stage import LABELS, Role, Stage
from virtual import Device, Dialler, give_way, make_devices, make_sources

_FIRST_AT_ONCE: Final = 48
_LONGEST_PAUSE_SECONDS: Final = 32.0
_END: Final = "end"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Herd:
    """What became of the herd."""

    renewed: int = 0
    without_first: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """Answers other than 200, by status."""
    without_retry_after: int = 0
    turned_away: Counter[str] = field(default_factory=Counter)
    """Connections that ended without an answer, and why."""
    calls: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From the second in which all were due to the renewal, for each device."""


@dataclass(slots=True)
class Neighbour:
    """What the neighbour saw."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


def main() -> int:
    """See the module."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--devices", type=int, default=500, help="how many are due in the same second (500)")
    parser.add_argument("--limit", type=int, default=0, help="requests_per_second of their ecosystem (0: no limit)")
    parser.add_argument("--sites", type=int, default=200, help="addresses they come from (200)")
    parser.add_argument("--neighbour-rate", type=float, default=30, help="the neighbour's requests a second (30)")
    parser.add_argument(
        "--before", type=float, default=20, help="seconds of the measurement of the neighbour alone (20)"
    )
    parser.add_argument("--workers", type=int, default=1, help="web workers of the server (1)")
    parser.add_argument("--memory", type=int, default=700, help="MiB that no process of the server may exceed (700)")
    parser.add_argument("--seconds", type=float, default=240, help="the herd's patience in all (240)")
    options = parser.parse_args()
    return perform("herd", options, lambda report: _act(report, options))


def _act(report: Report, options: argparse.Namespace) -> None:
    with Stage(workers=options.workers, signers=2) as stage:
        stage.keep = options.keep
        if options.limit:
            _limit(stage.place.directory, options.limit)
        stage.start()
        report.say("devices are made")
        storm = make_devices(stage.place.bootstrap(LABELS[0]).maker, options.devices, make_sources(31, options.sites))
        calm = make_devices(stage.place.bootstrap(LABELS[1]).maker, 3000, make_sources(32, 8))
        herd = start(_be_herd, stage, LABELS[0], storm, options)
        neighbour = start(be_neighbour, stage, LABELS[1], calm, options)
        try:
            report.say("the herd gets its first certificates")
            without_first = herd.recv()
            report.say("the neighbour alone")
            memory = Memory(stage)
            alone = measure(neighbour, lambda: time.sleep(options.before))
            at_rest = memory.look()
            report.say("the herd comes")
            herd.send(None)

            def watch() -> None:
                while not herd.poll(1.0):
                    memory.look()

            beside = measure(neighbour, watch)
            result: Herd = herd.recv()
            report.figures["connections_by_what_became_of_them"] = count_events(stage)
        finally:
            herd.close()
            dismiss(neighbour)
        result.without_first = without_first
        _judge(report, options, result, alone, beside, at_rest, memory.most)
        report.claim("the server stops in order", stage.stop() == 0)
        stage.keep = stage.keep or not report.holds


def _judge(
    report: Report,
    options: argparse.Namespace,
    herd: Herd,
    alone: Neighbour,
    beside: Neighbour,
    at_rest: dict[str, int],
    most: dict[str, int],
) -> None:
    before, during = describe_seconds(alone.seconds), describe_seconds(beside.seconds)
    report.figures |= {
        "renewed": herd.renewed,
        "seconds_until_renewed": _tail(herd.seconds),
        "calls": herd.calls,
        "calls_by_devices": {str(count): devices for count, devices in sorted(herd.attempts.items())},
        "refused_with_an_answer": dict(herd.refusals),
        "connections_without_an_answer": dict(herd.turned_away),
        "neighbour_alone": before,
        "neighbour_beside_the_herd": during,
        "mib_at_rest": at_rest,
        "mib_at_most": most,
    }
    missing = options.devices - herd.renewed
    report.claim("every device got its first certificate", not herd.without_first)
    report.claim("every device was renewed", [f"{missing} were not"] if missing else [])
    report.claim("every refusal carries Retry-After", not herd.without_retry_after)
    report.claim("the neighbour's requests were all granted", [f"{why}: {n}" for why, n in beside.failures.items()])
    p99, bound = during.get("p99_ms", 0.0), 2 * before.get("p99_ms", 0.0)
    report.claim("the neighbour's p99 not more than doubled", [] if p99 <= bound else [f"{p99} ms, not {bound} ms"])
    report.claim(
        f"no process took more than {options.memory} MiB",
        [f"{role}: {mib} MiB" for role, mib in most.items() if mib > options.memory],
    )


def _tail(seconds: list[float]) -> dict[str, float]:
    told = describe_seconds(seconds)
    return {name.removesuffix("_ms"): round(value / 1e3, 1) for name, value in told.items() if name != "count"}


def _limit(directory: Path, per_second: int) -> None:
    """Write the limit into the document that the server will apply at its start."""
    document = directory / "ecosystems" / f"{LABELS[0]}.toml"
    text = document.read_text(encoding="utf-8")
    head, _, rest = text.partition("\n[[issuer]]")
    document.write_text(
        f"{head}\n[ecosystem.limits]\nrequests_per_second = {per_second}\n\n[[issuer]]{rest}", encoding="utf-8"
    )


def count_events(stage: Stage) -> dict[str, int]:
    """What the server says became of its connections."""
    lines = stage.ops("/metrics")[1].splitlines()
    prefix = 'estd_tls_total{event="'
    counts = (line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix))
    return {event: int(float(value)) for event, value in counts}


class Memory:
    """Resident memory by role, the largest process of each."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.most: dict[str, int] = {}

    def look(self) -> dict[str, int]:
        """MiB now; `most` keeps the largest seen."""
        now: dict[Role, int] = {}
        for process in self._stage.processes():
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
            except (OSError, IndexError):
                continue
            now[process.role] = max(now.get(process.role, 0), pages * _PAGE_BYTES >> 20)
        for role, mib in now.items():
            self.most[role] = max(self.most.get(role, 0), mib)
        return dict(now)


Work = Callable[[Connection, Dialler, str, list[Device], argparse.Namespace], None]
"""What a process of devices does, told by a pipe when."""


def start(work: Work, stage: Stage, label: str, devices: list[Device], options: argparse.Namespace) -> Connection:
    """A process that works for as long as this one lives; the other end of its pipe."""
    ours, theirs = multiprocessing.Pipe()
    address, trust = stage.address, stage.trust

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how this one ends it at the latest, whatever it waits for
        ours.close()
        work(theirs, Dialler(address, trust), label, devices, options)

    multiprocessing.get_context("fork").Process(target=begin, daemon=True).start()
    theirs.close()
    return ours


def dismiss(neighbour: Connection) -> None:
    """Tell the process at the other end that there is nothing more to measure."""
    with contextlib.suppress(OSError):  # it may have ended by itself
        neighbour.send(_END)
    neighbour.close()


def measure(pipe: Connection, meanwhile: Callable[[], None]) -> Neighbour:
    pipe.send(None)
    meanwhile()
    pipe.send(None)
    seen: Neighbour = pipe.recv()
    return seen


# --- the herd, in a process of its own ---------------------------------------------------------------------------------


def _be_herd(
    pipe: Connection, dialler: Dialler, label: str, devices: list[Device], options: argparse.Namespace
) -> None:
    give_way()
    random.seed(options.seed)
    uvloop.run(_gather(pipe, dialler, f"/.well-known/est/{label}/", devices, options))


async def _gather(
    pipe: Connection, dialler: Dialler, root: str, devices: list[Device], options: argparse.Namespace
) -> None:
    queue = iter(devices)
    missing = 0

    async def get_first() -> None:
        nonlocal missing
        for device in queue:
            for _ in range(20):
                answer = await dialler.call(device, root + "simpleenroll")
                if answer.status == 200:
                    device.certificate = answer.certificate
                    break
                await asyncio.sleep(int(answer.headers.get("retry-after", "1")))
            else:
                missing += 1

    await asyncio.gather(*(get_first() for _ in range(_FIRST_AT_ONCE)))
    pipe.send(missing)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    herd = Herd()
    due = time.monotonic() + 1.0
    renewals = [
        asyncio.get_running_loop().create_task(_renew(herd, dialler, root, device, due, options.seconds))
        for device in devices
    ]
    await asyncio.wait(renewals)
    for task in renewals:
        task.result()
    pipe.send(herd)


async def _renew(herd: Herd, dialler: Dialler, root: str, device: Device, due: float, patience: float) -> None:
    await asyncio.sleep(due - time.monotonic() + random.random())
    pause = 2.0
    for attempt in itertools.count(1):
        herd.calls += 1
        answer = await dialler.call(device, root + "simplereenroll")
        if answer.status == 200:
            herd.renewed += 1
            herd.attempts[attempt] += 1
            herd.seconds.append(time.monotonic() - due)
            return
        if answer.status:
            herd.refusals[str(answer.status)] += 1
            told = answer.headers.get("retry-after")
            herd.without_retry_after += told is None
            wait = float(told or 5)
        else:
            herd.turned_away[f"{answer.fault}{' before TLS' if answer.before_tls else ''}"] += 1
            wait = pause * (0.5 + random.random() / 2)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if time.monotonic() + wait > due + patience:
            return
        await asyncio.sleep(wait)


# --- the neighbour, in another -----------------------------------------------------------------------------------------


def be_neighbour(
    pipe: Connection, dialler: Dialler, label: str, devices: list[Device], options: argparse.Namespace
) -> None:
    uvloop.run(_ask_evenly(pipe, dialler, f"/.well-known/est/{label}/simpleenroll", devices, options.neighbour_rate))


async def _ask_evenly(pipe: Connection, dialler: Dialler, path: str, devices: list[Device], rate: float) -> None:
    turn = itertools.cycle(devices)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, pipe.recv) != _END:
        seen = Neighbour()
        calls: set[asyncio.Task[Any]] = set()
        began = time.monotonic()
        for number in itertools.count():
            if pipe.poll():
                break
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            task = loop.create_task(_ask(seen, dialler, path, next(turn)))
            calls.add(task)
            task.add_done_callback(calls.discard)
        pipe.recv()
        if calls:
            await asyncio.wait(calls)
        pipe.send(seen)


async def _ask(seen: Neighbour, dialler: Dialler, path: str, device: Device) -> None:
    started = time.monotonic()
    answer = await dialler.call(device, path)
    if answer.status == 200:
        seen.seconds.append(time.monotonic() - started)
    else:
        seen.failures[answer.fault or str(answer.status)] += 1


if __name__ == "__main__":
    sys.exit(main())
