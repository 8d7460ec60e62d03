"""What one connection, one source and one worker may take, and who counts it.

Promises: no source and no crowd of sources holds more connections or unfinished handshakes in this worker than `Limits`
says. A ClientHello over the handshake limit waits its turn: sources that ask for one come first, then those that ask
for many in rotation, the newest of a source first. Where there is no room, whoever has been here longest without
finishing a handshake makes room, so half-open connections cannot lock others out by lasting; then whoever has been idle
longest between two requests; only when nobody has outstayed `patience_seconds` and nobody is idle is a newcomer
refused. All of that comes before any cryptography for the newcomer. However many ask, no more than
`handshakes_per_pass` handshakes begin, and as many go on, in one pass of the event loop, so that nobody's next step
waits behind a crowd's; and of a crowd one begins at a time while others are held that could go on. Knows no TLS
and no event loop.
"""

from __future__ import annotations

import enum
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
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


class Gate:
    """Counts connections and unfinished handshakes, per source and in all, for every connection of one worker.

    Args:
        limits: what is counted against.
        clock: a monotonic one.
        soon: has a function called in the next pass of the event loop; without it all passes are one.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.limits = limits
        self.connections = 0
        self.waiting = 0
        self._clock = clock
        self._soon = soon
        # Handshakes that began, and that went on, in this pass; and those that are held until a later one.
        self._begun = 0
        self._continued = 0
        self._is_pass_due = False
        self._held: OrderedDict[_Source, deque[Place]] = OrderedDict()
        self._held_count = 0
        self._sources: dict[str, _Source] = {}
        # Each in order of arrival: places without a finished handshake, and those of them whose turn it is.
        self._guests: OrderedDict[Place, None] = OrderedDict()
        self._turns: OrderedDict[Place, None] = OrderedDict()
        # Sources with someone waiting and a turn to spare, in rotation.
        self._ring: OrderedDict[_Source, None] = OrderedDict()
        # Between two requests, the longest first.
        self._idle: OrderedDict[Place, Idler] = OrderedDict()

    @property
    def active(self) -> int:
        """Connections that are not idle between two requests."""
        return self.connections - len(self._idle)

    @property
    def handshakes(self) -> int:
        """Handshakes under way."""
        return len(self._turns)

    def enter(self, source: str, guest: Guest) -> Place | Refusal:
        """A place for a new connection, or the limit that it would break."""
        limits, now = self.limits, self._clock()
        if (
            self.connections >= limits.connections_in_all
            and not self._make_room(self._guests, now)
            and not self._put_out(self._idle)
        ):
            return Refusal.CONNECTIONS_IN_ALL
        here = self._sources.get(source)
        if here is None:
            here = self._sources[source] = _Source(source)
        elif (
            here.connections >= limits.connections_per_source
            and not self._make_room(here.guests, now)
            and not self._put_out(here.idle)
        ):
            return Refusal.CONNECTIONS_PER_SOURCE
        if not here.connections:
            self._sources[source] = here  # its last connection may just have made room
        here.connections += 1
        self.connections += 1
        place = Place(self, here, guest, now)
        here.guests[place] = self._guests[place] = None
        return place

    def begin(self, place: Place) -> Refusal | bool:
        """See `Place.begin`."""
        limits, here, now = self.limits, place.here, self._clock()
        if (
            not self._ring
            and not here.waiting
            and len(here.turns) < limits.handshakes_per_source
            and self._may_begin(here)
            and self._has_turn(here)
        ):
            self._give_turn(place, now)
            return True
        # A quarter of the waiting room, as of the turns, is kept for sources that have nobody in it.
        room = limits.handshakes_waiting
        if self.waiting >= (room - room // 4 if here.waiting else room):
            return Refusal.HANDSHAKES_IN_ALL
        if len(here.waiting) >= limits.handshakes_waiting_per_source and not self._make_room(here.waiting, now):
            return Refusal.HANDSHAKES_PER_SOURCE
        here.waiting[place] = None
        self.waiting += 1
        self._serve(here, now)
        return False

    def press(self, here: _Source) -> None:
        """See `Place.press`."""
        self._serve(here, self._clock())

    def proceed(self, place: Place) -> bool:
        """See `Place.proceed`."""
        if self._soon is None:
            return True
        if not self._held and self._continued < self._most_per_pass():
            self._continued += 1
            self._call_pass()
            return True
        here = place.here
        queue = self._held.get(here)
        if queue is None:
            queue = self._held[here] = deque()
            if len(here.guests) <= _FEW:
                self._held.move_to_end(here, last=False)  # no part of a crowd
        queue.append(place)
        self._held_count += 1
        # It did its part in time and waits for us alone: from here on it is as one that has just come.
        place.since = self._clock()
        for order in (self._guests, self._turns, here.guests, here.turns):
            if place in order:
                order.move_to_end(place)
        self._call_pass()
        return False

    def rest(self, place: Place, idler: Idler) -> None:
        """See `Place.rest`."""
        self._idle[place] = place.here.idle[place] = idler

    def work(self, place: Place) -> None:
        """See `Place.work`."""
        self._idle.pop(place, None)
        place.here.idle.pop(place, None)

    def end(self, place: Place) -> None:
        """See `Place.end`."""
        if place in self._guests:
            self._strike(place)
            self._serve(place.here, self._clock())

    def leave(self, place: Place) -> None:
        """See `Place.leave`."""
        self._strike(place)
        self.work(place)
        self._count_out(place.here)
        if self.waiting:
            self._serve(place.here, self._clock())

    def _serve(self, here: _Source, now: float) -> None:
        """Turns for those who wait, this source's share of them looked at first."""
        limits = self.limits
        if here.waiting and (len(here.turns) < limits.handshakes_per_source or self._make_room(here.turns, now)):
            is_new = here not in self._ring and len(here.waiting) == 1 and not here.turns
            self._ring[here] = None
            if is_new:
                # Who asks for one at a time is not made to wait behind those who ask for many.
                self._ring.move_to_end(here, last=False)
        while (
            self._ring
            and self._may_begin(next(iter(self._ring)))
            and (self._has_turn(next(iter(self._ring))) or self._make_room(self._turns, now))
        ):
            here, _ = self._ring.popitem(last=False)
            # The newest first: in a flood the oldest are the flood's, or will have given up when the answer comes.
            place, _ = here.waiting.popitem()
            self.waiting -= 1
            self._give_turn(place, now)
            if here.waiting and len(here.turns) < limits.handshakes_per_source:
                self._ring[here] = None
            assert place.guest is not None
            place.guest.handshake_granted()

    def _pass(self) -> None:
        """The event loop has looked after everything else; some more may begin."""
        self._is_pass_due = False
        self._begun = self._continued = 0
        most = self._most_per_pass()
        resumed: list[Guest] = []
        while self._held and len(resumed) < most:
            here, queue = next(iter(self._held.items()))
            place = queue.popleft()
            self._held_count -= 1
            if queue:
                self._held.move_to_end(here)
            else:
                del self._held[here]
            if place.guest is not None:
                resumed.append(place.guest)
        self._continued = len(resumed)
        if self._held or resumed:
            self._call_pass()
        if self._ring:
            self._serve(next(iter(self._ring)), self._clock())
        for guest in resumed:
            guest.handshake_resumed()

    def _call_pass(self) -> None:
        if not self._is_pass_due and self._soon is not None:
            self._is_pass_due = True
            self._soon(self._pass)

    def _most_per_pass(self) -> int:
        limits = self.limits
        is_crowd = self.waiting + self._held_count >= limits.crowd
        return limits.handshakes_per_pass_in_a_crowd if is_crowd else limits.handshakes_per_pass

    def _may_begin(self, here: _Source) -> bool:
        """Whether one more may begin in this pass. Of a crowd only one does while others are held that could go on: what is
        begun and not finished in time was work for nothing. One, so that nobody can lock a crowd out by being held.
        """
        is_due = not self._begun or not self._held or len(here.guests) <= _FEW
        return is_due and self._begun < self._most_per_pass()

    def _has_turn(self, here: _Source) -> bool:
        """Whether one more may begin. A quarter of the turns is kept for sources that have none."""
        most = self.limits.handshakes_at_once
        return len(self._turns) < (most - most // 4 if here.turns else most)

    def _give_turn(self, place: Place, now: float) -> None:
        if self._soon is not None:
            self._begun += 1
            self._call_pass()
        place.since = now
        self._guests.move_to_end(place)
        place.here.guests.move_to_end(place)
        place.here.turns[place] = self._turns[place] = None

    def _make_room(self, places: OrderedDict[Place, None], now: float) -> bool:
        """Send the first of these away, if it has had its time."""
        place = next(iter(places), None)
        if place is None or now - place.since < self.limits.patience_seconds:
            return False
        guest = place.guest
        assert guest is not None
        self._strike(place)
        self._count_out(place.here)
        place.is_taken = False
        guest.handshake_revoked()
        return True

    def _put_out(self, idle: OrderedDict[Place, Idler]) -> bool:
        """Send away who has been idle longest, if anybody is."""
        if not idle:
            return False
        place, idler = next(iter(idle.items()))
        self.work(place)
        self._count_out(place.here)
        place.is_taken = False
        idler.place_revoked()
        return True

    def _strike(self, place: Place) -> None:
        here = place.here
        place.guest = None
        self._guests.pop(place, None)
        here.guests.pop(place, None)
        self._turns.pop(place, None)
        here.turns.pop(place, None)
        if place in here.waiting:
            del here.waiting[place]
            self.waiting -= 1
            if not here.waiting:
                self._ring.pop(here, None)

    def _count_out(self, here: _Source) -> None:
        self.connections -= 1
        here.connections -= 1
        if not here.connections:
            del self._sources[here.name]


class Place:
    """One connection's place among the others; `end` and `leave` may be repeated and then do nothing."""

    __slots__ = ("_gate", "guest", "here", "is_taken", "since")

    def __init__(self, gate: Gate, here: _Source, guest: Guest, now: float) -> None:
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

    def press(self) -> None:
        """Still waiting: perhaps someone has outstayed his time by now."""
        if self.is_taken:
            self._gate.press(self.here)

    def proceed(self) -> bool:
        """Whether a handshake under way may go on now; later, by `Guest.handshake_resumed`, if not."""
        return self._gate.proceed(self)

    def end(self) -> None:
        """The handshake is finished, failed, or given up while it waited."""
        if self.is_taken:
            self._gate.end(self)

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


_FEW: Final = 2
"""Unfinished handshakes of a source that is no part of a crowd."""


class _Source:
    __slots__ = ("connections", "guests", "idle", "name", "turns", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections = 0
        self.guests: OrderedDict[Place, None] = OrderedDict()
        self.turns: OrderedDict[Place, None] = OrderedDict()
        self.waiting: OrderedDict[Place, None] = OrderedDict()
        self.idle: OrderedDict[Place, Idler] = OrderedDict()
