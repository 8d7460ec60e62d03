"""Which refusals the audit trail has one by one, and which it has added up.

The trail is for ever, and whoever reaches the port can be refused as often as the line carries requests: without a bound
a stranger could fill the database. Promises:

* The refusals of a source are written down one by one, five thousand at once and two a second from then on; those of
  strangers, wherever they are, twenty thousand at once and twenty a second. A stranger is who has not been admitted on this
  connection; a device that has is a source of its own, so that it is never hidden by others at its address.
* No refusal is passed over in silence: what is not written down by itself is counted, by operation, ecosystem and
  reason, and `sum_up` says how many there were.
* Memory is bounded, whatever is asked for.

No I/O, no clock of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from estd.audit import Event
from estd.ra.limits import Rate, Rations, find_network
from estd.wire.exchange import IDENTITY, Peer

_OF_A_SOURCE: Final = Rate(2, burst=5_000)
_OF_STRANGERS: Final = Rate(20, burst=20_000)
_REPORT_EVERY_SECONDS: Final = 10.0


class _Sum(msgspec.Struct):
    """Refusals of one kind since they were last summed up."""

    first: Event
    count: int = 0
    addresses: set[str] = msgspec.field(default_factory=set)
    """Not all of them: enough to tell one from many."""


class Refusals:
    """The refusals of one worker."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Args: a monotonic clock, in seconds."""
        self._clock = clock
        self._sources = Rations()
        self._strangers_due = 0.0
        self._sums: dict[tuple[str, int | None, str | None], _Sum] = {}
        self._said: dict[tuple[str, int | None, str | None], float] = {}

    def is_for_itself(self, event: Event, peer: Peer) -> bool:
        """Whether to write this refusal down; it is counted for `sum_up` otherwise."""
        now = self._clock()
        is_known = IDENTITY in peer.memo
        source = peer.memo[IDENTITY] if is_known else find_network(peer.address)
        if not self._sources.take(_OF_A_SOURCE, source, now):
            if is_known:
                return True
            due = _OF_STRANGERS.decide(self._strangers_due, now)
            if due is not None:
                self._strangers_due = due
                return True
        known = self._sums.setdefault((event.kind, event.ecosystem_id, event.code), _Sum(event))
        known.count += 1
        if len(known.addresses) < _ADDRESSES_COUNTED:
            known.addresses.add(event.address)
        return False

    def sum_up(self, at: datetime, *, is_last: bool = False) -> list[Event]:
        """An event for each kind of refusal that was counted: at once when it begins, every ten seconds while it lasts.

        Args:
            at: the time of the events.
            is_last: nothing will be counted any more; say all there is.
        """
        now = self._clock()
        events = []
        for key, known in list(self._sums.items()):
            if is_last or now - self._said.get(key, -math.inf) >= _REPORT_EVERY_SECONDS:
                del self._sums[key]
                self._said[key] = now
                events.append(_write_sum(known, at))
        return events


# --- private -------------------------------------------------------------------------------------------------------

_ADDRESSES_COUNTED: Final = 100


def _write_sum(known: _Sum, at: datetime) -> Event:
    first, sources = known.first, len(known.addresses)
    where = f"{sources} addresses" if sources < _ADDRESSES_COUNTED else f"{_ADDRESSES_COUNTED} addresses or more"
    if sources == 1:
        where = "one address"
    return Event(
        at=at,
        kind=first.kind,
        outcome=first.outcome,
        # The label of a path that leads nowhere is the caller's own invention, and there may be many.
        ecosystem=first.ecosystem if first.ecosystem_id is not None else None,
        ecosystem_id=first.ecosystem_id,
        code=first.code,
        detail=f"{known.count} more of these, from {where}, are not listed one by one; the first: {first.detail}",
        address=first.address if sources == 1 else "",
        extra={"count": known.count},
    )
