"""When issuers end, as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from factory import make_maker, make_record, make_rules
from prometheus_client import generate_latest

from estd.app import expiry, troubles
from estd.ca.authority import read_authority


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    expiry._ends.clear()
    yield
    expiry.note([])


def told() -> dict[str, float]:
    lines = generate_latest(troubles.REGISTRY).decode().splitlines()
    values = (line.rpartition(" ") for line in lines if line.startswith("estd_issuer_not_after_seconds{"))
    return {what: float(value) for what, _, value in values}


def name(ecosystem: str, issuer: str) -> str:
    return f'estd_issuer_not_after_seconds{{ecosystem="{ecosystem}",issuer="{issuer}"}}'


def test_the_newest_of_each_issuer_in_use_counts() -> None:
    maker = make_maker()
    north = make_record(make_rules(maker, "north"), 1)
    south = make_record(make_rules(maker, "south"), 2)
    expiry.note([north, south])
    expected = {
        name(record.label, issuer.name): read_authority(issuer.certificate).ends.timestamp()
        for record in (north, south)
        for issuer in record.issuers
    }
    assert told() == expected
    # A new certificate takes the place of the one before; what the document does not name any more is left out.
    root, devices = south.issuers
    newer = replace(root, issuer_id=999, name="devices")
    document = {**south.document, "issuer": [{"name": "devices"}, "of another shape"]}
    expiry.note([replace(south, issuers=(root, devices, newer), document=document)])
    assert told() == {name("south", "devices"): read_authority(root.certificate).ends.timestamp()}
    expiry.note([])
    assert told() == {}


def test_what_cannot_be_read_is_left_out() -> None:
    record = make_record(make_rules(make_maker(), "north"), 1)
    root, devices = record.issuers
    damaged = replace(devices, certificate=b"damaged")
    expiry.note([replace(record, issuers=(root, damaged)), replace(record, label="x", document={"issuer": None})])
    assert list(told()) == [name("north", "root")]
