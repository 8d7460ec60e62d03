"""Typed tables out of an operator's document, with every problem found at once.

A `Table` hands out values that have the type asked for; what is wrong becomes a `Problem` that says where the value
stands, what is wrong with it and what to write instead, and reading goes on with a harmless stand-in. Keys that nobody
asked for are problems too. `Problems.check` refuses the document when there were any.

Knows nothing about certificates. Must not import anything but the error vocabulary and
`estd.ca.pattern`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from estd.ca.pattern import PATTERN_MAX_CHARACTERS, Pattern
from estd.errors import Invalid, Problem

INFINITE: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280 §4.1.2.5: no well-defined expiration date."""


class Problems:
    """What is wrong with one document so far."""

    def __init__(self, file_name: str) -> None:
        self.file_name = file_name
        self.found: list[Problem] = []

    def add(self, path: str, what: str, remedy: str) -> None:
        """Record one problem at one place."""
        problem = Problem(self.where(path), what, remedy)
        if problem not in self.found:
            self.found.append(problem)

    def where(self, path: str) -> str:
        """A place in this document, as a problem names it."""
        return f"{self.file_name}: {path}" if path else self.file_name

    def check(self) -> None:
        """Raise Invalid when there is any problem."""
        if self.found:
            raise Invalid(self.found)


class Table:
    """One table of a document, read key by key; call `finish` when all keys were asked for."""

    def __init__(self, content: Mapping[str, object], path: str, problems: Problems) -> None:
        self.path = path
        self.problems = problems
        self.content = content
        self._asked: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def at(self, key: str) -> str:
        """Where that key stands in the document."""
        return f"{self.path}.{key}" if self.path else key

    def complain(self, key: str, what: str, remedy: str) -> None:
        """Record a problem with that key."""
        self.problems.add(self.at(key), what, remedy)

    def peek(self, key: str) -> str:
        """The string under that key, or "" where there is none, without asking for it."""
        value = self.content.get(key)
        return value if isinstance(value, str) else ""

    def text(self, key: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
        """A string; required when there is no default; one of `choices` when given. Stand-in: the default or ""."""
        value = self._get(key, str, "a string", required=default is None)
        if not isinstance(value, str):
            return default or ""
        if choices and value not in choices:
            self.complain(key, f"{value!r} is not known here", suggest(value, choices))
            return default or ""
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None when absent."""
        value = self._get(key, str, "a string", required=False)
        return value if isinstance(value, str) else None

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, bool, "true or false", required=False)
        return value if isinstance(value, bool) else default

    def optional_number(self, key: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, or None when absent."""
        value = self._get(key, int, f"a whole number from {low} to {high}", required=False)
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        if not low <= value <= high:
            self.complain(key, f"{value} is out of range", f"Use a whole number from {low} to {high}.")
            return None
        return value

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self.optional_number(key, low, high)
        return default if value is None else value

    def texts(self, key: str, default: Sequence[str] = (), choices: Sequence[str] = ()) -> tuple[str, ...]:
        """A list of different strings, each one of `choices` when given."""
        value = self._get(key, list, "a list of strings", required=False)
        if not isinstance(value, list):
            return tuple(default)
        texts: list[str] = []
        for item in value:
            if not isinstance(item, str):
                self.complain(key, f"holds {item!r}, which is not a string", 'Write it in quotes: ["one", "two"].')
            elif choices and item not in choices:
                self.complain(key, f"{item!r} is not known here", suggest(item, choices))
            elif item in texts:
                self.complain(key, f"names {item!r} twice", "Keep one of them.")
            else:
                texts.append(item)
        return tuple(texts)

    def duration(self, key: str, default: str) -> timedelta:
        """A length of time such as ``90d``."""
        text = self.text(key, default)
        length = read_duration(text)
        if length is None:
            self.complain(key, f"{text!r} is not a length of time", DURATION_REMEDY)
            return read_duration(default) or timedelta()
        return length

    def pattern(self, key: str) -> Pattern | None:
        """A regular expression that a whole value has to match, or None when absent."""
        text = self.optional_text(key)
        if text is None:
            return None
        if len(text) > PATTERN_MAX_CHARACTERS:
            self.complain(key, "is too long for a pattern", f"Use at most {PATTERN_MAX_CHARACTERS} characters.")
            return None
        try:
            return Pattern(text)
        except ValueError as error:
            self.complain(key, f"is not a regular expression that can be used here ({error})", PATTERN_REMEDY)
            return None

    def table(self, key: str) -> Table:
        """A table; an empty one when absent."""
        value = self._get(key, Mapping, f"a table, written as [{self.at(key)}]", required=False)
        return Table(value if isinstance(value, Mapping) else {}, self.at(key), self.problems)

    def tables(self, key: str, name_key: str | None = None) -> list[Table]:
        """A list of tables, each known by the value of its `name_key`, or else by its number counted from 1."""
        value = self._get(key, list, f"a list of tables, each written as [[{self.at(key)}]]", required=False)
        tables: list[Table] = []
        for index, item in enumerate(value if isinstance(value, list) else [], 1):
            if not isinstance(item, Mapping):
                self.complain(key, "holds something that is not a table", f"Write [[{self.at(key)}]] above its keys.")
                continue
            name = item.get(name_key) if name_key is not None else None
            tables.append(Table(item, f"{self.at(key)}[{name if isinstance(name, str) else index}]", self.problems))
        return tables

    def ignore(self, key: str) -> None:
        """Count that key as asked for."""
        self._asked.append(key)

    def take_keys(self) -> tuple[str, ...]:
        """The keys that stand in this table; for tables whose keys are names of the operator's choosing."""
        self._asked.extend(self.content)
        return tuple(self.content)

    def take_tables(self) -> list[tuple[str, Table]]:
        """The tables that stand in this table under names of the operator's choosing."""
        return [(key, self.table(key)) for key in self.take_keys()]

    def finish(self) -> None:
        """Every key that nobody asked for is a problem."""
        for key in self.content:
            if key not in self._asked:
                self.complain(key, "is not a key that belongs here", suggest(key, sorted(self._asked)))

    def _get(self, key: str, kind: type, wanted: str, *, required: bool) -> object:
        self._asked.append(key)
        if key not in self.content:
            if required:
                self.complain(key, "is missing", f"Add it: {wanted}.")
            return None
        value = self.content[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.complain(key, f"is {_describe(value)} and must be {wanted}", "Change its value.")
            return None
        if any("\0" in text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
            self.complain(key, "holds a NUL", "Remove it: no name, pattern or file has one.")
            return None
        return value


PATTERN_REMEDY: Final = (
    "Mend it: there are no backreferences, no look-around and no possessive quantifiers, counts end at 1000, and the end of"
    " the text is \\z (docs/profiles.md, Patterns). Use single quotes in TOML so that backslashes stay as they are."
)

DURATION_REMEDY: Final = "Write a number and a unit, such as 90d; units are s, min, h, d, w and y (365 days)."


def read_duration(text: str) -> timedelta | None:
    """``90d``, ``1h``, ``1d12h``; None when it is no length of time."""
    if not _DURATION.fullmatch(text):
        return None
    seconds = sum(int(count) * _UNITS[unit] for count, unit in _DURATION_PART.findall(text))
    return timedelta(seconds=seconds) if 0 <= seconds <= _LONGEST_SECONDS else None


def write_duration(length: timedelta) -> str:
    """The shortest text that `read_duration` reads as that length."""
    seconds = int(length.total_seconds())
    for unit in ("y", "w", "d", "h", "min"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:s|min|h|d|w|y))+")
_DURATION_PART: Final = re.compile(r"([0-9]{1,9})(s|min|h|d|w|y)")
_LONGEST_SECONDS: Final = 5000 * _UNITS["y"]


def suggest(word: str, known: Iterable[str]) -> str:
    """A remedy for a word that is not known: a did-you-mean, or what is known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, 1, 0.6) or difflib.get_close_matches(
        word.lower(), [name.lower() for name in known], 1, 0.6
    )
    if close:
        return f"Did you mean {next(name for name in known if close[0] in (name, name.lower()))!r}?"
    if len(known) > _LISTED_AT_MOST:
        return f"Known are {', '.join(known[:_LISTED_AT_MOST])} and others; see docs/profiles.md."
    return f"Known here: {', '.join(known)}." if known else "Remove it."


_LISTED_AT_MOST: Final = 24


def _describe(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case Mapping():
            return "a table"
        case _:
            return "a date or a time"
