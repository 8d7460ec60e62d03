"""The listening socket: opened once, or given by whoever started us, and inherited by every worker.

A service manager may hold it (systemd's socket activation: ``LISTEN_PID``, ``LISTEN_FDS``), so that connections wait in
the kernel, and are not refused, while the server is restarted.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

from estd.errors import Invalid, Problem

_BACKLOG: Final = 4096
_SEND_BYTES: Final = 131_072
"""What the kernel may hold of the answers to one connection, which every accepted socket inherits. Left alone it grows to
megabytes for a peer that reads nothing, and with it the requests that are answered for nobody."""
_FIRST_PASSED: Final = 3


def open_listener(address: str, port: int, environment: MutableMapping[str, str] = os.environ) -> socket.socket:
    """The socket that devices connect to.

    Raises:
        Invalid: it cannot be opened.
    """
    passed = _take_passed(environment)
    listener = passed or socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    if passed is None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            listener.close()
            raise Invalid([explain_port("listen.port", address, port, error)]) from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def explain_port(where: str, address: str, port: int, error: OSError) -> Problem:
    """Why a port cannot be opened, and what to do."""
    remedies = {
        errno.EACCES: "Take a port above 1023, or give estd the right: AmbientCapabilities=CAP_NET_BIND_SERVICE in a unit.",
        errno.EADDRINUSE: "Choose another port, or stop what uses it.",
    }
    what = f"{address} port {port} cannot be opened ({os.strerror(error.errno or errno.EIO)})"
    return Problem(where, what, remedies.get(error.errno or 0, "Name an address of this machine, or 0.0.0.0 for all."))


def is_passed(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a service manager opened the socket for this process."""
    return environment.get("LISTEN_PID") == str(os.getpid())


def _take_passed(environment: MutableMapping[str, str]) -> socket.socket | None:
    """The socket a service manager opened for this process, if it did; no child is told of it."""
    is_ours = is_passed(environment)
    _, count, _ = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not is_ours:
        return None
    if count != "1":
        raise Invalid([Problem("LISTEN_FDS", f"says {count} sockets", "Give one ListenStream= in the socket unit.")])
    os.set_inheritable(_FIRST_PASSED, False)
    return socket.socket(fileno=_FIRST_PASSED)
