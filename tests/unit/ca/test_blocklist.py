"""The blocklist: what standards printed, what an operator adds, and every bad line at once."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.ca.blocklist import PUBLISHED, read_blocklist
from estd.ca.keyrules import check_key
from estd.errors import Code, Invalid, Refused

# The private value of testECCP256 as RFC 9500 §2.3 prints it.
PUBLISHED_P256 = int("E6CB5BDD80AA45AE9C95E8C15476679FFEC953C16851E711E743939589C64FC1", 16)


def test_a_key_that_a_standard_printed_is_weak() -> None:
    key = ec.derive_private_key(PUBLISHED_P256, ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert hashlib.sha256(spki).digest() in PUBLISHED
    with pytest.raises(Refused) as caught:
        check_key(spki, ["ec-p256"], PUBLISHED.__contains__)
    assert caught.value.code is Code.KEY_WEAK


def test_a_file_is_hashes_and_comments() -> None:
    text = f"# stolen in May\n{'ab' * 32}\n\n{'CD' * 32}  # lost\n"
    assert read_blocklist(text, "keys.txt") == {b"\xab" * 32, b"\xcd" * 32}
    assert read_blocklist("", "keys.txt") == frozenset()


def test_every_bad_line_is_told() -> None:
    with pytest.raises(Invalid) as caught:
        read_blocklist(f"{'ab' * 31}\n{'ab' * 32}\nhello\n{'ab' * 32}00\n", "keys.txt")
    assert [problem.where for problem in caught.value.problems] == [
        "keys.txt: line 1",
        "keys.txt: line 3",
        "keys.txt: line 4",
    ]
