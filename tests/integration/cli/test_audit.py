"""``estd audit``: decisions are found again, and journals, tables and trail are held against each other.

What a damaged record looks like is in tests/unit/auditor and tests/faults, a database that was set back in
tests/integration/test_reconcile.py.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from live_server import NORTH, Live
from patience import wait_until
from postgres_fixture import Database
from program import PLANT, ask, estd, read_pem, refusal, server_of, tell, write_site

from estd.app.access import find_user


@pytest.fixture
def site(database: Database, tmp_path: Path) -> tuple[object, ...]:
    """A server that never ran: an ecosystem was applied, and there is no journal."""
    options = write_site(tmp_path, database.url)
    (tmp_path / "plant.toml").write_text(PLANT)
    ask("apply", tmp_path / "plant.toml", *options)
    return options


# --- decisions ---------------------------------------------------------------------------------------------------------


def test_decisions_are_listed_newest_first(site: tuple[object, ...], tmp_path: Path) -> None:
    plant = ("--ecosystem", "plant", *site)
    (tmp_path / "pumps.csv").write_text("device,subject\npump-1,CN=Pump 1\n")
    ask("inventory", "import", tmp_path / "pumps.csv", *plant)
    ask("code", "create", "--device", "pump-1", *plant)
    events = ask("audit", "list", *plant)
    assert [(one["kind"], one["outcome"]) for one in events] == [
        ("code.create", "granted"),
        ("inventory.import", "granted"),
        ("ecosystem.apply", "granted"),
    ]
    assert {one["ecosystem"] for one in events} == {"plant"}
    assert {one["identity"] for one in events} == {find_user()}
    assert (events[0]["detail"], events[2]["version"]) == ("1 code, the first for pump-1", 1)
    times = [datetime.fromisoformat(one["at"]) for one in events]
    assert times == sorted(times, reverse=True)
    assert ask("audit", "list", "--limit", "2", *plant) == events[:2]
    everywhere = ask("audit", "list", *site)
    assert [one for one in everywhere if one["ecosystem"] == "plant"] == events
    assert ask("audit", "list", "--outcome", "granted", *plant) == events
    assert ask("audit", "list", "--outcome", "refused", *plant) == []
    heading, _, newest, *_ = tell("audit", "list", *plant).splitlines()
    assert heading.split() == ["time", "what", "outcome", "ecosystem", "who", "why", "request"]
    *row, why = newest.split(maxsplit=6)
    assert row == [f"{times[0]:%Y-%m-%d}", f"{times[0]:%H:%M:%S}Z", "code.create", "granted", "plant", find_user()]
    assert why.strip() == "1 code, the first for pump-1"


def test_where_there_is_no_decision(database: Database, tmp_path: Path) -> None:
    site = write_site(tmp_path, database.url)
    assert ask("audit", "list", *site) == []
    assert tell("audit", "list", *site) == "Nothing happened here yet.\n"
    for some in (("--outcome", "pending"), ("--request", "0" * 16)):
        assert tell("audit", "list", *some, *site) == "There is no such decision.\n"
    status, error = refusal("audit", "list", "--ecosystem", "nope", *site)
    assert (status, error["problems"][0]["remedy"]) == (2, "Apply one first: estd apply FILE.")
    for wrong in (("--outcome", "maybe"), ("--limit", "0"), ("--limit", "1000001")):
        status, error = refusal("audit", "list", *wrong, *site)
        assert (status, error["code"], wrong[0] in error["message"]) == (2, "usage", True)


def test_a_refusal_is_found_with_its_reason(live: Live, tmp_path: Path) -> None:
    wharf = ("--ecosystem", "wharf", "--dir", live.directory)
    (tmp_path / "wharf.toml").write_text(PLANT.replace('"plant"', '"wharf"'))
    ask("apply", tmp_path / "wharf.toml", "--dir", live.directory)
    enroll = ("enroll", *server_of(live, "wharf"), "--device", "pump-1", "--out", tmp_path / "d")

    def refused() -> list[dict[str, str]]:
        status, error = refusal(*enroll, given="00000-00000-00000-00000")
        assert status == 1
        # Until the server has heard of the ecosystem, what is refused is not refused there.
        events = ask("audit", "list", "--outcome", "refused", *wharf)
        return [one for one in events if one["request_id"] == error["details"].get("request_id")]

    [event] = wait_until(refused, 30)
    assert (event["kind"], event["outcome"], event["code"]) == ("est.simpleenroll", "refused", "credential-invalid")
    text = tell("audit", "list", "--request", event["request_id"], "--dir", live.directory)
    [row] = text.splitlines()[2:]
    assert "credential-invalid: " in row
    assert row.split()[-1] == event["request_id"]


def test_decisions_as_people_see_them(live: Live) -> None:
    assert "ecosystem.apply" in tell("audit", "list", "--limit", "100000", "--dir", live.directory)


# --- whether all of it is still true -----------------------------------------------------------------------------------


def test_what_holds_and_what_does_not(site: tuple[object, ...], live: Live, tmp_path: Path) -> None:
    journal, held = tmp_path / "journal", tmp_path / "held"
    journal.mkdir()
    held.mkdir()
    verify = ("audit", "verify", "--journal", journal, "--received", held, *site)
    found = ask(*verify)
    assert (found["clean"], found["breaches"], found["counts"].get("received")) == (True, [], None)
    title, *_, verdict = tell(*verify).splitlines()
    assert (title, verdict) == ("Read", "✓ All six invariants hold.")
    # A key is no certificate, and somebody else's certificate is one that the database lacks.
    stranger = live.device(NORTH)
    (held / "device.key").write_bytes(stranger.key.read_bytes())
    assert ask(*verify)["counts"].get("received") is None
    (held / "device.pem").write_bytes(stranger.certificate.read_bytes())
    done = estd(*verify, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    number = stranger.x509.serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1, "big").hex()
    found = json.loads(done.stdout)
    assert (found["clean"], found["counts"]["received"]) == (False, 1)
    assert found["breaches"] == [
        {
            "invariant": "i",
            "where": str(held / "device.pem"),
            "what": "a client holds this certificate, and the database does not",
            "serial": serial,
        }
    ]
    done = estd(*verify)
    assert (done.returncode, done.stderr) == (1, "")
    assert "✓" not in done.stdout
    heading, _, row, verdict = done.stdout.splitlines()[-4:]
    assert heading.split() == ["breaks", "where", "serial", "what"]
    assert row.split(maxsplit=3)[:3] == ["i", str(held / "device.pem"), serial]
    assert verdict == "✗ 1 finding."


def test_a_server_that_runs_is_verified(live: Live, tmp_path: Path) -> None:
    device = live.device(NORTH)
    by = ("--certificate", device.certificate, "--key", device.key, "--out", tmp_path / "d")
    ask("enroll", *server_of(live), *by)
    held = tmp_path / "d" / "device.pem"
    found = ask("audit", "verify", "--received", held, "--no-signatures", "--dir", live.directory)
    assert (found["clean"], found["breaches"]) == (True, [])
    assert found["counts"]["received"] == 1, "the intermediates are the database's own"
    assert found["counts"]["journals"] >= 1
    assert live.stored(read_pem(held).public_bytes(Encoding.DER))


def test_what_cannot_be_verified(site: tuple[object, ...], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    # Signers that run on their own keep their journals elsewhere.
    status, error = refusal("audit", "verify", *site)
    [problem] = error["problems"]
    assert (status, problem["where"], problem["what"]) == (2, str(tmp_path / "data" / "journal"), "is not there")
    assert problem["remedy"] == "Name the directory of the signers' journals: --journal DIR."
    absent = tmp_path / "absent"
    for options, what in (
        (("--journal", absent), "cannot be read (No such file or directory)"),
        (("--journal", journal, "--received", absent), "cannot be read (No such file or directory)"),
    ):
        status, error = refusal("audit", "verify", *options, *site)
        [problem] = error["problems"]
        assert (status, problem["where"], problem["what"]) == (2, str(absent), what)
    for wrong in (("--journal", tmp_path / "kek"), ("--settled-within", "0")):
        status, error = refusal("audit", "verify", *wrong, *site)
        assert (status, error["code"], wrong[0] in error["message"]) == (2, "usage", True)


def test_a_database_that_cannot_be_asked_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    site = write_site(tmp_path, f"postgresql://estd@/estd?host={tmp_path}")
    status, error = refusal("audit", "verify", "--journal", tmp_path / "journal", *site)
    assert status == 2
    assert error["message"].startswith("It could not be found out: ")
    assert error["remedy"] == "Is the database running, and may this user read it and the journals?"


# --- and what to do when it is not ------------------------------------------------------------------------------------


def test_a_server_that_runs_is_not_reconciled(live: Live) -> None:
    here = ("--dir", live.directory)
    after = live.last_event()
    status, error = refusal("audit", "reconcile", *here)
    [problem] = error["problems"]
    assert (status, problem["where"]) == (2, str(live.directory / "data"))
    assert problem["what"] == "is in use by a running estd"
    # To look is allowed; nothing is missing, and nothing is changed.
    found = ask("audit", "reconcile", "--dry-run", *here)
    assert (found["missing"], found["restored"], found["failed"], found["journals_absent"]) == (0, [], [], [])
    title, *facts = tell("audit", "reconcile", "--dry-run", *here).splitlines()
    assert title == "What would be restored"
    assert "  missing in the database  0" in facts
    assert live.events(after, kind="audit.reconcile") == []


def test_what_cannot_be_reconciled(site: tuple[object, ...], tmp_path: Path) -> None:
    status, error = refusal("audit", "reconcile", *site)
    assert (status, error["problems"][0]["what"]) == (2, "is not there")
    (tmp_path / "journal").mkdir()
    for options in ((), ("--dry-run",), ("--partial",)):
        status, error = refusal("audit", "reconcile", "--journal", tmp_path / "journal", *options, *site)
        [problem] = error["problems"]
        assert (status, problem["where"], problem["what"]) == (2, str(tmp_path / "journal"), "holds no journal")
