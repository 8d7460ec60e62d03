from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from gate_lab import Kept, Queuer, Steps, counts

from estd.web.gate import Gate
from estd.web.place import SEVERAL, Limits, Refusal


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Paced:
    """A gate with a pace, and what it has asked to be called for: in the next pass, and in a moment."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.pace = Steps()
        self.passes: list[Callable[[], None]] = []
        self.looks: list[Callable[[], None]] = []
        self.gate = Gate(
            limits or Limits(),
            soon=self.passes.append,
            pace=self.pace,
            later=lambda _seconds, call: self.looks.append(call),
        )
        self.log: list[str] = []

    def come(self, source: str, count: int, home: int | None = None) -> list[Queuer]:
        """So many connections of one source, which that ecosystem has admitted before."""
        if home is not None:
            self.know(source, home)
        return [Queuer(self.gate, source, self.log, f"{source}{number}") for number in range(count)]

    def know(self, source: str, home: int) -> None:
        """Somebody of that source is admitted by that ecosystem, and leaves."""
        admitted = Queuer(self.gate, source)
        admitted.begin()
        admitted.place.end()
        admitted.place.belongs(home)
        admitted.place.leave()
        while self.passes:
            self.turn()
        self.pace.noticed.clear()

    def turn(self) -> None:
        """One turn of the event loop."""
        calls = self.passes[:]
        self.passes.clear()
        for call in calls:
            call()

    def look(self) -> None:
        """A moment later, in one more turn."""
        (call,) = self.looks
        self.looks.clear()
        call()
        self.turn()


def try_entering(gate: Gate, source: str) -> Refusal | None:
    place = gate.enter(source, Queuer(Gate(Limits()), source))
    return place if isinstance(place, Refusal) else None


def test_connections_are_capped_in_all_and_given_back() -> None:
    gate = Gate(Limits(connections_in_all=2))
    first = Queuer(gate, "a")
    Queuer(gate, "b")
    assert try_entering(gate, "c") is Refusal.CONNECTIONS_IN_ALL
    first.place.leave()
    assert try_entering(gate, "c") is None
    assert counts(gate) == (2, 0, 0)


def test_a_crowd_leaves_a_quarter_of_the_places_to_others() -> None:
    gate = Gate(Limits(connections_in_all=12))
    for source in ("a", "b"):
        for _ in range(6):
            try_entering(gate, source)
    assert gate.connections == 9
    assert try_entering(gate, "b") is Refusal.CONNECTIONS_IN_ALL
    assert [try_entering(gate, source) for source in ("c", "c", "c")] == [None, None, None]
    assert try_entering(gate, "c") is Refusal.CONNECTIONS_IN_ALL, "now it is a crowd as well"
    assert try_entering(gate, "d") is Refusal.CONNECTIONS_IN_ALL, "all are taken"
    assert gate.connections == 12


def test_connections_are_capped_per_source() -> None:
    gate = Gate(Limits(connections_per_source=1))
    Queuer(gate, "a")
    assert try_entering(gate, "a") is Refusal.CONNECTIONS_PER_SOURCE
    assert try_entering(gate, "b") is None


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
    assert log == ["b0", "c0", "a2", "a1", "a0"]


def test_who_asks_now_and_then_comes_before_those_who_ask_all_the_time() -> None:
    clock, log = Clock(), list[str]()
    gate = Gate(Limits(handshakes_at_once=1), clock)
    holder = Queuer(gate, "x")
    holder.begin()
    storm = {f"{source}{number}": Queuer(gate, source, log, f"{source}{number}") for source in "ab" for number in "012"}
    for queuer in storm.values():
        queuer.begin()
    holder.place.end()
    storm[log[-1]].place.end()
    newcomer = Queuer(gate, "n", log, "newcomer")
    assert newcomer.begin() is False
    storm[log[-1]].place.end()
    assert log == ["a2", "b2", "newcomer"]
    # Coming back at once, it queues like everybody else.
    again = Queuer(gate, "n", log, "again")
    assert again.begin() is False
    newcomer.place.end()
    assert log[-1] == "a1"


def test_few_begin_in_one_pass_however_many_ask() -> None:
    passes: list[Callable[[], None]] = []
    gate = Gate(Limits(handshakes_per_pass=2), soon=passes.append)
    crowd = [Queuer(gate, str(number)) for number in range(5)]
    assert [queuer.begin() for queuer in crowd] == [True, True, False, False, False]
    assert (len(passes), gate.handshakes, gate.waiting) == (1, 2, 3)
    passes.pop()()
    assert (len(passes), gate.handshakes, gate.waiting) == (1, 4, 1)
    passes.pop()()
    assert (len(passes), gate.handshakes, gate.waiting) == (1, 5, 0)
    assert all(queuer.granted for queuer in crowd[2:])
    passes.pop()()
    assert passes == []


def test_some_turns_are_kept_for_sources_that_have_none() -> None:
    gate = Gate(Limits(handshakes_at_once=8))
    storm = [Queuer(gate, "ab"[number % 2]) for number in range(20)]
    assert [queuer.begin() for queuer in storm] == [True] * 6 + [False] * 14
    newcomers = [Queuer(gate, source) for source in "cde"]
    assert [queuer.begin() for queuer in newcomers] == [True, True, False]
    assert gate.handshakes == 8


def test_few_go_on_in_one_pass_and_who_is_alone_goes_first() -> None:
    passes: list[Callable[[], None]] = []
    gate = Gate(Limits(handshakes_per_pass=2), soon=passes.append)
    log: list[str] = []
    crowd = [Queuer(gate, "crowd", log, f"crowd-{number}") for number in range(5)]
    lonely = Queuer(gate, "lonely", log, "lonely")
    assert [queuer.place.proceed() for queuer in (*crowd, lonely)] == [True, True, False, False, False, False]
    crowd[3].place.leave()
    passes.pop()()
    assert log == ["lonely resumed", "crowd-2 resumed"]
    assert lonely.place.proceed() is False
    passes.pop()()
    assert log[2:] == ["lonely resumed", "crowd-4 resumed"]
    passes.pop()()
    assert passes == []
    assert lonely.place.proceed() is True


def test_of_a_crowd_one_begins_at_a_time_while_others_could_go_on() -> None:
    passes: list[Callable[[], None]] = []
    gate = Gate(Limits(handshakes_per_pass=3), soon=passes.append)
    log: list[str] = []
    crowd = [Queuer(gate, "crowd", log, f"crowd-{number}") for number in range(10)]
    assert [queuer.begin() for queuer in crowd[:3]] == [True] * 3
    passes.pop()()
    assert [queuer.begin() for queuer in crowd[3:5]] == [True] * 2
    assert [queuer.place.proceed() for queuer in crowd[:5]] == [True, True, True, False, False]
    assert crowd[5].begin() is False, "two of its crowd are held"
    assert crowd[5].granted is False
    lonely = Queuer(gate, "lonely", log, "lonely")
    assert lonely.begin() is True, "one that comes alone does not wait for a crowd"
    passes.pop()()
    assert log == ["crowd-5", "crowd-3 resumed", "crowd-4 resumed"]
    assert (gate.handshakes, gate.waiting) == (7, 0)
    assert [queuer.place.proceed() for queuer in crowd[:5]] == [True, False, False, False, False]
    assert [queuer.begin() for queuer in crowd[6:8]] == [False, False]
    passes.pop()()
    assert (log[3:], gate.waiting) == (["crowd-7", "crowd-1 resumed", "crowd-2 resumed", "crowd-3 resumed"], 1)


def test_who_waits_for_us_alone_does_not_make_room() -> None:
    passes: list[Callable[[], None]] = []
    clock = Clock()
    gate = Gate(Limits(handshakes_at_once=2, handshakes_per_pass=1, patience_seconds=1), clock, soon=passes.append)
    log: list[str] = []
    held, silent = Queuer(gate, "a", log, "held"), Queuer(gate, "b", log, "silent")
    other = Queuer(gate, "d", log, "other")
    assert held.begin() is True
    passes.pop()()
    assert silent.begin() is True
    clock.now += 1.5
    assert [queuer.place.proceed() for queuer in (other, held)] == [True, False]
    passes.pop()()
    Queuer(gate, "c", log, "newcomer").begin()
    passes.pop()()
    assert (held.revoked, silent.revoked) == (False, True)
    assert "newcomer" in log


def test_some_of_the_waiting_room_is_kept_for_sources_that_have_nobody_in_it() -> None:
    gate = Gate(Limits(handshakes_at_once=0, handshakes_waiting=8))
    storm = [Queuer(gate, "a") for _ in range(10)]
    assert [queuer.begin() for queuer in storm[:8]] == [False] * 6 + [Refusal.HANDSHAKES_IN_ALL] * 2
    assert [Queuer(gate, source).begin() for source in "bcd"] == [False, False, Refusal.HANDSHAKES_IN_ALL]


def test_in_a_crowd_the_steps_are_small() -> None:
    passes: list[Callable[[], None]] = []
    gate = Gate(Limits(handshakes_per_pass=4, handshakes_per_pass_in_a_crowd=1, crowd=5), soon=passes.append)
    crowd = [Queuer(gate, str(number)) for number in range(12)]
    for queuer in crowd:
        queuer.begin()
    assert gate.handshakes == 4
    steps = []
    while gate.waiting:
        before = gate.handshakes
        passes.pop()()
        steps.append(gate.handshakes - before)
    assert steps == [1, 1, 1, 4, 1]


def test_in_a_full_house_who_was_idle_longest_makes_room() -> None:
    gate = Gate(Limits(connections_in_all=3))
    first, second, third = Kept(gate, "a"), Kept(gate, "a"), Kept(gate, "b")
    assert gate.active == 0
    first.place.work()
    assert gate.active == 1
    assert try_entering(gate, "c") is None
    assert (first.put_out, second.put_out, third.put_out) == (False, True, False)
    first.place.rest(first)
    assert try_entering(gate, "c") is None
    assert (first.put_out, third.put_out) == (False, True)
    assert try_entering(gate, "c") is None
    assert first.put_out
    assert try_entering(gate, "c") is Refusal.CONNECTIONS_IN_ALL
    assert gate.connections == 3


def test_a_source_that_has_too_many_loses_its_own_idle_ones() -> None:
    gate = Gate(Limits(connections_per_source=2))
    stranger, first, second = Kept(gate, "b"), Kept(gate, "a"), Kept(gate, "a")
    assert try_entering(gate, "a") is None
    assert (stranger.put_out, first.put_out, second.put_out) == (False, True, False)
    assert gate.connections == 3


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


def test_in_a_full_waiting_room_the_oldest_makes_room_for_the_newest() -> None:
    clock = Clock()
    gate = Gate(Limits(handshakes_at_once=1, handshakes_waiting_per_source=1, patience_seconds=1), clock)
    oldest = Queuer(gate, "a")
    clock.now += 0.9
    holder, newest = Queuer(gate, "b"), Queuer(gate, "a")
    assert holder.begin() is True
    assert oldest.begin() is False
    assert newest.begin() is Refusal.HANDSHAKES_PER_SOURCE, "the oldest has time left"
    clock.now += 0.1
    assert newest.begin() is False
    assert (oldest.revoked, newest.revoked, holder.revoked) == (True, False, False)
    assert counts(gate) == (2, 1, 1)


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


# --- making room ------------------------------------------------------------------------------------------------------


def test_a_hoarded_turn_goes_to_who_waits_once_patience_is_over() -> None:
    clock = Clock()
    gate = Gate(Limits(handshakes_at_once=2, patience_seconds=1), clock)
    hoarders = [Queuer(gate, "a"), Queuer(gate, "b")]
    assert [hoarder.begin() for hoarder in hoarders] == [True, True]
    honest = Queuer(gate, "c")
    assert honest.begin() is False
    clock.now += 0.9
    gate.press()
    assert not honest.granted
    clock.now += 0.1
    gate.press()
    assert honest.granted
    assert [hoarder.revoked for hoarder in hoarders] == [True, False], "the one that began first"
    assert counts(gate) == (2, 2, 0)


def test_a_newcomer_takes_a_hoarded_turn_at_once() -> None:
    clock = Clock()
    gate = Gate(Limits(handshakes_per_source=1, patience_seconds=1), clock)
    hoarder = Queuer(gate, "a")
    assert hoarder.begin() is True
    clock.now += 5
    neighbour = Queuer(gate, "a")
    neighbour.begin()
    assert (hoarder.revoked, neighbour.granted) == (True, True)
    assert counts(gate) == (1, 1, 0)


def test_without_a_shortage_nobody_is_hurried() -> None:
    clock = Clock()
    gate = Gate(Limits(), clock)
    slow = Queuer(gate, "a")
    assert slow.begin() is True
    clock.now += 1000
    quick = Queuer(gate, "a")
    assert quick.begin() is True
    assert not slow.revoked


def test_a_full_house_sends_the_longest_unfinished_away() -> None:
    clock = Clock()
    gate = Gate(Limits(connections_in_all=3, patience_seconds=1), clock)
    finished, silent, slow = Queuer(gate, "a"), Queuer(gate, "b"), Queuer(gate, "c")
    assert finished.begin() is True
    finished.place.end()
    clock.now += 2
    assert slow.begin() is True
    assert try_entering(gate, "d") is None
    assert (finished.revoked, silent.revoked, slow.revoked) == (False, True, False)
    assert try_entering(gate, "e") is Refusal.CONNECTIONS_IN_ALL, "the newcomer and the slow one have time left"
    clock.now += 1
    assert try_entering(gate, "e") is None
    assert slow.revoked
    assert not finished.revoked
    assert gate.connections == 3


def test_a_full_source_makes_room_for_its_own() -> None:
    clock = Clock()
    gate = Gate(Limits(connections_per_source=1, patience_seconds=1), clock)
    silent, stranger = Queuer(gate, "a"), Queuer(gate, "b")
    clock.now += 1
    assert try_entering(gate, "a") is None
    assert (silent.revoked, stranger.revoked) == (True, False)
    assert gate.connections == 2


def test_room_is_made_for_those_who_wait_in_their_rotation() -> None:
    """Hoarders of many sources hold every turn; someone of another source gets one within a rotation."""
    clock = Clock()
    gate = Gate(Limits(handshakes_at_once=8, handshakes_per_source=4, patience_seconds=1), clock)
    crowd = [Queuer(gate, f"bad{number % 20}") for number in range(200)]
    for hoarder in crowd:
        hoarder.begin()
    honest = Queuer(gate, "good")
    honest.begin()
    rounds = 0
    while not honest.granted:
        clock.now += 1
        gate.press()
        rounds += 1
    assert rounds <= 3
    assert gate.handshakes == 8


def test_a_finished_place_forgets_its_guest() -> None:
    gate = Gate(Limits())
    done = Queuer(gate, "a")
    assert done.begin() is True
    done.place.end()
    assert done.place.guest is None


# --- crowds, and others -------------------------------------------------------------------------------------------------


def test_a_crowd_begins_when_its_pace_allows_and_few_at_once() -> None:
    paced = Paced()
    crowd = paced.come("crowd", 4)
    (lonely,) = paced.come("lonely", 1)
    assert [queuer.begin() for queuer in crowd] == [False] * 4
    assert len(paced.looks) == 1, "one look for all"
    assert lonely.begin() is True
    assert paced.pace.noticed == [lonely.place.here.home.key]
    paced.look()
    assert (paced.log, len(paced.looks)) == ([], 1)
    paced.pace.left = inf
    paced.look()
    assert (paced.log, paced.looks) == (["crowd3", "crowd2", "crowd1", "crowd0"], [])
    assert len(paced.pace.noticed) == 1
    assert set(paced.pace.asked) == {crowd[0].place.here.home.key}


def test_a_crowd_does_not_begin_while_requests_of_crowds_wait_and_few_do() -> None:
    paced = Paced()
    paced.pace.left = inf
    paced.pace.waiting = 1
    crowd, (lonely,) = paced.come("crowd", 3), paced.come("lonely", 1)
    assert [queuer.begin() for queuer in crowd] == [False] * 3
    assert lonely.begin() is True
    paced.look()
    assert paced.log == []
    paced.pace.waiting = 0
    paced.look()
    assert len(paced.log) == 3


def test_a_crowd_goes_on_when_its_pace_allows_and_few_at_once() -> None:
    paced = Paced()
    crowd, (lonely,) = paced.come("crowd", 3), paced.come("lonely", 1)
    assert [queuer.place.proceed() for queuer in crowd] == [False] * 3
    assert lonely.place.proceed() is True
    for _ in range(3):
        paced.turn()
    assert paced.log == []
    assert paced.passes == [], "until there may be something to do no pass is asked for"
    paced.pace.left = inf
    paced.look()
    assert paced.log == ["crowd0 resumed", "crowd1 resumed", "crowd2 resumed"]


def test_a_look_makes_no_pass_besides_the_one_that_is_due() -> None:
    paced = Paced(Limits(handshakes_per_pass=2))
    crowd = paced.come("crowd", 9)
    assert crowd[0].begin() is False
    paced.pace.left = inf
    lonely = [*paced.come("x", 1), *paced.come("y", 1)]
    assert [queuer.begin() for queuer in lonely] == [True, True]
    assert [queuer.begin() for queuer in crowd[1:]] == [False] * 8
    assert (len(paced.passes), len(paced.looks), paced.gate.handshakes) == (1, 1, 2)
    paced.looks.pop()()
    assert (len(paced.passes), paced.gate.handshakes) == (1, 2), "this pass's two have begun"
    paced.turn()
    assert (len(paced.passes), paced.gate.handshakes) == (1, 4)


def test_a_source_belongs_to_the_ecosystem_that_admitted_it_and_is_known_when_it_comes_again() -> None:
    gate = Gate(Limits())
    first, stranger = Queuer(gate, "a"), Queuer(gate, "b")
    assert first.place.here.home.ecosystem_id is None
    assert first.place.here.home.key != stranger.place.here.home.key
    first.place.belongs(7)
    home = first.place.here.home
    assert (home.ecosystem_id, home.key, home.guests) == (7, 7, 1)
    stranger.place.belongs(7)
    assert (stranger.place.here.home is home, home.guests) == (True, 2)
    stranger.place.end()
    assert home.guests == 1
    for queuer in (first, stranger):
        queuer.place.leave()
    assert home.guests == 0
    again = [Queuer(gate, source).place.here.home for source in "abc"]
    assert [one.ecosystem_id for one in again] == [7, 7, None]
    assert (again[0] is again[1] is home, home.guests) == (True, 2)


def test_a_source_that_several_ecosystems_admit_is_none_of_theirs_and_stays_so() -> None:
    gate = Gate(Limits())
    proxy, device, other = Queuer(gate, "proxy"), Queuer(gate, "device"), Queuer(gate, "other proxy")
    for queuer in (proxy, device, other):
        queuer.place.belongs(7)
    sevens = device.place.here.home
    for ecosystem_id in (8, 7, 9):
        proxy.place.belongs(ecosystem_id)
        other.place.belongs(ecosystem_id)
    home = proxy.place.here.home
    assert (home.ecosystem_id, home.guests, sevens.guests) == (SEVERAL, 1, 1)
    assert other.place.here.home.key != home.key, "two proxies are two"
    proxy.place.leave()
    assert home.guests == 0
    assert Queuer(gate, "proxy").place.here.home.ecosystem_id == SEVERAL


def test_a_proxys_crowd_is_no_ecosystems_and_keeps_no_pace_at_the_door() -> None:
    paced = Paced()
    paced.know("proxy", 7)
    paced.know("proxy", 8)
    many = paced.come("proxy", 6)
    paced.pace.waiting = 3  # requests of some crowd, which is perhaps not the proxy's
    paced.pace.asked.clear()
    assert [queuer.begin() for queuer in many[:2]] == [True, True]
    assert paced.pace.asked == []


def test_a_home_counts_everybody_of_a_source_that_moves() -> None:
    gate = Gate(Limits())
    guests = [Queuer(gate, "a") for _ in range(5)]
    before = guests[0].place.here.home
    guests[0].place.end()
    guests[0].place.belongs(7)
    assert (before.guests, guests[1].place.here.home.guests) == (0, 4)
    for guest in guests:
        guest.place.leave()
    assert guests[1].place.here.home.guests == 0


def test_the_sources_that_are_known_are_bounded_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.web.gate._SOURCES_KNOWN", 2)
    gate = Gate(Limits())
    for source in "abc":
        queuer = Queuer(gate, source)
        queuer.place.belongs(7)
        queuer.place.leave()
    assert [Queuer(gate, source).place.here.home.ecosystem_id for source in "abc"] == [None, 7, 7]


def test_many_addresses_of_one_ecosystem_are_one_crowd() -> None:
    paced = Paced()
    crowd = [queuer for number in range(6) for queuer in paced.come(f"device-{number}-", 1, home=7)]
    (stranger,) = paced.come("stranger", 1)
    assert [queuer.begin() for queuer in crowd] == [False] * 6
    assert set(paced.pace.asked) == {7}
    assert stranger.begin() is True
    paced.pace.left = inf
    paced.look()
    assert len(paced.log) == 6


def test_an_ecosystem_with_little_of_all_that_is_unfinished_is_no_crowd() -> None:
    paced = Paced()
    crowd = paced.come("crowd", 24)
    small = [queuer for number in range(4) for queuer in paced.come(f"small-{number}-", 1, home=7)]
    assert [queuer.begin() for queuer in small[:1]] == [False], "four of twenty-eight are an eighth and more"
    paced.come("more", 5)
    assert small[1].begin() is True, "and of thirty-three less"
    assert paced.pace.noticed == [7]
    assert crowd[0].begin() is False


def test_a_source_of_nobodys_with_three_is_a_crowd_however_little_that_is() -> None:
    paced = Paced()
    paced.come("crowd", 100)
    three = paced.come("three", 3)
    assert three[0].begin() is False
    assert paced.log == []
    three[2].place.leave()
    assert paced.log == ["three0"], "two are few"
    assert three[1].begin() is True


def test_who_asks_for_one_does_not_wait_behind_the_ring_of_crowds() -> None:
    log: list[str] = []
    gate = Gate(Limits(handshakes_at_once=4))
    holders = [Queuer(gate, source) for source in "wxyz"]
    assert all(holder.begin() for holder in holders)
    for source in "abc":
        for number in range(3):
            assert Queuer(gate, source, log, f"{source}{number}").begin() is False
    one = Queuer(gate, "one", log, "one")
    assert one.begin() is False
    holders[0].place.end()
    assert log == ["one"], "though each of the others asked for its first when it was alone"
    for holder in holders[1:]:
        holder.place.end()
    assert log == ["one", "a2", "b2", "c2"]


def test_who_has_become_a_crowd_while_it_waited_is_not_waited_for() -> None:
    paced = Paced(Limits(handshakes_at_once=2))
    holders = [*paced.come("x", 1), *paced.come("y", 1)]
    assert [holder.begin() for holder in holders] == [True] * 2
    (first,) = paced.come("herd", 1)
    assert first.begin() is False
    paced.come("herd", 9)
    (lonely,) = paced.come("lonely", 1)
    assert lonely.begin() is False
    holders[0].place.end()
    assert paced.log == ["lonely0"], "the herd has asked before it, but is held to its pace"
    holders[1].place.end()
    assert len(paced.log) == 1
    paced.pace.left = inf
    paced.look()
    assert paced.log == ["lonely0", "herd0"]


def test_all_who_wait_are_pressed_for_and_not_only_the_first() -> None:
    clock = Clock()
    gate = Gate(Limits(handshakes_per_source=1, patience_seconds=1), clock)
    hoarders = [Queuer(gate, source) for source in "abc"]
    neighbours = [Queuer(gate, source) for source in "abc"]
    assert [queuer.begin() for queuer in (*hoarders, *neighbours)] == [True] * 3 + [False] * 3
    clock.now += 1
    gate.press()
    assert [hoarder.revoked for hoarder in hoarders] == [True] * 3
    assert [neighbour.granted for neighbour in neighbours] == [True] * 3
    gate.press()
    assert counts(gate) == (3, 3, 0)
