"""What lies in the private server's directory, and what can be learned there about its processes.

The directory holds ``data`` (PostgreSQL's own), ``log`` (a week of it), ``socket`` (or ``socket.path``, which names a
shorter one), the settings estd writes at each start, and three lock files. The kernel drops each lock with its holder:

* ``start.lock`` is held while starting or stopping;
* ``users.lock`` is shared by every process that uses the server;
* ``server.lock`` is inherited by every process of the server, so "is anything of it still alive?" has an answer that
  no recycled process id can falsify.

The account the server runs under may write in some of these places and root may be the reader, so nothing here follows
a link, and a process is only ever signalled after the kernel has confirmed that it works in the data directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from estd.errors import Code, Invalid, Problem, Unavailable
from estd.store.launcher import Launcher, name_of

ROLE = "estd"
"""The database role estd works as, and the name of the database it owns."""
SUPERUSER = "postgres"
"""The role for backups and repairs; estd itself never connects with it."""
_FOR_GOOD = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
"""What trying again will not mend."""


class PidFile(NamedTuple):
    """What a server says of itself in ``data/postmaster.pid``."""

    pid: int
    socket_directory: str
    ready: bool

    @property
    def answers(self) -> bool:
        """Whether it is ready and accepts connections: a request for TLS is answered with one byte, yes or no."""
        return self.ready and len(self._ask(_TLS_REQUEST)) == 1

    @property
    def is_settled(self) -> bool:
        """Whether it neither starts, nor recovers from a crash (of a single backend perhaps), nor ends at this moment."""
        answer = self._ask(_HELLO)
        return answer != b"" and _CANNOT_CONNECT_NOW not in answer

    def _ask(self, message: bytes) -> bytes:
        """The beginning of its answer; empty when it has none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2.0)
            try:
                probe.connect(f"{self.socket_directory}/{_SOCKET_NAME}")
                probe.sendall(message)
                return probe.recv(1024)
            except OSError:
                return b""


# PostgreSQL's frontend protocol 3.0: SSLRequest, StartupMessage, and the SQLSTATE of an ErrorResponse.
_TLS_REQUEST = struct.pack("!ii", 8, 80877103)
_WHO = f"user\0{ROLE}\0database\0{ROLE}\0\0".encode()
_HELLO = struct.pack("!ii", 8 + len(_WHO), 3 << 16) + _WHO
_CANNOT_CONNECT_NOW = b"C57P03\0"


class Cluster:
    """The files, locks and processes of the server in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.data = self.directory / "data"
        self.settings = self.directory / "postgresql.conf"

    def prepare(self) -> None:
        """Make the directory if it is missing.

        Raises:
            Invalid: it cannot be.
            Unavailable: there is no room for it now.
        """
        if re.search(r"[\n\r]", str(self.directory)):
            raise Invalid([Problem(repr(str(self.directory)), "holds a line break", "Choose another directory.")])
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    # --- locks -------------------------------------------------------------------------------------------------------
    def open_lock(self, name: str) -> int:
        """A descriptor of a lock file, to be closed by the caller."""
        try:
            return os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error

    @contextlib.contextmanager
    def starting_or_stopping(self, patience_seconds: float) -> Iterator[None]:
        """Only one process at a time starts or stops the server."""
        lock = self.open_lock("start.lock")
        try:
            if not wait_for(lambda: try_lock(lock), patience_seconds):
                raise self.failure("another process has been starting or stopping it for too long")
            yield
        finally:
            os.close(lock)

    # --- processes ---------------------------------------------------------------------------------------------------
    def lives(self) -> bool:
        """Whether any process of a server in this directory lives, started by us or by hand."""
        lock = self.open_lock("server.lock")
        try:
            if not try_lock(lock):
                return True
        finally:
            os.close(lock)
        seen = self.read_pid_file()
        return seen is not None and self.holds(seen.pid)

    def holds(self, pid: int) -> bool:
        """Whether that process is part of a server in this directory: PostgreSQL's processes work in their data."""
        try:
            return Path(f"/proc/{pid}/cwd").samefile(self.data)
        except OSError:
            return False

    def recovers(self) -> bool:
        """Whether the process that reads a server's log after a crash is at work here."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self.holds(int(entry.name)):
                with contextlib.suppress(OSError):
                    if b": startup" in (entry / "cmdline").read_bytes():
                        return True
        return False

    def signal_server(self, sign: signal.Signals) -> None:
        """Signal the server; where it died and left children behind, signal those."""
        seen = self.read_pid_file()
        if seen is not None and self.holds(seen.pid):
            pids = [seen.pid]
        else:
            pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        for pid in filter(self.holds, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)

    def read_pid_file(self) -> PidFile | None:
        """What the server says of itself, if anything readable is there."""
        try:
            descriptor = os.open(self.data / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                lines = file.read(4096).decode("utf-8", "replace").splitlines()
            # Lines: pid, data directory, start time, port, socket directory, listen address, shared memory, status.
            return PidFile(int(lines[0]), lines[4] if len(lines) > 4 else "", lines[7:8] == ["ready   "])
        except (OSError, ValueError, IndexError):
            return None

    # --- files -------------------------------------------------------------------------------------------------------
    def write_settings(self, socket_directory: str, launcher: Launcher) -> None:
        """Written at each start, so that a newer estd brings its settings along."""
        write_file(
            self.settings,
            "# Written by estd at each start. Put settings of your own into tuning.conf beside this file.\n"
            f"include {_quoted(self.data / 'postgresql.conf')}\n"
            f"data_directory = {_quoted(self.data)}\n"
            f"hba_file = {_quoted(self.directory / 'pg_hba.conf')}\n"
            f"ident_file = {_quoted(self.directory / 'pg_ident.conf')}\n"
            f"unix_socket_directories = {_quoted(socket_directory)}\n"
            f"log_directory = {_quoted(self.directory / 'log')}\n"
            f"{_SETTINGS}"
            f"include_if_exists {_quoted(self.directory / 'tuning.conf')}\n",
        )
        write_file(self.directory / "pg_hba.conf", "# Written by estd.\nlocal all all peer map=estd\n")
        # root could become the account anyway; without it a root that attaches to a user's server is turned away.
        users = sorted({launcher.account.name, name_of(os.geteuid()), name_of(0)})
        lines = [f'estd "{user}" {role}\n' for user in users for role in (ROLE, SUPERUSER)]
        write_file(self.directory / "pg_ident.conf", "# Written by estd.\n" + "".join(lines))

    def socket_directory(self, launcher: Launcher) -> str:
        """A directory of mode 0700 whose name leaves room for the socket's (a Unix socket path holds 107 bytes)."""
        ordinary = self.directory / "socket"
        if _fits(str(ordinary)):
            launcher.own_directory(ordinary)
            return str(ordinary)
        pointer = self.directory / "socket.path"
        with contextlib.suppress(OSError):
            short = Path(pointer.read_text(encoding="utf-8").strip())
            found = short.lstat()
            if found.st_uid == launcher.account.uid and found.st_mode == 0o40700 and _fits(str(short)):
                return str(short)
        runtime = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
        usable = os.access(runtime, os.W_OK | os.X_OK) and _fits(f"{runtime}/estd-12345678")
        short = Path(tempfile.mkdtemp(prefix="estd-", dir=runtime if usable else "/tmp"))  # noqa: S108 - mkdtemp's
        launcher.own_directory(short)
        write_file(pointer, f"{short}\n")
        return str(short)

    def forget_last_server(self, socket_directory: str) -> None:
        """Remove what a killed server says of itself, beside its data and beside its socket.

        Both may name a process id that meanwhile belongs to a stranger, or to a process that ended and that nobody
        waited for; PostgreSQL would take either for a running server and not start.
        """
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        Path(socket_directory, f"{_SOCKET_NAME}.lock").unlink(missing_ok=True)

    def remove_short_socket_directory(self) -> None:
        """Leave nothing outside the directory."""
        pointer = self.directory / "socket.path"
        with contextlib.suppress(OSError):  # a leftover in a temporary directory is harmless
            Path(pointer.read_text(encoding="utf-8").strip()).rmdir()
            pointer.unlink()

    # --- failures ----------------------------------------------------------------------------------------------------
    def failure(self, what: str, output: str = "") -> Unavailable:
        """What went wrong, with the last words of the program and of the server's log."""
        tail = (output + self._log_tail()).strip()
        user = name_of(os.geteuid())
        if user.isdigit():
            tail += f"\nThe user id {user} has no name on this system, and PostgreSQL insists on one."
        said = f"; its last words:\n{tail}" if tail else ""
        return Unavailable(Code.STORE_UNAVAILABLE, f"The private PostgreSQL in {self.directory}: {what}{said}")

    def _log_tail(self) -> str:
        try:
            newest = max((self.directory / "log").glob("*.log"), key=lambda path: path.lstat().st_mtime)
            with os.fdopen(os.open(newest, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                return read_tail(file)
        except (OSError, ValueError):
            return ""

    def _unusable(self, error: OSError) -> Unavailable | Invalid:
        if error.errno in _FOR_GOOD:
            remedy = "Run estd as the user who owns it, or choose another one."
            return Invalid([Problem(str(self.directory), f"cannot be used ({error.strerror})", remedy)])
        return Unavailable(
            Code.STORE_UNAVAILABLE, f"{self.directory} cannot be used ({error.strerror}); choose another directory."
        )


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock if nobody holds any."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def write_file(path: Path, text: str) -> None:
    """Replace a file whole. Not secret: the server's account must read it."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)
        file.write(text)
    Path(name).replace(path)


def read_tail(file: IO[bytes], lines: int = 15) -> str:
    """The last lines of a file."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 8192))
    return "".join(file.read().decode("utf-8", "replace").splitlines(keepends=True)[-lines:])


# What a small machine needs. Few clients ask and their questions are short, so I/O workers and parallel query would
# only cost processes; writes are small and steady, so checkpoints are kept apart; the log never holds a value.
_SETTINGS = """\
listen_addresses = ''
port = 5432
unix_socket_permissions = 0700
max_connections = 60
shared_buffers = 64MB
maintenance_work_mem = 32MB
fsync = on
full_page_writes = on
synchronous_commit = on
wal_level = replica
max_wal_size = 512MB
checkpoint_timeout = 15min
deadlock_timeout = 200ms
io_method = sync
max_logical_replication_workers = 0
max_parallel_workers_per_gather = 0
jit = off
autovacuum_max_workers = 2
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
logging_collector = on
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = 1d
log_rotation_size = 0
log_file_mode = 0600
log_checkpoints = off
log_min_error_statement = panic
log_parameter_max_length_on_error = 0
"""

_SOCKET_NAME = ".s.PGSQL.5432"


def _quoted(path: Path | str) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "''") + "'"


def _fits(directory: str) -> bool:
    """Short enough for a socket address, and free of what PostgreSQL's lists and URLs give a meaning to."""
    short = len(f"{directory}/{_SOCKET_NAME}".encode()) <= 107
    return short and re.fullmatch(r"[A-Za-z0-9_./+~-]+", directory) is not None
