"""A signer that runs on its own (``estd signer``), as the supervisor sees it: looked for, loaded, and looked for again.

It stands where `estd.app.children.Child` stands for a signer that the supervisor starts, and answers the same questions;
but it starts nothing and stops nothing. The signer holds its own key-encryption key, so only rules and sealed keys are
sent. A link that broke is tried again with a short pause, since a signer that was restarted knows no ecosystem until it is
loaded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from estd.app.signers import SignerControl
from estd.errors import Broken, Unavailable

_log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.2


class SignerLink:
    """The link to one signer: `start` keeps it until `stop`.

    Args:
        name: appears in the log.
        path: the signer's control socket.
        greet: called with our end of each new control channel; when it returns the signer is ready.
    """

    def __init__(self, name: str, path: Path, greet: Callable[[socket.socket], Awaitable[SignerControl]]) -> None:
        self.name = name
        self._path = path
        self._greet = greet
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the signer is there and loaded."""
        return self._ready.is_set()

    def start(self) -> None:
        """Look for the signer from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait_ready(self, seconds: float) -> bool:
        """Whether the signer was there and loaded within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Let go of the signer, which goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = _PAUSE_SECONDS
        said = ""
        while True:
            try:
                await self._hold()
                pause, said = _PAUSE_SECONDS, ""
                _log.warning("the link to a signer broke", extra={"child": self.name})
            except (Broken, Unavailable, OSError, TimeoutError) as fault:
                if str(fault) != said:
                    said = str(fault)
                    _log.warning("a signer cannot be reached", extra={"child": self.name, "detail": said})
            except Exception as fault:  # noqa: BLE001 - whatever it is, the signer is looked for until it is back
                if repr(fault) != said:
                    said = repr(fault)
                    _log.exception("a signer cannot be reached", extra={"child": self.name, "detail": said})
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _hold(self) -> None:
        """Connect, load, and wait until the signer is gone."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(end, str(self._path))
        except BaseException:
            end.close()
            raise
        control = await self._greet(end)
        self._ready.set()
        _log.info("signer linked", extra={"child": self.name})
        try:
            while not control.gone:  # noqa: ASYNC110  # a stream has no event for its end
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._ready.clear()
            control.close()
