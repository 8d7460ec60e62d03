"""The supervisor: opens the listening socket once, starts everything else, keeps it alive, reloads it and drains it.

Start: private PostgreSQL (unless the settings name one) → migrations → listening socket → signers, unlocked and loaded →
the server's own certificate → web workers → ops port. SIGTERM and SIGINT drain and stop; SIGHUP reads the settings again
and replaces the workers one by one on the same socket, so no connection is refused meanwhile; SIGUSR2 does the same with
everything, this process included, by the program as it is on disk now (`estd.app.handover`).

The order of things is decided here; what it takes to start, watch and stop one kind of them is with the database, the
signers and the workers (`estd.app.database`, `estd.app.signer_crew`, `estd.app.worker_crew`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from estd.app import identity
from estd.app.access import make_data_directory
from estd.app.checking import check_default, find_left_behind
from estd.app.children import Child
from estd.app.database import Database
from estd.app.handover import Estate, become_successor, find_estate, try_program
from estd.app.heartbeat import Heartbeat
from estd.app.listening import open_listener
from estd.app.ops import OpsServer
from estd.app.own_certificate import NOT_AFTER, find_date_problem, find_end, find_open_key, find_uncovered
from estd.app.readiness import Readiness
from estd.app.signer_crew import SignerCrew
from estd.app.tasks import keep_doing, start_task
from estd.app.witness import Witness
from estd.app.worker import WorkerSettings
from estd.app.worker_crew import WorkerCrew
from estd.config import Config, check_blocklist, find_changes, read_key_encryption_key
from estd.errors import Broken, Invalid, Problem, Unavailable
from estd.ra.enrollment import Enrollment
from estd.signer.client import SignerPool
from estd.store.postgres import PostgresStore
from estd.web.tls_context import build_context

_log = logging.getLogger(__name__)

_SETTLE_EVERY_SECONDS: Final = 30.0
_SETTLE_AFTER: Final = timedelta(seconds=60)
_SETTLE_AT_ONCE: Final = 2_000
"""Oldest first, so more than what another node that died can have left behind."""
_RENEW_EVERY_SECONDS: Final = 3600.0
_TAKEN_OVER: Final = frozenset(
    ("est.default_ecosystem", "log.level", "processes.workers", "tls.certificate", "tls.key", "tls.names")
)
"""Settings that a reload brings into force."""


class Supervisor:
    """One running server."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        self._config = config
        self._reread = reread
        self._started_with = config if reread is None else reread()
        """The settings as the file had them: a command's own options stand above it."""
        # Signers that run on their own hold it themselves, and here it is not wanted.
        self._kek = None if config.signer_sockets else read_key_encryption_key(config)
        self._stack = contextlib.AsyncExitStack()
        self._stop = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._becomes_successor = False
        self.port = config.port
        self.ops_port = config.ops_port

    async def start(self) -> None:
        """Start everything; returns when devices can enroll.

        Raises:
            Invalid: the settings cannot work here.
            Unavailable: the database does not answer.
            Broken: a child is not ready in time.
        """
        config = self._config
        make_data_directory(config.data_directory)
        check_blocklist(config)
        estate = find_estate()
        if estate is None:
            self._lock_data_directory()
            self._runtime = self._make_runtime()
            (self._runtime / "metrics").mkdir()
        else:
            self._lock = self._stack.enter_context(os.fdopen(estate.lock, "a"))
            self._runtime = Path(estate.runtime)
        self._stack.callback(shutil.rmtree, self._runtime, ignore_errors=True)
        self._database = Database(config.database_url, config.data_directory / "postgres")
        await self._database.start()
        self._stack.push_async_callback(self._database.stop)
        # From now on: what is started next waits for a database that is killed meanwhile, and nobody else brings it back.
        self._tasks.append(start_task(self._database.watch()))
        await self._database.migrate()
        self._store = await PostgresStore.connect(self._database.url, pool_size=3)
        self._stack.push_async_callback(self._store.close)
        if estate is None:  # a successor goes on with what its predecessor served with
            check_default(config, await self._store.find_ecosystems())
        await identity.ensure_ecosystem(self._store, self._kek)
        if estate is None:
            self._listener = open_listener(config.address, config.port)
        else:
            self._listener = socket.socket(fileno=estate.listener)
        self.port = self._listener.getsockname()[1]
        self._ops = OpsServer(self._report, self._runtime / "metrics", self._find_silent)
        generation = 0 if estate is None else estate.generation
        self._workers = WorkerCrew(self._listener, self._write_settings, self._ops.forget, generation)
        self._signers = SignerCrew(config, self._kek, self._runtime, self._store)
        self._signer_beats = Heartbeat(lambda: self._signers.members, self._signers.controls)
        self._worker_beats = Heartbeat(lambda: self._workers.members, self._workers.controls)
        await self._signers.start([] if estate is None else estate.signers, self._stack)
        self._pool = SignerPool(self._signers.sockets)
        self._stack.push_async_callback(self._pool.close)
        self._enrollment = Enrollment(self._store, self._pool, _now, _ignore)
        journals = config.data_directory / "journal"
        self._readiness = Readiness(
            self._signers.controls, self._can_be_asked, self._database.directory, self._store.check
        )
        self._witness = Witness(self._store, self._pool, self._enrollment, journals, self._signers.controls)
        await self._witness.check()
        await self._renew_certificate()
        await self._workers.replace(config.worker_count)
        for heir in () if estate is None else estate.workers:
            self._workers.let_go(heir)
        await self._signers.see_off()
        await self._store.subscribe(self._notice)
        self._tasks += [
            start_task(self._signers.follow()),
            start_task(keep_doing("signers' heartbeat", self._signer_beats.watch)),
            start_task(keep_doing("workers' heartbeat", self._worker_beats.watch)),
            start_task(keep_doing("settle", self._settle)),
            start_task(self._readiness.watch()),
            start_task(keep_doing("renew", self._renew)),
            start_task(self._witness.run()),
            start_task(keep_doing("reload", self._reload_on_demand)),
        ]
        self.ops_port = await self._ops.start(config.ops_address, config.ops_port)
        self._stack.push_async_callback(self._ops.stop)
        _log.info("serving", extra={"port": self.port, "ops_port": self.ops_port})

    async def run(self) -> None:
        """Serve until a signal says otherwise, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        loop.add_signal_handler(signal.SIGUSR2, lambda: self._tasks.append(start_task(self._prepare_successor())))
        await self._stop.wait()
        if self._becomes_successor:
            await self._hand_over()
        _log.info("draining")
        await self.stop()

    async def stop(self) -> None:
        """Stop accepting, answer what is in hand, stop everything that was started."""
        hung = await self._find_hung()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_listener"):
            self._listener.close()
            await self._workers.stop(hung)
        if hasattr(self, "_witness"):
            await self._witness.anchor(hung)
        if hasattr(self, "_pool"):
            await self._pool.close()
        if hasattr(self, "_signers"):
            await self._signers.stop(hung)
        await self._stack.aclose()
        _log.info("stopped")

    async def reload(self) -> None:
        """Read the settings again and replace the workers, the new ones first."""
        config = self._config
        if self._reread is not None:
            try:
                config = self._reread()
            except Invalid as invalid:
                _log.error("settings not reloaded", extra={"problems": [str(item) for item in invalid.problems]})
                return
        previous, self._config = self._config, config
        try:
            if config.default_ecosystem != previous.default_ecosystem:
                check_default(config, await self._store.find_ecosystems())
            await self._renew_certificate()
            await self._workers.replace(config.worker_count)
        except (Broken, Invalid, Unavailable, OSError) as fault:
            _log.error("reload failed; the old workers stay", extra={"detail": str(fault)})
            self._config = previous
            return
        waiting = [name for name in find_changes(self._started_with, config) if name not in _TAKEN_OVER]
        if waiting and self._reread is not None:
            _log.warning("changed settings want a restart", extra={"settings": waiting})
        _log.info("reloaded")

    async def _reload_on_demand(self) -> None:
        """One reload after the other; what is asked for meanwhile is done by one more."""
        await self._reload_wanted.wait()
        self._reload_wanted.clear()
        await self.reload()

    # --- another version of the program ------------------------------------------------------------------------------

    async def _prepare_successor(self) -> None:
        fault = await try_program()
        if fault is not None:
            _log.error("the program on disk cannot be started; this one stays", extra={"detail": fault})
            return
        await self._end_hung()
        self._becomes_successor = True
        self._stop.set()

    async def _end_hung(self) -> None:
        """A successor would wait for them, and answers on the ops port only when all its signers are ready."""
        hung = await self._find_hung()
        children = [one for one in (*self._signers.members, *self._workers.members) if isinstance(one, Child)]
        await asyncio.gather(*(child.stop(hung=True) for child in children if child.name in hung))

    async def _hand_over(self) -> None:
        """Go on as the program on disk. Children that are just leaving are seen off first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._workers.see_off()
        await self._ops.stop()
        estate = Estate(
            listener=self._listener.fileno(),
            lock=self._lock.fileno(),
            runtime=str(self._runtime),
            generation=self._workers.generation,
            workers=self._workers.heirs,
            signers=self._signers.heirs,
        )
        _log.info("the program on disk takes over")
        become_successor(estate)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _lock_data_directory(self) -> None:
        path = self._config.data_directory / "lock"
        try:
            self._lock = self._stack.enter_context(path.open("a"))
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            remedy = "Run estd as the user who owns the data directory, or name another one."
            raise Invalid([Problem(str(path), what, remedy)]) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Invalid(
                [
                    Problem(
                        str(self._config.data_directory),
                        "is in use by a running estd",
                        "Stop that one, or give this one its own data_directory.",
                    )
                ]
            ) from None

    def _make_runtime(self) -> Path:
        """A directory for sockets and counters; the one that a killed predecessor left behind goes."""
        # The lock is held, so whoever noted it is dead.
        left = find_left_behind(self._config)
        if left is not None:
            shutil.rmtree(left, ignore_errors=True)
        runtime = Path(tempfile.mkdtemp(prefix="estd-"))
        self._lock.truncate(0)
        self._lock.write(str(runtime))
        self._lock.flush()
        return runtime

    def _write_settings(self, name: str, slot: int) -> WorkerSettings:
        """What a worker that starts now is told."""
        return WorkerSettings(
            name=name,
            slot=slot,
            workers=self._config.worker_count,
            database_url=self._database.url,
            signer_sockets=self._signers.sockets,
            tls_chain=self._chain.decode(),
            tls_key=self._key.decode(),
            metrics_directory=str(self._runtime / "metrics"),
            log_level=self._config.log_level,
            default_ecosystem=self._config.default_ecosystem,
        )

    # --- what goes on while serving ---------------------------------------------------------------------------------

    async def _notice(self, change: str) -> None:
        self._witness.notice(change)
        self._signers.notice()

    async def _settle(self) -> None:
        """Finish or close intents whose worker died between reserving and recording."""
        await asyncio.sleep(_SETTLE_EVERY_SECONDS)
        try:
            intents = await self._store.find_open_intents(_now() - _SETTLE_AFTER, _SETTLE_AT_ONCE)
        except Unavailable as reason:
            _log.warning("open intents are left for later", extra={"detail": reason.detail})
            return
        await self._enrollment.settle_all(intents)

    async def _renew(self) -> None:
        await asyncio.sleep(_RENEW_EVERY_SECONDS)
        try:
            renewed = await self._renew_certificate()
        except (Broken, Invalid, Unavailable, OSError) as reason:
            _log.error("the server certificate could not be renewed", extra={"detail": str(reason)})
        else:
            if renewed:
                self._workers.send({"tls_chain": self._chain.decode(), "tls_key": self._key.decode()})

    async def _renew_certificate(self) -> bool:
        """Make sure that there is a server certificate with enough life left; whether it changed."""
        chain, key = await identity.ensure_certificate(self._config, self._store, self._enrollment, _now())
        build_context(chain, key)  # before a worker is told: the operator's own may be half replaced
        present = getattr(self, "_chain", None)
        if self._config.tls_certificate is not None:
            self._judge(chain, present, self._config.tls_certificate)
        self._chain, self._key = chain, key
        NOT_AFTER.set(find_end(chain).timestamp())
        return chain != present

    def _judge(self, chain: bytes, present: bytes | None, path: Path) -> None:
        """Whether to show the operator's own certificate instead of the present one."""
        problem = find_date_problem(chain, _now(), str(path))
        if problem is not None:
            if present not in (None, chain):
                raise Invalid([problem])
            _log.error("the server certificate is not valid now", extra={"detail": str(problem)})
        if chain == present:
            return
        if self._config.tls_key is not None and find_open_key(self._config.tls_key) is not None:
            _log.warning("the server's private key can be read by others", extra={"key": str(self._config.tls_key)})
        uncovered = find_uncovered(chain, self._config.tls_names)
        if uncovered:
            facts = {"certificate": str(path), "names": uncovered}
            _log.warning("the server certificate is for other names than tls.names", extra=facts)

    async def _report(self) -> dict[str, str]:
        """What is missing, by part; empty when devices can enroll."""
        missing: dict[str, str] = {}
        problem = await self._readiness.ask_database() or self._witness.problem or self._readiness.database
        if problem is not None:
            missing["database"] = problem
        if not self._signers.any_ready:
            missing["signers"] = "none is ready"
        elif (signers := self._signer_beats.missing or self._readiness.signers) is not None:
            missing["signers"] = signers
        if not self._workers.any_ready:
            missing["workers"] = "none is ready"
        elif self._worker_beats.missing is not None:
            missing["workers"] = self._worker_beats.missing
        if self._stop.is_set():
            missing["server"] = "draining"
        return missing

    def _find_silent(self) -> dict[str, str]:
        """Which children do not answer, and since when."""
        return {**self._signer_beats.silent, **self._worker_beats.silent}

    async def _find_hung(self) -> set[str]:
        """Which children do not answer now; at once when all do."""
        beats = [self._signer_beats, self._worker_beats] if hasattr(self, "_worker_beats") else []
        return set().union(*await asyncio.gather(*(one.find_hung() for one in beats)))

    def _can_be_asked(self, signer: str) -> bool:
        return self._signers.is_ready(signer) and signer not in self._signer_beats.silent


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _ignore(_what: str, _value: float) -> None:
    """The supervisor's own issuances are not counted among the devices'."""
