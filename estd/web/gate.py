"""Counts what connections and sources take of one worker, and decides whose turn it is and who makes room.

Promises: no source and no crowd of sources holds more connections or unfinished handshakes in this worker than `Limits`
says. A ClientHello over the handshake limit waits its turn: sources that ask for one come first, then those that ask
for many in rotation, the newest of a source first. Where there is no room, whoever has been here longest without
finishing a handshake makes room, so half-open connections cannot lock others out by lasting; then whoever has been idle
longest between two requests; only when nobody has outstayed `patience_seconds` and nobody is idle is a newcomer
refused. All of that comes before any cryptography for the newcomer. However many ask, no more than
`handshakes_per_pass` handshakes begin, and as many go on, in one pass of the event loop, so that nobody's next step
waits behind a crowd's; and of a crowd one begins at a time while others are held that could go on, and none
while the crowd is ahead of its pace (`estd.ra.pace`). Knows no TLS and no event loop.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from estd.ra.pace import Pace
from estd.web.place import SEVERAL, Guest, Home, Idler, Limits, Place, Refusal, Source

_FEW: Final = 2
"""Connections, or unfinished handshakes, of a source that is no part of a crowd."""


_LITTLE: Final = 1 / 8
"""An ecosystem with less than this part of all unfinished handshakes is no crowd."""
_SOURCES_KNOWN: Final = 10_000
_LOOK_SECONDS: Final = 0.001


class Gate:
    """Counts connections and unfinished handshakes, per source and in all, for every connection of one worker.

    Args:
        limits: what is counted against.
        clock: a monotonic one.
        soon: has a function called in the next pass of the event loop; without it all passes are one.
        pace: what crowds are held to; without it to none.
        later: has a function called after so many seconds.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        soon: Callable[[Callable[[], None]], object] | None = None,
        pace: Pace | None = None,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self.limits = limits
        self.connections = 0
        self.waiting = 0
        self._clock = clock
        self._soon = soon
        self._later = later
        self._pace = pace
        self._is_look_due = False
        # Handshakes that began, and that went on, in this pass; and those that are held until a later one.
        self._begun = 0
        self._continued = 0
        self._is_pass_due = False
        self._held: OrderedDict[Source, deque[Place]] = OrderedDict()
        self._held_count = 0
        self._sources: dict[str, Source] = {}
        # Which ecosystem a source was admitted by, or SEVERAL, for some while after it has left; and the ecosystems' homes.
        self._known: OrderedDict[str, int] = OrderedDict()
        self._homes: dict[int, Home] = {}
        # Each in order of arrival: places without a finished handshake, and those of them whose turn it is.
        self._guests: OrderedDict[Place, None] = OrderedDict()
        self._turns: OrderedDict[Place, None] = OrderedDict()
        # Sources with someone waiting and a turn to spare, in rotation: those that ask for one at a time, and crowds.
        self._few: OrderedDict[Source, None] = OrderedDict()
        self._crowds: OrderedDict[Source, None] = OrderedDict()
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
        here = self._sources.get(source)
        if here is not None and here.waiting and self._is_full_for_crowds() and not self._is_few(here):
            return Refusal.HANDSHAKES_IN_ALL  # what it would hear after its ClientHello is read
        # A quarter of the places is kept for sources that have next to none, whatever a crowd does.
        most = limits.connections_in_all
        if here is not None and here.connections > _FEW:
            most -= most // 4
        if self.connections >= most and not self._make_room(self._guests, now) and not self._put_out(self._idle):
            return Refusal.CONNECTIONS_IN_ALL
        if here is None:
            here = self._sources[source] = Source(source, self._find_home(source))
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
        here.home.guests += 1
        return place

    def begin(self, place: Place) -> Refusal | bool:
        """See `Place.begin`."""
        limits, here, now = self.limits, place.here, self._clock()
        if (
            not (self._few if self._is_few(here) else self._crowds)
            and not here.waiting
            and len(here.turns) < limits.handshakes_per_source
            and self._may_begin(here)
            and self._has_turn(here)
        ):
            self._give_turn(place, now)
            return True
        if self.waiting >= limits.handshakes_waiting or (here.waiting and self._is_full_for_crowds()):
            return Refusal.HANDSHAKES_IN_ALL
        if len(here.waiting) >= limits.handshakes_waiting_per_source and not self._make_room(here.waiting, now):
            return Refusal.HANDSHAKES_PER_SOURCE
        here.waiting[place] = None
        self.waiting += 1
        self._serve(here, now)
        return False

    def _is_full_for_crowds(self) -> bool:
        """A quarter of the waiting room, as of the turns, is kept for sources that have nobody in it."""
        room = self.limits.handshakes_waiting
        return self.waiting >= room - room // 4

    def press(self) -> None:
        """Some may have waited long enough for others to have outstayed their time; called now and then."""
        now = self._clock()
        for here in list(self._sources.values()) if self.waiting else ():
            if here.waiting:
                self._serve(here, now)

    def proceed(self, place: Place) -> bool:
        """See `Place.proceed`."""
        if self._soon is None:
            return True
        here = place.here
        is_few = self._is_few(here)
        if self._continued < self._most_per_pass() and (is_few or (not self._held and self._is_in_pace(here))):
            self._continued += 1
            self._call_pass()
            return True
        queue = self._held.get(here)
        if queue is None:
            queue = self._held[here] = deque()
            if is_few:
                self._held.move_to_end(here, last=False)
        queue.append(place)
        self._held_count += 1
        # It did its part in time and waits for us alone: from here on it is as one that has just come.
        place.since = self._clock()
        for order in (self._guests, self._turns, here.guests, here.turns):
            if place in order:
                order.move_to_end(place)
        self._call_pass()
        return False

    def learn(self, here: Source, ecosystem_id: int) -> None:
        """See `Place.belongs`. Whoever speaks for several ecosystems is no crowd of one of them, and stays so."""
        if here.home.ecosystem_id == SEVERAL:
            return
        self._known[here.name] = ecosystem_id if self._known.get(here.name, ecosystem_id) == ecosystem_id else SEVERAL
        if len(self._known) > _SOURCES_KNOWN:
            self._known.popitem(last=False)
        here.home.guests -= len(here.guests)
        here.home = self._find_home(here.name)
        here.home.guests += len(here.guests)

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
            if self.waiting:
                self._serve(place.here, self._clock())

    def leave(self, place: Place) -> None:
        """See `Place.leave`."""
        self._strike(place)
        self.work(place)
        self._count_out(place.here)
        if self.waiting:
            self._serve(place.here, self._clock())

    def _serve(self, here: Source, now: float) -> None:
        """Turns for those who wait, this source's share of them looked at first."""
        limits = self.limits
        if here.waiting and (len(here.turns) < limits.handshakes_per_source or self._make_room(here.turns, now)):
            self._line_up(here)
        # Who asks for one at a time is not made to wait behind those who ask for many.
        while ring := self._few or self._crowds:
            here = next(iter(ring))
            if ring is self._few and not self._is_few(here):
                # It has become a crowd since it came; who is none is not made to wait for its pace.
                del ring[here]
                self._crowds[here] = None
                continue
            if not self._may_begin(here) or not (self._has_turn(here) or self._make_room(self._turns, now)):
                return
            if here not in ring:
                continue  # whoever made room was the last of it
            del ring[here]
            # The newest first: in a flood the oldest are the flood's, or will have given up when the answer comes.
            place, _ = here.waiting.popitem()
            self.waiting -= 1
            self._give_turn(place, now)
            if here.waiting and len(here.turns) < limits.handshakes_per_source:
                self._line_up(here)
            assert place.guest is not None
            place.guest.handshake_granted()

    def _find_home(self, source: str) -> Home:
        ecosystem_id = self._known.get(source)
        if not ecosystem_id:
            return Home(ecosystem_id)
        home = self._homes.get(ecosystem_id)
        if home is None:
            home = self._homes[ecosystem_id] = Home(ecosystem_id)
        return home

    def _is_few(self, here: Source) -> bool:
        """Whether this source is no part of a crowd: a whole ecosystem is one that has much of all that is unfinished."""
        guests = here.home.guests
        return guests <= _FEW or (here.home.ecosystem_id is not None and guests < len(self._guests) * _LITTLE)

    def _line_up(self, here: Source) -> None:
        if here not in self._few and here not in self._crowds:
            (self._few if self._is_few(here) and not here.turns else self._crowds)[here] = None

    def _pass(self) -> None:
        """The event loop has looked after everything else; some more may begin."""
        self._is_pass_due = False
        self._begun = self._continued = 0
        most = self._most_per_pass()
        resumed: list[Guest] = []
        while self._held and len(resumed) < most:
            here, queue = next(iter(self._held.items()))
            if not self._is_few(here) and not self._is_in_pace(here):
                break
            place = queue.popleft()
            self._held_count -= 1
            if queue:
                self._held.move_to_end(here)
            else:
                del self._held[here]
            if place.guest is not None:
                resumed.append(place.guest)
        self._continued = len(resumed)
        if (self._held and not self._is_look_due) or resumed:
            self._call_pass()
        self._serve_next()
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

    def _may_begin(self, here: Source) -> bool:
        """Whether one more may begin in this pass. Of a crowd only one does while others are held that could go on: what is
        begun and not finished in time was work for nothing. One, so that nobody can lock a crowd out by being held.
        """
        if self._begun >= self._most_per_pass():
            return False
        if self._is_few(here):
            if self._pace is not None:
                self._pace.notice(here.home.key)
            return True
        if self._begun and self._held:
            return False
        if here.home.ecosystem_id == SEVERAL:
            return True  # a request's ecosystem is known at the turnstile, and waits there
        if self._pace is not None and self._pace.waiting:
            self._call_look()
            return False
        return self._is_in_pace(here)

    def _is_in_pace(self, here: Source) -> bool:
        """Whether this source's crowd may take a step now; if not, there will be a pass in a moment."""
        if self._pace is None or here.home.ecosystem_id == SEVERAL or self._pace.allows(here.home.key):
            return True
        self._call_look()
        return False

    def _call_look(self) -> None:
        if self._later is not None and not self._is_look_due:
            self._is_look_due = True
            self._later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._is_look_due = False
        if not self._is_pass_due:  # two in one turn of the loop would let in twice as many, and ask for two more
            self._pass()

    def _serve_next(self) -> None:
        if ring := self._few or self._crowds:
            self._serve(next(iter(ring)), self._clock())

    def _has_turn(self, here: Source) -> bool:
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
        if place in self._guests:
            del self._guests[place]
            here.home.guests -= 1
        here.guests.pop(place, None)
        self._turns.pop(place, None)
        here.turns.pop(place, None)
        if place in here.waiting:
            del here.waiting[place]
            self.waiting -= 1
            if not here.waiting:
                self._few.pop(here, None)
                self._crowds.pop(here, None)

    def _count_out(self, here: Source) -> None:
        self.connections -= 1
        here.connections -= 1
        if not here.connections:
            del self._sources[here.name]
