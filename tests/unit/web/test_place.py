from __future__ import annotations

import pytest
from gate_lab import Kept, Queuer, counts

from estd.web.gate import Gate
from estd.web.place import Home, Limits, Place, Source, read_source


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


class Notes(Gate):
    """Notes what it is taught."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.learnt: list[tuple[str, int]] = []

    def learn(self, here: Source, ecosystem_id: int) -> None:
        self.learnt.append((here.name, ecosystem_id))
        super().learn(here, ecosystem_id)


def test_the_gate_is_told_of_a_home_once_and_of_another_again() -> None:
    gate = Notes()
    one, other = Queuer(gate, "a"), Queuer(gate, "a")
    for queuer, ecosystem_id in ((one, 7), (one, 7), (other, 7), (other, 8), (one, 7)):
        queuer.place.belongs(ecosystem_id)
    assert gate.learnt == [("a", 7), ("a", 8), ("a", 7)]


def test_who_has_left_tells_nothing() -> None:
    gate = Notes()
    gone = Queuer(gate, "a")
    gone.place.leave()
    gone.place.belongs(7)
    assert gate.learnt == []
    again = gate.enter("a", gone)
    assert isinstance(again, Place)
    assert again.here.home.ecosystem_id is None


def test_a_homes_key_is_its_ecosystem_or_nobody_elses() -> None:
    assert Home(7).key == Home(7).key != Home(8).key
    unknown = Home(None)
    assert unknown.key == unknown.key != Home(None).key


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
