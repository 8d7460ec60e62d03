"""What ``estd demo`` tells of how it went; whole demonstrations are in tests/integration/cli."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from estd.app.demo import Neighbour, Outcome, Proof
from estd.app.fleet import OPERATIONS, Tally
from estd.audit import Event
from estd.cli import demo as module
from estd.cli import run

EVENT = Event(
    datetime(2026, 5, 17, 9, 30, tzinfo=UTC), "est.simpleenroll", "refused", "south", code="not-ours", request_id="ab12"
)
PROOF = Proof(certificates=4, by_cryptography=4, by_openssl=4, in_store=4, strangers=0)
NEIGHBOUR = Neighbour("pump-1", "south", 403, "not-ours: a stranger", EVENT, 0)


def make_outcome(**changes: object) -> Outcome:
    tally = Tally(seconds={name: [0.002, 0.001, 0.030] for name in OPERATIONS}, elapsed_seconds=2.0)
    return replace(Outcome(2, tally, PROOF, NEIGHBOUR), **changes)  # type: ignore[arg-type]  # names and types are those of Outcome


Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Call the command when the demonstration has come to that outcome: status, what it says, what it complains of."""

    def call(outcome: Outcome, *options: str) -> tuple[int, str, str]:
        async def carry_out(devices: int, keep: Path | None, watch: object) -> Outcome:
            return outcome

        monkeypatch.setattr(module, "carry_out", carry_out)
        status = run(["demo", *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_all_good(show: Show) -> None:
    status, said, complaint = show(make_outcome())
    assert (status, complaint) == (0, "")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    assert lines[0].split() == ["operation", "devices", "failed", "p50", "p99"]
    assert [line.split() for line in lines[2:7]] == [[name, "3", "0", "2.0", "ms", "30.0", "ms"] for name in OPERATIONS]
    assert lines[7:-2] == [
        "0 certificates in 2.0 s, 0 a second",
        "✓ 4 of 4 verified by cryptography",
        "✓ 4 of 4 verified by openssl",
        "✓ 4 of 4 found in the database, byte for byte",
        "✓ none of 4 passes in the other ecosystem",
        "✓ pump-1 tried south and was refused (403)",
        "server: not-ours: a stranger",
        "audit:  09:30:00Z est.simpleenroll refused, not-ours, request ab12",
        "store:  no certificate of that device in south",
    ]
    assert lines[-2].startswith("All good, ")
    assert lines[-1] == "Next: estd quickstart --dir lab"


def test_what_was_kept_is_named(show: Show, tmp_path: Path) -> None:
    _, said, _ = show(make_outcome(), "--keep", str(tmp_path))
    assert said.splitlines()[-1] == f"Everything is in {tmp_path}; go on with: estd quickstart --dir {tmp_path}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"proof": replace(PROOF, by_cryptography=3)}, "✗ 3 of 4 verified by cryptography"),
        ({"proof": replace(PROOF, by_openssl=3)}, "✗ 3 of 4 verified by openssl"),
        ({"proof": replace(PROOF, in_store=0)}, "✗ 0 of 4 found in the database, byte for byte"),
        ({"proof": replace(PROOF, strangers=1)}, "✗ 1 of 4 passes in the other ecosystem"),
        ({"neighbour": replace(NEIGHBOUR, status=200)}, "✗ pump-1 tried south and was NOT refused (200)"),
        ({"neighbour": replace(NEIGHBOUR, event=None)}, "✗ pump-1 tried south and was refused (403)"),
        ({"neighbour": replace(NEIGHBOUR, certificates=1)}, "store:  1 certificate of that device in south"),
        ({"proof": None}, "Not good, "),
        ({"neighbour": None}, "Not good, "),
    ],
)
def test_whatever_is_not_as_it_should_be_is_told(show: Show, changes: dict[str, object], told: str) -> None:
    status, said, complaint = show(make_outcome(**changes))
    assert (status, told in said, "Not good, " in said) == (1, True, True)
    assert complaint.splitlines() == [
        "estd: The demonstration did not go as it should.",
        "  The lines above say what failed.",
    ]
    status, said, complaint = show(make_outcome(**changes), "--json")
    assert (status, json.loads(said)["good"]) == (1, False)
    assert json.loads(complaint)["error"]["code"] == "failed"


def test_without_openssl_it_was_not_asked(show: Show) -> None:
    status, said, _ = show(make_outcome(proof=replace(PROOF, by_openssl=None)))
    assert (status, "✓ openssl is not installed here, so it was not asked" in said) == (0, True)


def test_the_first_failures_are_named_and_the_others_counted(show: Show) -> None:
    failures = [(f"pump-{number}", "enroll", "code\x1b-spent: no") for number in range(1, 8)]
    tally = Tally(failures=failures)
    status, said, _ = show(make_outcome(tally=tally))
    lines = [line.strip() for line in said.splitlines()]
    assert [line for line in lines if line.startswith("✗ pump-")] == [
        f"✗ pump-{number}, enroll: code\ufffd-spent: no" for number in range(1, 6)
    ]
    assert (status, "and 2 more" in lines) == (1, True)
    assert ["enroll", "0", "7", "–", "–"] in [line.split() for line in lines]
    _, said, _ = show(make_outcome(tally=tally), "--json")
    told = json.loads(said)
    assert told["operations"]["enroll"] == {"count": 0, "failed": 7, "p50_ms": None, "p99_ms": None}
    assert told["failures"][0] == {"device": "pump-1", "operation": "enroll", "detail": "code\x1b-spent: no"}


def test_programs_are_told_the_same(show: Show) -> None:
    status, said, complaint = show(make_outcome(), "--json")
    told = json.loads(said)
    assert (status, complaint) == (0, "")
    assert (told["good"], told["devices"], told["certificates"], told["fleet_seconds"]) == (True, 2, 0, 2.0)
    assert told["operations"]["cacerts"] == {"count": 3, "failed": 0, "p50_ms": 2.0, "p99_ms": 30.0}
    assert told["proof"] == {
        "certificates": 4,
        "cryptography": 4,
        "openssl": 4,
        "in_database": 4,
        "accepted_by_neighbour": 0,
    }
    assert told["neighbour"]["audit"]["request_id"] == "ab12"
