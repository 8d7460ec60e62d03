"""Requests of a batch: which order each becomes, and what an authority's word does not get."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import timedelta
from typing import Any, cast

import msgspec
import pytest
from cryptography import x509
from factory import make_csr, make_maker, make_name, make_record, make_rules

from estd.errors import Code, Refused
from estd.names import write_name, write_san
from estd.ra import admission
from estd.ra.admission import Admitted, Credential, Purpose
from estd.ra.directory import Directory
from estd.ra.order import Order, write_batch_key
from estd.ra.vouching import Request, decide_order
from estd.store.contract import Device, Store
from estd.wire.pkcs10 import read_request

EMPTY = x509.Name([])
SAN = [x509.DNSName("pump.campus.example")]
ROW = Device(7, "pump-1", "CN=Pump 1,O=Campus", ("dns:pump.campus.example",))


class Inventory:
    """A store that is asked about devices alone."""

    def __init__(self, *rows: Device) -> None:
        self.asked: list[tuple[int, str]] = []
        self._rows = {(row.ecosystem_id, row.device): row for row in rows}

    async def find_device(self, ecosystem_id: int, device: str) -> Device | None:
        self.asked.append((ecosystem_id, device))
        return self._rows.get((ecosystem_id, device))


@pytest.fixture(scope="module")
def authority() -> Admitted:
    """Admitted for a batch in ecosystem 7, version 3, at node 9; its profile says nothing about names."""
    record = dataclasses.replace(make_record(make_rules(make_maker()), ecosystem_id=7, version=3), node_id=9)
    credential = Credential("issued", "x509:aa", "line-1", make_name("line-1").public_bytes(), None)
    place = Directory([record], [], None).find_place("campus")
    return Admitted(credential, place, Purpose.BATCH, None, admission._SEAL)


def with_profile(admitted: Admitted, **changes: Any) -> Admitted:
    """The same under rules that differ."""
    profile = dataclasses.replace(admitted.place.profile, **changes)
    return msgspec.structs.replace(admitted, place=dataclasses.replace(admitted.place, profile=profile))


async def decide(admitted: Admitted, request: Request, inventory: Inventory | None = None) -> Order:
    return await decide_order(cast(Store, inventory or Inventory()), admitted, request, "192.0.2.7", "request-1")


async def test_a_request_becomes_an_order(authority: Admitted) -> None:
    csr = make_csr(make_name("Pump-1"))
    digest = hashlib.sha256(csr).digest()
    inventory = Inventory(ROW)
    assert await decide(authority, Request("row 1", csr), inventory) == Order(
        request_key=write_batch_key(7, "device", digest),
        ecosystem_id=7,
        ecosystem_version=3,
        node_id=9,
        ecosystem="campus",
        profile="device",
        retry_window=timedelta(hours=1),
        operation="batch",
        identity="x509:aa",
        device="pump-1",
        csr=csr,
        csr_sha256=digest,
        subject=make_name("Pump-1").public_bytes(),
        san=None,
        code_id=None,
        address="192.0.2.7",
        request_id="request-1",
    )
    assert inventory.asked == []


@pytest.mark.parametrize("subject", ["fixed", "empty"])
async def test_names_the_profile_decides(authority: Admitted, subject: str) -> None:
    fixed = make_name("gateway").public_bytes()
    admitted = with_profile(authority, subject=subject, fixed_subject=fixed)
    order = await decide(admitted, Request("row", make_csr(make_name("device"))))
    assert order.subject == (fixed if subject == "fixed" else b"\x30\x00")
    assert order.device == "device"


@pytest.mark.parametrize(
    ("subject", "san"),
    [(EMPTY, []), (x509.Name.from_rfc4514_string("CN=pump 1,O=campus"), SAN)],
    ids=["left out", "same"],
)
async def test_names_from_the_inventory_may_be_repeated_or_left_out(
    authority: Admitted, subject: x509.Name, san: list[x509.GeneralName]
) -> None:
    device = "pump-1" if subject == EMPTY else "pump 1"
    inventory = Inventory(dataclasses.replace(ROW, device=device))
    admitted = with_profile(authority, subject="inventory", san="inventory")
    order = await decide(admitted, Request(" Pump-1 ", make_csr(subject, san=san)), inventory)
    assert (order.device, order.subject, order.san) == (device, write_name("CN=Pump 1,O=Campus"), write_san(ROW.san))
    assert inventory.asked == [(7, device)]


@pytest.mark.parametrize("san", [[], SAN], ids=["bare", "with attributes"])
async def test_a_compromised_key_is_refused(authority: Admitted, san: list[x509.GeneralName]) -> None:
    csr, other = (make_csr(make_name("pump-1"), san=san) for _ in range(2))
    keys = frozenset([read_request(csr).spki_sha256])
    place = dataclasses.replace(
        authority.place, ecosystem=dataclasses.replace(authority.place.ecosystem, compromised_keys=keys)
    )
    admitted = with_profile(msgspec.structs.replace(authority, place=place), san="request")
    with pytest.raises(Refused) as caught:
        await decide(admitted, Request("", csr))
    assert caught.value.code is Code.KEY_REVOKED
    assert (await decide(admitted, Request("", other))).csr == other


async def test_a_device_without_alternative_names_in_the_inventory_gets_none(authority: Admitted) -> None:
    inventory = Inventory(dataclasses.replace(ROW, san=()))
    admitted = with_profile(authority, san="inventory")
    order = await decide(admitted, Request("row", make_csr(make_name("pump-1"))), inventory)
    assert order.san is None
    with pytest.raises(Refused) as refused:
        await decide(admitted, Request("row", make_csr(make_name("pump-1"), san=SAN)), inventory)
    assert refused.value.code is Code.SAN_REFUSED


async def test_a_san_from_the_request_is_kept(authority: Admitted) -> None:
    admitted = with_profile(authority, san="request")
    order = await decide(admitted, Request("", make_csr(make_name("pump-1"), san=SAN)))
    assert order.san == write_san(["dns:pump.campus.example"])


@pytest.mark.parametrize(
    ("rules", "request_", "code"),
    [
        ({}, Request("empty", b""), Code.MALFORMED_REQUEST),
        ({}, Request("garbage", b"\x30\x03\x02\x01\x00"), Code.CSR_MALFORMED),
        ({}, Request("", make_csr(EMPTY)), Code.SUBJECT_REFUSED),
        ({"subject": "credential"}, Request("pump-1", make_csr(EMPTY)), Code.SUBJECT_REFUSED),
        ({"san": "none"}, Request("", make_csr(make_name("pump-1"), san=SAN)), Code.SAN_REFUSED),
        ({"subject": "inventory"}, Request("", make_csr(make_name("stranger"))), Code.NOT_AUTHORIZED),
        ({"san": "inventory"}, Request("stranger", make_csr(EMPTY)), Code.NOT_AUTHORIZED),
        ({"subject": "inventory"}, Request("", make_csr(make_name("pump-1"))), Code.SUBJECT_REFUSED),
        (
            {"san": "inventory"},
            Request("", make_csr(make_name("pump-1"), san=[x509.DNSName("victim.example")])),
            Code.SAN_REFUSED,
        ),
    ],
)
async def test_what_is_refused(authority: Admitted, rules: dict[str, str], request_: Request, code: Code) -> None:
    with pytest.raises(Refused) as caught:
        await decide(with_profile(authority, **rules), request_, Inventory(ROW))
    assert caught.value.code is code
