"""Children that hang: alive for the kernel, and answering nobody. They are found by asking, said to be silent, and replaced.

Each child is asked now and then on its control channel, and answers from the loop that does its work, so an answer means
that this loop turns. One that has not answered for some seconds is *silent*: the log and ``/readyz`` name it. One that has
not for much longer is killed, and started again by whoever keeps its slot filled (`estd.app.children`).

What is killed loses nothing that a crash would not (docs/architecture.md), but a disk that stalls must not cost a signer:

* the limit is longer than a flush takes on a disk that still works;
* a process that waits in the kernel for a disk (state D) is never killed: it could not end before the disk answers, and its
  successor would wait for the same one.

When all of them are to stop, they are asked once more (`Heartbeat.find_hung`): who is known to hang is not waited for as
long as one that has requests in hand, and answers no more because it drains.

Time that passed while this process itself did not turn is not counted: after a pause of the whole machine everybody would
seem to have been silent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from estd.app.children import Child

_log = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 1.0
_SILENT_SECONDS: Final = 5.0
"""As long as a worker waits for a signer; see `estd.signer.client.SignerPool`."""
_KILL_SECONDS: Final = 30.0


class Pulse(Protocol):
    """A control channel that a child answers on."""

    async def ping(self) -> None:
        """Returns when the child has answered; may take as long as it likes. Whatever it raises is no answer."""


class Member(Protocol):
    """A slot: a `Child`, or a link to a process that runs on its own, which nobody here can kill."""

    name: str

    @property
    def ready(self) -> bool:
        """Whether something is there to be asked."""


@dataclass(slots=True)
class _Beat:
    pulse: Pulse
    question: asyncio.Task[None]
    quiet_seconds: float = 0.0
    told: bool = False
    waited: bool = False


class Heartbeat:
    """Watches one kind of children.

    Args:
        members: the slots, asked for anew each time.
        pulses: the newest control channel of each, by name; read anew each time.
        kill_seconds: how long a child may answer nothing before it is killed.
        silent_seconds: how long before it is called silent.
        every_seconds: between two looks.
    """

    def __init__(
        self,
        members: Callable[[], Sequence[Member]],
        pulses: Mapping[str, Pulse],
        kill_seconds: float = _KILL_SECONDS,
        silent_seconds: float = _SILENT_SECONDS,
        every_seconds: float = _EVERY_SECONDS,
    ) -> None:
        self._members = members
        self._pulses = pulses
        self._kill_seconds = kill_seconds
        self._silent_seconds = silent_seconds
        self._every_seconds = every_seconds
        self._beats: dict[str, _Beat] = {}

    @property
    def silent(self) -> dict[str, str]:
        """What is wrong with each child that is there and does not answer, by name."""
        return {
            name: f"it has not answered for {beat.quiet_seconds:.0f} seconds"
            for name, beat in self._beats.items()
            if beat.told
        }

    @property
    def missing(self) -> str | None:
        """What is wrong when none of those that are there answers; None while one does, or none is there."""
        ready = [member.name for member in self._members() if member.ready]
        silent = self.silent
        if not ready or any(name not in silent for name in ready):
            return None
        return "; ".join(f"{name}: {silent[name]}" for name in ready)

    async def find_hung(self) -> set[str]:
        """Who does not answer a question put now, by name, and does not wait for its disk either; `watch` may go on beside.

        Returns at once when all answer, and otherwise when those that do not have been given the time to be called silent.
        """
        self._look(0.0)
        asked = dict(self._beats)
        doubtful = [beat.question for beat in asked.values() if not beat.told]
        if doubtful:
            await asyncio.wait(doubtful, timeout=self._silent_seconds)
        members = {member.name: member for member in self._members()}
        return {
            name
            for name, beat in asked.items()
            if not beat.question.done() and name in members and not _waits_for_disk(members[name])
        }

    async def watch(self) -> None:
        """Ask again and again."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                await asyncio.sleep(self._every_seconds)
                # A round that took longer says something about us and nothing about them.
                self._look(min(loop.time() - began, 2 * self._every_seconds))
        finally:
            for name in list(self._beats):
                self._forget(name)

    # --- private -----------------------------------------------------------------------------------------------------

    def _look(self, passed_seconds: float) -> None:
        members = {member.name: member for member in self._members() if member.ready and member.name in self._pulses}
        for name in self._beats.keys() - members.keys():
            self._forget(name)
        for name, member in members.items():
            beat = self._beats.get(name)
            if beat is not None and beat.pulse is not self._pulses[name]:
                self._forget(name)
                beat = None
            if beat is None:
                pulse = self._pulses[name]
                self._beats[name] = _Beat(pulse, _ask(pulse))
            else:
                self._judge(member, beat, passed_seconds)

    def _forget(self, name: str) -> None:
        """It ended, is being replaced, or answers on another channel."""
        beat = self._beats.pop(name)
        if not beat.question.done():
            beat.question.cancel()

    def _judge(self, member: Member, beat: _Beat, passed_seconds: float) -> None:
        if beat.question.done():
            fault = beat.question.exception()
            beat.question = _ask(beat.pulse)
            if fault is None:
                if beat.told:
                    _log.warning("a child answers again", extra={"child": member.name})
                beat.quiet_seconds, beat.told, beat.waited = 0.0, False, False
                return
        beat.quiet_seconds += passed_seconds
        if beat.quiet_seconds >= self._silent_seconds and not beat.told:
            beat.told = True
            remedy = (
                f"It is killed and started again after {self._kill_seconds:.0f} seconds."
                if isinstance(member, Child)
                else "It runs on its own: look at its process, and restart its service."
            )
            _log.error(
                "a child does not answer",
                extra={"child": member.name, "seconds": round(beat.quiet_seconds, 1), "remedy": remedy},
            )
        if beat.quiet_seconds >= self._kill_seconds and isinstance(member, Child):
            self._end(member, beat)

    def _end(self, child: Child, beat: _Beat) -> None:
        facts = {"child": child.name, "pid": child.pid, "seconds": round(beat.quiet_seconds, 1)}
        if _waits_for_disk(child):
            if not beat.waited:
                beat.waited = True
                _log.error("a child waits for its disk and is not killed", extra=facts)
            return
        _log.error("a child hangs and is killed", extra=facts)
        self._forget(child.name)  # the next one is another process, and is asked when it is ready
        child.kill()


def is_waiting_for_disk(pid: int) -> bool:
    """Whether the kernel says that this process waits for a device and cannot be interrupted (proc_pid_stat(5), D)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    # The second field is a name in parentheses that may hold anything.
    return line.rpartition(")")[2].split()[:1] == ["D"]


def _waits_for_disk(member: Member) -> bool:
    return isinstance(member, Child) and member.pid is not None and is_waiting_for_disk(member.pid)


def _ask(pulse: Pulse) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(_ping(pulse))


async def _ping(pulse: Pulse) -> None:
    await pulse.ping()
