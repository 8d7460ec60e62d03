"""Child processes of the supervisor: started with inherited descriptors, watched, restarted with a growing pause.

A child that ran for a while before it died is restarted at once; one that dies again and again, or cannot be started at all,
is given more and more time, so that a broken machine is not kept busy with starts. Children end by themselves when their
control channel closes, so none outlives its supervisor.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from estd.errors import Broken
from estd.heap import TUNABLES

_log = logging.getLogger(__name__)

_START_SECONDS: Final = 60.0
_STEADY_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 5.0
_KILL_AFTER_SECONDS: Final = 30.0
_KILL_HUNG_AFTER_SECONDS: Final = 2.0


class Child:
    """One slot for a process: `run` keeps it filled until `stop`.

    Args:
        name: appears in the log.
        argv: arguments after the interpreter; descriptor numbers are appended, control channel last.
        inherited: descriptors the child gets besides its control channel.
        environment: variables the child gets besides ours.
        ended: called with the process id after each end.
        greet: called with our end of the control channel after each start; when it returns the child is ready.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        inherited: Sequence[int],
        greet: Callable[[socket.socket], Coroutine[None, None, object]],
        environment: Mapping[str, str] = MappingProxyType({}),
        ended: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self._inherited = list(inherited)
        self._greet = greet
        self._environment = dict(environment)
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._control: socket.socket | None = None
        self.restarts = 0

    @property
    def ready(self) -> bool:
        """Whether the process runs and has said that it is ready."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """The process id, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def control(self) -> int | None:
        """The descriptor of our end of its control channel, while the child is ready."""
        return None if self._control is None or not self.ready else self._control.fileno()

    def start(self) -> None:
        """Fill the slot from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait_ready(self, seconds: float) -> bool:
        """Whether the child became ready within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self, ask: Callable[[], None] | None = None, *, hung: bool = False) -> None:
        """Ask the process to finish what it has in hand, and wait for it; kill it if it takes far too long.

        Args:
            ask: how, once the process is ready; SIGTERM unless something else is said.
            hung: it is known not to answer (`estd.app.heartbeat.Heartbeat.find_hung`), so two seconds are too long.
        """
        self._stopping.set()
        if self._task is None:
            return
        if ask is None or not self.ready:
            self._end(signal.SIGTERM)
        else:
            ask()
        patience_seconds = _KILL_HUNG_AFTER_SECONDS if hung else _KILL_AFTER_SECONDS
        done, _ = await asyncio.wait({self._task}, timeout=patience_seconds)
        if not done:
            _log.error("child did not stop and is killed", extra={"child": self.name, "pid": self.pid})
            self._end(signal.SIGKILL)
        await self._task

    def kill(self) -> None:
        """End the process now, since it does not answer; the slot is filled again."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            _signal(self._process, number)

    async def _run(self) -> None:
        pause = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._run_once()
                steady = time.monotonic() - started > _STEADY_SECONDS
            except OSError as fault:
                self._say_not_started(fault)
                steady = False
            except Exception:  # noqa: BLE001 - whatever it is, the slot is to be filled again
                _log.exception("child could not be kept", extra={"child": self.name, "pid": self.pid})
                self._end(signal.SIGKILL)
                steady = False
            self._ready.clear()
            if self._stopping.is_set():
                return
            pause = 0.0 if steady else min(_LONGEST_PAUSE_SECONDS, pause * 2 + 0.1)
            self.restarts += 1
            _log.warning("child is restarted", extra={"child": self.name, "pause_seconds": pause})
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _say_not_started(self, fault: OSError) -> None:
        limits = {
            errno.EMFILE: "Let the server have more open files: LimitNOFILE= of its service.",
            errno.ENFILE: "This machine has no open files left: see fs.file-max, and who uses them.",
            errno.EAGAIN: "Let the server have more processes: TasksMax= of its service, its user's limit.",
            errno.ENOMEM: "This machine has no memory left: see who uses it.",
        }
        _log.error(
            "child could not be started",
            extra={"child": self.name, "detail": str(fault), "remedy": limits.get(fault.errno or 0, "")},
        )

    async def _run_once(self) -> None:
        """Start the process and wait for its end.

        Raises:
            OSError: it could not be started: no processes, memory or descriptors are left, or the program is gone.
        """
        self._process = None
        ours, theirs = socket.socketpair()
        with ours:
            await self._start(theirs)
            self._control = ours
            await self._attend(ours)

    async def _start(self, theirs: socket.socket) -> None:
        with theirs:
            descriptors = [*self._inherited, theirs.fileno()]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._argv,
                *(str(number) for number in descriptors),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                env={**TUNABLES, **os.environ, **self._environment},
                # Out of the terminal's and of a service manager's process group: what a signal means is decided by
                # the supervisor alone, and the signers have to outlive the workers.
                start_new_session=True,
            )

    async def _attend(self, ours: socket.socket) -> None:
        process = self._process
        assert process is not None
        if self._stopping.is_set():
            self._end(signal.SIGTERM)  # `stop` came while it was being started and could not reach it
        greeting = asyncio.get_running_loop().create_task(self._greet(ours))
        exited = asyncio.get_running_loop().create_task(process.wait())
        await asyncio.wait({greeting, exited}, return_when=asyncio.FIRST_COMPLETED)
        if greeting.done() and not greeting.cancelled() and greeting.exception() is None:
            if not exited.done():
                self._ready.set()
        else:
            fault = greeting.exception() if greeting.done() else None
            _log.error("child did not become ready", extra={"child": self.name, "fault": repr(fault)})
            greeting.cancel()
            _signal(process, signal.SIGKILL)
        await exited
        self._ended(process.pid)
        if not self._stopping.is_set():
            _log.warning("child ended", extra={"child": self.name, "pid": process.pid, "status": process.returncode})


class Adopted:
    """A process that this supervisor's predecessor started (`estd.app.handover`); it can only be stopped.

    Args:
        name: appears in the log.
        pid: a child of ours, as it was of our predecessor, which was the same process.
        end: our end of its control channel; closing it ends the process.
        ended: called with the process id after its end.
    """

    def __init__(self, name: str, pid: int, end: socket.socket, ended: Callable[[int], None] = lambda _pid: None):
        self.name = name
        self.pid = pid
        self._end = end
        self._ended = ended

    def tell(self, message: bytes) -> None:
        """Write to its control channel; a process that is gone is noticed by `stop`."""
        try:
            self._end.sendall(message)
        except OSError:
            _log.warning("child ended", extra={"child": self.name, "pid": self.pid})

    async def stop(self, ask: Callable[[], None] | None = None) -> None:
        """As `Child.stop`."""
        loop = asyncio.get_running_loop()
        try:
            watch = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        over = asyncio.Event()
        loop.add_reader(watch, over.set)
        try:
            if ask is None:
                signal.pidfd_send_signal(watch, signal.SIGTERM)
            else:
                ask()
            try:
                async with asyncio.timeout(_KILL_AFTER_SECONDS):
                    await over.wait()
            except TimeoutError:
                _log.error("child did not stop and is killed", extra={"child": self.name, "pid": self.pid})
                signal.pidfd_send_signal(watch, signal.SIGKILL)
                await over.wait()
            os.waitpid(self.pid, 0)  # noqa: ASYNC222 -- it is over, and only has to be forgotten
        finally:
            loop.remove_reader(watch)
            os.close(watch)
            self._end.close()
        self._ended(self.pid)


class Starting(Protocol):
    """What becomes ready, or does not: a `Child`, or a link to a process that runs on its own."""

    name: str

    async def wait_ready(self, seconds: float) -> bool:
        """Whether it became ready within that time."""


async def require_ready(children: Sequence[Starting]) -> None:
    """Wait until all of them are ready.

    Raises:
        Broken: one is not in time.
    """
    ready = await asyncio.gather(*(child.wait_ready(_START_SECONDS) for child in children))
    late = [child.name for child, is_ready in zip(children, ready, strict=True) if not is_ready]
    if late:
        raise Broken(f"not ready after {_START_SECONDS:.0f} seconds: {', '.join(late)}")


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except ProcessLookupError:
        return  # it ended by itself in the meantime
