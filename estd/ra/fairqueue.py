"""The orders that wait for a group, one queue for each ecosystem, taken from in rotation.

Promises: a group of many holds some of everybody's, whoever queues the most; within an ecosystem the first come is the
first served. Where only one ecosystem waits, this is a plain queue.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class FairQueue(Generic[_Item]):
    """First come, first served within an ecosystem; turn by turn between ecosystems."""

    __slots__ = ("_count", "_queues")

    def __init__(self) -> None:
        self._queues: dict[int, deque[_Item]] = {}
        """By ecosystem, in rotation; none of them empty."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ecosystem_id: int, item: _Item) -> None:
        """Queue one more."""
        queue = self._queues.get(ecosystem_id)
        if queue is None:
            queue = self._queues[ecosystem_id] = deque()
        queue.append(item)
        self._count += 1

    def peek(self) -> _Item:
        """The one that `take` would give first."""
        return next(iter(self._queues.values()))[0]

    def take(self, at_most: int) -> list[_Item]:
        """The next ones; whose turn was cut short comes first next time."""
        taken: list[_Item] = []
        queues = self._queues
        if len(queues) == 1:
            (queue,) = queues.values()
            taken = [queue.popleft() for _ in range(min(at_most, len(queue)))]
            if not queue:
                queues.clear()
        else:
            while queues and len(taken) < at_most:
                ecosystem_id = next(iter(queues))
                queue = queues.pop(ecosystem_id)
                taken.append(queue.popleft())
                if queue:
                    queues[ecosystem_id] = queue  # to the end of the rotation
        self._count -= len(taken)
        return taken
