"""``estd apply``: rules that come into force, all of them or none."""

from __future__ import annotations

from pathlib import Path

from live_server import Live
from patience import wait_until
from program import PLANT, ask, estd, read_pem, refusal, server_of, write_site

from estd.app.playground import read_codes


def test_an_ecosystem_of_ones_own_beside_a_running_server(live: Live, tmp_path: Path) -> None:
    here = ("--dir", live.directory)
    (tmp_path / "plant.toml").write_text(PLANT)
    (tmp_path / "pumps.csv").write_text("device,subject,san\npump-17,CN=Pump 17,dns:pump-17.plant.example\n")
    [tried] = ask("apply", tmp_path / "plant.toml", "--dry-run", *here)
    assert (tried["version"], tried["changed"]) == (1, True)
    assert "plant" not in {one["label"] for one in ask("ecosystem", "list", *here)}
    [applied] = ask("apply", tmp_path / "plant.toml", *here)
    assert (applied["version"], applied["changed"]) == (1, True)
    [again] = ask("apply", tmp_path / "plant.toml", *here)
    assert (again["version"], again["changed"]) == (1, False)
    assert ask("inventory", "import", tmp_path / "pumps.csv", "--ecosystem", "plant", *here)["devices"] == 1
    done = estd("code", "create", "--ecosystem", "plant", "--device", "Pump-17", "--out", tmp_path / "codes.csv", *here)
    assert done.returncode == 0, done.stderr
    [(device, code)] = read_codes(tmp_path / "codes.csv")
    enroll = ("enroll", *server_of(live, "plant"), "--device", device, "--out", tmp_path / "d")
    # The running server follows within a second or so.
    wait_until(lambda: estd(*enroll, given=code).returncode == 0)
    certificate = read_pem(tmp_path / "d/device.pem")
    assert certificate.subject.rfc4514_string() == "CN=Pump 17"
    export = tmp_path / "root.pem"
    assert estd("issuer", "export", "--ecosystem", "plant", "--roots", "--out", export, *here).returncode == 0
    certificate.verify_directly_issued_by(read_pem(export))
    [spent] = ask("code", "list", "--ecosystem", "plant", *here)
    assert (spent["device"], spent["state"]) == ("pump-17", "used")
    assert ask("profile", "show", "pump", "--ecosystem", "plant", *here)["validity"] == "30d"
    assert ask("ecosystem", "show", "plant", *here)["document"]["ecosystem"]["label"] == "plant"
    assert [one["name"] for one in ask("issuer", "list", "--ecosystem", "plant", *here)] == ["root"]
    assert ask("inventory", "show", "PUMP-17", "--ecosystem", "plant", *here)[0]["san"] == ["dns:pump-17.plant.example"]
    kinds = {event["kind"] for event in ask("audit", "list", "--ecosystem", "plant", *here)}
    assert {"ecosystem.apply", "code.create", "inventory.import", "est.simpleenroll"} <= kinds
    # Were the profile renamed, that certificate could not be renewed any more.
    (tmp_path / "plant.toml").write_text(PLANT.replace("[profile.pump]", "[profile.device]"))
    done = estd("apply", tmp_path / "plant.toml", "--dry-run", *here)
    assert "warning: plant: profile 'pump' is gone, and 1 certificate of it is in use" in done.stderr
    [tried] = ask("apply", tmp_path / "plant.toml", "--dry-run", *here)
    assert len(tried["warnings"]) == 1


def test_another_key_encryption_key_has_to_be_meant(tmp_path: Path) -> None:
    """One that was mistaken would leave an ecosystem that no signer opens."""
    (tmp_path / "plant.toml").write_text(PLANT)
    settings = {}
    for name, digit in (("first", "1"), ("second", "2")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(digit * 64)
        settings[name] = tmp_path / f"{name}.toml"
        settings[name].write_text(f'data_directory = "data"\nkeys.file = "{name}"\n')
    plant = tmp_path / "plant.toml"
    assert ask("apply", plant, "--config", settings["first"])[0]["version"] == 1
    status, error = refusal("apply", plant, "--config", settings["second"])
    assert (status, "--new-key" in str(error)) == (2, True)
    status, error = refusal("apply", plant, "--config", settings["second"], "--new-key")
    assert (status, "Raise its generation" in str(error)) == (2, True)
    plant.write_text(PLANT.replace('name = "root"', 'name = "root"\ngeneration = 2'))
    assert ask("apply", plant, "--config", settings["second"], "--new-key")[0]["version"] == 2
    assert refusal("apply", plant, "--config", settings["first"])[0] == 2
    assert ask("apply", plant, "--config", settings["second"])[0]["changed"] is False


def test_files_that_are_applied_together_are_applied_all_or_none(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    good, other, wrong = (tmp_path / f"{name}.toml" for name in ("z20", "z13", "z7"))
    good.write_text(PLANT.replace('"plant"', '"z20"'))
    past = 'name = "root"\nvalidity = "until 2026-01-01"'
    other.write_text(PLANT.replace('"plant"', '"z13"').replace('name = "root"', past))
    for options in (("--dry-run",), ()):
        status, error = refusal("apply", good, other, *site, *options)
        assert (status, [one["where"] for one in error["problems"]]) == (2, ["z13.toml: issuer[root].validity"])
        assert ask("ecosystem", "list", *site) == []
    # What is taken and what is wrong in itself come together, each with its file.
    assert ask("apply", good, *site)[0]["version"] == 1
    other.write_text(PLANT.replace('"plant"', '"z13"').replace('issuer = "root"', 'issuer = "root"\nlabel = "z20"'))
    wrong.write_text(PLANT.replace('"plant"', '"z7"').replace('issuer = "root"', 'issuer = "rot"\nlabel = "z13"'))
    status, error = refusal("apply", other, wrong, *site)
    assert status == 2
    assert [(one["where"], one["what"].partition(" of ")[0]) for one in error["problems"]] == [
        ("z7.toml: profile.pump.issuer", "'rot' is not an issuer"),
        ("z13.toml: ecosystem.label", "'z13' leads to the ecosystem 'z7'"),
        ("z13.toml: profile.pump.label", "'z20' leads to the ecosystem 'z20'"),
        ("z7.toml: profile.pump.label", "'z13' leads to the ecosystem 'z13'"),
    ]
    assert [one["label"] for one in ask("ecosystem", "list", *site)] == ["z20"]


def test_a_faulty_file_makes_no_database(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    (tmp_path / "plant.toml").write_text("[ecosystem")
    assert refusal("apply", tmp_path / "plant.toml", *site)[0] == 2
    assert not (tmp_path / "data" / "postgres").exists()
