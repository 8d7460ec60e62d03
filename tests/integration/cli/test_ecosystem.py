"""``estd ecosystem``: which trust domains there are, and the rules in force in one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from live_server import NORTH, SOUTH, Live
from postgres_fixture import Database
from program import PLANT, ask, estd, refusal, tell, write_site

from estd.app.access import find_user
from estd.ra.directory import INTERNAL_LABEL


def test_where_there_is_none(database: Database, tmp_path: Path) -> None:
    site = write_site(tmp_path, database.url)
    assert ask("ecosystem", "list", *site) == []
    assert tell("ecosystem", "list", *site) == "There is no ecosystem yet. Make one: estd apply FILE\n"
    status, error = refusal("ecosystem", "show", "plant", *site)
    assert (status, error["problems"]) == (
        2,
        [{"where": "ecosystem 'plant'", "what": "does not exist", "remedy": "Apply one first: estd apply FILE."}],
    )


def test_what_is_in_force(database: Database, tmp_path: Path) -> None:
    site = write_site(tmp_path, database.url)
    started = datetime.now(UTC).replace(microsecond=0)
    for label in ("yard", "plant"):
        (tmp_path / f"{label}.toml").write_text(PLANT.replace('"plant"', f'"{label}"'))
        ask("apply", tmp_path / f"{label}.toml", *site)
    plant, yard = ask("ecosystem", "list", *site)
    assert started <= datetime.fromisoformat(plant.pop("applied_at")) <= datetime.now(UTC)
    assert plant == {
        "label": "plant",
        "version": 1,
        "name": "Harbour Plant",
        "default_profile": "pump",
        "profiles": ["pump"],
        "issuers": ["root"],
        "anchors": [],
        "applied_by": find_user(),
        "state": "in force",
        "why": None,
    }
    assert yard["label"] == "yard"

    # The newest version is what is told; of the other ecosystem nothing changed.
    gate = '\n[profile.gate]\nlabel = "gates"\nissuer = "root"\nenroll = []\n'
    named = PLANT.replace('name = "Harbour Plant"', 'name = "Inland Plant"\ndefault_profile = "pump"')
    (tmp_path / "plant.toml").write_text(named + gate)
    ask("apply", tmp_path / "plant.toml", *site)
    plant, unchanged = ask("ecosystem", "list", *site)
    assert (plant["version"], plant["name"], plant["profiles"]) == (2, "Inland Plant", ["gate", "pump"])
    assert unchanged == yard
    shown = ask("ecosystem", "show", "plant", *site)
    document = shown.pop("document")
    assert shown == plant
    assert document["ecosystem"]["name"] == "Inland Plant"
    assert document["profile"]["gate"]["label"] == "gates"
    title, *facts = tell("ecosystem", "show", "plant", *site).splitlines()
    assert title == "Inland Plant (plant)"
    assert facts[0].startswith("  version          2, applied ")
    assert facts[0].endswith(f" by {find_user()}")
    assert facts[1:] == [
        "  path             /.well-known/est/plant/",
        "  default profile  pump",
        "  issuers          root: ec-p256, root",
        "  profiles         gate: at gates, for nobody",
        "                   pump: at plant, for code",
    ]
    rows = [line.split() for line in tell("ecosystem", "list", *site).splitlines()]
    assert rows[0] == ["label", "name", "version", "profiles", "makers", "applied", "by", "state"]
    assert [(row[0], row[3], row[-2:]) for row in rows[2:]] == [
        ("plant", "2", ["in", "force"]),
        ("yard", "1", ["in", "force"]),
    ]


def test_the_servers_own_ecosystem_is_not_among_them(live: Live) -> None:
    here = ("--dir", live.directory)
    labels = {one["label"] for one in ask("ecosystem", "list", *here)}
    assert labels >= {NORTH, SOUTH}
    assert INTERNAL_LABEL not in labels
    status, error = refusal("ecosystem", "show", "nope", *here)
    [problem] = error["problems"]
    assert (status, problem["where"], problem["what"]) == (2, "ecosystem 'nope'", "does not exist")
    assert problem["remedy"].startswith("Known here: ")
    assert NORTH in problem["remedy"]
    assert INTERNAL_LABEL not in problem["remedy"]


def test_ecosystems_as_people_see_them(live: Live) -> None:
    here = ("--dir", live.directory)
    assert "Campus North" in tell("ecosystem", "list", *here)
    shown = tell("ecosystem", "show", NORTH, *here)
    assert "  makers           demo-maker (1 CA)\n                   demo-line (1 CA)\n" in shown
    assert "root: ec-p384, root\n" in shown
    assert "devices: ec-p256, under root\n" in shown


def test_a_command_line_that_cannot_work() -> None:
    for arguments in (("show",), ("show", NORTH, SOUTH), ("list", NORTH), ("list", "--ecosystem", NORTH)):
        done = estd("ecosystem", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"Try: estd ecosystem {arguments[0]} --help" in done.stderr
