"""``estd profile``: the rules of each kind of certificate, as they are in force."""

from __future__ import annotations

from pathlib import Path

from live_server import NORTH, Live
from postgres_fixture import Database
from program import PLANT, ask, estd, refusal, tell, write_site

from estd.ca.ecosystems import READY

GATE = """
[profile.gate]
label = "gates"
issuer = "root"
enroll = ["issued:pump"]
renew = "rekey"
keys = ["ec-p384"]
subject = "empty"
san = "request"
san_rule = { types = ["dns"], required = ["dns"] }
extended_key_usage = ["serverAuth", "clientAuth"]
validity = "10d"
retry_window = "2h"
require_binding = true
"""


def write_rules(site: tuple[object, ...], directory: Path) -> None:
    """Two ecosystems; the first has two profiles."""
    for label, more in (("plant", GATE), ("yard", "")):
        head = f'label = "{label}"\ndefault_profile = "pump"'
        (directory / f"{label}.toml").write_text(PLANT.replace('label = "plant"', head) + more)
        ask("apply", directory / f"{label}.toml", *site)


def test_where_there_is_none(database: Database, tmp_path: Path) -> None:
    site = write_site(tmp_path, database.url)
    assert ask("profile", "list", *site) == []
    assert tell("profile", "list", *site).startswith("There is no profile yet.")


def test_profiles_are_listed(database: Database, tmp_path: Path) -> None:
    site = write_site(tmp_path, database.url)
    write_rules(site, tmp_path)
    rows = ask("profile", "list", *site)
    assert [(row["ecosystem"], row["profile"], row["state"]) for row in rows] == [
        ("plant", "gate", "in force"),
        ("plant", "pump", "in force"),
        ("yard", "pump", "in force"),
    ]
    assert (rows[0]["keys"], rows[0]["validity"], rows[0]["label"]) == (["ec-p384"], "10d", "gates")
    assert ask("profile", "list", "--ecosystem", "yard", *site) == rows[2:]
    _, _, *lines = tell("profile", "list", "--ecosystem", "plant", *site).splitlines()
    gate, pump = (line.split() for line in lines)
    assert pump[:5] == ["pump", "plant", "/.well-known/est/plant/", "code", "either"]
    assert gate == ["gate", "plant", "/.well-known/est/gates/", "issued:pump", "rekey", "ec-p384", "10d", "in", "force"]
    status, error = refusal("profile", "list", "--ecosystem", "nope", *site)
    assert (status, error["problems"][0]["remedy"]) == (2, "Known here: plant, yard.")


def test_one_profile_in_full(database: Database, tmp_path: Path) -> None:
    site = write_site(tmp_path, database.url)
    write_rules(site, tmp_path)
    plant = ("--ecosystem", "plant", *site)
    listed = ask("profile", "list", *plant)[0]
    shown = ask("profile", "show", "gate", *plant)
    assert shown == {name: value for name, value in listed.items() if name not in ("state", "why")}
    assert (shown["renew"], shown["require_binding"], shown["san_rule"]["required"]) == ("rekey", True, ["dns"])
    assert tell("profile", "show", "gate", *plant).splitlines() == [
        "gate in Harbour Plant (plant)",
        "  path               /.well-known/est/gates/",
        "  issuer             root",
        "  who may enroll     issued:pump",
        "  renewal            with a new key",
        "  keys               ec-p384",
        "  subject            none",
        "  alternative names  what the device asks for, within the profile's patterns",
        "  key usage          digitalSignature",
        "  purposes           serverAuth, clientAuth",
        "  validity           10d, from 1h before issue",
        "  retry window       2h",
        "  channel binding    required",
    ]
    for name, label, where, remedy in (
        ("valve", "plant", "profile 'valve'", "Known there: gate, pump."),
        ("pump", "nope", "ecosystem 'nope'", "Known here: plant, yard."),
    ):
        status, error = refusal("profile", "show", name, "--ecosystem", label, *site)
        [problem] = error["problems"]
        assert (status, problem["where"], problem["remedy"]) == (2, where, remedy)


def test_ready_made_ones_are_there_without_a_server() -> None:
    assert ask("profile", "ready") == READY
    _, _, *lines = tell("profile", "ready").splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == list(READY)
    done = estd("profile", "ready", "--dir", "lab")
    assert (done.returncode, done.stdout) == (2, "")


def test_profiles_as_people_see_them(live: Live) -> None:
    here = ("--dir", live.directory)
    assert "anchor:demo-maker, code" in tell("profile", "list", *here)
    assert "the name in the device's credential" in tell("profile", "show", "device", "--ecosystem", NORTH, *here)
    done = estd("profile", "show", "device", *here)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Missing option '--ecosystem'" in done.stderr
