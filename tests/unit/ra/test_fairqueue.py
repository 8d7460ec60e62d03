from __future__ import annotations

from estd.ra.fairqueue import FairQueue


def test_one_ecosystem_is_a_plain_queue() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.add(1, number)
    assert (len(queue), queue.take(3), len(queue)) == (5, [0, 1, 2], 2)
    assert (queue.take(3), queue.take(3), len(queue)) == ([3, 4], [], 0)


def test_a_group_holds_some_of_everybodys() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.add(1, f"storm-{number}")
    queue.add(2, "neighbour-0")
    queue.add(2, "neighbour-1")
    assert queue.take(4) == ["storm-0", "neighbour-0", "storm-1", "neighbour-1"]
    assert queue.take(2) == ["storm-2", "storm-3"]
    assert len(queue) == 96


def test_who_has_just_been_served_waits_until_all_others_were() -> None:
    queue: FairQueue[str] = FairQueue()
    for ecosystem_id, name in ((1, "a"), (2, "b"), (3, "c")):
        for number in range(2):
            queue.add(ecosystem_id, f"{name}{number}")
    assert queue.take(1) == ["a0"]
    queue.add(4, "d0")
    assert queue.take(10) == ["b0", "c0", "a1", "d0", "b1", "c1"]
    assert len(queue) == 0


def test_a_look_ahead_shows_what_is_taken_next_and_takes_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for ecosystem_id, name in ((1, "a0"), (1, "a1"), (2, "b0"), (1, "a2")):
        queue.add(ecosystem_id, name)
    seen = []
    while queue:
        assert queue.peek() == queue.peek()
        seen.append((queue.peek(), len(queue), *queue.take(1)))
    assert seen == [("a0", 4, "a0"), ("b0", 3, "b0"), ("a1", 2, "a1"), ("a2", 1, "a2")]
