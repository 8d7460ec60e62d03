"""reload: a server under load is reloaded N times, then replaced by itself, and not one request may fail.

Devices ask for certificates at an even rate, half of them on connections of their own and half on connections that they
keep. Meanwhile the supervisor gets SIGHUP over and over, each as soon as the workers of the one before are there, and at
the end SIGUSR2 a few times, which replaces supervisor, signers and workers by the program on disk. A request that is not
answered with a certificate has failed: refused, reset, cut off, timed out or answered with anything but 200. That a server
closes a kept connection between two requests, having said so, is no failure: the device opens another.

  python tests/chaos/reload.py --n 20
  python tests/chaos/reload.py --n 200 --rate 100 --json reload.json

Needs no privileges and about two cores; 200 reloads take some five minutes. Stops by itself, leaves nothing behind unless
a claim fails.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

import uvloop
from claims import Report, describe_seconds, make_parser, perform
from cryptography import x509
from stage import Stage
from virtual import PATIENCE_SECONDS, Answer, Device, Dialler, Line, Lost, make_bodies, make_devices, make_sources

_RELOAD_SECONDS: Final = 60.0
_DEVICES: Final = 3000
_KEPT_LINES: Final = 20
_BODIES_EACH: Final = 100
"""After that they are repeated, as by a device whose answer got lost, and answered with the certificate it was given."""


@dataclass(slots=True)
class Traffic:
    """What became of the requests."""

    fresh: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    reopened: int = 0
    late: int = 0
    """Requests that this process itself began more than 50 ms late."""


@dataclass(slots=True)
class Kept:
    """A device that keeps its connection."""

    device: Device
    bodies: Iterator[bytes]
    line: Line | None = None


def main() -> int:
    """See the module."""
    parser = make_parser(__doc__ or "", seeded=False, from_zero=["upgrades"])
    parser.add_argument("--n", type=int, default=20, help="reloads by SIGHUP (20)")
    parser.add_argument("--upgrades", type=int, default=2, help="replacements by SIGUSR2 after that (2)")
    parser.add_argument("--rate", type=float, default=100, help="requests a second (100)")
    parser.add_argument("--workers", type=int, default=1, help="web workers of the server (1)")
    parser.add_argument("--seconds", type=float, default=900, help="stop after so long in any case (900)")
    options = parser.parse_args()
    return perform("reload", options, lambda report: _act(report, options))


def _act(report: Report, options: argparse.Namespace) -> None:
    with Stage(workers=options.workers, signers=2) as stage:
        stage.keep = options.keep
        stage.start()
        report.say("devices are made")
        devices = make_devices(stage.place.bootstrap("campus-north").maker, _DEVICES, make_sources(21, 40))
        bodies = [make_bodies(device, _BODIES_EACH) for device in devices[:_KEPT_LINES]]
        ours, theirs = multiprocessing.Pipe()
        work = multiprocessing.get_context("fork").Process(
            target=_generate, args=(theirs, stage.address, stage.trust, stage.path(), devices, bodies, options)
        )
        work.start()
        try:
            assert ours.recv() == "begun"
            began = time.monotonic()
            done, upgraded = _replace_over_and_over(report, stage, options, began + options.seconds)
            passed = time.monotonic() - began
        finally:
            ours.send("stop")
            traffic: Traffic = ours.recv()
            work.join()
        report.figures |= {
            "reloads": done,
            "upgrades": upgraded,
            "seconds": round(passed, 1),
            "requests": len(traffic.fresh) + len(traffic.kept) + traffic.failures.total(),
            "rate": round((len(traffic.fresh) + len(traffic.kept)) / passed, 1),
            "on_fresh_connections": describe_seconds(traffic.fresh),
            "on_kept_connections": describe_seconds(traffic.kept),
            "kept_connections_reopened": traffic.reopened,
            "begun_late_by_the_generator": traffic.late,
        }
        report.claim("no request failed", [f"{reason}: {count}" for reason, count in traffic.failures.items()])
        report.claim(f"the workers were replaced {options.n} times", done == options.n)
        report.claim(f"the server was replaced by itself {options.upgrades} times", upgraded == options.upgrades)
        report.claim("requests flowed", bool(traffic.fresh) and bool(traffic.kept))
        report.claim("the server stops in order", stage.stop() == 0)
        stage.keep = stage.keep or not report.holds


def _replace_over_and_over(
    report: Report, stage: Stage, options: argparse.Namespace, deadline: float
) -> tuple[int, int]:
    seen = {process.pid for process in stage.of_role("worker")}
    for number in range(options.n):
        wanted = len(seen) + options.workers
        stage.reload()
        limit = min(deadline, time.monotonic() + _RELOAD_SECONDS)
        while len(seen) < wanted:
            if time.monotonic() > limit:
                return number, 0
            time.sleep(0.05)
            seen |= {process.pid for process in stage.of_role("worker")}
        if number % 20 == 19:
            report.say(f"{number + 1} reloads")
    for number in range(options.upgrades):
        # The last reload has to come to its end first, or it would be taken for a part of the upgrade.
        limit = min(deadline, time.monotonic() + _RELOAD_SECONDS)
        while len(stage.of_role("worker")) > options.workers and time.monotonic() < limit:
            time.sleep(0.1)
        old = {process.pid for process in stage.processes() if process.role in ("worker", "signer")}
        os.kill(stage.of_role("supervisor")[0].pid, signal.SIGUSR2)
        while old & {process.pid for process in stage.processes()} or stage.readiness()[0] != 200:
            if time.monotonic() > limit:
                return options.n, number
            time.sleep(0.1)
        report.say(f"{number + 1} upgrades")
    return options.n, options.upgrades


# --- the devices, in a process of their own ----------------------------------------------------------------------------


def _generate(
    pipe: Connection,
    address: tuple[str, int],
    trust: x509.Certificate,
    path: str,
    devices: list[Device],
    bodies: list[list[bytes]],
    options: argparse.Namespace,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kept = [Kept(device, itertools.cycle(own)) for device, own in zip(devices, bodies, strict=False)]
    pipe.send(uvloop.run(_ask_evenly(pipe, Dialler(address, trust), path, devices[len(kept) :], kept, options.rate)))


async def _ask_evenly(
    pipe: Connection, dialler: Dialler, path: str, devices: list[Device], kept: list[Kept], rate: float
) -> Traffic:
    traffic = Traffic()
    under_way: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    pipe.send("begun")
    number = 0
    while not pipe.poll():
        due = began + number / rate
        now = time.monotonic()
        if due > now:
            await asyncio.sleep(due - now)
        elif now - due > 0.05:
            traffic.late += 1
        if number % 2 and kept:
            work = _ask_kept(traffic, dialler, path, kept.pop(0), kept)
        else:
            work = _ask_fresh(traffic, dialler, path, devices[number % len(devices)])
        task = asyncio.get_running_loop().create_task(work)
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        task.add_done_callback(_check)
        number += 1
    pipe.recv()
    if under_way:
        await asyncio.wait(under_way)
    return traffic


def _check(task: asyncio.Task[None]) -> None:
    if task.exception() is not None:
        raise SystemExit(f"the generator itself failed: {task.exception()!r}")


async def _ask_fresh(traffic: Traffic, dialler: Dialler, path: str, device: Device) -> None:
    started = time.monotonic()
    answer = await dialler.call(device, path)
    _note(traffic, traffic.fresh, "fresh", answer, started)


async def _ask_kept(traffic: Traffic, dialler: Dialler, path: str, one: Kept, rested: list[Kept]) -> None:
    started = time.monotonic()
    if one.line is not None and not one.line.is_open:
        one.line.close()
        one.line = None
        traffic.reopened += 1
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            if one.line is None:
                one.line = await dialler.open(one.device, one.device.source)
            answer = await one.line.ask(dialler.write_request(path, next(one.bodies)))
    except Lost as fault:
        answer = Answer(fault=fault.reason)
    except TimeoutError:
        answer = Answer(fault="timeout")
    _note(traffic, traffic.kept, "kept", answer, started)
    if answer.status != 200 and one.line is not None:
        one.line.close()
        one.line = None
    rested.append(one)


def _note(traffic: Traffic, seconds: list[float], way: str, answer: Answer, started: float) -> None:
    if answer.status == 200:
        seconds.append(time.monotonic() - started)
    else:
        why = answer.fault or f"{answer.status} {answer.body.decode().partition(' (request')[0]}"
        traffic.failures[f"{way}: {why}"] += 1


if __name__ == "__main__":
    sys.exit(main())
