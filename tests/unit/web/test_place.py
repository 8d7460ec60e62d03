from __future__ import annotations

import pytest
from gate_lab import Kept, Queuer, counts

from estd.web.gate import Gate
from estd.web.place import Limits, read_source


def test_leaving_twice_counts_once() -> None:
    gate = Gate(Limits())
    one, other = Queuer(gate, "a"), Queuer(gate, "a")
    assert one.begin() is True
    one.place.leave()
    one.place.leave()
    one.place.end()
    assert counts(gate) == (1, 0, 0)
    other.place.leave()
    assert counts(gate) == (0, 0, 0)


def test_who_has_left_is_not_put_out() -> None:
    gate = Gate(Limits(connections_in_all=1))
    gone = Kept(gate, "a")
    gone.place.leave()
    gone.place.rest(gone)
    gone.place.work()
    Kept(gate, "b")
    assert not gone.put_out
    assert (gate.connections, gate.active) == (1, 0)


# --- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peername", "address", "source"),
    [
        (("192.0.2.7", 4711), "192.0.2.7", "192.0.2.7"),
        (("::ffff:192.0.2.7", 4711, 0, 0), "192.0.2.7", "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2:3:4:5:6", "20010db800010002"),
        (("2001:db8:1:2::9", 1, 0, 0), "2001:db8:1:2::9", "20010db800010002"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::1%eth0", "fe80000000000000"),
        (("not:an:address", 1), "not:an:address", "not:an:address"),
        ("", "local", "local"),
        (None, "local", "local"),
    ],
)
def test_source_of_an_address(peername: object, address: str, source: str) -> None:
    assert read_source(peername) == (address, source)


def test_deadlines_are_looked_at_often_enough_for_the_shortest() -> None:
    limits = Limits()
    assert limits.look_seconds == 0.25
    assert Limits(linger_seconds=0.4).look_seconds == 0.05
    assert Limits(write_stall_seconds=0.8).look_seconds == 0.1
    assert limits.silent_bytes > 16_384 + 256 + 5, "one full record brings no plaintext until it is complete"
