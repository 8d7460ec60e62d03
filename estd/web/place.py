"""What one connection, one source and one worker may take, and a connection's place among the others.

Promises: a place is given back once, by its connection or by the gate that gives it to somebody else, however often the
connection says so. This is a connection's side; `estd.web.gate` counts the places and knows whose turn it is. Knows no TLS
and no event loop.
"""

from __future__ import annotations

import enum
import socket
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol


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
    linger_bytes: int = 1_048_576
    """What the peer may still send meanwhile, which is read and forgotten."""
    patience_seconds: float = 2.0
    """With a handshake unfinished, before room may be made at its expense; without a shortage nobody is hurried."""

    connections_in_all: int = 8192
    connections_per_source: int = 2048
    handshakes_at_once: int = 512
    handshakes_per_source: int = 64
    handshakes_per_pass: int = 8
    handshakes_per_pass_in_a_crowd: int = 2
    crowd: int = 32
    """Handshakes that wait, to begin or to go on, from which on small steps are worth more than few passes."""
    crowd_share: float = 0.35
    """The part of its time that a worker may be busy before a crowd has to wait, while others ask for something too."""
    crowd_wait_seconds: float = 0.002
    """Whatever others ask for, a crowd gets a step that often: a tenth or so of a worker's time."""
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
    def look_seconds(self) -> float:
        """How often deadlines are looked at: often enough for the shortest."""
        shortest = min(self.handshake_seconds, self.header_seconds, self.idle_seconds, self.linger_seconds)
        return min(0.25, shortest / 8, self.write_stall_seconds / 8, self.patience_seconds / 8)


class Refusal(enum.StrEnum):
    """Which limit turned a connection away. Stable: metrics carry it."""

    CONNECTIONS_IN_ALL = "refused-connections-in-all"
    CONNECTIONS_PER_SOURCE = "refused-connections-per-source"
    HANDSHAKES_IN_ALL = "refused-handshakes-in-all"
    HANDSHAKES_PER_SOURCE = "refused-handshakes-per-source"


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


class Guest(Protocol):
    """A connection with an unfinished handshake. Neither call may lead back into the gate before it returns."""

    def handshake_granted(self) -> None:
        """The turn it waited for has come and is counted."""

    def handshake_resumed(self) -> None:
        """It may go on with what `Place.proceed` held back. This call may lead back into the gate."""

    def handshake_revoked(self) -> None:
        """Its place was given away; it must go."""


class Idler(Protocol):
    """A connection between two requests. The call may not lead back into the gate before it returns."""

    def place_revoked(self) -> None:
        """Its place was given away; it must go."""


class _Gate(Protocol):
    """What a place knows of its `estd.web.gate.Gate`."""

    def begin(self, place: Place) -> Refusal | bool: ...
    def proceed(self, place: Place) -> bool: ...
    def end(self, place: Place) -> None: ...
    def learn(self, here: Source, ecosystem_id: int) -> None: ...
    def rest(self, place: Place, idler: Idler) -> None: ...
    def work(self, place: Place) -> None: ...
    def leave(self, place: Place) -> None: ...


class Place:
    """One connection's place among the others; `end` and `leave` may be repeated and then do nothing."""

    __slots__ = ("_gate", "guest", "here", "is_taken", "since")

    def __init__(self, gate: _Gate, here: Source, guest: Guest, now: float) -> None:
        self._gate = gate
        self.here = here
        self.guest: Guest | None = guest
        """None once the handshake is finished."""
        self.since = now
        """When it came or, once it has one, when it got its turn."""
        self.is_taken = True

    def begin(self) -> Refusal | bool:
        """Ask for a handshake's turn: True is now, False is later, by `Guest.handshake_granted`."""
        return self._gate.begin(self)

    def proceed(self) -> bool:
        """Whether a handshake under way may go on now; later, by `Guest.handshake_resumed`, if not."""
        return self._gate.proceed(self)

    def end(self) -> None:
        """The handshake is finished, failed, or given up while it waited."""
        if self.is_taken:
            self._gate.end(self)

    def belongs(self, ecosystem_id: int) -> None:
        """This ecosystem admitted the connection's peer: its source is one of that ecosystem's."""
        if self.is_taken and self.here.home.ecosystem_id != ecosystem_id:
            self._gate.learn(self.here, ecosystem_id)

    def rest(self, idler: Idler) -> None:
        """The connection is idle from now on: its place may be given away."""
        if self.is_taken:
            self._gate.rest(self, idler)

    def work(self) -> None:
        """A request has come."""
        if self.is_taken:
            self._gate.work(self)

    def leave(self) -> None:
        """The connection is gone."""
        if self.is_taken:
            self.is_taken = False
            self._gate.leave(self)


SEVERAL: Final = 0
"""For the number of an ecosystem, which is never 0: a source that several of them admitted, such as a proxy."""


class Home:
    """All sources of one ecosystem; a source of none that is known, or of several, has one of its own.

    The gate alone changes it.
    """

    __slots__ = ("ecosystem_id", "guests")

    def __init__(self, ecosystem_id: int | None) -> None:
        self.ecosystem_id = ecosystem_id
        self.guests = 0
        """Connections with an unfinished handshake."""

    @property
    def key(self) -> object:
        """Equal for one ecosystem, and for nobody else."""
        return self.ecosystem_id or self


class Source:
    """One source's connections, by what they are about; the gate alone changes them."""

    __slots__ = ("connections", "guests", "home", "idle", "name", "turns", "waiting")

    def __init__(self, name: str, home: Home) -> None:
        self.name = name
        self.home = home
        self.connections = 0
        self.guests: OrderedDict[Place, None] = OrderedDict()
        self.turns: OrderedDict[Place, None] = OrderedDict()
        self.waiting: OrderedDict[Place, None] = OrderedDict()
        self.idle: OrderedDict[Place, Idler] = OrderedDict()
