"""The workers as one thing: a generation of them, which gives way to the next without a moment in which nobody accepts.

All accept from one socket, and a worker is ready before the one in its slot may go, so no connection is refused meanwhile.
Whoever may go finishes what it has in hand, and is not waited for.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Collection, Coroutine, Mapping
from importlib.resources import files
from typing import Any, Final

import msgspec

from estd.app.children import Adopted, Child, require_ready
from estd.app.control import Control
from estd.app.handover import Heir, write_heirs
from estd.app.tasks import start_task
from estd.app.worker import WorkerSettings
from estd.errors import Broken

_PROGRAM: Final = ("-m", "estd.app.worker")
_GRACE_SECONDS: Final = 3.0
"""For a client that keeps its connection to a worker that is replaced: a request within that time is still answered."""


class WorkerCrew:
    """See the module.

    Args:
        listener: what all of them accept from.
        write_settings: what the worker of that name and slot is told; asked anew each time it starts.
        ended: called with the process id after each end.
        generation: the predecessor's, whose names are taken.
    """

    def __init__(
        self,
        listener: socket.socket,
        write_settings: Callable[[str, int], WorkerSettings],
        ended: Callable[[int], None],
        generation: int = 0,
    ) -> None:
        self._listener = listener
        self._write_settings = write_settings
        self._ended = ended
        self.generation = generation
        self._workers: list[Child] = []
        self._controls: dict[str, Control] = {}
        self._leaving: set[asyncio.Task[None]] = set()  # children that finish what they have in hand

    @property
    def any_ready(self) -> bool:
        """Whether one at least accepts connections."""
        return any(worker.ready for worker in self._workers)

    @property
    def members(self) -> list[Child]:
        """The slots of the generation that is to stay."""
        return self._workers

    @property
    def controls(self) -> Mapping[str, Control]:
        """The newest control channel of each, by name."""
        return self._controls

    @property
    def heirs(self) -> list[Heir]:
        """What a successor has to know of them."""
        return write_heirs(self._workers)

    async def replace(self, count: int) -> None:
        """Start a generation of workers, each before the one in its slot may go; the first ones all at once.

        Raises:
            Broken: one is not ready in time; those that are not replaced yet stay.
        """
        self.generation += 1
        old = self._workers
        fresh = [self._make_worker(slot) for slot in range(count)]
        if not old:
            self._workers = fresh
        batches = [[worker] for worker in fresh] if old else [fresh]
        for batch in batches:
            for worker in batch:
                worker.start()
            try:
                await require_ready(batch)
            except BaseException:  # a stop of the server in the middle of this included
                await asyncio.gather(*(worker.stop() for worker in batch))
                for worker in batch:
                    self._controls.pop(worker.name, None)
                raise
            for worker in batch if old else ():
                slot = fresh.index(worker)
                if slot < len(old):
                    self._dismiss(old[slot])
                self._workers = [*fresh[: slot + 1], *old[slot + 1 :]]
        for worker in old[count:]:
            self._dismiss(worker)
        self._workers = fresh

    def let_go(self, heir: Heir) -> None:
        """Have a worker of our predecessor finish what it has in hand, and do not wait for it."""
        worker = Adopted(heir.name, heir.pid, socket.socket(fileno=heir.control), self._ended)
        self._leave(worker.stop(lambda: worker.tell(json.dumps({"drain": _GRACE_SECONDS}).encode() + b"\n")))

    async def see_off(self) -> None:
        """Wait for those that are just leaving."""
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def stop(self, hung: Collection[str] = ()) -> None:
        """Have all of them finish what they have in hand, and wait for that.

        Args:
            hung: those known not to answer, by name (`estd.app.heartbeat.Heartbeat.find_hung`); they get little time.
        """
        await asyncio.gather(*(worker.stop(hung=worker.name in hung) for worker in self._workers))
        await self.see_off()

    def send(self, message: dict[str, Any]) -> None:
        """Tell every worker that stays."""
        for control in self._controls.values():
            control.send(message)

    # --- private -----------------------------------------------------------------------------------------------------

    def _make_worker(self, slot: int) -> Child:
        name = f"worker-{self.generation}-{slot}"
        opened: list[Control] = []

        async def greet(end: socket.socket) -> None:
            opened.append(await Control.open(end))
            control = opened[-1]
            control.send(msgspec.to_builtins(self._write_settings(name, slot)))
            answer = await control.receive()
            if answer is None or not answer.get("ready"):
                raise Broken("the worker ended before it was ready")
            self._controls[name] = control

        def ended(pid: int) -> None:
            while opened:
                opened.pop().abandon()
            self._ended(pid)

        return Child(
            name,
            _PROGRAM,
            [self._listener.fileno()],
            greet,
            # Read by OpenSSL at its start; see the file for the one setting it holds.
            {"OPENSSL_CONF": str(files("estd.web") / "openssl.cnf")},
            ended,
        )

    def _dismiss(self, worker: Child) -> None:
        """Have a worker finish what it has in hand, and do not wait for it."""
        control = self._controls.pop(worker.name, None)
        ask = None if control is None else lambda: control.send({"drain": _GRACE_SECONDS})
        self._leave(worker.stop(ask))

    def _leave(self, work: Coroutine[None, None, None]) -> None:
        task = start_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
