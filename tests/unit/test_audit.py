"""An event as one line; how it is stored and bound is in tests/contracts/test_store.py and tests/unit/auditor."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from estd.audit import Event, write_event

AT = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
WHOLE = Event(
    at=AT,
    kind="est.simpleenroll",
    outcome="refused",
    ecosystem="campus",
    ecosystem_id=3,
    code="key-weak",
    detail="the modulus has 1024 bits",
    identity="x509:00ff",
    address="192.0.2.7",
    request_id="r-1",
    issuer_id=7,
    serial="0a",
    extra={"key": "rsa-1024", "count": 2},
)


def test_an_event_is_written_with_everything_that_it_says() -> None:
    assert write_event(WHOLE) == {
        "at": "2031-05-06T07:08:09+00:00",
        "kind": "est.simpleenroll",
        "outcome": "refused",
        "ecosystem": "campus",
        "code": "key-weak",
        "detail": "the modulus has 1024 bits",
        "identity": "x509:00ff",
        "address": "192.0.2.7",
        "request_id": "r-1",
        "issuer_id": 7,
        "serial": "0a",
        "key": "rsa-1024",
        "count": 2,
    }
    assert json.loads(json.dumps(write_event(WHOLE))) == write_event(WHOLE)


def test_what_is_empty_is_left_out_and_nothing_else() -> None:
    assert write_event(Event(AT, "server.start", "granted")) == {
        "at": "2031-05-06T07:08:09+00:00",
        "kind": "server.start",
        "outcome": "granted",
    }
    written = write_event(
        Event(AT, "k", "granted", issuer_id=0, extra={"count": 0, "late": False, "why": "", "n": None})
    )
    assert {name: written[name] for name in written if name not in ("at", "kind", "outcome")} == {
        "issuer_id": 0,
        "count": 0,
        "late": False,
    }


def test_a_time_says_where_it_is_from() -> None:
    east = AT.astimezone(timezone(timedelta(hours=2)))
    assert write_event(Event(east, "k", "granted"))["at"] == "2031-05-06T09:08:09+02:00"


def test_what_is_added_never_takes_the_place_of_what_was_decided() -> None:
    extra = {"outcome": "granted", "kind": "est.cacerts", "code": "", "serial": "ff", "at": "never", "key": "ec-p256"}
    assert write_event(msgspec.structs.replace(WHOLE, extra=extra)) == {
        **{name: value for name, value in write_event(WHOLE).items() if name not in WHOLE.extra},
        "key": "ec-p256",
    }


def test_an_event_stays_what_it_was() -> None:
    with pytest.raises(AttributeError):
        WHOLE.outcome = "granted"  # type: ignore[misc]  # that is the point
    first, second = Event(AT, "k", "granted"), Event(AT, "k", "granted")
    assert first == second
    assert first.extra is not second.extra
