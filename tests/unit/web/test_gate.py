from __future__ import annotations

import pytest

from estd.web.gate import Gate, Limits, Place, Refusal, read_source


class Queuer:
    """Someone who waits for a turn and notes when it comes."""

    def __init__(self, gate: Gate, source: str, log: list[str] | None = None, name: str = "") -> None:
        place = gate.enter(source)
        assert isinstance(place, Place)
        self.place = place
        self.granted = False
        self._log = log
        self._name = name

    def begin(self) -> Refusal | bool:
        return self.place.begin(self)

    def handshake_granted(self) -> None:
        self.granted = True
        if self._log is not None:
            self._log.append(self._name)


def counts(gate: Gate) -> tuple[int, int, int]:
    return gate.connections, gate.handshakes, gate.waiting


def test_connections_are_capped_in_all_and_given_back() -> None:
    gate = Gate(Limits(connections_in_all=2))
    first = Queuer(gate, "a")
    Queuer(gate, "b")
    assert gate.enter("c") is Refusal.CONNECTIONS_IN_ALL
    first.place.leave()
    assert isinstance(gate.enter("c"), Place)
    assert counts(gate) == (2, 0, 0)


def test_connections_are_capped_per_source() -> None:
    gate = Gate(Limits(connections_per_source=1))
    Queuer(gate, "a")
    assert gate.enter("a") is Refusal.CONNECTIONS_PER_SOURCE
    assert isinstance(gate.enter("b"), Place)


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


def test_a_source_over_its_handshakes_waits_while_others_go_on() -> None:
    gate = Gate(Limits(handshakes_per_source=1))
    first, second, stranger = Queuer(gate, "a"), Queuer(gate, "a"), Queuer(gate, "b")
    assert first.begin() is True
    assert second.begin() is False
    assert stranger.begin() is True
    stranger.place.end()
    assert not second.granted, "another source's turn is not a turn of this one"
    first.place.end()
    assert second.granted
    second.place.end()
    assert counts(gate) == (3, 0, 0)


def test_turns_rotate_among_the_sources_that_wait() -> None:
    gate = Gate(Limits(handshakes_at_once=1))
    log: list[str] = []
    holder = Queuer(gate, "x")
    assert holder.begin() is True
    crowd = [Queuer(gate, "a", log, f"a{number}") for number in range(3)]
    crowd += [Queuer(gate, "b", log, "b0"), Queuer(gate, "c", log, "c0")]
    by_name = {f"{'aaabc'[at]}{(0, 1, 2, 0, 0)[at]}": queuer for at, queuer in enumerate(crowd)}
    assert [queuer.begin() for queuer in crowd] == [False] * 5
    holder.place.end()
    while len(log) < 5:
        by_name[log[-1]].place.end()
    assert log == ["a0", "b0", "c0", "a1", "a2"]


def test_who_gives_up_waiting_frees_the_room_and_is_not_called() -> None:
    gate = Gate(Limits(handshakes_at_once=1, handshakes_waiting=1))
    holder, patient, late = Queuer(gate, "a"), Queuer(gate, "b"), Queuer(gate, "c")
    assert holder.begin() is True
    assert patient.begin() is False
    assert late.begin() is Refusal.HANDSHAKES_IN_ALL
    patient.place.leave()
    assert late.begin() is False
    holder.place.end()
    assert late.granted
    assert not patient.granted
    assert counts(gate) == (2, 1, 0)


def test_the_waiting_room_is_capped_per_source() -> None:
    gate = Gate(Limits(handshakes_per_source=1, handshakes_waiting_per_source=1))
    queuers = [Queuer(gate, "a") for _ in range(3)]
    assert [queuer.begin() for queuer in queuers] == [True, False, Refusal.HANDSHAKES_PER_SOURCE]


def test_a_refused_handshake_holds_no_turn() -> None:
    gate = Gate(Limits(handshakes_at_once=0, handshakes_waiting=0))
    refused = Queuer(gate, "a")
    assert refused.begin() is Refusal.HANDSHAKES_IN_ALL
    refused.place.leave()
    assert counts(gate) == (0, 0, 0)


def test_many_waiters_of_many_sources_all_get_their_turn() -> None:
    gate = Gate(Limits(handshakes_at_once=7, handshakes_per_source=3))
    queuers = [Queuer(gate, str(number % 11)) for number in range(1000)]
    for queuer in queuers:
        queuer.granted = queuer.begin() is True
    done = 0
    while done < len(queuers):
        active = [queuer for queuer in queuers if queuer.granted]
        assert 0 < len(active) == gate.handshakes <= 7
        for queuer in active:
            queuer.granted = False
            queuer.place.leave()
            done += 1
    assert counts(gate) == (0, 0, 0)


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


def test_no_deadline_of_a_request_undercuts_the_tick() -> None:
    limits = Limits()
    assert limits.tick_seconds <= min(limits.header_seconds, limits.idle_seconds, limits.write_stall_seconds)
    assert limits.silent_bytes > 16_384 + 256 + 5, "one full record brings no plaintext until it is complete"
