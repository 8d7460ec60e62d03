"""Validity: texts, and the two dates to the second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from estd.ca.document import INFINITE
from estd.ca.validity import ALIGNMENTS, Validity, decide_dates, outlasts, read_validity, write_validity
from estd.errors import Code, Unavailable

HOUR = timedelta(hours=1)
STARTS = datetime(2030, 1, 1, tzinfo=UTC)
ENDS = datetime(2040, 1, 1, tzinfo=UTC)
NOW = datetime(2031, 5, 17, 12, 30, 0, tzinfo=UTC)


def valid(text: str) -> Validity:
    validity = read_validity(text)
    assert validity is not None
    return validity


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("90d", "90d"),
        ("365d", "1y"),
        ("until 2050-01-01", "until 2050-01-01T00:00:00Z"),
        ("until 2050-01-01T12:00:00Z", "until 2050-01-01T12:00:00Z"),
        ("infinite", "infinite"),
    ],
)
def test_texts_are_read_and_written(text: str, written: str) -> None:
    assert write_validity(valid(text)) == written
    assert valid(written) == valid(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0s",
        "forever",
        "until",
        "until soon",
        "until 2050-13-01",
        "until 2050-01-01T00:00:00+02:00",
        "until 1900-01-01",
    ],
)
def test_what_is_no_validity(text: str) -> None:
    assert read_validity(text) is None


def test_both_ends_count() -> None:
    # RFC 5280 §4.1.2.5: 90 days end one second before the same time of day.
    not_before, not_after = decide_dates(valid("90d"), HOUR, "clamp", NOW, STARTS, ENDS)
    assert not_before == NOW - HOUR
    assert not_after == not_before + timedelta(days=90) - timedelta(seconds=1)


def test_a_fixed_end_is_that_very_second() -> None:
    assert decide_dates(valid("until 2035-06-01"), HOUR, "clamp", NOW, STARTS, ENDS)[1] == datetime(
        2035, 6, 1, tzinfo=UTC
    )
    assert decide_dates(valid("infinite"), HOUR, "clamp", NOW, STARTS, INFINITE)[1] == INFINITE


def test_a_certificate_stays_inside_its_issuers_life() -> None:
    assert decide_dates(valid("1y"), HOUR, "clamp", STARTS, STARTS, ENDS)[0] == STARTS
    assert decide_dates(valid("20y"), HOUR, "clamp", NOW, STARTS, ENDS)[1] == ENDS
    assert decide_dates(valid("1d"), HOUR, "issuer", NOW, STARTS, ENDS)[1] == ENDS
    with pytest.raises(Unavailable, match="the issuer ends on 2040-01-01 00:00 UTC, before a certificate") as caught:
        decide_dates(valid("20y"), HOUR, "refuse", NOW, STARTS, ENDS)
    assert caught.value.code is Code.ISSUER_NOT_VALID


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize(
    ("now", "why"),
    [
        (STARTS - timedelta(seconds=1), "the issuer is not valid before 2030-01-01 00:00 UTC"),
        (ENDS + timedelta(seconds=1), "the issuer expired on 2040-01-01 00:00 UTC"),
    ],
)
def test_an_issuer_out_of_its_time_issues_nothing(now: datetime, why: str, align: str) -> None:
    with pytest.raises(Unavailable, match=why) as caught:
        decide_dates(valid("1d"), timedelta(), align, now, STARTS, ENDS)
    # No request mends that: who asked is not to come back in a second.
    assert (caught.value.code, caught.value.retry_after_seconds) == (Code.ISSUER_NOT_VALID, 600)


def test_a_fixed_end_that_has_passed_is_not_issued() -> None:
    with pytest.raises(Unavailable, match="the end that the profile sets, 2031-01-01 00:00 UTC, has passed") as caught:
        decide_dates(valid("until 2031-01-01"), HOUR, "clamp", NOW, STARTS, ENDS)
    assert caught.value.code is Code.ISSUER_NOT_VALID


def test_the_end_of_time_does_not_overflow() -> None:
    assert (
        decide_dates(valid("5000y"), HOUR, "clamp", NOW + timedelta(days=365 * 4000), STARTS, INFINITE)[1] == INFINITE
    )


@pytest.mark.parametrize(
    ("inner", "outer", "longer"),
    [
        ("1y", "10y", False),
        ("10y", "10y", False),
        ("11y", "10y", True),
        ("infinite", "10y", True),
        ("infinite", "infinite", False),
        ("until 2050-01-01", "until 2049-01-01", True),
        ("until 2050-01-01", "10y", False),
        ("1y", "until 2049-01-01", False),
    ],
)
def test_what_outlasts_what(inner: str, outer: str, longer: bool) -> None:
    assert outlasts(valid(inner), valid(outer)) is longer


@settings(max_examples=200, deadline=None)
@given(
    duration=some.integers(2, 10**9),
    backdate=some.integers(0, 10**6),
    offset=some.integers(0, 3 * 10**8),
    align=some.sampled_from(["clamp", "issuer", "refuse"]),
)
def test_never_longer_than_said_and_never_outside(duration: int, backdate: int, offset: int, align: str) -> None:
    now = STARTS + timedelta(seconds=offset)
    validity = Validity(timedelta(seconds=duration), None)
    try:
        not_before, not_after = decide_dates(validity, timedelta(seconds=backdate), align, now, STARTS, ENDS)
    except Unavailable:
        return
    assert STARTS <= not_before <= now < not_after <= ENDS
    if align != "issuer":
        assert not_after - not_before + timedelta(seconds=1) <= timedelta(seconds=duration)
