"""The words of documents."""

from __future__ import annotations

import pytest

from estd.asn1.oids import OIDS
from estd.asn1.spki import KEY_TYPES
from estd.ca.vocabulary import (
    EXTENDED_KEY_USAGES,
    KEY_USAGES,
    NOT_FOR_KEY,
    OPERATION_NAMES,
    USAGES_FOR_PURPOSE,
    find_attribute_type,
    find_oid,
    key_family,
    name_attribute_type,
)


def test_words_belong_together() -> None:
    assert set(EXTENDED_KEY_USAGES) <= set(OIDS)
    assert set(USAGES_FOR_PURPOSE) <= set(EXTENDED_KEY_USAGES)
    for _, unfit in NOT_FOR_KEY.values():
        assert unfit <= set(KEY_USAGES)
    assert {key_family(key_type) for key_type in KEY_TYPES} == set(NOT_FOR_KEY)
    with pytest.raises(KeyError):
        key_family("dsa")


def test_every_operation_of_the_standards_is_reserved() -> None:
    assert {"cacerts", "simpleenroll", "simplereenroll", "serverkeygen", "fullcmc", "csrattrs"} <= OPERATION_NAMES
    assert {"pal", "eecerts", "crls", "symmetrickeys", "firmware", "tamp"} <= OPERATION_NAMES
    assert {"crts", "sen", "sren", "skg", "skc", "att", "renewal-info", "ucacerts"} <= OPERATION_NAMES


@pytest.mark.parametrize(
    ("text", "oid"),
    [
        ("clientAuth", "1.3.6.1.5.5.7.3.2"),
        ("1.2.3", "1.2.3"),
        ("2.999.1", "2.999.1"),
        ("nonsense", None),
        ("1.40", None),
    ],
)
def test_identifiers_by_name_and_number(text: str, oid: str | None) -> None:
    assert find_oid(text) == oid


@pytest.mark.parametrize(
    ("text", "oid", "name"),
    [
        ("CN", "2.5.4.3", "CN"),
        ("cn", "2.5.4.3", "CN"),
        ("serialNumber", "2.5.4.5", "serialNumber"),
        ("matterVendorId", "1.3.6.1.4.1.37244.2.1", "matterVendorId"),
        ("1.2.3.4", "1.2.3.4", "1.2.3.4"),
    ],
)
def test_attribute_types_by_any_name(text: str, oid: str, name: str) -> None:
    assert find_attribute_type(text) == oid
    assert name_attribute_type(oid) == name


@pytest.mark.parametrize("text", ["", "nonsense", "1..2", "3.1", "CN=x"])
def test_what_is_no_attribute_type(text: str) -> None:
    assert find_attribute_type(text) is None
