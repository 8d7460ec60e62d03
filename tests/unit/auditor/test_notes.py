from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from factory import make_maker

from estd.auditor.certificates import Content, read_content
from estd.auditor.findings import Invariant
from estd.auditor.notes import compare_content, compare_note, compare_times, read_note
from estd.ra.notes import write_note

AT = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)
NOTE = read_note(write_note(1, 2, 3, "pump", "simpleenroll", "code:7", "pump-7", b"csr", 7))
ROW: dict[str, Any] = {
    "ecosystem_id": 1, "ecosystem_version": 2, "node_id": 3, "profile": "pump", "operation": "simpleenroll",
    "identity": "code:7", "device": "pump-7", "csr_sha256": b"csr", "code_id": 7, "held_code_id": 7, "code_holder": b"\x01",
    "closed": None, "request_key": bytes(32), "der": b"", "not_before": AT, "not_after": AT, "spki_sha256": b"key",
}  # fmt: skip


def test_a_note_is_read_as_the_registration_authority_writes_it() -> None:
    assert NOTE is not None
    assert list(compare_note(NOTE, ROW)) == []
    assert read_note(b"") is None
    assert read_note(b"\x93\x01\x02\x03") is None


@pytest.mark.parametrize(
    "column", ["ecosystem_id", "ecosystem_version", "node_id", "profile", "identity", "csr_sha256"]
)
def test_each_column_of_a_note_is_compared(column: str) -> None:
    assert NOTE is not None
    value: Any = {int: 9, str: "other", bytes: b"other"}[type(ROW[column])]
    ((invariant, what),) = compare_note(NOTE, ROW | {column: value})
    assert invariant is Invariant.INTENDED
    assert what.startswith(f"{column} is ")


def test_a_name_that_was_cut_in_the_note_is_compared_as_far_as_it_goes() -> None:
    note = read_note(write_note(1, 2, 3, "pump", "simpleenroll", "i" * 600, "pump-7", b"csr", 7))
    assert note is not None
    assert list(compare_note(note, ROW | {"identity": "i" * 600})) == []
    assert list(compare_note(note, ROW | {"identity": "i" * 500})) == []  # as a reconciliation restores it
    assert list(compare_note(note, ROW | {"identity": "i" * 499})) != []


@pytest.mark.parametrize(
    ("state", "faults"),
    [
        ({"code_holder": None}, 1),  # good again
        ({"code_id": None, "held_code_id": None, "code_holder": None}, 2),
        ({"code_id": None, "held_code_id": None}, 0),  # left to another, which holds it
        ({"held_code_id": None}, 0),  # shared with an earlier intent of the same request
        ({"code_id": 8}, 1),
        ({"code_id": None, "held_code_id": None, "code_holder": None, "closed": "void"}, 0),
    ],
)
def test_a_code_that_was_spent_stays_spent(state: dict[str, Any], faults: int) -> None:
    assert NOTE is not None
    found = list(compare_note(NOTE, ROW | state))
    assert [invariant for invariant, _ in found] == [Invariant.ONCE] * faults


def test_the_bytes_say_serial_dates_and_key() -> None:
    maker = make_maker().certificate
    content = read_content(maker.tbs_certificate_bytes)
    assert content is not None
    assert int.from_bytes(content.serial, "big") == maker.serial_number
    assert (content.not_before, content.not_after) == (maker.not_valid_before_utc, maker.not_valid_after_utc)
    row = ROW | {
        "not_before": content.not_before, "not_after": content.not_after, "spki_sha256": content.spki_sha256,
    }  # fmt: skip
    assert list(compare_content(content, content.serial, row)) == []
    differing = Content(b"\x01", AT, AT, hashlib.sha256(b"").digest())
    found = [invariant for invariant, _ in compare_content(differing, content.serial, row)]
    assert found == [Invariant.ONE_CONTENT, Invariant.INTENDED, Invariant.ON_RECORD, Invariant.ON_RECORD]


@pytest.mark.parametrize(
    "octets", [b"", b"\x30\x00", b"\x30\x03\x02\x01\x01", b"\x31\x00", b"\x30\x05\xa0\x03\x02\x01"]
)
def test_what_is_no_certificate_is_none(octets: bytes) -> None:
    assert read_content(octets) is None


def test_an_intent_is_of_the_time_between_its_mark_and_its_entry() -> None:
    seconds, day = int(AT.timestamp()), 86_400
    assert list(compare_times(AT, seconds, seconds - 10)) == []
    assert list(compare_times(AT, seconds + 10 * day, seconds)) == []  # the clock was turned in between
    assert list(compare_times(AT, seconds, None)) == []
    assert len(list(compare_times(AT - timedelta(days=1), seconds, seconds - 10))) == 1
    assert len(list(compare_times(AT + timedelta(days=1), seconds, None))) == 1
