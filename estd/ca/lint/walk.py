"""The linter's own walk through DER: elements, object identifiers, times (X.690 §8, §10; RFC 5280 §4.1.2.5).

Shares nothing with `estd.asn1.der`, so that a mistake in one of them shows in the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final


class Malformed(Exception):
    """Not DER, or not of the shape it must have."""


def element(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Identifier octet, start and end of the contents of the element at `at`."""
    start = at + 2
    if start > end:
        raise Malformed
    length = data[at + 1]
    if length >= 0x80:
        if length == 0x81:
            start += 1
            length = data[at + 2] if start <= end else 0
            if length < 0x80:
                raise Malformed
        elif length == 0x82:
            start += 2
            length = data[at + 2] << 8 | data[at + 3] if start <= end else 0
            if length < 0x100:
                raise Malformed
        else:
            raise Malformed
    stop = start + length
    if stop > end:
        raise Malformed
    return data[at], start, stop


def expect(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Contents of the element at `at`, which must have that identifier octet."""
    start = at + 2
    if start > end or data[at] != tag:
        raise Malformed
    if data[at + 1] >= 0x80:
        _, start, stop = element(data, at, end)
        return start, stop
    stop = start + data[at + 1]
    if stop > end:
        raise Malformed
    return start, stop


def only(data: bytes, tag: int) -> tuple[int, int]:
    """The contents of the one element that `data` is."""
    found, start, stop = element(data, 0, len(data))
    if found != tag or stop != len(data):
        raise Malformed
    return start, stop


def members(data: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Identifier octet and contents of each element in a range."""
    while start < stop:
        tag, inner, after = element(data, start, stop)
        yield tag, data[inner:after]
        start = after


def check_nested(value: bytes, depth: int = 16) -> None:
    """One element, and elements all the way down where it is constructed."""
    tag, start, stop = element(value, 0, len(value))
    if stop != len(value) or depth == 0:
        raise Malformed
    if tag & 0x20:
        while start < stop:
            _, _, after = element(value, start, stop)
            check_nested(value[start:after], depth - 1)
            start = after


def is_padded(number: bytes) -> bool:
    """Whether an INTEGER's contents are empty or longer than they need be (X.690 §8.3)."""
    return not number or (len(number) > 1 and number[0] == 0 and number[1] < 0x80)


def is_oid(contents: bytes) -> bool:
    """Whether these are the contents of an OBJECT IDENTIFIER (X.690 §8.19)."""
    return _OID.fullmatch(contents) is not None


def dotted(contents: bytes) -> str:
    """An OBJECT IDENTIFIER in numbers (X.690 §8.19)."""
    if not is_oid(contents):
        raise Malformed
    arcs = [0]
    for octet in contents:
        arcs[-1] = arcs[-1] << 7 | octet & 0x7F
        if octet < 0x80:
            arcs.append(0)
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:-1])))


_OID: Final = re.compile(rb"(?:[\x81-\xff][\x80-\xff]*[\x00-\x7f]|[\x00-\x7f])+", re.DOTALL)


def read_time(tag: int, contents: bytes) -> tuple[datetime | None, str | None]:
    """The time, and what is wrong with how it is written (RFC 5280 §4.1.2.5)."""
    try:
        if _TIME.fullmatch(contents) is None or len(contents) != {0x17: 13, 0x18: 15}.get(tag):
            return None, "rfc5280.4.1.2.5.time_malformed"
        year = int(contents[:-11])
        if tag == 0x17:
            # RFC 5280 §4.1.2.5.1: 50 to 99 are of the 20th century.
            year += 2000 if year < 50 else 1900
        parts = [int(contents[at : at + 2]) for at in range(len(contents) - 11, len(contents) - 1, 2)]
        at = datetime(year, parts[0], parts[1], parts[2], parts[3], parts[4], tzinfo=UTC)
    except ValueError:
        return None, "rfc5280.4.1.2.5.time_malformed"
    return at, "rfc5280.4.1.2.5.time_choice" if tag == 0x18 and year < 2050 else None


_TIME: Final = re.compile(rb"[0-9]{12,14}Z")
