"""A supervisor that becomes its own successor: the same process goes on with the program as it is on disk now.

SIGUSR2 makes it so. The process id, the listening socket, the lock of the data directory and all children stay; workers
and signers of the old version go on answering while the new one starts, and are replaced after that, one by one. What the
successor has to know travels in a memory file that it inherits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from estd.app.children import Child

_VARIABLE: Final = "ESTD_HANDOVER"
_TRIAL_SECONDS: Final = 30.0
_TRIAL: Final = "import estd.cli, estd.app.supervisor, estd.app.wiring, estd.signer.server"
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""What an operator may send at any time, and what therefore waits while one program becomes the other."""


class Heir(msgspec.Struct, frozen=True, kw_only=True):
    """A child that goes on: our end of its control channel is a descriptor."""

    name: str
    pid: int
    control: int


class Estate(msgspec.Struct, frozen=True, kw_only=True):
    """What the successor takes over. `listener` and `lock` are descriptors."""

    listener: int
    lock: int
    runtime: str
    generation: int
    workers: list[Heir]
    signers: list[Heir]


def write_heirs(children: Sequence[Child]) -> list[Heir]:
    """Those of them that are ready; one that is not ends when its control channel closes."""
    return [
        Heir(name=child.name, pid=child.pid, control=child.control)
        for child in children
        if child.pid is not None and child.control is not None
    ]


async def try_program() -> str | None:
    """Whether the program on disk can be loaded at all: None, or why not."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _TRIAL, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TRIAL_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"it was not loaded within {_TRIAL_SECONDS:.0f} seconds"
    return None if process.returncode == 0 else said.decode("utf-8", "replace").strip().rpartition("\n")[2]


def become_successor(estate: Estate) -> None:
    """Never returns: this process runs the program on disk from here on."""
    file = os.memfd_create("estd-handover")
    os.write(file, msgspec.json.encode(estate))
    children = (*estate.workers, *estate.signers)
    for descriptor in (file, estate.listener, estate.lock, *(child.control for child in children)):
        os.set_inheritable(descriptor, True)
    os.environ[_VARIABLE] = str(file)
    # Held back until `accept_signals`: before the successor listens for them they would end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 -- the very command this process was started with


def is_successor() -> bool:
    """Whether a predecessor left something, which `find_estate` will find."""
    return _VARIABLE in os.environ


def find_estate() -> Estate | None:
    """What a predecessor left, once; None at an ordinary start."""
    value = os.environ.pop(_VARIABLE, None)
    if value is None:
        return None
    with os.fdopen(int(value), "rb") as file:
        file.seek(0)
        estate = msgspec.json.decode(file.read(), type=Estate)
    children = (*estate.workers, *estate.signers)
    for descriptor in (estate.listener, estate.lock, *(child.control for child in children)):
        os.set_inheritable(descriptor, False)
    return estate


def accept_signals() -> None:
    """Deliver what was held back; called when the handlers are in place."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
