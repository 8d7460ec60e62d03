"""An operator's regular expression, held against what a device sent: in time that grows with the length, and no faster.

Python's own `re` tries one way after the other, so that a pattern such as ``^(a+)+$`` makes forty characters cost years, and
whoever may name a device could stop every signer with them. RE2 follows all ways at once; it has no backreferences and no
look-around, which cannot be matched so, and a pattern with them is refused. The one module that knows RE2.

Must not import anything of the floors above.
"""

from __future__ import annotations

import re
from typing import Final

import re2

PATTERN_MAX_CHARACTERS: Final = 500
"""The longest regular expression a document may hold."""

VALUE_MAX_CHARACTERS: Final = 1024
"""The longest value that matches any pattern."""


class Pattern:
    """A regular expression that a whole value has to match; equal to another one with the same text.

    Raises:
        ValueError: it is none that can be matched in linear time and within bounds; says why.
    """

    __slots__ = ("_compiled", "text")

    def __init__(self, text: str) -> None:
        if len(text) > PATTERN_MAX_CHARACTERS:
            raise ValueError(f"it has more than {PATTERN_MAX_CHARACTERS} characters")
        if (open_ended := _NO_LEAST.search(text)) is not None:
            # RE2 would take it for these very characters, and a profile that worked would refuse everybody.
            raise ValueError(f"{open_ended[0]} does not say how often at least; write {{0,{open_ended[1]}}}")
        self.text = text
        try:
            self._compiled = re2.compile(text, _write_options())
        except UnicodeEncodeError:
            raise ValueError("it holds a character that cannot be written in UTF-8") from None
        except re2.error as error:
            raise ValueError(_explain(error)) from None

    def matches(self, value: str) -> bool:
        """Whether the whole value is of that form."""
        if len(value) > VALUE_MAX_CHARACTERS:
            return False
        try:
            return self._compiled.fullmatch(value) is not None
        except UnicodeEncodeError:
            return False  # half a surrogate pair, which no pattern can mean

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


# --- private ---------------------------------------------------------------------------------------------------------

_MEMORY_MAX_BYTES: Final = 1024 * 1024
"""What one pattern may take, compiled and in use. It bounds the time as well: the dearest that was found to fit compiles in
4 ms and takes 10 ms for the longest value."""
_NO_LEAST: Final = re.compile(r"\{,([0-9]+)\}")


def _write_options() -> re2.Options:
    options = re2.Options()
    options.max_mem = _MEMORY_MAX_BYTES
    options.never_capture = True  # whether it matches is all that is asked
    options.log_errors = False  # they are told to whoever wrote the pattern
    return options


def _explain(error: re2.error) -> str:
    said = error.args[0] if error.args else "no reason given"
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
