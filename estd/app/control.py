"""The control channel between the supervisor and a worker: JSON lines over an inherited socket pair.

Secrets (the database URL, the TLS key) travel here and nowhere else: not in argv, not in the environment, not on disk.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

from estd.errors import Broken

_LINE_AT_MOST_BYTES = 1024 * 1024


class Control:
    """One end of a control channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0

    @classmethod
    async def open(cls, end: socket.socket) -> Control:
        """Take over one end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_LINE_AT_MOST_BYTES))

    def send(self, message: dict[str, Any]) -> None:
        """Queue one message; a peer that is gone is noticed by whoever reads."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message, or None when the other end is gone."""
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError):
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    async def ping(self) -> None:
        """Have the other end say that its loop turns; while this waits nobody else may `receive`.

        Raises:
            Broken: the other end is gone.
        """
        self._number += 1
        self.send({"ping": self._number})
        while (message := await self.receive()) is not None:
            # An answer that came after its caller had given up is nobody's.
            if message.get("pong") == self._number:
                return
        raise Broken("the other end closed the control channel")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """All messages until the other end is gone."""
        while (message := await self.receive()) is not None:
            yield message

    def abandon(self) -> None:
        """Let go of the channel at once; see `estd.app.signers.SignerControl.abandon`."""
        self._writer.transport.abort()

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
