"""`make bench`: what a certificate costs, as ratios against the bare cryptography of the same work, in one run.

A quickstart server is started in a temporary directory. For each workload the CPU time of all its processes, PostgreSQL
included, is read from the kernel before and after, and divided by the certificates issued. The floor, the bare
cryptography of the same work (`loadtest/floor.py`), is measured in the same run. P-256 throughout.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import fleet
import floor
from cryptography import x509

PATH = "/.well-known/est/campus-north/simpleenroll"
ROLES = ("worker", "signer", "postgres", "supervisor")


@dataclass(slots=True)
class Result:
    """One workload. CPU in microseconds per certificate, by role."""

    workload: str
    certificates: int
    failures: dict[str, int]
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]
    floor_us: float = 0.0
    ratio: float = 0.0


class Server:
    """A quickstart server and the CPU clocks of its processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        log = (directory / "bench.log").open("wb")
        self._process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "estd"),
                "quickstart",
                "--dir",
                str(directory / "site"),
                "--port",
                "0",
                "--ops-port",
                "0",
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        run = directory / "site" / "run.json"
        deadline = time.monotonic() + 60
        while not run.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((directory / "bench.log").read_text()[-4000:])
            time.sleep(0.1)
        self.port = int(json.loads(run.read_text())["port"])
        site = directory / "site"
        self.trust = x509.load_pem_x509_certificate((site / "trust.pem").read_bytes())
        self.maker = site / "bootstrap" / "campus-north" / "maker.pem"
        self.maker_key = site / "bootstrap" / "campus-north" / "maker.key"

    @property
    def address(self) -> tuple[str, int]:
        """Where devices connect."""
        return ("127.0.0.1", self.port)

    def stop(self) -> None:
        """Drain and wait."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def processes(self) -> dict[int, str]:
        """Process id → role, for every process of the server."""
        children: dict[int, list[int]] = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(status.parent.name))
        roles: dict[int, str] = {}
        waiting = [self._process.pid]
        postmaster = self.directory / "site"
        waiting += [int(path.read_text().split("\n", 1)[0]) for path in postmaster.rglob("postmaster.pid")]
        while waiting:
            pid = waiting.pop()
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if "estd.app.worker" in command:
                roles[pid] = "worker"
            elif "estd.signer" in command:
                roles[pid] = "signer"
            elif "postgres" in command:
                roles[pid] = "postgres"
            else:
                roles[pid] = "supervisor"
            waiting.extend(children.get(pid, ()))
        return roles

    def cpu_seconds(self) -> dict[tuple[str, int], float]:
        """CPU seconds so far, by role and process, to the nanosecond (schedstat)."""
        spent: dict[tuple[str, int], float] = {}
        for pid, role in self.processes().items():
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    seconds = int(path.read_text().split()[0]) / 1e9
                except OSError:
                    continue
                spent[role, pid] = spent.get((role, pid), 0.0) + seconds
        return spent

    def worker_rss_bytes(self) -> list[int]:
        """Resident memory of each worker."""
        sizes = []
        for pid, role in self.processes().items():
            if role == "worker":
                match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                assert match is not None
                sizes.append(int(match[1]) * 1024)
        return sizes


def run(server: Server, workload: str, devices: list[fleet.Device], threads: int, keep: bool) -> Result:
    """One workload from start to end; the floor is filled in when all were measured."""
    before = server.cpu_seconds()
    tally, seconds = fleet.enroll_all(server.address, server.trust, PATH, devices, threads=threads, keep=keep)
    after = server.cpu_seconds()
    issued = max(1, tally.ok)
    cpu = dict.fromkeys(ROLES, 0.0)
    for (role, pid), total in after.items():  # a helper process that came and went in between is not in either
        cpu[role] += (total - before.get((role, pid), 0.0)) / issued * 1e6
    ordered = sorted(tally.seconds) or [0.0]
    return Result(
        workload=workload,
        certificates=tally.ok,
        failures=tally.failures,
        rate=tally.ok / seconds,
        p50_ms=statistics.median(ordered) * 1e3,
        p99_ms=ordered[int(len(ordered) * 0.99) - 1] * 1e3,
        cpu_us={role: round(value, 1) for role, value in cpu.items()},
    )


def measure_idle(server: Server, devices: list[fleet.Device], connections: int) -> tuple[int, float]:
    """Largest worker at rest, in bytes; and bytes a worker grows per idle connection."""
    rest = server.worker_rss_bytes()
    held = [fleet.Connection(server.address, server.trust, devices[0]) for _ in range(connections)]
    for connection in held:
        connection.request("GET", "/.well-known/est/campus-north/cacerts")
    grown = server.worker_rss_bytes()
    for connection in held:
        connection.close()
    return max(rest), (sum(grown) - sum(rest)) / connections


def main() -> int:
    """Run, print, write ``build/bench.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificates", type=int, default=2000, help="certificates per workload (2000)")
    parser.add_argument("--threads", type=int, default=48, help="requests in flight (48)")
    parser.add_argument("--connections", type=int, default=1000, help="idle connections for the memory figure (1000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="estd-bench-") as name:
        server = Server(Path(name))
        try:
            count = options.certificates
            fresh = fleet.make_devices(server.maker, server.maker_key, count, 1)
            kept = fleet.make_devices(server.maker, server.maker_key, options.threads, count // options.threads)
            single = fleet.make_devices(server.maker, server.maker_key, 1, 200)
            warm = fleet.make_devices(server.maker, server.maker_key, 50, 2)
            fleet.enroll_all(server.address, server.trust, PATH, warm, threads=8, keep=False)
            rest_bytes, idle_bytes = measure_idle(server, single, options.connections)
            # A shared machine has moods: the floor is measured before, between and after the workloads.
            floors = [floor.measure()]
            results = []
            for workload, devices, threads, keep in (
                ("fresh simpleenroll", fresh, options.threads, False),
                ("kept connection", kept, options.threads, True),
                ("kept, one at a time", single, 1, True),
            ):
                results.append(run(server, workload, devices, threads, keep))
                floors.append(floor.measure())
        finally:
            server.stop()
    fresh_floor, kept_floor = (statistics.mean(one[kind] for one in floors) for kind in (0, 1))
    for result in results:
        result.floor_us = round(fresh_floor if result.workload.startswith("fresh") else kept_floor, 1)
        result.ratio = round(sum(result.cpu_us.values()) / result.floor_us, 2)
        roles = "  ".join(f"{role} {value:.0f}" for role, value in result.cpu_us.items())
        print(
            f"{result.workload:22} {result.certificates:6} certificates  {result.rate:7.0f}/s  "
            f"p50 {result.p50_ms:6.1f} ms  p99 {result.p99_ms:6.1f} ms  CPU µs: {roles}  "
            f"floor {result.floor_us:.0f}  ratio {result.ratio:.2f}  failures {result.failures or 'none'}"
        )
    print(f"worker at rest {rest_bytes / 2**20:.0f} MiB, {idle_bytes / 1024:.1f} KiB per idle connection")
    target = Path("build")
    target.mkdir(exist_ok=True)
    report = {
        "workloads": [asdict(result) for result in results],
        "worker_rest_bytes": rest_bytes,
        "idle_connection_bytes": idle_bytes,
    }
    (target / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
