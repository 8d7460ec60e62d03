"""What keeps devices from enrolling, found out once for everybody who asks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import until

from estd.app import readiness
from estd.app.readiness import Readiness, find_full_disk
from estd.errors import Broken, Code, Unavailable


class Database:
    """Answers when it is let, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.fault: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def check(self) -> None:
        self.asked += 1
        await self.answers.wait()
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, to be set."""
    now = [1000.0]
    monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def make(database: Database, controls: dict[str, Any] | None = None, directory: Path | None = None) -> Readiness:
    return Readiness(controls or {}, lambda _name: True, directory, database.check)


async def test_a_crowd_of_probes_is_one_look(clock: list[float]) -> None:
    database = Database()
    ready = make(database)
    database.answers.clear()
    crowd = [asyncio.ensure_future(ready.ask_database()) for _ in range(100)]
    await until(lambda: database.asked)
    clock[0] += 60  # however long the database takes: nobody asks it a second time meanwhile
    crowd += [asyncio.ensure_future(ready.ask_database()) for _ in range(100)]
    database.answers.set()
    assert await asyncio.gather(*crowd) == [None] * 200
    assert await ready.ask_database() is None
    assert database.asked == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [(Unavailable(Code.STORE_UNAVAILABLE, "no answer"), "no answer"), (Broken("no such table"), "no such table")],
    ids=["away", "broken"],
)
async def test_what_was_found_holds_for_a_second(clock: list[float], fault: Exception, said: str) -> None:
    database = Database()
    ready = make(database)
    database.fault = fault
    assert await ready.ask_database() == said
    database.fault = None
    clock[0] += 0.99
    assert await ready.ask_database() == said
    clock[0] += 0.01
    assert await ready.ask_database() is None
    assert database.asked == 2


async def test_a_probe_that_is_given_up_spoils_nobody_elses() -> None:
    database = Database()
    ready = make(database)
    database.answers.clear()
    first, second = asyncio.ensure_future(ready.ask_database()), asyncio.ensure_future(ready.ask_database())
    await until(lambda: database.asked)
    first.cancel()
    await asyncio.wait({first})
    database.answers.set()
    assert await second is None


class Signer:
    """A signer's control channel that fails, or says what hinders it."""

    def __init__(self, *answers: Exception | str | None) -> None:
        self._answers = list(answers)

    async def status(self) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        self.hindrance = answer
        return self


async def test_the_watch_goes_on_after_an_answer_that_nobody_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.app.tasks._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "_EVERY_SECONDS", 0.0)
    controls = {"signer-0": Signer(ValueError("not a status"), OSError("gone"), "no room for the journal")}
    ready = make(Database(), controls)
    watching = asyncio.ensure_future(ready.watch())
    await until(lambda: ready.signers is not None or watching.done())
    assert ready.signers == "signer-0: no room for the journal"
    assert not watching.done()
    watching.cancel()
    await asyncio.wait({watching})


def test_a_disk_is_looked_at(tmp_path: Path) -> None:
    assert find_full_disk(tmp_path) is None
    assert find_full_disk(tmp_path / "none") == f"{tmp_path / 'none'} cannot be looked at (No such file or directory)"
