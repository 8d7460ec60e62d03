"""One end of a Unix stream socket in a blocking world: frames in, frames out, and no peer that can hold the rest up.

A `Connection` never blocks. It reads what is there once a turn, keeps whole messages until they are taken, and keeps
what could not be written yet. It stops reading while its peer leaves too much unread or sends faster than it is served,
and it knows since when nothing has moved. Must not know what the messages mean.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import Any, Final, Generic, TypeVar

from estd.signer.frames import FrameReader, write_frame

_Message = TypeVar("_Message")


class Connection(Generic[_Message]):
    """See the module. `name` is for the log."""

    def __init__(self, end: socket.socket, reader: FrameReader[_Message], name: str, at: float) -> None:
        end.setblocking(False)
        self.end = end
        self.name = name
        self.inbox: deque[_Message] = deque()
        self.closed = False
        self.mask = 0
        """What the event loop waits for on its behalf."""
        self._reader = reader
        self._outbox: deque[memoryview] = deque()
        self._outgoing_bytes = 0
        self._moved_at = at

    @property
    def wants_to_read(self) -> bool:
        """Whether there is room for more of what the peer sends."""
        return not self.closed and len(self.inbox) < _INBOX_MAX and not self.is_congested

    @property
    def wants_to_write(self) -> bool:
        """Whether octets wait for the peer to take them."""
        return not self.closed and bool(self._outbox)

    @property
    def is_congested(self) -> bool:
        """Whether the peer leaves so much unread that nothing more is done for it."""
        return self._outgoing_bytes > _OUTGOING_MAX_BYTES

    def is_stalled(self, at: float, seconds: float) -> bool:
        """Whether half a frame, either way, has not moved for so long."""
        return (bool(self._outbox) or self._reader.pending_bytes > 0) and at - self._moved_at > seconds

    def receive(self, at: float) -> bool:
        """Read once; False when the peer is gone.

        Raises:
            FrameError: the peer does not speak the protocol.
        """
        try:
            received = self.end.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not received:
            return False
        self._moved_at = at
        self.inbox.extend(self._reader.feed(received))
        return True

    def send(self, message: Any, at: float) -> bool:
        """Write a message, or as much as the peer takes now; False when the peer is gone."""
        frame = memoryview(write_frame(message))
        idle = not self._outbox
        self._outbox.append(frame)
        self._outgoing_bytes += len(frame)
        if not idle:
            return True
        self._moved_at = at
        return self.flush(at)

    def flush(self, at: float) -> bool:
        """Write what waits; False when the peer is gone."""
        while self._outbox:
            frame = self._outbox[0]
            try:
                sent = self.end.send(frame)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            self._moved_at = at
            self._outgoing_bytes -= sent
            if sent < len(frame):
                self._outbox[0] = frame[sent:]
            else:
                self._outbox.popleft()
        return True

    def close(self) -> None:
        """Let go of the peer and of everything kept for it."""
        self.closed = True
        self.inbox.clear()
        self._outbox.clear()
        self._outgoing_bytes = 0
        self.end.close()


def read_peer(end: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel recorded them when it connected."""
    process, user, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return process, user


_CREDENTIALS: Final = struct.Struct("3i")
_READ_BYTES: Final = 64 * 1024
_INBOX_MAX: Final = 32
_OUTGOING_MAX_BYTES: Final = 8 * 1024 * 1024
