"""The listening socket of one worker: newcomers come in some at a time, and each begins as a `SocketTransport`.

Promises: however many stand outside, no more than `_AT_ONCE` come in during one turn of the event loop, so that nobody's
next step waits behind a crowd; where there are no descriptors or no memory left, those outside wait and everything else
goes on. The socket is shared with the other workers, whoever is first takes a connection. Knows neither TLS nor HTTP.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from estd.web.readiness import Readiness
from estd.web.socket_transport import SocketTransport

_log = logging.getLogger(__name__)

_BACKLOG: Final = 4096
_AT_ONCE: Final = 16
_PAUSE_SECONDS: Final = 0.1
_SHORT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Door:
    """Takes connections from a listening socket from `open` to `close`. Made inside the loop.

    Args:
        listener: bound; closed by `close`, which leaves other descriptors of it open.
        readiness: watches the connections.
        make_protocol: makes the protocol of one connection.
    """

    def __init__(
        self, listener: socket.socket, readiness: Readiness, make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._listener = listener
        self._readiness = readiness
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Let them in."""
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        if self._listener.family != socket.AF_UNIX:
            # A connection inherits it. What is written is whole records; waiting for more would only delay them.
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.add_reader(self._listener.fileno(), self._let_in)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    def _let_in(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, peername = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _SHORT_OF:
                    self._rest(error)
                    return
                continue  # it was gone before it came in
            connection.setblocking(False)
            SocketTransport(self._readiness, connection, peername, self._make_protocol()).begin()

    def _rest(self, error: OSError) -> None:
        _log.error(
            "no connection can be taken for now",
            extra={"detail": error.strerror, "remedy": "raise the limit of open files (LimitNOFILE) or lower the load"},
        )
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(_PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._let_in)
