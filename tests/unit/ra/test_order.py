"""Orders: what makes two requests one."""

from __future__ import annotations

from estd.ra.order import write_batch_key, write_request_key


def test_a_request_key_tells_every_part_apart() -> None:
    base = (1, "x509:ab", "simpleenroll", bytes(32))
    others = [
        (2, "x509:ab", "simpleenroll", bytes(32)),
        (1, "x509:ac", "simpleenroll", bytes(32)),
        (1, "x509:ab", "simplereenroll", bytes(32)),
        (1, "x509:ab", "simpleenroll", bytes(31) + b"\x01"),
    ]
    keys = {write_request_key(*parts) for parts in (base, *others)}
    assert len(keys) == 5
    assert {len(key) for key in keys} == {32}


def test_a_batch_key_is_nobodys_but_the_profiles() -> None:
    base = (1, "device", bytes(32))
    others = [(2, "device", bytes(32)), (1, "other", bytes(32)), (1, "device", bytes(31) + b"\x01")]
    assert len({write_batch_key(*parts) for parts in (base, *others)}) == 4
    # No credential's identity looks like a profile's, so no device's own request can have this key.
    assert write_batch_key(*base) != write_request_key(1, "device", "batch", bytes(32))
