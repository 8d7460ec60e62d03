"""What one connection, one source and one worker may take, and who counts it.

Promises: no source and no crowd of sources holds more connections or unfinished handshakes in this worker than `Limits`
says. A ClientHello over the handshake limit waits its turn, sources in rotation, and is turned away only when the
waiting room is full as well; all of that before any cryptography is done for it. Knows no TLS, no clock and no loop.
"""

from __future__ import annotations

import enum
import socket
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines and caps of the TLS floor, each per worker process; `docs/tls.md` gives the reason for each default."""

    handshake_seconds: float = 5.0
    """From the accepted socket to the finished handshake, waiting for a turn included."""
    header_seconds: float = 5.0
    """From a request's first byte (or the handshake's end) to `request_began`."""
    idle_seconds: float = 60.0
    """Between two requests."""
    write_stall_seconds: float = 10.0
    """Within this time the peer takes `write_floor_bytes` of what waits for it, or all of it."""
    linger_seconds: float = 2.0
    """After our close_notify, for the peer to read our last words and close."""

    connections_in_all: int = 8192
    connections_per_source: int = 2048
    handshakes_at_once: int = 256
    handshakes_per_source: int = 64
    handshakes_waiting: int = 2048
    handshakes_waiting_per_source: int = 1024

    hello_bytes: int = 16_384
    """Of a first flight that has to wait for its turn."""
    handshake_bytes: int = 131_072
    """Ciphertext a peer may send before its handshake is finished."""
    silent_bytes: int = 32_768
    """Ciphertext that brings no plaintext; more than one full record, which brings none until it is complete."""
    high_water_bytes: int = 65_536
    """Ciphertext waiting in this process for the peer before the HTTP layer is asked to pause."""
    write_floor_bytes: int = 4096
    certificates: int = 8
    certificate_bytes: int = 65_536

    @property
    def tick_seconds(self) -> float:
        """The shortest deadline that a connection may get without its timer being moved."""
        return min(self.header_seconds, self.idle_seconds, self.write_stall_seconds)


class Refusal(enum.StrEnum):
    """Which limit turned a connection away. Stable: metrics carry it."""

    CONNECTIONS_IN_ALL = "refused-connections-in-all"
    CONNECTIONS_PER_SOURCE = "refused-connections-per-source"
    HANDSHAKES_IN_ALL = "refused-handshakes-in-all"
    HANDSHAKES_PER_SOURCE = "refused-handshakes-per-source"


class Waiter(Protocol):
    """A connection in the waiting room."""

    def handshake_granted(self) -> None:
        """Its turn has come and is already counted; it must schedule its work, not do it here."""


class Gate:
    """Counts connections and unfinished handshakes, per source and in all, for every connection of one worker."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.connections = 0
        self.handshakes = 0
        self.waiting = 0
        self._sources: dict[str, _Source] = {}
        # Sources with someone waiting and a turn to spare, in rotation.
        self._ring: OrderedDict[_Source, None] = OrderedDict()

    def enter(self, source: str) -> Place | Refusal:
        """A place for a new connection, or the limit that it would break."""
        if self.connections >= self.limits.connections_in_all:
            return Refusal.CONNECTIONS_IN_ALL
        here = self._sources.get(source)
        if here is None:
            here = self._sources[source] = _Source(source)
        elif here.connections >= self.limits.connections_per_source:
            return Refusal.CONNECTIONS_PER_SOURCE
        here.connections += 1
        self.connections += 1
        return Place(self, here)

    def begin(self, here: _Source, waiter: Waiter) -> Refusal | bool:
        """See `Place.begin`."""
        limits = self.limits
        if here.handshakes < limits.handshakes_per_source and self.handshakes < limits.handshakes_at_once:
            here.handshakes += 1
            self.handshakes += 1
            return True
        if self.waiting >= limits.handshakes_waiting:
            return Refusal.HANDSHAKES_IN_ALL
        if len(here.waiting) >= limits.handshakes_waiting_per_source:
            return Refusal.HANDSHAKES_PER_SOURCE
        here.waiting[waiter] = None
        self.waiting += 1
        if here.handshakes < limits.handshakes_per_source:
            self._ring[here] = None
        return False

    def end(self, here: _Source, waiter: Waiter) -> None:
        """See `Place.end`: who still waits leaves the room, who had a turn gives it to the next in rotation."""
        if waiter in here.waiting:
            del here.waiting[waiter]
            self.waiting -= 1
            if not here.waiting:
                self._ring.pop(here, None)
            return
        here.handshakes -= 1
        self.handshakes -= 1
        if not self.waiting:
            return
        if here.waiting:
            self._ring[here] = None
        limits = self.limits
        while self._ring and self.handshakes < limits.handshakes_at_once:
            here, _ = self._ring.popitem(last=False)
            waiter, _ = here.waiting.popitem(last=False)
            self.waiting -= 1
            here.handshakes += 1
            self.handshakes += 1
            if here.waiting and here.handshakes < limits.handshakes_per_source:
                self._ring[here] = None
            waiter.handshake_granted()

    def leave(self, here: _Source) -> None:
        """See `Place.leave`."""
        self.connections -= 1
        here.connections -= 1
        if not here.connections:
            del self._sources[here.name]


class Place:
    """One connection's place among the others; `end` and `leave` may be repeated and then do nothing."""

    __slots__ = ("_gate", "_here", "_waiter")

    def __init__(self, gate: Gate, here: _Source) -> None:
        self._gate = gate
        self._here: _Source | None = here
        self._waiter: Waiter | None = None

    def begin(self, waiter: Waiter) -> Refusal | bool:
        """Ask for a handshake's turn: True is now, False is later, by `Waiter.handshake_granted`."""
        assert self._here is not None
        turn = self._gate.begin(self._here, waiter)
        if isinstance(turn, bool):
            self._waiter = waiter
        return turn

    def end(self) -> None:
        """The handshake is finished, failed, or given up while it waited."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and self._here is not None:
            self._gate.end(self._here, waiter)

    def leave(self) -> None:
        """The connection is gone."""
        self.end()
        here, self._here = self._here, None
        if here is not None:
            self._gate.leave(here)


def read_source(peername: object) -> tuple[str, str]:
    """The peer's address as a person writes it, and the source it counts under.

    An IPv6 source is its /64, which is what one subscriber holds; an IPv4 address mapped into IPv6 counts as itself.
    """
    if not isinstance(peername, tuple) or not peername:
        return "local", "local"
    address = str(peername[0])
    if ":" not in address:
        return address, address
    if address.startswith("::ffff:") and "." in address:
        return address[7:], address[7:]
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address, address
    return address, packed[:8].hex()


class _Source:
    __slots__ = ("connections", "handshakes", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections = 0
        self.handshakes = 0
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()
