"""The server under measurement: a quickstart of its own, its CPU clocks by role, its metrics and its database.

The database is asked through one connection of its own, between measurements only: what that costs is in no figure.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import asyncpg
import clocks
import fleet
from cryptography import x509

ROLES = ("worker", "signer", "postgres", "supervisor")
LABEL = "campus-north"
# By index, so that counting in a large table leaves its caches alone.
_ROWS = """
SELECT count(*) FROM ecosystem
JOIN certificate ON certificate.ecosystem_id = ecosystem.ecosystem_id AND certificate.issued_at >= $1
"""
_SETTLED_SECONDS = 10.5
"""PostgreSQL's idle backends report what they counted after ten seconds."""


class Database:
    """One connection to a PostgreSQL, for counting."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection = self._loop.run_until_complete(asyncpg.connect(url))

    def fetch(self, statement: str, *values: Any) -> Any:
        """The one value a statement answers."""
        return self._loop.run_until_complete(self._connection.fetchval(statement, *values))

    def execute(self, statement: str) -> None:
        """Run statements."""
        self._loop.run_until_complete(self._connection.execute(statement))

    def commits(self, *, settled: bool) -> int:
        """Transactions committed in this database (pg_stat_database); `settled`: wait until everyone has reported."""
        if settled:
            time.sleep(_SETTLED_SECONDS)
        return int(self.fetch("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"))

    def close(self) -> None:
        """Leave; the server may be gone."""
        self._connection.terminate()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class Server:
    """A quickstart server in `directory`; stopped by `stop`, which must be called."""

    name = "estd"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started_at = dt.datetime.now(dt.UTC).replace(microsecond=0)
        self._site = directory / "site"
        log = directory / "estd.log"
        estd = str(Path(sys.executable).parent / "estd")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [estd, "quickstart", "--dir", str(self._site), "--port", "0", "--ops-port", "0"],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        try:
            self._get_to_know(log)
        except BaseException:
            self._process.terminate()
            self._process.wait(60)
            raise

    @property
    def site(self) -> Path:
        """The quickstart's directory, for `estd --dir`."""
        return self._site

    def path(self, operation: str, label: str = LABEL) -> str:
        """Where an EST operation is."""
        return f"/.well-known/est/{label}/{operation}"

    def open(self, device: fleet.Device) -> fleet.Connection:
        """A connection that has asked for something: the server waits longer for such a one than for a newcomer."""
        connection = fleet.Connection(self.address, self.trust, device)
        connection.request("GET", self.path("cacerts"))
        return connection

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds so far by role."""
        return clocks.read_roles([self._process.pid, self._postmaster], _role_of)

    def worker_rss(self) -> list[int]:
        """Resident bytes of each worker."""
        return [size for role, size in self._sizes() if role == "worker"]

    def rss(self) -> dict[str, int]:
        """Resident bytes by role; PostgreSQL's includes its shared buffers once for each backend that touched them."""
        total: dict[str, int] = {}
        for role, size in self._sizes():
            total[role] = total.get(role, 0) + size
        return total

    def rows(self) -> int:
        """Certificates issued since this server was started, as its database counts them."""
        return int(self.database.fetch(_ROWS, self._started_at))

    def metric(self, name: str) -> float:
        """The sum of one metric's samples as ``/metrics`` shows it; `name` may carry a label set."""
        return sum(
            float(value) for value in re.findall(rf"(?m)^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", self._metrics())
        )

    def group_sizes(self) -> dict[str, float]:
        """The histogram of group sizes: ``sum``, ``count`` and how many were at most that large."""
        found = dict(re.findall(r'(?m)^estd_group_size_bucket\{le="([^"]+)"\} (\S+)$', self._metrics()))
        sizes = {f"le_{edge}": float(value) for edge, value in found.items()}
        return {"sum": self.metric("estd_group_size_sum"), "count": self.metric("estd_group_size_count"), **sizes}

    def stop(self) -> None:
        """Drain and wait."""
        self.database.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        deadline = time.monotonic() + 30
        while clocks.read_command(self._postmaster) and time.monotonic() < deadline:
            time.sleep(0.05)  # told to stop twice, a server does not wait for its database

    def _get_to_know(self, log: Path) -> None:
        """Wait until it serves, and read what it says of itself."""
        run = self._site / "run.json"
        deadline = time.monotonic() + 60
        while not run.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(log.read_text()[-4000:])
            time.sleep(0.1)
        facts = json.loads(run.read_text())
        self.address = ("127.0.0.1", int(facts["port"]))
        self._ops_port = int(facts["ops_port"])
        self.trust = x509.load_pem_x509_certificate((self._site / "trust.pem").read_bytes())
        party = self._site / "bootstrap" / LABEL
        self.maker, self.maker_key = party / "maker.pem", party / "maker.key"
        pid_file = next(self._site.rglob("postmaster.pid")).read_text().splitlines()
        self._postmaster = int(pid_file[0])
        self.database = Database(f"postgresql://estd@/estd?host={pid_file[4]}")
        self.superuser_url = f"postgresql://postgres@/estd?host={pid_file[4]}"

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ops_port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    def _sizes(self) -> list[tuple[str, int]]:
        tree = clocks.find_tree([self._process.pid, self._postmaster])
        return [(_role_of(clocks.read_command(pid)), clocks.read_rss(pid)) for pid in tree]


def _role_of(command: str) -> str:
    if "estd.app.worker" in command:
        return "worker"
    if "estd.signer" in command:
        return "signer"
    return "postgres" if "postgres" in command else "supervisor"
