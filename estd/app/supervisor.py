"""The supervisor: opens the listening socket once, starts everything else, keeps it alive, reloads it and drains it.

Start: private PostgreSQL (unless the settings name one) → migrations → listening socket → signers, unlocked and loaded →
the server's own certificate → web workers → ops port. SIGTERM and SIGINT drain and stop; SIGHUP reads the settings again
and replaces the workers one by one on the same socket, so no connection is refused meanwhile.
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
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from estd.app import identity
from estd.app.children import Child
from estd.app.control import Control
from estd.app.ops import OpsServer
from estd.app.signer_link import SignerLink
from estd.app.signers import SignerControl
from estd.app.worker import WorkerSettings
from estd.config import Config, check_blocklist, read_key_encryption_key
from estd.errors import Broken, Invalid, Problem, Unavailable
from estd.ra.enrollment import Enrollment
from estd.signer.client import SignerPool
from estd.signer.server import SignerSettings
from estd.signer.settings import find_control_path
from estd.store.migrator import migrate
from estd.store.postgres import PostgresStore
from estd.store.private import PrivatePostgres
from estd.web.tls_context import build_context

_log = logging.getLogger(__name__)

_START_SECONDS: Final = 30.0
_BACKLOG: Final = 4096
_SETTLE_EVERY_SECONDS: Final = 30.0
_SETTLE_AFTER: Final = timedelta(seconds=60)
_SETTLE_AT_ONCE: Final = 200
_WATCH_EVERY_SECONDS: Final = 1.0
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
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
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
        self._lock_data_directory()
        self._runtime = Path(tempfile.mkdtemp(prefix="estd-"))
        self._stack.callback(shutil.rmtree, self._runtime, ignore_errors=True)
        (self._runtime / "metrics").mkdir()
        url = await self._start_database()
        await migrate(url)
        self._url = url
        self._store = await PostgresStore.connect(url, pool_size=3)
        self._stack.push_async_callback(self._store.close)
        await identity.ensure_ecosystem(self._store, self._kek)
        self._listener = self._listen()
        self._ops = OpsServer(self._report, self._runtime / "metrics")
        await self._start_signers()
        self._pool = SignerPool([str(self._signer_socket(slot)) for slot in range(config.signer_count)])
        self._stack.push_async_callback(self._pool.close)
        self._enrollment = Enrollment(self._store, self._pool, _now, _ignore)
        await self._renew_certificate()
        self._workers = await self._start_workers()
        await self._store.subscribe(self._notice)
        self._tasks = [
            self._task(self._follow()),
            self._task(self._settle()),
            self._task(self._watch_database()),
            self._task(self._renew()),
        ]
        self.ops_port = await self._ops.start(config.ops_address, config.ops_port)
        self._stack.push_async_callback(self._ops.stop)
        _log.info("serving", extra={"port": self.port, "ops_port": self.ops_port})

    async def run(self) -> None:
        """Serve until a signal says otherwise, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.append(self._task(self.reload())))
        await self._stop.wait()
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
        old, previous = self._workers, self._config
        self._config = config
        try:
            await self._renew_certificate()
            self._workers = await self._start_workers()
        except (Broken, Invalid, Unavailable) as fault:
            _log.error("reload failed; the old workers stay", extra={"detail": str(fault)})
            self._config = previous
            return
        await asyncio.gather(*(worker.stop() for worker in old))
        for worker in old:
            self._worker_controls.pop(worker.name, None)
        _log.info("reloaded")

    # --- parts -----------------------------------------------------------------------------------------------------

    def _lock_data_directory(self) -> None:
        lock = self._stack.enter_context((self._config.data_directory / "lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

    async def _start_database(self) -> str:
        if self._config.database_url is not None:
            return self._config.database_url
        self._private = PrivatePostgres(self._config.data_directory / "postgres")
        url = await asyncio.to_thread(self._private.start)
        self._stack.push_async_callback(asyncio.to_thread, self._private.stop)
        return url

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._config.address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._config.address, self._config.port))
        except OSError as error:
            listener.close()
            raise Invalid(
                [
                    Problem(
                        "listen",
                        f"{self._config.address} port {self._config.port} cannot be opened ({error.strerror})",
                        "Choose another port, or stop what uses it.",
                    )
                ]
            ) from None
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

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
            child.start()
        await self._require(self._signers)

    def _greeter_of_signer(self, name: str) -> Callable[[socket.socket], Coroutine[None, None, SignerControl]]:
        async def greet(end: socket.socket) -> SignerControl:
            control = await SignerControl.open(end)
            try:
                if self._kek is not None:
                    await control.unlock(self._kek)
                await control.load(await self._store.find_ecosystems())
            except BaseException:
                control.close()
                raise
            self._signer_controls[name] = control
            return control

        return greet

    async def _start_workers(self) -> list[Child]:
        self._generation += 1
        workers = []
        for slot in range(self._config.worker_count):
            name = f"worker-{self._generation}-{slot}"
            child = Child(
                name,
                ["-m", "estd.app.worker"],
                [self._listener.fileno()],
                self._greeter_of_worker(name, slot),
                # Read by OpenSSL at its start; see the file for the one setting it holds.
                {"OPENSSL_CONF": str(files("estd.web") / "openssl.cnf")},
                self._ops.forget,
            )
            workers.append(child)
            child.start()
        try:
            await self._require(workers)
        except Broken:
            await asyncio.gather(*(worker.stop() for worker in workers))
            raise
        return workers

    def _greeter_of_worker(self, name: str, slot: int) -> Callable[[socket.socket], Coroutine[None, None, None]]:
        async def greet(end: socket.socket) -> None:
            control = await Control.open(end)
            settings = WorkerSettings(
                name=name,
                slot=slot,
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

    async def _notice(self, _change: str) -> None:
        self._changed.set()

    async def _follow(self) -> None:
        """Tell the signers of new ecosystem versions."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                records = await self._store.find_ecosystems()
            except Unavailable:
                self._changed.set()
                await asyncio.sleep(_WATCH_EVERY_SECONDS)
                continue
            for child in self._signers:
                control = self._signer_controls.get(child.name)
                if control is None or not child.ready:
                    continue  # it reads everything when it is back
                try:
                    await control.load(records)
                except (Broken, OSError, TimeoutError) as fault:
                    _log.error("a signer did not take the new rules", extra={"child": child.name, "detail": str(fault)})

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
        if not any(child.ready for child in self._signers):
            missing["signers"] = "none is ready"
        if not any(child.ready for child in self._workers):
            missing["workers"] = "none is ready"
        if self._stop.is_set():
            missing["server"] = "draining"
        return missing

    def _task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_log_fault)
        return task


def _log_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a supervisor task failed", exc_info=task.exception())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _ignore(_what: str, _value: float) -> None:
    """The supervisor's own issuances are not counted among the devices'."""
