"""A connected socket as an `asyncio.Transport`: reads what has come, writes what fits, keeps the rest.

An event loop's own transport begins to read by itself and costs a connection's share of its time before anybody has
looked at it. This one is told when to begin, so that a crowd's connections can be put aside for next to nothing
(`estd.web.door`), and reads its first octets without asking the loop, because they have mostly come.

Promises, as `asyncio.Transport` does: `connection_lost` is called once, after everything else and never from inside a call
of its protocol's; octets go out in order; above the high-water mark the protocol is asked to pause. Knows neither TLS nor
HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Final, cast

from estd.web.readiness import READ, WRITE, Readiness

_log = logging.getLogger(__name__)

_READ_BYTES: Final = 65_536
_BUFFER: Final = bytearray(_READ_BYTES)
"""Where sockets are read to before what came is copied out. One for all, which share a thread: an allocation of this size
goes past the allocator's caches."""
_VIEW: Final = memoryview(_BUFFER)
_HIGH_WATER_BYTES: Final = 65_536


class SocketTransport(asyncio.Transport):
    """One socket, which is non-blocking and closed by it.

    Args:
        readiness: watches the socket while there is something to wait for.
        connection: the socket.
        peername: its peer's address, as the kernel told it.
        protocol: told of everything; `begin` tells it that there is a connection.
    """

    __slots__ = (
        "_connection",
        "_eof_wanted",
        "_high_water_bytes",
        "_is_closing",
        "_is_ended",
        "_is_paused",
        "_is_reading",
        "_loop",
        "_low_water_bytes",
        "_outgoing",
        "_peername",
        "_protocol",
        "_readiness",
        "_watched",
    )

    def __init__(
        self,
        readiness: Readiness,
        connection: socket.socket,
        peername: object,
        protocol: asyncio.Protocol,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._readiness = readiness
        self._connection: socket.socket | None = connection
        self._peername = peername
        self._protocol: asyncio.Protocol | None = protocol
        self._outgoing = bytearray()
        self._high_water_bytes = _HIGH_WATER_BYTES
        self._low_water_bytes = _HIGH_WATER_BYTES // 4
        self._is_reading = True
        self._watched = 0
        """The events that `readiness` tells us about."""
        self._is_closing = False
        self._is_ended = False
        self._is_paused = False
        self._eof_wanted = False

    def begin(self) -> None:
        """Introduce the connection to its protocol, and hand up what the peer has sent already."""
        assert self._protocol is not None
        try:
            self._protocol.connection_made(self)
        except Exception as fault:  # noqa: BLE001 -- as in _read
            self._drop(fault)
        if self._is_reading and not self._is_closing:
            self._read()
            self._watch()

    def look_again(self) -> None:
        """Hand up what the peer has sent meanwhile; if that is nothing, acknowledge at once what it sent before.

        For a moment at which the peer is to speak and we have nothing to say, as after its Finished, since we send no
        tickets: a client that has not switched off Nagle's algorithm keeps its request back until the acknowledgement
        comes, which the kernel would delay by 40 ms.
        """
        connection = self._connection
        if connection is None or not self.is_reading() or self._is_ended or self._read():
            return
        if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_QUICKACK"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    # --- asyncio.Transport --------------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername``, ``socket`` or ``sockname``."""
        if name == "peername":
            return self._peername
        if self._connection is None:
            return default
        if name == "socket":
            return self._connection
        return self._connection.getsockname() if name == "sockname" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell another protocol from now on."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told."""
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called, or the connection is lost."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Whether what comes is handed up."""
        return self._is_reading and not self._is_closing and not self._is_ended

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        # It is watched until something does come, which for a peer that waits for us is never (`ready`).
        self._is_reading = False

    def resume_reading(self) -> None:
        """Undo `pause_reading`; nothing is handed up inside this call."""
        self._is_reading = True
        self._watch()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or keep what the kernel does not take."""
        if self._is_closing or self._connection is None or not data:
            return
        if not self._outgoing:
            try:
                sent = self._connection.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._outgoing += data
        self._watch()
        if len(self._outgoing) > self._high_water_bytes and not self._is_paused:
            self._is_paused = True
            assert self._protocol is not None
            self._protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Bytes kept above which the protocol is asked to pause, and down to which it stays so (a quarter)."""
        self._high_water_bytes = _HIGH_WATER_BYTES if high is None else high
        self._low_water_bytes = self._high_water_bytes // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken."""
        return len(self._outgoing)

    def can_write_eof(self) -> bool:
        """Whether our direction can be closed alone."""
        return True

    def write_eof(self) -> None:
        """Close our direction when what was written is out.

        Raises:
            OSError: the connection is gone.
        """
        if self._is_closing or self._eof_wanted or self._connection is None:
            return
        self._eof_wanted = True
        if not self._outgoing:
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close when what was written is out; what comes meanwhile is left unread."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._outgoing:
            self._watch()
        else:
            self._stop_watching()
            self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        """Close now, whatever was written."""
        self._lose(None)

    # --- the socket ---------------------------------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """`estd.web.readiness.Listening`."""
        if self._outgoing and events & ~READ:
            self._flush()
        if events & ~WRITE:
            if self._is_reading and not self._is_ended:
                self._read()
            else:
                self._watch()

    def _watch(self) -> None:
        """Wait for what there is to wait for."""
        if self._connection is None:
            return
        events = (READ if self.is_reading() and not self._is_ended else 0) | (WRITE if self._outgoing else 0)
        if events == self._watched:
            return
        self._watched = events
        if events:
            self._readiness.watch(self._connection.fileno(), self, events)
        else:
            # An empty wish would not do: the end of a connection is told all the same, again and again.
            self._readiness.ignore(self._connection.fileno())

    def _stop_watching(self) -> None:
        """The socket is about to be closed."""
        if self._connection is not None:
            self._watched = 0
            self._readiness.forget(self._connection.fileno())

    def _read(self) -> bool:
        """Whether there was something, were it the end."""
        connection, protocol = self._connection, self._protocol
        if connection is None or protocol is None or self._is_closing:
            return True
        try:
            size = connection.recv_into(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._lose(error)
            return True
        try:
            if size:
                protocol.data_received(bytes(_VIEW[:size]))
                return True
            # The kernel would report an end again and again.
            self._is_ended = True
            self._watch()
            if not protocol.eof_received():
                self.close()
        except Exception as fault:  # noqa: BLE001 -- a protocol's fault costs this connection and no other
            self._drop(fault)
        return True

    def _flush(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            sent = connection.send(self._outgoing)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        del self._outgoing[:sent]
        if self._is_paused and len(self._outgoing) <= self._low_water_bytes:
            self._is_paused = False
            assert self._protocol is not None
            try:
                self._protocol.resume_writing()
            except Exception as fault:  # noqa: BLE001 -- as in _read
                self._drop(fault)
        if self._outgoing or self._connection is None:
            return  # resuming may have written more, or ended it
        self._watch()
        if self._is_closing:
            self._loop.call_soon(self._end, None)
        elif self._eof_wanted:
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._lose(error)

    def _drop(self, fault: Exception) -> None:
        """The protocol is at fault."""
        _log.error("connection dropped", exc_info=fault)
        self._lose(fault)

    def _lose(self, reason: Exception | None) -> None:
        """Nothing more goes either way."""
        if self._connection is None:
            return
        self._is_closing = True
        self._outgoing.clear()
        self._stop_watching()
        self._loop.call_soon(self._end, reason)

    def _end(self, reason: Exception | None) -> None:
        connection, self._connection = self._connection, None
        protocol, self._protocol = self._protocol, None
        if connection is None or protocol is None:
            return
        try:
            protocol.connection_lost(reason)
        finally:
            connection.close()
