"""The supervisor: opens the listening socket once, starts everything else, keeps it alive, reloads it and drains it.

Start: private PostgreSQL (unless the settings name one) → migrations → listening socket → signers, unlocked and loaded →
the server's own certificate → web workers → ops port. SIGTERM and SIGINT drain and stop; SIGHUP reads the settings again
and replaces the workers one by one on the same socket, so no connection is refused meanwhile; SIGUSR2 does the same with
everything, this process included, by the program as it is on disk now (`estd.app.handover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from estd.app import identity
from estd.app.checking import find_left_behind
from estd.app.children import Adopted, Child
from estd.app.control import Control
from estd.app.handover import Estate, Heir, become_successor, find_estate, try_program
from estd.app.listening import open_listener
from estd.app.ops import OpsServer
from estd.app.readiness import Readiness
from estd.app.signer_link import SignerLink
from estd.app.signers import SignerControl
from estd.app.witness import Witness
from estd.app.worker import WorkerSettings
from estd.config import Config, check_blocklist, read_key_encryption_key
from estd.errors import Broken, Invalid, Problem, Unavailable
from estd.ra.enrollment import Enrollment
from estd.signer.client import SignerPool
from estd.signer.server import SignerSettings
from estd.signer.settings import find_control_path
from estd.store.contract import EcosystemRecord
from estd.store.migrator import migrate
from estd.store.postgres import PostgresStore
from estd.store.private import PrivatePostgres
from estd.web.tls_context import build_context

_log = logging.getLogger(__name__)

_START_SECONDS: Final = 60.0
_GRACE_SECONDS: Final = 3.0
"""For a client that keeps its connection to a worker that is replaced: a request within that time is still answered."""
_SETTLE_EVERY_SECONDS: Final = 30.0
_SETTLE_AFTER: Final = timedelta(seconds=60)
_SETTLE_AT_ONCE: Final = 200
_WATCH_EVERY_SECONDS: Final = 1.0
_RECOVERY_PAUSE_SECONDS: Final = 0.1
_RENEW_EVERY_SECONDS: Final = 3600.0


class Supervisor:
    """One running server."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        self._config = config
        self._reread = reread
        # Signers that run on their own hold it themselves, and here it is not wanted.
        self._kek = None if config.signer_sockets else read_key_encryption_key(config)
        self._running_signers = config.signer_sockets  # other ones want a restart
        self._stack = contextlib.AsyncExitStack()
        self._workers: list[Child] = []
        self._worker_controls: dict[str, Control] = {}
        self._signers: list[Child | SignerLink] = []
        self._signer_controls: dict[str, SignerControl] = {}
        self._changed = asyncio.Event()
        self._ecosystems: list[EcosystemRecord] = []
        """As they were read last."""
        self._stop = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()  # children that finish what they have in hand
        self._estate: Estate | None = None
        self._becomes_successor = False
        self._generation = 0
        self._private: PrivatePostgres | None = None
        self.port = config.port
        self.ops_port = config.ops_port

    async def start(self) -> None:
        """Start everything; returns when devices can enroll.

        Raises:
            Invalid: the settings cannot work here.
            Unavailable: the database does not answer.
        """
        config = self._config
        config.data_directory.mkdir(parents=True, exist_ok=True)
        check_blocklist(config)
        self._estate = find_estate()
        if self._estate is None:
            self._lock_data_directory()
            self._runtime = self._make_runtime()
            (self._runtime / "metrics").mkdir()
        else:
            self._lock = self._stack.enter_context(os.fdopen(self._estate.lock, "a"))
            self._runtime = Path(self._estate.runtime)
            self._generation = self._estate.generation
        self._stack.callback(shutil.rmtree, self._runtime, ignore_errors=True)
        url = await self._start_database()
        await self._migrate(url)
        self._url = url
        self._store = await PostgresStore.connect(url, pool_size=3)
        self._stack.push_async_callback(self._store.close)
        await identity.ensure_ecosystem(self._store, self._kek)
        if self._estate is None:
            self._listener = open_listener(config.address, config.port)
        else:
            self._listener = socket.socket(fileno=self._estate.listener)
        self.port = self._listener.getsockname()[1]
        self._ops = OpsServer(self._report, self._runtime / "metrics")
        await self._start_signers()
        self._pool = SignerPool([str(self._signer_socket(slot)) for slot in range(config.signer_count)])
        self._stack.push_async_callback(self._pool.close)
        self._enrollment = Enrollment(self._store, self._pool, _now, _ignore)
        journals = config.data_directory / "journal"
        self._readiness = Readiness(
            self._signer_controls,
            lambda name: any(child.ready for child in self._signers if child.name == name),
            None if self._private is None else config.data_directory / "postgres",
        )
        self._witness = Witness(self._store, self._pool, self._enrollment, journals, self._signer_controls)
        await self._witness.check()
        await self._renew_certificate()
        await self._replace_workers()
        if self._estate is not None:
            for heir in self._estate.workers:
                self._let_go(heir)
        await self._store.subscribe(self._notice)
        self._tasks = [
            self._task(self._follow()),
            self._task(self._settle()),
            self._task(self._readiness.watch()),
            self._task(self._watch_database()),
            self._task(self._renew()),
            self._task(self._witness.run()),
            self._task(self._reload_on_demand()),
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
        loop.add_signal_handler(signal.SIGUSR2, lambda: self._tasks.append(self._task(self._prepare_successor())))
        await self._stop.wait()
        if self._becomes_successor:
            await self._hand_over()
        _log.info("draining")
        await self.stop()

    async def stop(self) -> None:
        """Stop accepting, answer what is in hand, stop everything that was started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_listener"):
            self._listener.close()
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if hasattr(self, "_witness"):
            await self._witness.anchor()
        if hasattr(self, "_pool"):
            await self._pool.close()
        await asyncio.gather(*(signer.stop() for signer in self._signers))
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
            await self._renew_certificate()
            await self._replace_workers()
        except (Broken, Invalid, Unavailable) as fault:
            _log.error("reload failed; the old workers stay", extra={"detail": str(fault)})
            self._config = previous
            return
        _log.info("reloaded")

    async def _reload_on_demand(self) -> None:
        """One reload after the other; what is asked for meanwhile is done by one more."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            await self.reload()

    # --- another version of the program ------------------------------------------------------------------------------

    async def _prepare_successor(self) -> None:
        fault = await try_program()
        if fault is not None:
            _log.error("the program on disk cannot be started; this one stays", extra={"detail": fault})
            return
        self._becomes_successor = True
        self._stop.set()

    async def _hand_over(self) -> None:
        """Go on as the program on disk. Children that are just leaving are seen off first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._ops.stop()
        estate = Estate(
            listener=self._listener.fileno(),
            lock=self._lock.fileno(),
            runtime=str(self._runtime),
            generation=self._generation,
            workers=_write_heirs(self._workers),
            signers=_write_heirs(self._signers),
        )
        _log.info("the program on disk takes over")
        become_successor(estate)

    def _let_go(self, heir: Heir) -> None:
        """Have a worker of our predecessor finish what it has in hand."""
        worker = Adopted(heir.name, heir.pid, socket.socket(fileno=heir.control), self._ops.forget)
        self._leave(worker.stop(lambda: worker.tell(json.dumps({"drain": _GRACE_SECONDS}).encode() + b"\n")))

    def _leave(self, work: Coroutine[None, None, None]) -> None:
        task = self._task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _lock_data_directory(self) -> None:
        self._lock = self._stack.enter_context((self._config.data_directory / "lock").open("a"))
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

    async def _migrate(self, url: str) -> None:
        """Bring the schema up to date; a private database that is recovering from a kill gets the time it needs."""
        give_up_at = asyncio.get_running_loop().time() + _START_SECONDS
        while True:
            try:
                await migrate(url)
            except Unavailable:
                if self._private is None or asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(_RECOVERY_PAUSE_SECONDS)
            else:
                return

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

    async def _start_database(self) -> str:
        if self._config.database_url is not None:
            return self._config.database_url
        self._private = PrivatePostgres(self._config.data_directory / "postgres")
        url = await asyncio.to_thread(self._private.start)
        self._stack.push_async_callback(asyncio.to_thread, self._private.stop)
        return url

    def _signer_socket(self, slot: int) -> Path:
        if self._running_signers:
            return self._running_signers[slot]
        return self._runtime / f"signer-{slot}.sock"

    async def _start_signers(self) -> None:
        if self._running_signers:
            for slot, path in enumerate(self._running_signers):
                name = f"signer-{slot}"
                link = SignerLink(name, find_control_path(path), self._greeter_of_signer(name))
                self._signers.append(link)
                link.start()
            await self._require(self._signers)
            return
        journals = self._config.data_directory / "journal"
        journals.mkdir(mode=0o700, exist_ok=True)
        for slot in range(self._config.signer_count):
            settings = SignerSettings(
                slot=slot,
                socket_path=str(self._signer_socket(slot)),
                journal_directory=str(journals),
                allowed_uids=[os.getuid()],
                log_level=self._config.log_level,
                blocklist_path=None if self._config.blocklist is None else str(self._config.blocklist),
            )
            name = f"signer-{slot}"
            settings_fd = os.memfd_create(f"{name}-settings")
            self._stack.callback(os.close, settings_fd)
            os.write(settings_fd, msgspec.json.encode(settings))
            child = Child(
                name,
                ["-m", "estd.signer.server"],
                [settings_fd],
                self._greeter_of_signer(name),
            )
            self._signers.append(child)
            predecessor = None if self._estate is None else _find_heir(self._estate.signers, name)
            if predecessor is not None:
                # One after the other: a journal has one writer, and the other signers answer meanwhile.
                await Adopted(name, predecessor.pid, socket.socket(fileno=predecessor.control)).stop()
                child.start()
                await self._require([child])
            else:
                child.start()
        await self._require(self._signers)
        for heir in () if self._estate is None else self._estate.signers[self._config.signer_count :]:
            await Adopted(heir.name, heir.pid, socket.socket(fileno=heir.control)).stop()

    def _greeter_of_signer(self, name: str) -> Callable[[socket.socket], Coroutine[None, None, SignerControl]]:
        async def greet(end: socket.socket) -> SignerControl:
            control = await SignerControl.open(end)
            try:
                if self._kek is not None:
                    await control.unlock(self._kek)
                await control.load(await self._find_ecosystems())
            except BaseException:
                control.close()
                raise
            self._signer_controls[name] = control
            return control

        return greet

    async def _replace_workers(self) -> None:
        """Start a generation of workers, each before the one in its slot may go; the first ones all at once."""
        self._generation += 1
        old, count = self._workers, self._config.worker_count
        fresh = [self._make_worker(slot) for slot in range(count)]
        if not old:
            self._workers = fresh
        batches = [[worker] for worker in fresh] if old else [fresh]
        for batch in batches:
            for worker in batch:
                worker.start()
            try:
                await self._require(batch)
            except Broken:
                await asyncio.gather(*(worker.stop() for worker in batch))
                raise
            for worker in batch if old else ():
                slot = fresh.index(worker)
                if slot < len(old):
                    self._dismiss(old[slot])
                self._workers = [*fresh[: slot + 1], *old[slot + 1 :]]
        for worker in old[count:]:
            self._dismiss(worker)
        self._workers = fresh

    def _make_worker(self, slot: int) -> Child:
        name = f"worker-{self._generation}-{slot}"
        return Child(
            name,
            ["-m", "estd.app.worker"],
            [self._listener.fileno()],
            self._greeter_of_worker(name, slot),
            # Read by OpenSSL at its start; see the file for the one setting it holds.
            {"OPENSSL_CONF": str(files("estd.web") / "openssl.cnf")},
            self._ops.forget,
        )

    def _dismiss(self, worker: Child) -> None:
        """Have a worker finish what it has in hand, and do not wait for it."""
        control = self._worker_controls.pop(worker.name, None)
        ask = None if control is None else lambda: control.send({"drain": _GRACE_SECONDS})
        self._leave(worker.stop(ask))

    def _greeter_of_worker(self, name: str, slot: int) -> Callable[[socket.socket], Coroutine[None, None, None]]:
        async def greet(end: socket.socket) -> None:
            control = await Control.open(end)
            settings = WorkerSettings(
                name=name,
                slot=slot,
                workers=self._config.worker_count,
                database_url=self._url,
                signer_sockets=[str(self._signer_socket(number)) for number in range(len(self._signers))],
                tls_chain=self._chain.decode(),
                tls_key=self._key.decode(),
                metrics_directory=str(self._runtime / "metrics"),
                log_level=self._config.log_level,
                default_ecosystem=self._config.default_ecosystem,
            )
            control.send(msgspec.to_builtins(settings))
            answer = await control.receive()
            if answer is None or not answer.get("ready"):
                raise Broken("the worker ended before it was ready")
            self._worker_controls[name] = control

        return greet

    async def _require(self, children: Sequence[Child | SignerLink]) -> None:
        ready = await asyncio.gather(*(child.wait_ready(_START_SECONDS) for child in children))
        late = [child.name for child, is_ready in zip(children, ready, strict=True) if not is_ready]
        if late:
            raise Broken(f"not ready after {_START_SECONDS:.0f} seconds: {', '.join(late)}")

    # --- what goes on while serving ---------------------------------------------------------------------------------

    async def _notice(self, change: str) -> None:
        self._witness.notice(change)
        self._changed.set()

    async def _find_ecosystems(self) -> list[EcosystemRecord]:
        """What a signer that starts is loaded with: the newest rules, or while the database is away the last known.

        A signer that waited for the database could settle nothing when that is back.
        """
        try:
            self._ecosystems = await self._store.find_ecosystems()
        except Unavailable:
            if not self._ecosystems:
                raise
            self._changed.set()
        return self._ecosystems

    async def _follow(self) -> None:
        """Tell the signers of new ecosystem versions; who is not there, or does not answer, is told later."""
        behind: set[str] = set()
        while True:
            if not behind:
                await self._changed.wait()
            if self._changed.is_set():
                self._changed.clear()
                behind = {child.name for child in self._signers}
            try:
                self._ecosystems = await self._store.find_ecosystems()
            except Unavailable:
                await asyncio.sleep(_WATCH_EVERY_SECONDS)
                continue
            for child in self._signers:
                control = self._signer_controls.get(child.name)
                if child.name not in behind or control is None or not child.ready:
                    continue
                try:
                    await control.load(self._ecosystems)
                except (Broken, OSError, TimeoutError) as fault:
                    detail = str(fault) or type(fault).__name__
                    _log.error("a signer did not take the new rules", extra={"child": child.name, "detail": detail})
                    if not isinstance(fault, Broken):
                        continue
                behind.discard(child.name)
            if behind:
                await asyncio.sleep(_WATCH_EVERY_SECONDS)

    async def _settle(self) -> None:
        """Finish or close intents whose worker died between reserving and recording."""
        while True:
            await asyncio.sleep(_SETTLE_EVERY_SECONDS)
            try:
                for intent in await self._store.find_open_intents(_now() - _SETTLE_AFTER, _SETTLE_AT_ONCE):
                    await self._enrollment.settle(intent)
            except Unavailable as reason:
                _log.warning("open intents are left for later", extra={"detail": reason.detail})

    async def _watch_database(self) -> None:
        while self._private is not None:
            await asyncio.sleep(_WATCH_EVERY_SECONDS)
            try:
                await asyncio.to_thread(self._private.ensure_running)
            except (Unavailable, Invalid, OSError) as reason:
                _log.error("the private database could not be started again", extra={"detail": str(reason)})

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY_SECONDS)
            try:
                renewed = await self._renew_certificate()
            except (Unavailable, Invalid, Broken) as reason:
                _log.error("the server certificate could not be renewed", extra={"detail": str(reason)})
                continue
            if renewed:
                for control in self._worker_controls.values():
                    control.send({"tls_chain": self._chain.decode(), "tls_key": self._key.decode()})

    async def _renew_certificate(self) -> bool:
        """Make sure that there is a server certificate with enough life left; whether it changed."""
        chain, key = await identity.ensure_certificate(self._config, self._store, self._enrollment, _now())
        build_context(chain, key)  # before a worker is told: the operator's own may be half replaced
        changed = chain != getattr(self, "_chain", None)
        self._chain, self._key = chain, key
        return changed

    async def _report(self) -> dict[str, str]:
        """What is missing, by part; empty when devices can enroll."""
        missing: dict[str, str] = {}
        try:
            await self._store.check()
        except Unavailable as reason:
            missing["database"] = reason.detail
        else:
            problem = self._witness.problem or self._readiness.database
            if problem is not None:
                missing["database"] = problem
        if not any(child.ready for child in self._signers):
            missing["signers"] = "none is ready"
        elif self._readiness.signers is not None:
            missing["signers"] = self._readiness.signers
        if not any(child.ready for child in self._workers):
            missing["workers"] = "none is ready"
        if self._stop.is_set():
            missing["server"] = "draining"
        return missing

    def _task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_log_fault)
        return task


def _write_heirs(children: Sequence[Child | SignerLink]) -> list[Heir]:
    return [
        Heir(name=child.name, pid=child.pid, control=child.control)
        for child in children
        if isinstance(child, Child) and child.pid is not None and child.control is not None
    ]


def _find_heir(heirs: list[Heir], name: str) -> Heir | None:
    return next((heir for heir in heirs if heir.name == name), None)


def _log_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a supervisor task failed", exc_info=task.exception())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _ignore(_what: str, _value: float) -> None:
    """The supervisor's own issuances are not counted among the devices'."""
