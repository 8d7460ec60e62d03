"""Values become columns and rows become values again."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from store_values import T0, make_code, make_device, make_event, make_intent, make_issued, make_new_issuer

from estd.store import rows
from estd.store.contract import Device, EcosystemRecord, IssuerRecord


def test_a_batch_of_intents_becomes_one_array_of_rows() -> None:
    intents = [make_intent(code_id=7), make_intent()]
    [written] = rows.write_intents(intents)
    assert [len(row) for row in written] == [16] * 2
    assert [row[0] for row in written] == [intent.request_key for intent in intents]
    assert [row[14] for row in written] == [7, None]
    assert [row[15] for row in written] == [T0.timestamp()] * 2


@pytest.mark.parametrize(
    "at",
    [
        datetime(1950, 1, 1, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2030, 1, 1, 2, 0, 0, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_times_are_exact_to_the_second(at: datetime) -> None:
    [[row]] = rows.write_issued([make_issued(make_intent(), not_after=at)])
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=row[4]) == at


def test_an_issuance_carries_its_event() -> None:
    issued = [make_issued(make_intent()), make_issued(make_intent(), event=make_event(extra={}))]
    [written] = rows.write_issued(issued)
    assert [len(row) for row in written] == [17] * 2
    assert [row[7] for row in written] == ["est.simpleenroll", "est.cacerts"]
    assert [row[16] for row in written] == ['{"key":"P-256"}', None]


def test_the_last_row_of_a_device_counts() -> None:
    first, last = make_device(1, device="pump"), make_device(1, device="pump", san=("dns:b.example",))
    other = make_device(2, device="pump", subject=None, san=())
    assert rows.write_devices([first, other, last]) == [
        (1, 2),
        ("pump", "pump"),
        ("CN=sensor", None),
        ('["dns:b.example"]', "[]"),
    ]


def test_rows_become_values_again() -> None:
    intent, event, code = make_intent(code_id=7), make_event(), make_code(1, code_id=9)
    assert rows.read_intent(msgspec.structs.asdict(intent)) == intent
    assert rows.read_event({**msgspec.structs.asdict(event), "extra": json.dumps(event.extra)}) == event
    assert rows.read_event({**msgspec.structs.asdict(event), "extra": None}) == msgspec.structs.replace(event, extra={})
    assert rows.read_code(dataclasses.asdict(code)) == code
    device = {"ecosystem_id": 1, "device": "pump", "subject": None, "san": ["dns:a"]}
    assert rows.read_device(device) == Device(1, "pump", None, ("dns:a",))


def _row(ecosystem_id: int, label: str, issuer_id: int | None) -> dict[str, object]:
    return {
        "ecosystem_id": ecosystem_id,
        "node_id": ecosystem_id + 10,
        "label": label,
        "version": 2,
        "document": '{"n":2}',
        "applied_at": T0,
        "applied_by": "ada",
        "issuer_id": issuer_id,
        "name": "issuing",
        "parent_id": None,
        "certificate": b"\x30",
        "sealed_key": None,
        "created_at": T0,
    }


def test_rows_of_one_ecosystem_become_one_record() -> None:
    found = rows.read_ecosystems([_row(1, "a", 5), _row(1, "a", 6), _row(2, "b", None)])
    issuers = tuple(IssuerRecord(number, 1, "issuing", None, b"\x30", None, T0) for number in (5, 6))
    assert found == [
        EcosystemRecord(1, 11, "a", 2, {"n": 2}, T0, "ada", issuers),
        EcosystemRecord(2, 12, "b", 2, {"n": 2}, T0, "ada", ()),
    ]
    assert rows.read_ecosystems([]) == []


def test_what_repeats_the_present_version() -> None:
    (present,) = rows.read_ecosystems([_row(1, "a", 5)])
    same = make_new_issuer("issuing", certificate=b"\x30")
    assert rows.repeats(present, {"n": 2}, [same], "ada")
    assert rows.repeats(present, {"n": 2}, [], "ada")
    assert not rows.repeats(present, {"n": 3}, [same], "ada")
    assert not rows.repeats(present, {"n": 2}, [same], "bo")
    assert not rows.repeats(present, {"n": 2}, [make_new_issuer("issuing")], "ada")


def test_only_what_cannot_be_stored_is_replaced() -> None:
    plain = make_event(extra={"text": 'a\\u0000 "quoted" \N{GRINNING FACE}', "n": 1.5, "none": None, "list": [True]})
    assert rows.printable(plain) == plain
    hostile = make_event(detail="\0x\udfff", code=None, extra={"\0": {"a": ["\ud83d"]}})
    cleaned = rows.printable(hostile)
    assert (cleaned.detail, cleaned.code, cleaned.extra) == ("\ufffdx?", None, {"\ufffd": {"a": ["?"]}})


def test_numbers_json_has_no_name_for_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.write_json({"a": float("nan")})
