"""What is written down one by one, what is added up, and that nothing is passed over; with a clock that stands still."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import msgspec
import pytest

from estd.audit import Event
from estd.ra import refusals as module
from estd.ra.limits import Rate
from estd.ra.refusals import Refusals
from estd.wire.exchange import IDENTITY, Peer

AT = datetime(2026, 3, 1, tzinfo=UTC)
EVENT = Event(AT, "est.unknown", "refused", "invented", None, "path-unknown", "no such operation", address="192.0.2.1")
HERE = Peer("192.0.2.1")


class World:
    """The refusals of one worker."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.refusals = Refusals(lambda: self.now)

    def refuse(self, times: int, event: Event = EVENT, peer: Peer = HERE) -> int:
        """How many of so many refusals are written down by themselves."""
        return sum(self.refusals.is_for_itself(event, peer) for _ in range(times))

    def sum_up(self, *, is_last: bool = False) -> list[Event]:
        return self.refusals.sum_up(AT, is_last=is_last)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A fifth of what is real for one source, and a quarter for strangers: the tests take less time."""
    monkeypatch.setattr(module, "_OF_A_SOURCE", Rate(2, burst=1000))
    monkeypatch.setattr(module, "_OF_STRANGERS", Rate(20, burst=5000))
    return World()


def test_an_ordinary_day_is_written_down_whole() -> None:
    world = World()
    assert world.refuse(5000) == 5000
    assert world.refuse(5) == 0


def test_a_source_fills_its_ration_and_no_more(world: World) -> None:
    assert world.refuse(1500) == 1000
    world.now += 10
    assert world.refuse(100) == 20


def test_another_address_has_a_ration_of_its_own(world: World) -> None:
    assert world.refuse(1500) == 1000
    assert world.refuse(1500, peer=Peer("192.0.2.2")) == 1000
    assert world.refuse(1500, peer=Peer("2001:db8::1")) == 1000
    # The /64 is what one subscriber holds.
    assert world.refuse(1500, peer=Peer("2001:db8::2")) == 0


def test_strangers_together_have_a_ration(world: World) -> None:
    assert sum(world.refuse(1000, peer=Peer(f"192.0.2.{host}")) for host in range(8)) == 5000
    world.now += 10
    assert sum(world.refuse(1000, peer=Peer(f"198.51.100.{host}")) for host in range(8)) == 200


def test_what_strangers_do_hides_no_device(world: World) -> None:
    for host in range(8):
        world.refuse(1500, peer=Peer(f"192.0.2.{host}"))
    device = Peer(HERE.address, (b"device",), memo={IDENTITY: "x509:01"})
    assert world.refuse(1500, peer=device) == 1000
    assert world.refuse(1500, peer=Peer(HERE.address, memo={IDENTITY: "code:pump-7"})) == 1000
    # A certificate alone makes nobody known.
    assert world.refuse(1500, peer=Peer(HERE.address, (b"third",))) == 0


def test_what_is_not_listed_is_counted_by_kind(world: World) -> None:
    world.refuse(1000)
    other = msgspec.structs.replace(
        EVENT, kind="est.simpleenroll", ecosystem="campus", ecosystem_id=7, code="no-credential"
    )
    assert world.refuse(30) + world.refuse(12, other) == 0
    assert world.sum_up() == [
        Event(
            AT,
            "est.unknown",
            "refused",
            None,
            None,
            "path-unknown",
            "30 more of these, from one address, are not listed one by one; the first: no such operation",
            address="192.0.2.1",
            extra={"count": 30},
        ),
        Event(
            AT,
            "est.simpleenroll",
            "refused",
            "campus",
            7,
            "no-credential",
            "12 more of these, from one address, are not listed one by one; the first: no such operation",
            address="192.0.2.1",
            extra={"count": 12},
        ),
    ]
    assert world.sum_up() == []


def test_a_label_that_leads_nowhere_makes_no_kind_of_its_own(world: World) -> None:
    world.refuse(1000)
    for number in range(50):
        world.refuse(1, msgspec.structs.replace(EVENT, ecosystem=f"invented-{number}"))
    (said,) = world.sum_up()
    assert (said.ecosystem, said.extra) == (None, {"count": 50})


def test_many_addresses_are_told_from_one(world: World) -> None:
    for host in range(150):
        peer = dataclasses.replace(HERE, address=f"192.0.2.{host}")
        world.refuse(1010, msgspec.structs.replace(EVENT, address=peer.address), peer)
    (said,) = world.sum_up()
    assert "from 100 addresses or more" in said.detail
    assert (said.address, said.extra["count"]) == ("", 150 * 1010 - 5000)


def test_while_it_lasts_it_is_said_every_ten_seconds_and_at_the_end(world: World) -> None:
    world.refuse(1003)
    assert [said.extra["count"] for said in world.sum_up()] == [3]
    world.refuse(4)
    assert world.sum_up() == []
    world.now += 10
    world.refuse(20 + 5)
    assert [said.extra["count"] for said in world.sum_up()] == [4 + 5]
    world.refuse(6)
    assert world.sum_up() == []
    assert [said.extra["count"] for said in world.sum_up(is_last=True)] == [6]
