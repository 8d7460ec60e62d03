"""How the cost of a certificate grows: with rows in the table, with connections, with ecosystems; and memory with time.

Every step of a scale has a server of its own, all are up at once and their rounds alternate, so that a machine's moods hit
all of them. Results go to build/growth.json and build/soak.json, a plot of each to docs/plots.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fleet
import floor
import generator
import plot
import report
import rounds
import seeds
from ours import LABEL, Database, Server
from report import tell

CONNECTIONS = (1, 10, 50, 200, 500, 1000)
ECOSYSTEMS = (1, 20, 200)
_FRESH = 600
_KEPT = 1920
_IN_FLIGHT = 64
_SAMPLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a scale: where it is measured, and with what."""

    size: int
    server: Server
    labels: Sequence[str] = (LABEL,)


def run(options: argparse.Namespace) -> None:
    """The long parts that were asked for."""
    options.plots.mkdir(parents=True, exist_ok=True)
    if options.growth:
        parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
            "rows": measure_rows,
            "connections": measure_connections,
            "ecosystems": measure_ecosystems,
        }
        for name, part in parts.items():
            if options.only in (None, name):
                result = part(options)
                report.write_json(f"growth-{name}.json", result)
                print(write_scale(name, result), flush=True)
    if options.soak:
        result = measure_soak(options)
        report.write_json("soak.json", result)
        print(f"{result['certificates']} certificates in {result['minutes']:g} minutes; resident memory:")
        for part, roles in result["growth"].items():
            figures = (
                f"{role} {start / 2**20:.1f} → {end / 2**20:.1f} MiB ({growth:+.1f} %)"
                for role, (start, end, growth) in roles.items()
            )
            print(f"  {part}: {', '.join(figures)}")


def measure_rows(options: argparse.Namespace) -> dict[str, Any]:
    """Cost by rows in the tables that an enrollment writes."""
    sizes = sorted({int(size) for size in options.rows.split(",")})
    with _servers(len(sizes)) as servers:
        for size, server in zip(sizes, servers, strict=True):
            _fill(server, size)
        steps = [Step(size, server) for size, server in zip(sizes, servers, strict=True)]
        result = _compare(steps, options.rounds)
    return _draw(result, options.plots / "rows.svg", "Cost by certificates on record", "certificates", logarithmic=True)


def measure_ecosystems(options: argparse.Namespace) -> dict[str, Any]:
    """Cost by ecosystems, requests spread over all of them."""
    with _servers(len(ECOSYSTEMS)) as servers:
        steps = [
            Step(count, server, _add_ecosystems(server, count - 1))
            for count, server in zip(ECOSYSTEMS, servers, strict=True)
        ]
        result = _compare(steps, options.rounds)
    return _draw(result, options.plots / "ecosystems.svg", "Cost by ecosystems", "ecosystems", logarithmic=True)


def measure_connections(options: argparse.Namespace) -> dict[str, Any]:
    """Cost by connections that are open and busy; opening them is not measured."""
    taken: dict[int, list[rounds.Round]] = {count: [] for count in CONNECTIONS}
    floors: list[float] = []
    with _servers(1) as (server,):
        _warm(server)
        for number in range(options.rounds):
            tell(f"round {number + 1} of {options.rounds}: bare cryptography")
            floors.append(floor.measure()[1])
            for count in CONNECTIONS:
                tell(f"round {number + 1} of {options.rounds}: {count} connections")
                each = max(4, min(200, _KEPT // count))
                devices = fleet.make_devices(server.maker, server.maker_key, count, each + 1)
                path = server.path("simpleenroll")
                opened = [server.open(device) for device in devices]
                for connection, device in zip(opened, devices, strict=True):
                    connection.request("POST", path, device.bodies[0])  # the first on a connection costs more
                kept = [replace(device, bodies=device.bodies[1:]) for device in devices]
                visits = generator.make_visits(server.address, path, kept)
                taken[count].append(rounds.measure(server, visits, in_flight=count, keep=True, opened=opened))
    rows = {
        "kept connection": [
            {"size": count, **rounds.write_row("kept connection", taken[count], floors)} for count in CONNECTIONS
        ]
    }
    return _draw(rows, options.plots / "connections.svg", "Cost by busy connections", "connections", logarithmic=True)


def measure_soak(options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory under load, minute after minute: fresh and kept connections in turns."""
    samples: list[tuple[float, dict[str, int]]] = []
    certificates = 0
    failures: dict[str, int] = {}
    with _servers(1) as (server,):
        started = time.monotonic()
        sampled = -_SAMPLE_SECONDS
        while (passed := time.monotonic() - started) < options.minutes * 60:
            if passed - sampled >= _SAMPLE_SECONDS:
                sampled = passed
                samples.append((passed / 60, server.rss()))
                tell(f"{passed / 60:.1f} of {options.minutes:g} minutes, {certificates} certificates")
            for count, each, keep in ((_FRESH, 1, False), (_IN_FLIGHT, 2 * _KEPT // _IN_FLIGHT, True)):
                fleet.forget_contexts()  # each visit's devices are new; the generator must not grow either
                devices = fleet.make_devices(server.maker, server.maker_key, count, each)
                visits = generator.make_visits(server.address, server.path("simpleenroll"), devices)
                tally = generator.send_all(server.address, server.trust, visits, in_flight=_IN_FLIGHT, keep=keep)
                certificates += tally.ok
                for reason, lost in tally.failures.items():
                    failures[reason] = failures.get(reason, 0) + lost
        samples.append((options.minutes, server.rss()))
    tell("")
    roles = ("worker", "signer", "supervisor")
    growth = {
        part: {role: _write_growth(samples, role, options.minutes * share) for role in roles}
        for part, share in (("after the first tenth", 0.1), ("in the second half", 0.5))
    }
    curves = [plot.Curve(role, [(minute, sizes[role] / 2**20) for minute, sizes in samples]) for role in roles]
    title = f"Resident memory, {certificates} certificates in {options.minutes:g} minutes"
    (options.plots / "soak.svg").write_text(plot.draw(title, "minutes", "MiB, all processes of the role", curves))
    return {
        "minutes": options.minutes,
        "certificates": certificates,
        "failures": failures,
        "growth": growth,
        "samples": samples,
    }


def write_scale(name: str, result: dict[str, Any]) -> str:
    """A scale for people; the last column compares the ratio with that of the first step."""
    lines = [f"by {name}"]
    for workload, steps in result.items():
        first = steps[0]["ratio"]
        lines += [
            f"  {workload:20} {step['size']:>10,}  {step['rate']:7.0f}/s  p99 {step['p99_ms']:7.1f} ms  "
            f"CPU {step['server_us']:6.0f} µs "
            f"({', '.join(f'{role} {value:.0f}' for role, value in step['cpu_us'].items())})  "
            f"ratio {step['ratio']:5.2f} {step['ratio_range']}  × {step['ratio'] / first:.2f}"
            + (f"  failures {step['failures']}" if step["failures"] else "")
            for step in steps
        ]
    return "\n".join(lines)


# --- private -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _servers(count: int) -> Iterator[list[Server]]:
    """So many servers, each with a database of its own; everything is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="estd-bench-") as name:
        top = Path(name)
        top.chmod(0o755)  # the account that PostgreSQL runs under has to get through
        servers: list[Server] = []
        try:
            for number in range(count):
                tell(f"starting server {number + 1} of {count}")
                directory = top / str(number)
                directory.mkdir()
                servers.append(Server(directory))
            yield servers
        finally:
            for server in servers:
                server.stop()


def _fill(server: Server, size: int) -> None:
    _warm(server)
    if size:
        superuser = Database(server.superuser_url)
        started = time.monotonic()
        seeds.grow(
            server.database,
            superuser,
            size,
            lambda there: tell(f"{there:,} of {size:,} rows, {time.monotonic() - started:.0f} s"),
        )
        superuser.close()


def _warm(server: Server) -> None:
    devices = fleet.make_devices(server.maker, server.maker_key, 50, 2)
    visits = generator.make_visits(server.address, server.path("simpleenroll"), devices)
    generator.send_all(server.address, server.trust, visits, in_flight=8, keep=False)


def _add_ecosystems(server: Server, count: int) -> list[str]:
    """Copies of the first ecosystem under other labels, with issuers of their own; all labels."""
    folder = server.site / "ecosystems"
    original = (folder / f"{LABEL}.toml").read_text()
    labels = [f"plant-{number}" for number in range(1, count + 1)]
    files = []
    for label in labels:
        # The maker's certificate stays the first ecosystem's: one fleet serves all.
        text = original.replace(f'label = "{LABEL}"', f'label = "{label}"').replace("Campus North", f"Plant {label}")
        path = folder / f"{label}.toml"
        path.write_text(text)
        files.append(str(path))
    if files:
        tell(f"applying {count} ecosystems")
        estd = str(Path(sys.executable).parent / "estd")
        subprocess.run([estd, "apply", *files, "--dir", str(server.site)], check=True, stdout=subprocess.PIPE)
        time.sleep(5)  # the workers and signers follow within a second or so
    return [LABEL, *labels]


def _compare(steps: Sequence[Step], count: int) -> dict[str, Any]:
    """So many fresh and kept rounds of all steps in turns; a row for each."""
    taken: dict[tuple[str, int], list[rounds.Round]] = {}
    floors: list[rounds.Floor] = []
    for step in steps:
        _warm(step.server)
    for number in range(count):
        tell(f"round {number + 1} of {count}: bare cryptography")
        floors.append(floor.measure())
        # Every second round the other way, so that none is always the first.
        for step in steps if number % 2 == 0 else list(reversed(steps)):
            tell(f"round {number + 1} of {count}: {step.size:,}")
            for workload, devices_count, each, keep in (
                ("fresh simpleenroll", _FRESH, 1, False),
                ("kept connection", _IN_FLIGHT, _KEPT // _IN_FLIGHT, True),
            ):
                devices = fleet.make_devices(step.server.maker, step.server.maker_key, devices_count, each)
                visits = [
                    visit
                    for at, device in enumerate(devices)
                    for visit in generator.make_visits(
                        step.server.address,
                        step.server.path("simpleenroll", step.labels[at % len(step.labels)]),
                        [device],
                    )
                ]
                one = rounds.measure(step.server, visits, in_flight=_IN_FLIGHT, keep=keep)
                taken.setdefault((workload, step.size), []).append(one)
    tell("")
    result: dict[str, list[dict[str, Any]]] = {}
    for (workload, size), group in taken.items():
        column = [bare[0] if workload.startswith("fresh") else bare[1] for bare in floors]
        row = {"size": size, **rounds.write_row(workload, group, column)}
        result.setdefault(workload, []).append(row)
    return {workload: sorted(rows, key=lambda row: int(row["size"])) for workload, rows in result.items()}


def _write_growth(
    samples: Sequence[tuple[float, dict[str, int]]], role: str, since_minute: float
) -> tuple[int, int, float]:
    """Resident bytes then and at the end, and by how many percent they grew."""
    start = next(sizes[role] for minute, sizes in samples if minute >= since_minute)
    end = samples[-1][1][role]
    return start, end, round((end / start - 1) * 100, 2)


def _draw(result: dict[str, Any], path: Path, title: str, across: str, *, logarithmic: bool) -> dict[str, Any]:
    curves = [
        plot.Curve(
            workload,
            [(row["size"], row["server_us"]) for row in rows],
            [tuple(row["server_us_range"]) for row in rows],
        )
        for workload, rows in result.items()
    ]
    up = "CPU µs per certificate, all processes"
    path.write_text(plot.draw(title, across, up, curves, logarithmic=logarithmic))
    return result
