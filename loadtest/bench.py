"""`make bench`: what a certificate costs, as ratios against the bare cryptography of the same work, in one run.

A quickstart server is started in a temporary directory, and beside it, where it is installed, Debian's cfssl with a
PostgreSQL of its own (loadtest/cfssl.py). Rounds of all workloads alternate between the two. For each the CPU time of all
processes of the server, PostgreSQL included, is read from the kernel before and after and divided by the certificates
issued; the floor, the bare cryptography of the same work (loadtest/floor.py), is measured before and after each round.
P-256 throughout. Every certificate is committed and flushed before it is answered.

Without options: the table, in about five minutes; also as build/bench.json. The long parts:
  --growth   how the cost grows with rows, connections and ecosystems; plots below docs/plots
  --soak     memory over a long run
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bulk
import cfssl
import fleet
import floor
import generator
import report
import rounds
from ours import Server
from report import tell

_FRESH, _RENEW, _KEPT, _BULK, _SINGLE, _TRUST = (
    "fresh simpleenroll",
    "fresh simplereenroll",
    "kept connection",
    "bulk",
    "kept, one at a time",
    "cacerts",
)
_PEER_AT_BEST = 2
"""Requests in flight at which cfssl does best: its database pool keeps that many connections and opens all others anew."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything in one round."""

    fresh: int
    in_flight: int

    @property
    def kept_each(self) -> int:
        """Requests on each kept connection."""
        return max(1, 3 * self.fresh // self.in_flight)

    @property
    def bulk(self) -> int:
        """Requests in the batch."""
        return 4 * self.fresh


class Table:
    """The main table: rounds as they come, rows at the end."""

    def __init__(self, server: Server, peer: cfssl.Peer | None, sizes: Sizes) -> None:
        self._server, self._peer, self._sizes = server, peer, sizes
        self._authority = bulk.read_authority(server.site)
        self._ours: dict[str, list[rounds.Round]] = {}
        self._theirs: dict[str, list[rounds.Round]] = {}
        self._best: dict[str, list[rounds.Round]] = {}
        self._groups: dict[str, dict[str, float]] = {}
        self._is_counting = False
        self._commits: dict[str, float] = {}

    def run_round(self, *, peer_first: bool, count_commits: bool) -> None:
        """Every workload once. The floor of the round is told later, by `set_floor`."""
        self._is_counting = count_commits
        fresh = self._devices(self._sizes.fresh, 1)
        kept = self._devices(self._sizes.in_flight, self._sizes.kept_each)
        if peer_first:
            self._run_peer()
        first = self._run(_FRESH, self._post("simpleenroll", fresh), keep=False)
        renewing = [
            fleet.make_renewing(device, first.last[device.name]) for device in fresh if device.name in first.last
        ]
        self._run(_RENEW, self._post("simplereenroll", renewing), keep=False)
        self._run(_KEPT, self._post("simpleenroll", kept), keep=True)
        self._run_bulk(bulk.make_lines(self._sizes.bulk))
        self._run(_SINGLE, self._post("simpleenroll", self._devices(1, 100)), keep=True, in_flight=1)
        self._run(_TRUST, self._get_cacerts(2 * self._sizes.fresh), keep=False)
        if not peer_first:
            self._run_peer()

    def set_floor(self, fresh_us: float, kept_us: float) -> None:
        """The floor of the newest round, measured around it."""
        for name, taken in self._ours.items():
            taken[-1] = replace(taken[-1], floor_us=_floor_of(name, fresh_us, kept_us))

    def write_rows(self) -> list[dict[str, Any]]:
        """The rows of the table."""
        rows = []
        for name, taken in self._ours.items():
            row = rounds.write_row(name, taken, [one.floor_us for one in taken])
            groups = self._groups.get(name)
            if groups is not None and groups["count"]:
                row["group_size"] = round(groups["sum"] / groups["count"], 1)
                row["groups"] = {size: count for size, count in groups.items() if size.startswith("le_")}
            row["commits_per_certificate"] = self._commits.get(name)
            if name in self._theirs:
                row["peer"] = rounds.write_peer(cfssl.Peer.name, taken, self._theirs[name])
                row["peer"]["at_best"] = rounds.write_peer(cfssl.Peer.name, taken, self._best[name])
                row["peer"]["at_best"]["in_flight"] = _PEER_AT_BEST
            rows.append(row)
        return rows

    def _run(self, name: str, visits: Sequence[generator.Visit], *, keep: bool, in_flight: int = 0) -> rounds.Round:
        in_flight = in_flight or self._sizes.in_flight
        return self._take(name, lambda: rounds.measure(self._server, visits, in_flight=in_flight, keep=keep))

    def _take(self, name: str, measure: Callable[[], rounds.Round]) -> rounds.Round:
        tell(name)
        groups = self._server.group_sizes()
        # Counted workloads follow one another, so only before the first somebody may still have to report.
        counting = self._is_counting and name not in (_SINGLE, _TRUST)
        commits = self._server.database.commits(settled=not self._commits) if counting else 0
        taken = measure()
        if counting:
            self._commits[name] = round((self._server.database.commits(settled=True) - commits) / max(1, taken.ok), 3)
        total = self._groups.setdefault(name, {})
        for size, count in self._server.group_sizes().items():
            total[size] = total.get(size, 0.0) + count - groups[size]
        self._ours.setdefault(name, []).append(taken)
        return taken

    def _run_bulk(self, lines: Sequence[bytes]) -> None:
        server = self._server
        self._take(
            _BULK,
            lambda: rounds.measure_work(
                server, lambda: bulk.send_all(server.address, server.trust, self._authority, lines)
            ),
        )

    def _run_peer(self) -> None:
        if self._peer is None:
            return
        for name, keep in ((_FRESH, False), (_KEPT, True)):
            for in_flight, results in ((self._sizes.in_flight, self._theirs), (_PEER_AT_BEST, self._best)):
                tell(f"cfssl: {name}, {in_flight} in flight")
                if keep:
                    devices = self._devices(in_flight, self._sizes.kept_each * self._sizes.in_flight // in_flight // 2)
                else:
                    devices = self._devices(self._sizes.fresh * 2 // 3, 1)
                visits = self._peer.make_visits(devices)
                taken = rounds.measure(self._peer, visits, in_flight=in_flight, keep=keep)
                results.setdefault(name, []).append(taken)

    def _devices(self, count: int, each: int) -> list[fleet.Device]:
        return fleet.make_devices(self._server.maker, self._server.maker_key, count, each)

    def _post(self, operation: str, devices: Sequence[fleet.Device]) -> list[generator.Visit]:
        return generator.make_visits(self._server.address, self._server.path(operation), devices)

    def _get_cacerts(self, count: int) -> list[generator.Visit]:
        host = f"{self._server.address[0]}:{self._server.address[1]}".encode()
        request = fleet.write_request("GET", self._server.path("cacerts"), host)
        return [generator.Visit(None, (request,))] * count


def main() -> int:
    """Run, print, write."""
    options = _read_options()
    report.stop_on_signals()
    if options.growth or options.soak:
        import growth  # the table needs nothing of it

        growth.run(options)
        return 0
    return run_table(options)


def run_table(options: argparse.Namespace) -> int:
    """The main table."""
    sizes = Sizes(options.certificates, options.in_flight)
    missing = "left out (--no-peer)" if options.no_peer else cfssl.why_not()
    with tempfile.TemporaryDirectory(prefix="estd-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # the account that PostgreSQL runs under has to get through
        tell("starting")
        server = Server(directory)
        peer = None
        try:
            if missing is None:
                peer = cfssl.Peer(directory / "peer", server.maker)
            memory = measure_memory(server, options.connections)
            table = Table(server, peer, sizes)
            floors = [_measure_floor()]
            for number in range(options.rounds):
                table.run_round(peer_first=number % 2 == 1, count_commits=number == options.rounds - 1)
                floors.append(_measure_floor())
                table.set_floor(*(statistics.mean(pair) for pair in zip(*floors[-2:], strict=True)))
        finally:
            if peer is not None:
                peer.stop()
            server.stop()
    rows = table.write_rows()
    report.write_json("bench.json", rows)
    report.write_json("bench-machine.json", {**report.describe_machine(), **memory, "peer": missing or cfssl.version()})
    tell("")
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(report.write_markdown(rows) if options.markdown else report.write_text(rows, memory, missing))
    broken = [
        row["workload"]
        for row in rows
        if row["failures"] or (row["workload"] != _TRUST and row["rows"] != row["certificates"])
    ]
    return 1 if broken else 0


def measure_memory(server: Server, connections: int) -> dict[str, float]:
    """Resident bytes of the largest worker at rest, and what an idle connection adds."""
    maker = (server.maker, server.maker_key)
    device = fleet.make_devices(*maker, 1, 1)[0]
    warm = generator.make_visits(server.address, server.path("simpleenroll"), fleet.make_devices(*maker, 50, 2))
    generator.send_all(server.address, server.trust, warm, in_flight=8, keep=False)
    rest = server.worker_rss()
    held = [server.open(device) for _ in range(connections)]
    grown = sum(server.worker_rss()) - sum(rest)
    for connection in held:
        connection.close()
    return {"worker_rest_bytes": max(rest), "idle_connection_bytes": grown / max(1, connections)}


# --- private -------------------------------------------------------------------------------------------------------


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of each workload, and of each step of --growth (5)"
    )
    parser.add_argument(
        "--certificates", type=int, default=600, help="fresh certificates a round; kept three times as many (600)"
    )
    parser.add_argument("--in-flight", type=int, default=64, help="requests in flight (64)")
    parser.add_argument("--connections", type=int, default=1000, help="idle connections for the memory figure (1000)")
    parser.add_argument("--no-peer", action="store_true", help="without cfssl")
    parser.add_argument("--json", action="store_true", help="print build/bench.json instead of the table")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/performance.md")
    long = parser.add_argument_group("long parts")
    long.add_argument("--growth", action="store_true", help="cost by rows, connections and ecosystems")
    long.add_argument("--only", choices=("rows", "connections", "ecosystems"), help="one part of --growth")
    long.add_argument("--rows", default="0,1000000,10000000", help="rows in the table (0,1000000,10000000)")
    long.add_argument("--soak", action="store_true", help="memory over a run of --minutes")
    long.add_argument("--minutes", type=float, default=10.0, help="length of --soak (10)")
    long.add_argument("--plots", type=Path, default=Path("docs/plots"), help="where plots go (docs/plots)")
    options = parser.parse_args()
    for name in ("rounds", "certificates", "in_flight", "connections", "minutes"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} begins at 1")
    if not all(part.isdigit() for part in options.rows.split(",")):
        parser.error("--rows is a list of numbers, as in 0,1000000")
    return options


def _measure_floor() -> tuple[float, float]:
    tell("bare cryptography")
    return floor.measure()


def _floor_of(name: str, fresh_us: float, kept_us: float) -> float | None:
    if name == _TRUST:
        return None  # nothing is issued
    return fresh_us if name.startswith("fresh") else kept_us


if __name__ == "__main__":
    sys.exit(main())
