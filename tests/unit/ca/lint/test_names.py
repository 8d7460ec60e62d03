"""Names on their own; malformed ones are vectors of ``test_linter.py``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from estd.asn1 import der
from estd.ca.lint.names import judge_general_name, judge_name
from estd.errors import Refused
from estd.names import read_name, read_san


@given(octets=some.binary(max_size=40))
def test_no_octets_are_a_fault(octets: bytes) -> None:
    findings = judge_name(octets)
    for tag in (0x81, 0x82, 0x86, 0x87, 0x88, 0xA0, 0xA4):
        judge_general_name(tag, octets)
    try:
        read_name(der.tlv(der.SEQUENCE, octets))
    except Refused:
        assert findings


@given(octets=some.binary(max_size=12), tag=some.sampled_from([0x81, 0x82, 0x86, 0x87]))
def test_what_passes_here_is_read_elsewhere(octets: bytes, tag: int) -> None:
    if judge_general_name(tag, octets) is None:
        read_san(der.sequence(der.tlv(tag, octets)))


@pytest.mark.parametrize("text", [b"a", b"1.2.3", b"xn--bcher-kva.example", b"A-1.b", b"*.a", b"a" * 63])
def test_host_names(text: bytes) -> None:
    assert judge_general_name(0x82, text) is None


@pytest.mark.parametrize("text", [b"a:b", b"urn:oid:1.2.3", b"http://[2001:db8::1]:80/a?b#c", b"tag:a,2020:b%2Fc"])
def test_uris(text: bytes) -> None:
    assert judge_general_name(0x86, text) is None
