"""Whole records: what an order is to the signer, to the store and to the audit trail."""

from __future__ import annotations

from datetime import timedelta

import pytest
from factory import NOW, make_csr, make_device, make_name
from msgspec.structs import replace

from estd.audit import Event
from estd.ra.notes import write_note
from estd.ra.order import Order
from estd.ra.records import write_intent, write_issued, write_item, write_seals, write_settled
from estd.signer.frames import PreparedItem, PrepareItem, SealItem
from estd.store.contract import Intent, Issued

CSR = make_csr(make_name("pump-17"))
ORDER = Order(
    request_key=b"k" * 32,
    ecosystem_id=1,
    ecosystem_version=2,
    node_id=3,
    ecosystem="campus",
    profile="pump",
    retry_window=timedelta(hours=1),
    operation="simpleenroll",
    identity="code:pump-17",
    device="pump-17",
    csr=CSR,
    csr_sha256=b"c" * 32,
    subject=make_name("pump-17").public_bytes(),
    san=b"\x30\x03\x82\x01a",
    code_id=9,
    address="192.0.2.7",
    request_id="request-1",
)
PREPARED = PreparedItem(5, b"\x0a\xbc", b"t" * 32, b"s" * 32, NOW, NOW + timedelta(days=90))
INTENT = Intent(
    request_key=b"k" * 32,
    issuer_id=5,
    serial=b"\x0a\xbc",
    ecosystem_id=1,
    ecosystem_version=2,
    node_id=3,
    profile="pump",
    operation="simpleenroll",
    identity="code:pump-17",
    device="pump-17",
    csr_sha256=b"c" * 32,
    spki_sha256=b"s" * 32,
    tbs_sha256=b"t" * 32,
    journal="signer-0.12",
    code_id=9,
    created_at=NOW,
)
LATER = NOW + timedelta(seconds=1)


def test_an_item_holds_what_the_signer_decides_by_and_a_note_of_the_rest() -> None:
    note = write_note(1, 2, 3, "pump", "simpleenroll", "code:pump-17", "pump-17", b"c" * 32, 9)
    assert write_item(ORDER) == PrepareItem(
        b"k" * 32, 1, 2, "pump", CSR, make_name("pump-17").public_bytes(), b"\x30\x03\x82\x01a", note
    )


def test_a_seal_names_what_was_prepared() -> None:
    other = PreparedItem(6, b"\x01", b"t" * 32, b"s" * 32, NOW, NOW)
    assert write_seals([PREPARED, other]) == [SealItem(5, b"\x0a\xbc"), SealItem(6, b"\x01")]


def test_an_intent_says_who_asked_and_what_was_prepared() -> None:
    assert write_intent(ORDER, PREPARED, "signer-0.12", NOW) == INTENT


@pytest.mark.parametrize(
    ("operation", "authority", "extra"),
    [
        ("simpleenroll", None, {"device": "pump-17", "profile": "pump"}),
        ("batch", "line-1", {"device": "pump-17", "profile": "pump", "registration_authority": "line-1"}),
    ],
)
def test_a_result_comes_with_its_event(operation: str, authority: str | None, extra: dict[str, str]) -> None:
    order, intent = replace(ORDER, operation=operation), replace(INTENT, operation=operation)
    assert write_issued(order, intent, PREPARED, b"DER", LATER, authority) == Issued(
        issuer_id=5,
        serial=b"\x0a\xbc",
        certificate=b"DER",
        not_before=NOW,
        not_after=NOW + timedelta(days=90),
        issued_at=LATER,
        event=Event(
            at=LATER,
            kind=f"est.{operation}",
            outcome="granted",
            ecosystem="campus",
            ecosystem_id=1,
            identity="code:pump-17",
            address="192.0.2.7",
            request_id="request-1",
            issuer_id=5,
            serial="0abc",
            extra=extra,
        ),
    )


def test_what_is_settled_later_has_its_dates_from_the_certificate_and_no_request() -> None:
    made = make_device(None, "pump-17", starts=NOW, ends=NOW + timedelta(days=90))
    assert write_settled(INTENT, made.der, LATER) == Issued(
        issuer_id=5,
        serial=b"\x0a\xbc",
        certificate=made.der,
        not_before=NOW,
        not_after=NOW + timedelta(days=90),
        issued_at=LATER,
        event=Event(
            at=LATER,
            kind="est.simpleenroll",
            outcome="granted",
            ecosystem=None,
            ecosystem_id=1,
            identity="code:pump-17",
            address="",
            request_id="",
            issuer_id=5,
            serial="0abc",
            extra={"device": "pump-17", "profile": "pump", "settled": True},
        ),
    )
