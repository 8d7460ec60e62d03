"""The signer's event loop: one thread, a selector, and turns that are fair to every connection.

* Only processes of an allowed user are served; the kernel says whose they are (SO_PEERCRED), at accept.
* Only the control channel loads, drops, unlocks or drains; when it closes the supervisor is gone, and the signer
  finishes what is in hand and ends. A signer that runs on its own waits for the next supervisor instead; whoever comes
  while one is there is turned away.
* Connections are served in turn, some messages each; all seals of a turn share one flush of the journal.
* A peer that sends garbage, half a frame, or does not read is cut off alone, and memory per peer is bounded.
* A draining signer prepares nothing more; what is prepared may still be sealed for a while.

Plain blocking calls and `selectors`; must not import asyncio.
"""

from __future__ import annotations

import gc
import logging
import selectors
import signal
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from estd.errors import Invalid, Problem, Refused, Unavailable
from estd.heap import keep_headroom
from estd.signer.connections import Connection, read_peer
from estd.signer.frames import (
    Anchor,
    Control,
    Done,
    Drain,
    Drop,
    Failed,
    FrameError,
    Load,
    Ping,
    Prepare,
    Request,
    Resume,
    Seal,
    Status,
    Unlock,
    control_reader,
    request_reader,
)
from estd.signer.service import Signer
from estd.signer.settings import SignerSettings

_log = logging.getLogger("estd.signer")


class Loop:
    """Sockets, turns and time around one `Signer`."""

    def __init__(
        self,
        settings: SignerSettings,
        service: Signer[Any],
        control: socket.socket | None,
        listener: socket.socket,
        control_listener: socket.socket | None = None,
    ) -> None:
        """`control` comes from the supervisor that started this process and will unlock it; a process that runs on its
        own has a `control_listener` instead, and an engine that is unlocked.
        """
        self._settings = settings
        self._service = service
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = listener
        self._connections: dict[int, Connection[Request]] = {}
        self._control: Connection[Control] | None = None
        self._control_listener = control_listener
        self._unlocked = control is None
        self._terminated = False
        self._kept_house_at = 0.0
        self._drain_until = 0.0
        self._counters: dict[str, int | float] = {
            "connections": 0,
            "connections_accepted": 0,
            "connections_refused": 0,
            "connections_cut": 0,
            "turns": 0,
        }
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._previous_wakeup = signal.set_wakeup_fd(self._woken.fileno())
        self._previous_handler = signal.signal(signal.SIGTERM, self._terminate)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)
        if control_listener is not None:
            self._selector.register(control_listener, selectors.EVENT_READ)
        if control is not None:
            self._control = Connection(control, control_reader(), "supervisor", time.monotonic())
            self._select(self._control)

    def run(self) -> None:
        """Turn until drained."""
        while not self._is_finished(time.monotonic()):
            busy = any(connection.inbox and not connection.is_congested for connection in self._connections.values())
            events = self._selector.select(0 if busy else _HOUSEKEEPING_SECONDS)
            at = time.monotonic()
            self._counters["turns"] += 1
            for key, mask in events:
                self._meet(key.fd, mask, at)
            self._serve(at)
            if at - self._kept_house_at >= _HOUSEKEEPING_SECONDS:
                self._keep_house(at)

    def close(self) -> None:
        """Let go of everything."""
        for connection in list(self._connections.values()):
            self._cut(connection, None)
        self._stop_listening()
        if self._control is not None:
            self._control.close()
        self._selector.close()
        signal.set_wakeup_fd(self._previous_wakeup)
        signal.signal(signal.SIGTERM, self._previous_handler)
        self._wake.close()
        self._woken.close()

    # --- what happened ------------------------------------------------------------------------------------------------

    def _meet(self, fd: int, mask: int, at: float) -> None:
        if self._listener is not None and fd == self._listener.fileno():
            self._accept(at)
        elif self._control is not None and fd == self._control.end.fileno():
            self._obey(self._control, mask, at)
        elif fd == self._wake.fileno():
            self._wake.recv(4096)
            if self._terminated:
                self._drain(at)
        elif fd in self._connections:
            self._move(self._connections[fd], mask, at)
        elif self._control_listener is not None and fd == self._control_listener.fileno():
            self._accept_control(at)

    def _accept(self, at: float) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                end, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                _log.warning("a connection could not be accepted", extra={"reason": error.strerror})
                return
            process, user = read_peer(end)
            if user not in self._settings.allowed_uids:
                why: str | None = "its user may not call"
            elif len(self._connections) >= self._settings.connections_max:
                why = "there are too many connections"
            else:
                why = None
            if why is not None:
                self._counters["connections_refused"] += 1
                _log.warning("connection refused: %s", why, extra={"peer_pid": process, "peer_uid": user})
                end.close()
                continue
            self._counters["connections_accepted"] += 1
            connection = Connection(end, request_reader(), f"process {process} of user {user}", at)
            self._connections[end.fileno()] = connection
            self._select(connection)

    def _accept_control(self, at: float) -> None:
        """Let a supervisor in, one at a time: a worker that somebody took over finds the place taken."""
        assert self._control_listener is not None
        try:
            end, _address = self._control_listener.accept()
        except OSError:
            return  # whoever it was is gone again
        process, user = read_peer(end)
        if user not in self._settings.allowed_uids:
            why: str | None = "its user may not call"
        elif self._control is not None:
            why = "there is a supervisor already"
        else:
            why = None
        if why is not None:
            self._counters["connections_refused"] += 1
            _log.warning("supervisor refused: %s", why, extra={"peer_pid": process, "peer_uid": user})
            end.close()
            return
        _log.info("supervisor connected", extra={"peer_pid": process, "peer_uid": user})
        self._control = Connection(end, control_reader(), "supervisor", at)
        self._select(self._control)

    def _move(self, connection: Connection[Request], mask: int, at: float) -> None:
        try:
            alive = not mask & selectors.EVENT_WRITE or connection.flush(at)
            alive = alive and (not mask & selectors.EVENT_READ or connection.receive(at))
        except FrameError as fault:
            self._cut(connection, str(fault))
            return
        if not alive:
            self._cut(connection, None)
            return
        self._attend(connection)

    def _obey(self, control: Connection[Control], mask: int, at: float) -> None:
        try:
            alive = not mask & selectors.EVENT_WRITE or control.flush(at)
            alive = alive and (not mask & selectors.EVENT_READ or control.receive(at))
        except FrameError as fault:
            _log.error("the supervisor sent something else: %s", fault)
            alive = False
        while control.inbox:
            alive = control.send(self._obey_one(control.inbox.popleft(), at), at) and alive
        if not alive:
            if control.mask:
                self._selector.unregister(control.end)
            control.close()
            self._control = None
            if not self._service.draining:
                _log.warning("the supervisor is gone")
                if self._control_listener is None:
                    self._drain(at)
            return
        self._select(control)

    def _obey_one(self, message: Control, at: float) -> object:
        match message:
            case Ping():
                return Done(message.number)
            case Status():
                return self._report(message)
            case Drain():
                self._drain(at)
                return Done(message.number)
            case Unlock():
                if self._unlocked:
                    return Failed(message.number, "it is unlocked already")
                self._service.engine.unlock(message.kek)
                self._unlocked = True
                return Done(message.number)
            case Drop():
                self._service.engine.drop(message.ecosystem_id)
                _log.info("ecosystem dropped", extra={"ecosystem_id": message.ecosystem_id})
                return Done(message.number)
            case Load():
                return self._load(message, at)
            case Anchor():
                return self._service.anchor(message, read_clock())

    def _load(self, message: Load, at: float) -> Done | Failed:
        if not self._unlocked:
            return Failed(message.number, "the key-encryption key must come first")
        facts = {"ecosystem": message.label, "version": message.version}
        try:
            self._service.engine.load(message, at)
        except (Invalid, Refused, Unavailable) as reason:
            _log.error("ecosystem not loaded", extra={**facts, "why": str(reason)})
            return Failed(message.number, str(reason)[:4000])
        except Exception as fault:  # noqa: BLE001 - by a newer program or damaged: the other ecosystems must go on
            _log.exception("ecosystem not loaded", extra=facts)
            what = f"cannot be read by this version ({type(fault).__name__}: {fault})"
            remedy = "Apply it again, restore it from a backup, or run the version that wrote it."
            return Failed(message.number, str(Problem("stored ecosystem", what, remedy))[:4000])
        # What is loaded lives long; without this each full collection walks it again.
        gc.collect()
        gc.freeze()
        keep_headroom()
        _log.info("ecosystem loaded", extra=facts)
        return Done(message.number)

    def _terminate(self, _number: int, _frame: object) -> None:
        # Called between any two steps of the loop, so it only leaves a note; the wake-up descriptor ends the waiting.
        self._terminated = True

    # --- what is done about it -----------------------------------------------------------------------------------------

    def _serve(self, at: float) -> None:
        """One turn: some messages of every connection, and one flush of the journal for all their seals."""
        moment = datetime.now(UTC)
        now = moment.replace(microsecond=0)
        sealing: list[tuple[Connection[Request], Seal]] = []
        items = 0
        for connection in list(self._connections.values()):
            for _ in range(_MESSAGES_PER_TURN):
                if not connection.inbox or connection.is_congested:
                    break
                message = connection.inbox.popleft()
                match message:
                    case Prepare():
                        self._answer(connection, self._service.prepare(message, moment, at), at)
                    case Seal():
                        sealing.append((connection, message))
                        items += len(message.items)
                        if items >= _SEALS_PER_FLUSH:
                            self._seal(sealing, now, at)
                            sealing, items = [], 0
                    case Resume():
                        self._answer(connection, self._service.resume(message), at)
                    case Status():
                        self._answer(connection, self._report(message), at)
        if sealing:
            self._seal(sealing, now, at)

    def _seal(self, sealing: list[tuple[Connection[Request], Seal]], now: datetime, at: float) -> None:
        answers = self._service.seal([message for _, message in sealing], now)
        for (connection, _), answer in zip(sealing, answers, strict=True):
            self._answer(connection, answer, at)

    def _answer(self, connection: Connection[Request], message: object, at: float) -> None:
        if connection.closed:
            return
        if not connection.send(message, at):
            self._cut(connection, None)
            return
        self._attend(connection)

    def _report(self, message: Status) -> object:
        return self._service.report(message, {**self._counters, "connections": len(self._connections)}, read_clock())

    def _attend(self, connection: Connection[Request]) -> None:
        if not connection.closed:
            self._select(connection)

    def _select(self, connection: Connection[Any]) -> None:
        """Wait for what this connection waits for, and for nothing else."""
        mask = selectors.EVENT_READ if connection.wants_to_read else 0
        mask |= selectors.EVENT_WRITE if connection.wants_to_write else 0
        if mask == connection.mask:
            return
        if connection.mask == 0:
            self._selector.register(connection.end, mask)
        elif mask == 0:
            self._selector.unregister(connection.end)
        else:
            self._selector.modify(connection.end, mask)
        connection.mask = mask

    def _cut(self, connection: Connection[Request], why: str | None) -> None:
        """Close a connection; with a reason when it is the peer's fault."""
        if why is not None:
            self._counters["connections_cut"] += 1
            _log.warning("connection cut: %s", why, extra={"peer": connection.name})
        fd = connection.end.fileno()
        if connection.mask:
            self._selector.unregister(connection.end)
        del self._connections[fd]
        connection.close()

    def _keep_house(self, at: float) -> None:
        self._kept_house_at = at
        self._service.keep_house(at)
        for connection in list(self._connections.values()):
            if connection.is_stalled(at, self._settings.stall_seconds):
                self._cut(connection, "it did not move")
            else:
                self._attend(connection)

    def _drain(self, at: float) -> None:
        if self._service.draining:
            return
        self._service.draining = True
        self._drain_until = at + self._settings.drain_seconds
        self._stop_listening()
        _log.info("draining", extra={"prepared": self._service.prepared})

    def _is_finished(self, at: float) -> bool:
        if not self._service.draining:
            return False
        if at >= self._drain_until:
            return True
        busy = any(connection.inbox or connection.wants_to_write for connection in self._connections.values())
        # Without a worker nobody is left to have the prepared sealed; a request key that was taken never is.
        return not busy and (self._service.prepared == 0 or not self._connections)

    def _stop_listening(self) -> None:
        if self._control_listener is not None:
            self._selector.unregister(self._control_listener)
            Path(self._control_listener.getsockname()).unlink(missing_ok=True)
            self._control_listener.close()
            self._control_listener = None
        if self._listener is None:
            return
        self._selector.unregister(self._listener)
        if self._settings.listen_fd is None:
            Path(self._listener.getsockname()).unlink(missing_ok=True)
        self._listener.close()
        self._listener = None


def read_clock() -> datetime:
    """The time, as everything below expects it that makes no serial numbers: aware UTC to the second."""
    return datetime.now(UTC).replace(microsecond=0)


_HOUSEKEEPING_SECONDS: Final = 0.5
_ACCEPTS_PER_TURN: Final = 16
_MESSAGES_PER_TURN: Final = 4
_SEALS_PER_FLUSH: Final = 1024
