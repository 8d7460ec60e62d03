"""The stage that every chaos tool plays on: a real estd in a directory of its own, and what can be seen of it from outside.

`Stage` makes what ``estd quickstart`` would make, starts the server as its user would and knows its process tree by role,
read from ``/proc``. Workers, signers and PostgreSQL are real processes; devices, their keys and their requests are made
before anything is measured. A stage that is left in order is removed; one that is left by an exception, or whose `keep`
is set, stays on disk and says where.

The process that makes a stage becomes the reaper of whatever the server leaves behind, so that the worker of a killed
supervisor is still found and nothing outlives the tool. One stage at a time in a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Literal, Self

from claims import Skipped
from cryptography import x509

from estd.app.playground import LABELS, lay_out
from estd.store.private import PrivatePostgres

_LOADTEST = str(Path(__file__).parents[2] / "loadtest")
if _LOADTEST not in sys.path:
    sys.path.append(_LOADTEST)  # the devices are those of the load test

import fleet  # noqa: E402 - found by the line above

Role = Literal["supervisor", "worker", "signer", "postmaster", "backend", "other"]
"""What a process is there for; `backend` serves a connection of estd, `other` is PostgreSQL's own housekeeping."""

_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 60.0
_TAIL_LINES: Final = 40
_PR_SET_CHILD_SUBREAPER: Final = 36
_MARK: Final = "ESTD_STAGE"
"""A variable by which a stage knows its server's processes from others that this process started or adopted."""
ESTD: Final = Path(sys.executable).with_name("estd")
"""The program, from the environment that the tool runs in."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the server. `started` tells it from a later one with the same id."""

    pid: int
    parent: int
    role: Role
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return (seen := _read_process(self.pid)) is not None and seen[0] == self.started and seen[2] != "Z"

    def kill(self) -> bool:
        """SIGKILL; whether it was still there to be killed."""
        if not self.alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            return True
        return False


class Stage:
    """A server, from its first start to its end; use it in a ``with`` statement, and call `start`.

    Args:
        workers, signers: how many of each.
        database_url: the PostgreSQL to use; None: a private one in the stage's directory.
        settings: more TOML for ``estd.toml``.
        environment: variables the server gets besides ours.
        directory: where to play; None: a temporary one.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        signers: int = 2,
        database_url: str | None = None,
        settings: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
        directory: Path | None = None,
    ) -> None:
        # A short path, which the account that PostgreSQL runs under may enter.
        self.directory = Path(tempfile.mkdtemp(prefix="estd-stage-")) if directory is None else directory.absolute()
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o755)
        self.keep = False
        self.log = self.directory / "estd.log"
        self.port, self.ops_port = _find_free_ports(2)
        self.place = lay_out(
            self.directory / "site", "127.0.0.1", self.port, self.ops_port, datetime.now(UTC).replace(microsecond=0)
        )
        more = f"\n[processes]\nworkers = {workers}\nsigners = {signers}\n"
        if database_url is not None:
            more += f"\n[database]\nurl = {json.dumps(database_url)}\n"
        with self.place.settings.open("a", encoding="utf-8") as file:
            file.write(f"{more}\n{settings}")
        self._database_url = database_url
        # A killed supervisor cannot tidy up its runtime directory; here it goes with the stage.
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        self.environment = {"TMPDIR": str(temporary), **environment, _MARK: str(self.directory)}
        """Variables that the server gets besides ours."""
        self._process: subprocess.Popen[bytes] | None = None
        self._started_before = False
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever interrupts a run, or cannot carry it out here, has nothing to look for in what it leaves.
        is_fault = kind is not None and not issubclass(kind, KeyboardInterrupt | Skipped)
        self.close(keep=self.keep or is_fault)

    # --- the server --------------------------------------------------------------------------------------------------
    def start(self, *, wait: bool = True) -> None:
        """Start the server, the first time with its ecosystems; returns when devices can enroll unless told not to wait.

        Raises:
            RuntimeError: it ended, or was not ready in time; with its last words.
        """
        self._ready_file.unlink(missing_ok=True)
        if self._started_before:
            argv: list[str | Path] = [ESTD, "serve", "--config", self.place.settings, "--ready-file", self._ready_file]
        else:
            argv = [ESTD, "quickstart", "--dir", self.place.directory, "--ready-file", self._ready_file]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env={**os.environ, **self.environment},
                start_new_session=True,  # an interrupt typed at the tool must not reach it before the tool is done
            )
        if wait or not self._started_before:
            self.wait_ready(_START_SECONDS)
        self._started_before = True

    def wait_ready(self, seconds: float) -> None:
        """Wait until the server says that devices can enroll.

        Raises:
            RuntimeError: it ended, or was not ready in time; with its last words.
        """
        deadline = time.monotonic() + seconds
        while not (self._ready_file.exists() and self.readiness()[0] == 200):
            if self._process is None or self._process.poll() is not None:
                status = None if self._process is None else self._process.returncode
                raise RuntimeError(f"estd ended with {status} before it was ready:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"estd was not ready after {seconds:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM, and wait; the exit status.

        Raises:
            RuntimeError: it did not stop in time.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"estd did not stop within {_STOP_SECONDS:.0f} s:\n{self.log_tail()}") from None

    def reload(self) -> None:
        """SIGHUP."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def poll(self) -> int | None:
        """The exit status of the supervisor; None while it runs, negative when a signal ended it.

        Call it often while processes are killed: what a killed supervisor left behind and ended is laid to rest here,
        as process 1 would do it. PostgreSQL takes a dead process that nobody waited for to be alive.
        """
        assert self._process is not None
        status = self._process.poll()
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid == self._process.pid:
                    break  # `Popen` waits for it
                os.waitpid(ended.si_pid, os.WNOHANG)
        return status

    def end(self) -> bool:
        """End whatever still runs, in order or not; whether it went in order."""
        in_order = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                in_order = False
        while self._process is not None and (left := self.processes()):
            for process in left:
                process.kill()
            time.sleep(0.1)
            self.poll()
        return in_order

    def close(self, *, keep: bool = False) -> None:
        """End whatever still runs; remove the directory unless it is to be kept."""
        if not self.end() or keep:
            print(f"kept for you to look at: {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- what can be seen of it --------------------------------------------------------------------------------------
    def processes(self) -> list[Process]:
        """Every process of the server, also those that a killed supervisor left behind."""
        table: dict[int, tuple[int, int, str]] = {}
        for entry in os.listdir("/proc"):  # noqa: PTH208 - names are enough
            if entry.isdigit() and (seen := _read_process(int(entry))) is not None:
                table[int(entry)] = seen
        children: dict[int, list[int]] = {}
        for pid, (_, parent, _) in table.items():
            children.setdefault(parent, []).append(pid)
        supervisor = None if self._process is None else self._process.pid
        found: list[Process] = []
        waiting = [(pid, "") for pid in children.get(os.getpid(), []) if self._is_ours(pid)]
        while waiting:
            pid, above = waiting.pop()
            started, parent, state = table[pid]
            if state == "Z":
                continue
            role = "supervisor" if pid == supervisor else _decide_role(pid, above)
            if role is not None:
                found.append(Process(pid, parent, role, started))
                waiting.extend((child, role) for child in children.get(pid, []))
        return found

    def _is_ours(self, pid: int) -> bool:
        """Whether a child of this process belongs to the server: by what it was started with, or by where it works."""
        mark = f"{_MARK}={self.directory}".encode()
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return True
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self.directory)  # PostgreSQL works in its data
        return False

    def of_role(self, role: Role) -> list[Process]:
        """The processes of one role."""
        return [process for process in self.processes() if process.role == role]

    def ops(self, path: str) -> tuple[int, str]:
        """Status and text of an answer of the ops port; (0, "") when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode("utf-8")
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode("utf-8", "replace")
        except OSError:
            return 0, ""

    def readiness(self) -> tuple[int, str]:
        """What ``/readyz`` says."""
        return self.ops("/readyz")

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """The server's last words so far."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    # --- what devices and checkers need ------------------------------------------------------------------------------
    @property
    def address(self) -> tuple[str, int]:
        """Where devices connect."""
        return ("127.0.0.1", self.port)

    @property
    def trust(self) -> x509.Certificate:
        """What verifies the server's certificate."""
        return x509.load_pem_x509_certificate(self.place.trust.read_bytes())

    def path(self, label: str = LABELS[0], operation: str = "simpleenroll") -> str:
        """The path of an EST operation."""
        return f"/.well-known/est/{label}/{operation}"

    def devices(self, count: int, requests_each: int = 1, label: str = LABELS[0]) -> list[fleet.Device]:
        """Devices that nobody has seen yet, of the one maker that this ecosystem trusts."""
        return fleet.make_devices(*self.place.bootstrap(label).maker, count, requests_each)

    @property
    def journals(self) -> Path:
        """Where the signers keep their journals."""
        return self.place.data / "journal"

    @property
    def database_url(self) -> str:
        """How a checker reaches the database.

        Raises:
            RuntimeError: the private one does not answer.
        """
        url = self._database_url or PrivatePostgres(self.place.data / "postgres").status().url
        if url is None:
            raise RuntimeError("the private PostgreSQL does not answer")
        return url

    @property
    def _ready_file(self) -> Path:
        return self.directory / "ready.json"


# --- private -----------------------------------------------------------------------------------------------------------


def _find_free_ports(count: int) -> list[int]:
    """Ports nobody uses now: a server that is started again has to be found where it was."""
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(socket.socket()) for _ in range(count)]
        for end in ends:
            end.bind(("127.0.0.1", 0))
        return [end.getsockname()[1] for end in ends]


def _read_process(pid: int) -> tuple[int, int, str] | None:
    """When it started, its parent and its state."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return int(fields[19]), int(fields[1]), fields[0]


def _decide_role(pid: int, above: str) -> Role | None:
    """The role of a process that `above` started; None for what is no process of the server."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    if b"estd.app.worker" in words:
        return "worker"
    if b"estd.signer.server" in words:
        return "signer"
    if words[0].startswith(b"postgres: "):
        return "backend" if words[0].startswith(b"postgres: estd estd ") else "other"
    if words[0].endswith(b"/bin/postgres"):
        return "other" if above == "postmaster" else "postmaster"
    return "other" if above else None
