"""How long a certificate lives: what a document says of it, and the two dates that follow.

Both ends of a validity period belong to it (RFC 5280 §4.1.2.5), so a certificate for 90 days ends 90 days less one
second after its notBefore. ``infinite`` is 99991231235959Z, "no well-defined expiration date" (RFC 5280 §4.1.2.5).

Pure: the time is an argument. Must not import anything but the error vocabulary and `estd.ca.document`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from estd.ca.document import INFINITE, Table, read_duration, write_duration
from estd.errors import Code, Unavailable

ALIGNMENTS: Final[tuple[str, ...]] = ("clamp", "issuer", "refuse")
"""A certificate that would outlive its issuer ends with it; every certificate ends with it; or it is refused."""

VALIDITY_REMEDY: Final = 'Write a length such as "90d" or "20y", "until 2050-01-01", or "infinite".'


@dataclass(frozen=True, slots=True)
class Validity:
    """A length of time, or a fixed end; exactly one of them is set."""

    duration: timedelta | None
    until: datetime | None


def read_validity(text: str) -> Validity | None:
    """``90d``, ``until 2050-01-01``, ``until 2050-01-01T12:00:00Z`` or ``infinite``; None when it is none of these."""
    if text == "infinite":
        return Validity(None, INFINITE)
    if text.startswith("until "):
        try:
            until = datetime.fromisoformat(text.removeprefix("until "))
        except ValueError:
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        if until.utcoffset() != timedelta() or until.microsecond or until.year < _FIRST_YEAR:
            return None
        return Validity(None, until.replace(tzinfo=UTC))
    duration = read_duration(text)
    return Validity(duration, None) if duration else None


def read_validity_key(table: Table, default: str) -> Validity:
    """The ``validity`` key of a profile or an issuer."""
    text = table.text("validity", default)
    validity = read_validity(text)
    if validity is None:
        table.complain("validity", f"{text!r} is not a validity", VALIDITY_REMEDY)
        validity = read_validity(default)
        assert validity is not None
    return validity


def write_validity(validity: Validity) -> str:
    """The text that `read_validity` reads as that validity."""
    if validity.duration is not None:
        return write_duration(validity.duration)
    if validity.until == INFINITE:
        return "infinite"
    assert validity.until is not None
    return f"until {validity.until:%Y-%m-%dT%H:%M:%SZ}"


def outlasts(inner: Validity, outer: Validity) -> bool:
    """Whether a certificate of `inner` outlives its issuer of `outer` even if both are made in the same second.

    A length and a fixed end cannot be compared without knowing today, and count as compatible.
    """
    if inner.duration is not None and outer.duration is not None:
        return inner.duration > outer.duration
    if inner.until is not None and outer.until is not None:
        return inner.until > outer.until
    return inner.until == INFINITE


def decide_dates(
    validity: Validity, backdate: timedelta, align: str, now: datetime, issuer_starts: datetime, issuer_ends: datetime
) -> tuple[datetime, datetime]:
    """notBefore and notAfter of a certificate made now, inside its issuer's own period.

    Raises:
        Unavailable: ISSUER_NOT_VALID, before or after the issuer's own period, where it ends too soon for this profile, and
            where the end that the profile sets has passed. Nothing but an operator, or the right time, mends that.
    """
    if now < issuer_starts:
        raise _not_valid(f"the issuer is not valid before {issuer_starts:%Y-%m-%d %H:%M} UTC")
    if now > issuer_ends:
        raise _not_valid(f"the issuer expired on {issuer_ends:%Y-%m-%d %H:%M} UTC")
    not_before = max(now - backdate, issuer_starts)
    if validity.duration is not None:
        # A length beyond year 9999 means the end of time, not an overflow.
        not_after = not_before + min(validity.duration - _SECOND, INFINITE - not_before)
    else:
        assert validity.until is not None
        not_after = validity.until
    if align == "issuer":
        not_after = issuer_ends
    elif not_after > issuer_ends:
        if align == "refuse":
            ends = f"{issuer_ends:%Y-%m-%d %H:%M} UTC"
            raise _not_valid(f"the issuer ends on {ends}, before a certificate of this profile would")
        not_after = issuer_ends
    if not_after <= now:
        raise _not_valid(f"the end that the profile sets, {not_after:%Y-%m-%d %H:%M} UTC, has passed")
    return not_before, not_after


def _not_valid(detail: str) -> Unavailable:
    return Unavailable(Code.ISSUER_NOT_VALID, detail, _RETRY_SECONDS)


_SECOND: Final = timedelta(seconds=1)
# Somebody has to replace the issuer first, or to set the clock right.
_RETRY_SECONDS: Final = 600
# RFC 5280 §4.1.2.5.1: UTCTime starts here, and no certificate of ours ends before.
_FIRST_YEAR: Final = 1950
