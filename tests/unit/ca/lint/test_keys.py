"""Public keys and what follows from them; malformed ones are vectors of ``test_linter.py``."""

from __future__ import annotations

import hashlib

import pytest

from estd.asn1.spki import KEY_TYPES, read_spki
from estd.ca.lint.keys import follows_from_key, read_key
from estd.keys.software import generate


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_every_type_of_key_is_read(key_type: str) -> None:
    made = generate(key_type)
    key = read_key(made.spki)
    assert key is not None
    assert key_type.startswith(key.family)
    assert key.octets == read_spki(made.spki)[1]
    assert made.algorithm.identifier in key.signs_with


def test_the_short_way_to_a_point_comes_out_where_the_long_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    spki = generate("ec-p256").spki
    flipped = [
        spki[:at] + bytes((spki[at] ^ 1 << bit,)) + spki[at + 1 :] for at in range(len(spki)) for bit in range(8)
    ]
    short = [read_key(data) for data in (spki, *flipped, spki[:-1], spki + b"\0")]
    monkeypatch.setattr("estd.ca.lint.keys._POINT", b"no key begins so")
    assert short == [read_key(data) for data in (spki, *flipped, spki[:-1], spki + b"\0")]
    assert short[0] is not None
    assert short[1] is short[-1] is short[-2] is None


def test_key_identifiers_follow_from_the_key() -> None:
    octets = b"\x04" + bytes(64)
    sha1 = hashlib.sha1(octets).digest()
    assert follows_from_key(sha1, octets)
    assert follows_from_key(hashlib.sha256(octets).digest()[:20], octets)
    assert follows_from_key(bytes.fromhex("4" + sha1.hex()[-15:]), octets)
    for wrong in (b"", bytes(8), bytes(20), sha1[:8], hashlib.sha256(octets).digest()):
        assert not follows_from_key(wrong, octets)
