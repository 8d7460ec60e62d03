"""Connections for tests of the gate: they note what it tells them."""

from __future__ import annotations

from estd.web.gate import Gate
from estd.web.place import Place, Refusal


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
