"""What an audit finds: which record breaks which invariant, and what could not be checked.

The invariants are numbered as in docs/reliability.md. Pure values; must not do I/O.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final


class Invariant(enum.Enum):
    """What must hold of every system at every moment, after any fault."""

    ON_RECORD = "i"
    """Every certificate that was delivered, or is known, is in the database, and to the byte as the journal has it."""
    INTENDED = "ii"
    """Whatever the journal says was signed has an intent, which says of it what the journal's note says."""
    ONE_CONTENT = "iii"
    """No serial stands for two contents."""
    SETTLED = "iv"
    """An intent without result is closed in time, revocable, and its status is defined."""
    UNBROKEN = "v"
    """Journal and audit trail are as they were written: nothing edited, removed, moved or cut off; and the tables say what
    the trail says."""
    ONCE = "vi"
    """One request key has one standing certificate, and so has a single-use enrollment code."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One record that breaks one invariant."""

    invariant: Invariant
    where: str
    """A file and octet, or a table and its key."""
    what: str
    serial: str | None = None
    """Lower-case hexadecimal."""


@dataclass(slots=True)
class Findings:
    """What an audit came to."""

    breaches: list[Breach] = field(default_factory=list)
    dropped: int = 0
    """Breaches beyond `BREACHES_KEPT`; counted, not kept."""
    notices: list[str] = field(default_factory=list)
    """What could not be checked, or is worth knowing, and breaks nothing."""
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether every invariant holds."""
        return not self.breaches

    def add(self, invariant: Invariant, where: str, what: str, serial: bytes | None = None) -> None:
        """One more breach."""
        if len(self.breaches) < BREACHES_KEPT:
            self.breaches.append(Breach(invariant, where, what, None if serial is None else serial.hex()))
        else:
            self.dropped += 1

    def write(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "clean": self.clean,
            "breaches": [
                {"invariant": one.invariant.value, "where": one.where, "what": one.what, "serial": one.serial}
                for one in self.breaches
            ],
            "breaches_not_listed": self.dropped,
            "notices": self.notices,
            "counts": dict(self.counts),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


BREACHES_KEPT: Final = 10_000
"""So that a database that lost everything does not fill the memory with complaints."""
