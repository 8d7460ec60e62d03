"""One extension at a time; what each must and must not say are vectors of ``test_linter.py``."""

from __future__ import annotations

import pytest

from estd.asn1 import der
from estd.ca.lint.extensions import judge_extension
from estd.ca.lint.walk import Malformed


def test_an_extension_is_an_extension() -> None:
    good = der.sequence(der.oid("1.2.3"), der.boolean(True), der.octet_string(der.NULL))
    assert judge_extension(good).critical is True
    for cut in range(len(good)):
        with pytest.raises(Malformed):
            judge_extension(good[:cut])
    with pytest.raises(Malformed):
        judge_extension(good + b"\0")


@pytest.mark.parametrize(
    "name", ["keyUsage", "basicConstraints", "extKeyUsage", "certificatePolicies", "subjectAltName"]
)
@pytest.mark.parametrize("value", ["", "00", "05", "3001", "0303", "30020500", "30800000", "3003020101", "0303070000"])
def test_no_value_is_a_fault(name: str, value: str) -> None:
    judge_extension(der.sequence(der.oid(name), der.octet_string(bytes.fromhex(value))))
