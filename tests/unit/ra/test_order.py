"""Orders: what makes two requests one."""

from __future__ import annotations

from estd.ra.order import write_request_key


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
