"""Tells sockets when there is something to read or room to write, some at a time, through one descriptor of the loop's.

Watched one by one by the event loop, each connection costs six system calls and a handful of objects to begin and to end
watching. Here it costs one call: all sockets stand in an epoll set of ours, and the loop watches that set (epoll(7), a set
in a set). It also gives the number of sockets that are heard in one turn of the loop a bound.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
_AT_ONCE: Final = 64


class Listening(Protocol):
    """Whoever waits for a socket."""

    def ready(self, events: int) -> None:
        """`READ`, `WRITE` or both; an end or an error of the connection counts as what is read. Must not raise."""


class Readiness:
    """One for all connections of a worker. Made inside the loop; `close` ends it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Listening] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._tell)

    def watch(self, descriptor: int, who: Listening, events: int) -> None:
        """Tell `who` about these events from now on, and about no others."""
        if descriptor in self._by_descriptor:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._by_descriptor[descriptor] = who

    def ignore(self, descriptor: int) -> None:
        """Tell nobody; the socket stays open."""
        if self._by_descriptor.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def forget(self, descriptor: int) -> None:
        """The same for a socket that is about to be closed, which takes it out of the set."""
        self._by_descriptor.pop(descriptor, None)

    def close(self) -> None:
        """Tell nobody anything any more."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._by_descriptor.clear()

    def _tell(self) -> None:
        by_descriptor = self._by_descriptor
        for descriptor, events in self._epoll.poll(0, _AT_ONCE):
            who = by_descriptor.get(descriptor)
            if who is not None:  # one before it in this turn may have ended it
                who.ready(events)
