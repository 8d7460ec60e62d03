"""The linter's own walk through DER, against the other one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from estd.asn1 import der
from estd.ca.lint.walk import Malformed, check_nested, dotted, element, only, read_time
from estd.errors import Refused


@given(octets=some.binary(max_size=12))
def test_two_walks_agree_on_every_header(octets: bytes) -> None:
    try:
        ours: tuple[int, int, int] | None = element(octets, 0, len(octets))
    except Malformed:
        ours = None
    try:
        theirs: tuple[int, int, int] | None = der.read_tlv(octets, 0, len(octets))
    except Refused:
        theirs = None
    if theirs is not None:
        assert ours == theirs
    elif ours is not None:
        # The other walk also refuses identifier octets that no certificate holds.
        assert ours[0] == 0 or ours[0] & 0x1F == 0x1F


@given(arcs=some.lists(some.integers(0, 2**70), min_size=1, max_size=8), root=some.integers(0, 2))
def test_two_readers_agree_on_identifiers(arcs: list[int], root: int) -> None:
    first = [arcs[0] % 40, *arcs[1:]] if root < 2 else arcs
    text = ".".join(map(str, (root, *first)))
    assert dotted(der.oid_contents(text)) == text


@pytest.mark.parametrize("contents", [b"", b"\x80", b"\x80\x01", b"\x2a\x80\x01", b"\x2a\x81"])
def test_what_is_no_identifier(contents: bytes) -> None:
    with pytest.raises(Malformed):
        dotted(contents)


def test_lengths_of_each_form() -> None:
    for size in (0, 1, 127, 128, 255, 256, 65_535):
        octets = der.tlv(0x30, bytes(size))
        assert only(octets, 0x30) == (len(octets) - size, len(octets))
    for octets in (b"\x30\x80\0\0", b"\x30\x81\x7f" + bytes(127), b"\x30\x82\0\xff" + bytes(255), b"\x30\x83\x01\0\0"):
        with pytest.raises(Malformed):
            only(octets, 0x30)


@pytest.mark.parametrize(
    ("tag", "text", "at"),
    [
        (0x17, b"491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (0x17, b"500101000000Z", datetime(1950, 1, 1, tzinfo=UTC)),
        (0x18, b"20500101000000Z", datetime(2050, 1, 1, tzinfo=UTC)),
        (0x18, b"99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times(tag: int, text: bytes, at: datetime) -> None:
    assert read_time(tag, text) == (at, None)


def test_a_time_of_the_wrong_kind_is_still_read() -> None:
    assert read_time(0x18, b"20491231235959Z")[1] == "rfc5280.4.1.2.5.time_choice"


@pytest.mark.parametrize("depth", [15, 17])
def test_nesting_has_an_end(depth: int) -> None:
    value = der.NULL
    for _ in range(depth):
        value = der.sequence(value)
    if depth < 16:
        check_nested(value)
    else:
        with pytest.raises(Malformed):
            check_nested(value)
