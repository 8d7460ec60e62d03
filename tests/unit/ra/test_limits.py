"""Rates, shares and appointments, with a clock that passes when told to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from factory import make_maker, make_record, make_rules

from estd.ca.ecosystem import Limits
from estd.errors import Code
from estd.ra.directory import Directory, LiveEcosystem
from estd.ra.limits import Limit, Quotas, Rate, Share, TurnedAway, add_jitter, find_network
from estd.wire.exchange import Peer

HERE = Peer("192.0.2.1")


class World:
    """The quotas of one worker, and ecosystems to fill them."""

    def __init__(self, room: int = 1000, workers: int = 1) -> None:
        self.now = 1000.0
        self.counted: Counter[tuple[str, str]] = Counter()
        self.quotas = Quotas(lambda: self.now, lambda *what: self.counted.update([what]), workers, room)

    def enter(self, ecosystem: LiveEcosystem, times: int = 1, peer: Peer = HERE) -> list[Share]:
        return [self.quotas.enter(ecosystem, peer) for _ in range(times)]

    def refuse(self, ecosystem: LiveEcosystem, peer: Peer = HERE) -> TurnedAway:
        with pytest.raises(TurnedAway) as caught:
            self.quotas.enter(ecosystem, peer)
        return caught.value


@pytest.fixture(scope="module")
def rules() -> dict[str, LiveEcosystem]:
    labels = ("storm", "calm", "third")
    records = [make_record(make_rules(make_maker(label), label), number) for number, label in enumerate(labels, 1)]
    found = Directory(records, [], None).ecosystems
    return {live.label: live for live in found.values()}


def limited(ecosystem: LiveEcosystem, version: int = 2, **limits: int) -> LiveEcosystem:
    whole = {"requests_per_second": None, "requests_per_second_per_source": None, "in_flight": None, **limits}
    return replace(ecosystem, version=version, rules=replace(ecosystem.rules, limits=Limits(**whole)))


def test_without_limits_nobody_is_turned_away(rules: dict[str, LiveEcosystem]) -> None:
    world = World()
    for _ in range(5000):
        world.enter(rules["storm"])[0].leave()
    assert (world.quotas.in_hand, world.counted) == (0, Counter())


def test_one_ecosystem_can_fill_half_and_there_is_room_for_the_next(rules: dict[str, LiveEcosystem]) -> None:
    world = World(room=90)
    shares = world.enter(rules["storm"], 45)
    reason = world.refuse(rules["storm"])
    assert (reason.limit, reason.code) == (Limit.FAIR_SHARE, Code.OVERLOADED)
    shares += world.enter(rules["calm"], 22)
    world.refuse(rules["storm"])
    shares += world.enter(rules["third"], 11)
    for share in shares:
        share.leave()
    assert world.quotas.in_hand == 0
    world.enter(rules["storm"], 45)


def test_in_flight_is_kept_and_given_back(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], in_flight=3)
    first, *_ = world.enter(ecosystem, 3)
    assert world.refuse(ecosystem).limit is Limit.ECOSYSTEM_IN_FLIGHT
    world.enter(rules["calm"], 10)
    first.leave()
    world.enter(ecosystem)
    assert world.counted == {("storm", Limit.ECOSYSTEM_IN_FLIGHT): 1}


def test_limits_are_divided_by_the_workers(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(workers=4), limited(rules["storm"], in_flight=10, requests_per_second=40)
    shares = world.enter(ecosystem, 3)
    assert world.refuse(ecosystem).limit is Limit.ECOSYSTEM_IN_FLIGHT
    for share in shares:
        share.leave()
    for _ in range(7):
        world.enter(ecosystem)[0].leave()
    assert world.refuse(ecosystem).limit is Limit.ECOSYSTEM_RATE


def test_a_rate_allows_a_second_at_once_and_is_even_after_that(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], requests_per_second=10)
    world.enter(ecosystem, 10)
    reason = world.refuse(ecosystem)
    assert (reason.limit, reason.code) == (Limit.ECOSYSTEM_RATE, Code.OVERLOADED)
    for _ in range(20):
        world.now += 0.1001
        world.enter(ecosystem)
        world.refuse(ecosystem)
    world.now += 60
    world.enter(ecosystem, 10)
    world.refuse(ecosystem)


def test_a_source_over_its_limit_takes_nothing_from_others(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], requests_per_second=20, requests_per_second_per_source=5)
    world.enter(ecosystem, 5)
    for _ in range(50):
        reason = world.refuse(ecosystem)
        assert (reason.limit, reason.code) == (Limit.SOURCE_RATE, Code.RATE_LIMITED)
        assert reason.retry_after_seconds >= 1
    for number in range(3):
        world.enter(ecosystem, 5, Peer(f"192.0.2.{number + 10}"))


def test_a_device_is_a_source_from_whatever_address(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], requests_per_second_per_source=5)
    for number in range(5):
        world.enter(ecosystem, 1, Peer(f"192.0.2.{number}", (b"certificate",)))
    assert world.refuse(ecosystem, Peer("192.0.2.99", (b"certificate",))).limit is Limit.IDENTITY_RATE
    world.enter(ecosystem, 1, Peer("192.0.2.99", (b"another",)))


def test_another_version_brings_its_own_limits_and_keeps_the_count(rules: dict[str, LiveEcosystem]) -> None:
    world = World()
    (old,) = world.enter(limited(rules["storm"], 2, in_flight=1))
    world.refuse(limited(rules["storm"], 2, in_flight=1))
    world.enter(limited(rules["storm"], 3, in_flight=2))
    world.refuse(limited(rules["storm"], 3, in_flight=2))
    old.leave()
    world.enter(limited(rules["storm"], 3, in_flight=2))


def test_a_crowd_is_sent_for_one_after_the_other(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], requests_per_second=100)
    world.enter(ecosystem, 100)
    waits = [world.refuse(ecosystem).retry_after_seconds for _ in range(5000)]
    # 5000 at 100 a second are 50 seconds; jitter adds up to a quarter.
    assert min(waits) >= 1
    assert 50 <= max(waits) <= 66
    per_second = Counter(waits)
    assert max(per_second.values()) <= 250
    assert sum(wait <= 25 for wait in waits) < 2500


def test_nobody_is_sent_away_for_ever(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], requests_per_second=1)
    world.enter(ecosystem)
    waits = [world.refuse(ecosystem).retry_after_seconds for _ in range(2000)]
    assert max(waits) <= 300 * 5 // 4 + 1
    world.now += 400
    world.enter(ecosystem)
    assert world.refuse(ecosystem).retry_after_seconds <= 5


def test_where_no_rate_is_set_the_pace_of_late_is_what_a_crowd_is_sent_for_at(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], in_flight=1)
    for _ in range(100):
        world.now += 0.02
        world.enter(ecosystem)[0].leave()
    (share,) = world.enter(ecosystem)
    world.refuse(ecosystem)  # learns the pace: about 50 a second
    world.now += 2
    for _ in range(100):
        share.leave()
        (share,) = world.enter(ecosystem)
    waits = [world.refuse(ecosystem).retry_after_seconds for _ in range(500)]
    assert 10 <= max(waits) <= 15


def test_a_limit_met_further_on_is_counted_and_gets_an_appointment(rules: dict[str, LiveEcosystem]) -> None:
    world = World()
    (share,) = world.enter(rules["storm"])
    reason = share.turn_away(Limit.QUEUE)
    assert (reason.code, reason.limit, reason.retry_after_seconds >= 1) == (Code.OVERLOADED, Limit.QUEUE, True)
    assert world.counted == {("storm", Limit.QUEUE): 1}


def test_reports_add_up_and_come_at_once_and_then_every_ten_seconds(rules: dict[str, LiveEcosystem]) -> None:
    world, ecosystem = World(), limited(rules["storm"], in_flight=1)
    world.enter(ecosystem)
    assert world.quotas.take_reports() == []
    for _ in range(3):
        world.refuse(ecosystem)
    (first,) = world.quotas.take_reports()
    assert (first.ecosystem, first.limit, first.count) == ("storm", Limit.ECOSYSTEM_IN_FLIGHT, 3)
    for _ in range(1000):
        world.refuse(ecosystem)
    world.now += 5
    assert world.quotas.take_reports() == []
    world.now += 5
    assert [report.count for report in world.quotas.take_reports()] == [1000]
    world.now += 60
    assert world.quotas.take_reports() == []


def test_what_is_remembered_of_sources_is_bounded(
    rules: dict[str, LiveEcosystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estd.ra.limits._SOURCES_REMEMBERED", 10)
    world, ecosystem = World(), limited(rules["storm"], requests_per_second_per_source=1)
    for number in range(100):
        (share,) = world.enter(ecosystem, 1, Peer(f"10.0.0.{number}"))
    assert len(share._sources) == 10
    world.refuse(ecosystem, Peer("10.0.0.99"))


@pytest.mark.parametrize("limit", Limit)
def test_every_limit_has_its_words(limit: Limit, rules: dict[str, LiveEcosystem]) -> None:
    world = World()
    (share,) = world.enter(rules["storm"])
    assert share.turn_away(limit).detail
    assert world.quotas.take_reports()[0].remedy
    assert limit.code in (Code.RATE_LIMITED, Code.OVERLOADED)


def test_a_rate_below_one_a_second_lets_one_through() -> None:
    rate = Rate(0.25)
    due = rate.decide(0.0, 100.0)
    assert due == 104.0
    assert rate.decide(due, 103.9) is None
    assert rate.decide(due, 104.0) == 108.0


def test_jitter_only_adds() -> None:
    seen = {add_jitter(8) for _ in range(500)}
    assert seen == {8, 9, 10, 11}
    assert {add_jitter(-3) for _ in range(100)} == {1, 2}


def test_an_ipv6_source_is_its_64() -> None:
    assert find_network("2001:db8::1") == find_network("2001:db8::ffff:1")
    assert find_network("2001:db8:0:1::1") != find_network("2001:db8::1")
    assert find_network("192.0.2.1") == "192.0.2.1"
    assert find_network("fe80::1%eth0") == find_network("fe80::2")
    assert find_network("no:address") == "no:address"
