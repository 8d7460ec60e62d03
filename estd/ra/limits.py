"""How much one ecosystem, one source and everybody together may ask of a worker at once.

Promises:

* It is asked before any cryptography is spent on a request, and costs a request a few microseconds.
* No ecosystem's storm starves its neighbour: an ecosystem may hold as many requests as there is room *left over*. One
  alone can fill half of a worker, two can fill a third each, and there is always room for a newcomer.
* What an ecosystem's document says under ``limits`` is kept (GCRA: an even rate with a burst of one second's worth),
  divided by the number of workers, which share the load.
* Whoever is turned away is told when to come back: turned away together, they are sent for one after the other, as fast
  as they can be served, each with some jitter (RFC 9110 §10.2.3). A source over its own limit gets 429 (RFC 6585 §4);
  who meets a limit that others used up gets 503 (RFC 9110 §15.6.4).
* A storm makes no storm of audit events: `take_reports` adds up what happened to one ecosystem by one limit.

No I/O, no clock of its own.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from estd.errors import Code, Unavailable
from estd.ra.directory import LiveEcosystem
from estd.wire.exchange import Peer

IN_HAND_AT_MOST: Final = 3000
"""Requests of one worker that have a head and no answer. All further queues hold parts of these."""
_LONGEST_WAIT_SECONDS: Final = 300.0
_SOONEST_SECONDS: Final = 1.0
_SOURCES_REMEMBERED: Final = 10_000
_REPORT_EVERY_SECONDS: Final = 10.0
_SLOWEST_PACE: Final = 1.0
"""Requests a second an ecosystem is assumed to be served at when nothing is known."""


class Limit(enum.StrEnum):
    """Which limit turned a request away. Stable: metrics, logs and audit events carry it."""

    SOURCE_RATE = "source-rate"
    IDENTITY_RATE = "identity-rate"
    ECOSYSTEM_RATE = "ecosystem-rate"
    ECOSYSTEM_IN_FLIGHT = "ecosystem-in-flight"
    FAIR_SHARE = "fair-share"
    QUEUE = "issuance-queue"
    DEADLINE = "waited-too-long"

    @property
    def code(self) -> Code:
        """What the client is told: too often, or too much at once."""
        return Code.RATE_LIMITED if self in (Limit.SOURCE_RATE, Limit.IDENTITY_RATE) else Code.OVERLOADED


class TurnedAway(Unavailable):
    """A limit was met. Counted and reported together with others, not recorded one by one."""

    def __init__(self, limit: Limit, detail: str, retry_after_seconds: int) -> None:
        super().__init__(limit.code, detail, retry_after_seconds)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Report:
    """How often one limit turned requests of one ecosystem away since the last report about it."""

    ecosystem_id: int
    ecosystem: str
    limit: Limit
    count: int
    remedy: str


class Share:
    """What one ecosystem uses of a worker; `leave` gives one request's part back."""

    __slots__ = (
        "_due",
        "_ecosystem",
        "_finished",
        "_identities",
        "_in_flight",
        "_next",
        "_of_all",
        "_pace",
        "_pace_since",
        "_rate",
        "_source_rate",
        "_sources",
        "in_hand",
        "version",
    )

    def __init__(self, of_all: Quotas, ecosystem: LiveEcosystem) -> None:
        self._of_all = of_all
        self.in_hand = 0
        self._due = 0.0
        self._next = 0.0
        self._finished = 0
        self._pace = _SLOWEST_PACE
        self._pace_since = 0.0
        self._sources = Rations()
        self._identities = Rations()
        self.take_over(ecosystem)

    def take_over(self, ecosystem: LiveEcosystem) -> None:
        """Keep the limits of this version from now on."""
        limits, workers = ecosystem.rules.limits, self._of_all.workers
        self.version = ecosystem.version
        self._ecosystem = ecosystem
        self._rate = _read_rate(limits.requests_per_second, workers)
        self._source_rate = _read_rate(limits.requests_per_second_per_source, workers)
        self._in_flight = math.inf if limits.in_flight is None else max(1, math.ceil(limits.in_flight / workers))

    def enter(self, peer: Peer, now: float) -> None:
        """Count one request in.

        Raises:
            TurnedAway: it would break a limit.
        """
        quotas = self._of_all
        if self.in_hand >= quotas.room - quotas.in_hand:
            raise self._turn_away(Limit.FAIR_SHARE, now)
        if self.in_hand >= self._in_flight:
            raise self._turn_away(Limit.ECOSYSTEM_IN_FLIGHT, now)
        if self._source_rate is not None:
            self._count_source(self._source_rate, peer, now)
        if self._rate is not None:
            due = self._rate.decide(self._due, now)
            if due is None:
                raise self._turn_away(Limit.ECOSYSTEM_RATE, now)
            self._due = due
        self.in_hand += 1
        quotas.in_hand += 1

    def leave(self) -> None:
        """One request has its answer."""
        self.in_hand -= 1
        self._finished += 1
        self._of_all.in_hand -= 1

    def turn_away(self, limit: Limit) -> TurnedAway:
        """What to raise where a limit was met further on the road."""
        return self._turn_away(limit, self._of_all.clock())

    def _turn_away(self, limit: Limit, now: float) -> TurnedAway:
        self._of_all.count(self._ecosystem, limit)
        if limit is Limit.ECOSYSTEM_RATE and self._rate is not None:
            interval = self._rate.interval
        else:
            interval = 1 / self._measure_pace(now)
        # An appointment for each: they come back as fast as they can be served, and not all at once.
        self._next = min(max(self._next, now + _SOONEST_SECONDS) + interval, now + _LONGEST_WAIT_SECONDS)
        return TurnedAway(limit, _DETAILS[limit], add_jitter(self._next - now))

    def _count_source(self, rate: Rate, peer: Peer, now: float) -> None:
        self._take(Limit.SOURCE_RATE, self._sources, find_network(peer.address), rate, now)
        if peer.certificates:
            # Python's hash of bytes is keyed by a secret of the process, so no two certificates can be made to meet.
            self._take(Limit.IDENTITY_RATE, self._identities, hash(peer.certificates[0]), rate, now)

    def _take(self, limit: Limit, known: Rations, key: object, rate: Rate, now: float) -> None:
        wait = known.take(rate, key, now)
        if wait:
            self._of_all.count(self._ecosystem, limit)
            raise TurnedAway(limit, _DETAILS[limit], add_jitter(wait))

    def _measure_pace(self, now: float) -> float:
        """Requests a second that were answered lately."""
        passed = now - self._pace_since
        if passed >= 1.0:
            self._pace = max(_SLOWEST_PACE, self._finished / passed)
            self._pace_since, self._finished = now, 0
        return self._pace


class Quotas:
    """The limits of one worker."""

    def __init__(
        self,
        clock: Callable[[], float],
        observe: Callable[[str, str], None],
        workers: int = 1,
        room: int = IN_HAND_AT_MOST,
    ) -> None:
        """Args: a monotonic clock; who counts (ecosystem's label, `Limit`); among how many workers limits are divided."""
        self.workers = workers
        self.room = room
        self.in_hand = 0
        self.clock = clock
        self._observe = observe
        self._shares: dict[int, Share] = {}
        self._counts: dict[tuple[int, Limit], tuple[str, int]] = {}
        self._reported: dict[tuple[int, Limit], float] = {}

    def enter(self, ecosystem: LiveEcosystem, peer: Peer) -> Share:
        """Count one request in; whoever gets a `Share` calls its `leave` once.

        Raises:
            TurnedAway: it would break a limit.
        """
        share = self._shares.get(ecosystem.ecosystem_id)
        if share is None:
            share = self._shares[ecosystem.ecosystem_id] = Share(self, ecosystem)
        elif share.version != ecosystem.version:
            share.take_over(ecosystem)
        share.enter(peer, self.clock())
        return share

    def count(self, ecosystem: LiveEcosystem, limit: Limit) -> None:
        """Note that a request was turned away."""
        self._observe(ecosystem.label, limit)
        key = (ecosystem.ecosystem_id, limit)
        self._counts[key] = (ecosystem.label, self._counts.get(key, ("", 0))[1] + 1)

    def take_reports(self) -> list[Report]:
        """What there is to say: at once when it begins, every ten seconds while it lasts."""
        now = self.clock()
        reports = []
        for key, (label, count) in list(self._counts.items()):
            if now - self._reported.get(key, -math.inf) < _REPORT_EVERY_SECONDS:
                continue
            del self._counts[key]
            self._reported[key] = now
            reports.append(Report(key[0], label, key[1], count, _REMEDIES[key[1]]))
        return reports


class Rate:
    """GCRA: one each `interval`, and `burst` of them at once; without it a second's worth."""

    __slots__ = ("interval", "tolerance")

    def __init__(self, per_second: float, burst: float | None = None) -> None:
        self.interval = 1 / per_second
        at_once = per_second if burst is None else burst
        # A hundredth of an interval more: sums of floats may come out a little late.
        self.tolerance = (max(0.0, at_once - 1) + 0.01) * self.interval

    def decide(self, due: float, now: float) -> float | None:
        """When the next request is due if one that is due at `due` comes now; None if it comes too early."""
        if due <= now:
            return now + self.interval
        if due - now > self.tolerance:
            return None
        return due + self.interval


class Rations:
    """What each of many sources has used of a rate. Bounded: it forgets the source that was silent longest."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: OrderedDict[object, float] = OrderedDict()

    def __len__(self) -> int:
        """How many sources it remembers."""
        return len(self._due)

    def take(self, rate: Rate, source: object, now: float) -> float:
        """Count one in and answer 0; or, if it comes too early, the seconds until it would not."""
        before = self._due.pop(source, 0.0)
        due = rate.decide(before, now)
        self._due[source] = before if due is None else due
        if len(self._due) > _SOURCES_REMEMBERED:
            self._due.popitem(last=False)
        return before - rate.tolerance - now if due is None else 0.0


def add_jitter(seconds: float) -> int:
    """Whole seconds for Retry-After: no less than that, and up to a quarter more, so that a crowd does not stay one."""
    least = max(1, math.ceil(seconds))
    return least + secrets.randbelow(least // 4 + 2)


def find_network(address: str) -> object:
    """What an address counts under: itself, or for IPv6 the /64 that one subscriber holds."""
    if ":" not in address:
        return address
    try:
        return ipaddress.IPv6Address(address.partition("%")[0]).packed[:8]
    except ValueError:
        return address


# --- private -------------------------------------------------------------------------------------------------------


def _read_rate(per_second: int | None, workers: int) -> Rate | None:
    return None if per_second is None else Rate(per_second / workers)


_DETAILS: Final = {
    Limit.SOURCE_RATE: "this address asks more often than its ecosystem allows one source",
    Limit.IDENTITY_RATE: "this device asks more often than its ecosystem allows one source",
    Limit.ECOSYSTEM_RATE: "this ecosystem's devices ask more often than it allows them together",
    Limit.ECOSYSTEM_IN_FLIGHT: "as many requests of this ecosystem are being worked on as it allows",
    Limit.FAIR_SHARE: "this ecosystem has as many requests waiting as leave room for others",
    Limit.QUEUE: "too many requests are waiting",
    Limit.DEADLINE: "this took too long; send the same request again",
}
_REMEDIES: Final = {
    Limit.SOURCE_RATE: "find the source in a capture; raise limits.requests_per_second_per_source if it is a site's gateway",
    Limit.IDENTITY_RATE: "a device repeats itself: look at its firmware, or revoke its certificate",
    Limit.ECOSYSTEM_RATE: "devices come back when told to; raise limits.requests_per_second if this is normal",
    Limit.ECOSYSTEM_IN_FLIGHT: "devices come back when told to; raise limits.in_flight if this is normal",
    Limit.FAIR_SHARE: "devices come back when told to; if it lasts, the server is too small for this fleet",
    Limit.QUEUE: "devices come back when told to; if it lasts, look at database, journal disk and signers",
    Limit.DEADLINE: "look at the database, the journal's disk and the signers",
}
