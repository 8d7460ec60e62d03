"""For tests of the gate and of who waits behind it: connections that note what they are told, a pace that does as told."""

from __future__ import annotations

from estd.ra.pace import Pace
from estd.web.gate import Gate
from estd.web.place import Place, Refusal


class Steps(Pace):
    """Allows so many steps, and notes who asked and who came alone."""

    def __init__(self, left: float = 0) -> None:
        super().__init__(0.5, 0.05)
        self.left = left
        self.asked: list[object] = []
        self.noticed: list[object] = []

    def notice(self, who: object) -> None:
        self.noticed.append(who)

    def allows(self, crowd: object) -> bool:
        self.asked.append(crowd)
        if not self.left:
            return False
        self.left -= 1
        return True


class Queuer:
    """A connection that notes what the gate tells it."""

    def __init__(self, gate: Gate, source: str, log: list[str] | None = None, name: str = "") -> None:
        place = gate.enter(source, self)
        assert isinstance(place, Place)
        self.place = place
        self.granted = False
        self.revoked = False
        self._log = log
        self._name = name

    def begin(self) -> Refusal | bool:
        return self.place.begin()

    def handshake_granted(self) -> None:
        self.granted = True
        if self._log is not None:
            self._log.append(self._name)

    def handshake_resumed(self) -> None:
        assert self._log is not None
        self._log.append(f"{self._name} resumed")

    def handshake_revoked(self) -> None:
        self.revoked = True
        self.place.end()
        self.place.leave()


class Kept(Queuer):
    """A connection that has finished its handshake and is idle."""

    def __init__(self, gate: Gate, source: str) -> None:
        super().__init__(gate, source)
        self.begin()
        self.place.end()
        self.put_out = False
        self.place.rest(self)

    def place_revoked(self) -> None:
        self.put_out = True
        self.place.leave()


def counts(gate: Gate) -> tuple[int, int, int]:
    return gate.connections, gate.handshakes, gate.waiting
