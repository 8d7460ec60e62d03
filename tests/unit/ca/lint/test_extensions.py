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


def test_the_short_way_to_a_key_identifier_comes_out_where_the_long_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    good = der.sequence(der.oid("subjectKeyIdentifier"), der.octet_string(der.octet_string(bytes(range(20)))))
    flipped = [
        good[:at] + bytes((good[at] ^ 1 << bit,)) + good[at + 1 :] for at in range(len(good)) for bit in range(8)
    ]

    def judge(data: bytes) -> object:
        try:
            return judge_extension(data)
        except Malformed:
            return None

    short = [judge(data) for data in (good, *flipped, good[:-1], good + b"\0")]
    monkeypatch.setattr("estd.ca.lint.extensions._PLAIN_KEY_ID", b"no extension begins so")
    assert short == [judge(data) for data in (good, *flipped, good[:-1], good + b"\0")]
    assert judge_extension(good).key_id == bytes(range(20))


@pytest.mark.parametrize(
    "name", ["keyUsage", "basicConstraints", "extKeyUsage", "certificatePolicies", "subjectAltName"]
)
@pytest.mark.parametrize("value", ["", "00", "05", "3001", "0303", "30020500", "30800000", "3003020101", "0303070000"])
def test_no_value_is_a_fault(name: str, value: str) -> None:
    judge_extension(der.sequence(der.oid(name), der.octet_string(bytes.fromhex(value))))
