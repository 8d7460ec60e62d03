"""The rules in force as commands look at them: what this version cannot read of one ecosystem hides no other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from estd.ca.ecosystem import Ecosystem, load_document
from estd.cli.output import note
from estd.errors import Invalid, Problem
from estd.store.contract import EcosystemRecord

_REMEDY: Final = "If a newer estd wrote it, use that one; otherwise apply it again (estd apply FILE)."


@dataclass(frozen=True, slots=True)
class InForce:
    """The newest version of an ecosystem, and what it says as far as this version of estd can tell."""

    record: EcosystemRecord
    rules: Ecosystem | None
    why: str = ""
    """Why the rules cannot be read; empty where they can."""

    @property
    def state(self) -> str:
        """In a word or two."""
        return "in force" if self.rules is not None else "cannot be read"

    @property
    def told(self) -> str:
        """The same with the reason, for a table."""
        return f"{self.state}: {self.why}" if self.why else self.state

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return {"state": self.state, "why": self.why or None}


def read_rules(record: EcosystemRecord) -> InForce:
    """What this ecosystem's rules are."""
    try:
        return InForce(record, load_document(record.document))
    except Invalid as invalid:
        first = invalid.problems[0]
        return InForce(record, None, f"{first.where.removeprefix('stored document: ')} {first.what}")


def get_rules(record: EcosystemRecord) -> Ecosystem:
    """The rules of this ecosystem.

    Raises:
        Invalid: this version cannot read them.
    """
    found = read_rules(record)
    if found.rules is None:
        what = f"has rules that this version of estd cannot read: version {record.version}, {found.why}"
        raise Invalid([Problem(f"ecosystem {record.label!r}", what, _REMEDY)])
    return found.rules


def note_unread(found: Iterable[InForce]) -> None:
    """Say beside the answer which ecosystems are told of in part only."""
    for one in found:
        if one.rules is None:
            note(f"note: the rules of ecosystem {one.record.label!r} cannot be read: {one.why}. {_REMEDY}")
