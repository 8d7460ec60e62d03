"""The supervisor's side of a signer's control channel: unlock it, load ecosystems, ask how it is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from estd.errors import Broken
from estd.signer.frames import (
    Anchor,
    Control,
    ControlAnswer,
    Failed,
    FrameError,
    Load,
    LoadedIssuer,
    Ping,
    Status,
    StatusReport,
    Unlock,
    control_answer_reader,
    control_reader,
    write_frame,
)
from estd.store.contract import EcosystemRecord

_READ_BYTES: Final = 64 * 1024
_ANSWER_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A version of an ecosystem that a signer did not take."""

    record: EcosystemRecord
    detail: str
    """What is wrong with it, and what to do."""


class SignerControl:
    """One signer process, seen from the supervisor. Calls are made one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = control_answer_reader()
        self._arrived: list[ControlAnswer] = []
        self._number = 0
        self._turn = asyncio.Lock()
        self.unloaded: dict[int, Unloaded] = {}
        """What it refused, by ecosystem; of those it may know an older version."""

    @classmethod
    async def open(cls, end: socket.socket) -> SignerControl:
        """Take over our end of the control channel."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def unlock(self, kek: bytes) -> None:
        """Hand over the key-encryption key; must be the first call."""
        await self._call(Unlock(self._next(), kek))

    async def load(self, records: Iterable[EcosystemRecord]) -> list[Unloaded]:
        """Make these versions known; loading a version again changes nothing.

        One that is refused keeps none of the others away. It stands in `unloaded`, and is tried again when its record is
        another one.

        Returns:
            What was refused now.

        Raises:
            Broken, OSError, TimeoutError: the signer is gone or does not answer; what comes behind was not loaded.
        """
        refused = []
        for record in records:
            known = self.unloaded.get(record.ecosystem_id)
            if known is not None and known.record == record:
                continue
            detail = await self._load_one(record)
            if detail is None:
                self.unloaded.pop(record.ecosystem_id, None)
            else:
                self.unloaded[record.ecosystem_id] = Unloaded(record, detail)
                refused.append(self.unloaded[record.ecosystem_id])
        return refused

    async def anchor(self, link_id: int, digest: bytes) -> None:
        """Have it keep how far the audit trail has come."""
        await self._call(Anchor(self._next(), link_id, digest))

    async def ping(self) -> None:
        """Have it say that its loop turns."""
        await self._call(Ping(self._next()))

    async def status(self) -> StatusReport:
        """Its counters."""
        answer = await self._call(Status(self._next()))
        if not isinstance(answer, StatusReport):
            raise Broken("a signer answered a status question with something else")
        return answer

    @property
    def gone(self) -> bool:
        """Whether the signer closed the channel."""
        return self._reader.at_eof() or self._writer.is_closing()

    def close(self) -> None:
        """Close the channel; the signer finishes and exits, unless it runs on its own."""
        self._writer.close()

    def abandon(self) -> None:
        """Let go of the channel at once, before its descriptor is closed and given to the next: the event loop goes by its
        number, and would neither listen to that one nor notice.
        """
        self._writer.transport.abort()

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _load_one(self, record: EcosystemRecord) -> str | None:
        """None, or why it was refused."""
        issuers = tuple(
            LoadedIssuer(issuer.issuer_id, issuer.name, issuer.parent_id, issuer.certificate, issuer.sealed_key)
            for issuer in record.issuers
        )
        number = self._next()
        load = Load(number, record.ecosystem_id, record.label, record.version, dict(record.document), issuers)
        try:
            frame = write_frame(load)
            control_reader().feed(frame)  # a signer ends when it gets what it cannot read
        except (Broken, FrameError, OverflowError, TypeError) as fault:
            return f"the ecosystem as it is stored cannot be sent to a signer: {fault}. Restore its rows from a backup."
        answer = await self._exchange(number, frame)
        return answer.detail if isinstance(answer, Failed) else None

    async def _call(self, message: Control) -> ControlAnswer:
        answer = await self._exchange(message.number, write_frame(message))
        if isinstance(answer, Failed):
            raise Broken(f"the signer refused a {type(message).__name__}: {answer.detail}")
        return answer

    async def _exchange(self, number: int, frame: bytes) -> ControlAnswer:
        async with self._turn, asyncio.timeout(_ANSWER_SECONDS):
            self._writer.write(frame)
            # An answer that came after its caller had given up is nobody's.
            while not (self._arrived and self._arrived[0].number == number):
                if self._arrived:
                    self._arrived.pop(0)
                    continue
                received = await self._reader.read(_READ_BYTES)
                if not received:
                    raise Broken("the signer closed its control channel")
                try:
                    self._arrived.extend(self._frames.feed(received))
                except FrameError as fault:
                    self._writer.close()
                    raise Broken(f"the signer answered with something else: {fault}") from None
            return self._arrived.pop(0)
