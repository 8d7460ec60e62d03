"""``estd code``: enrollment codes are made, listed and taken back."""

from __future__ import annotations

from pathlib import Path

from live_server import NORTH, Live
from patience import wait_until
from program import PLANT, ask, estd, refusal, server_of, tell


def test_no_code_is_made_for_a_name_that_cannot_be_certified(live: Live, tmp_path: Path) -> None:
    north = ("--ecosystem", NORTH, "--dir", live.directory)
    made = len(ask("code", "list", "--limit", "1000", *north))
    status, error = refusal("code", "create", "--device", "x" * 64, "--device", "x" * 65, *north)
    assert status == 2
    [problem] = error["problems"]
    assert problem["where"] == f"device '{'x' * 65}'"
    assert "1 to 64 characters, not 65" in problem["what"]
    assert len(ask("code", "list", "--limit", "1000", *north)) == made
    # Where the inventory says what a device is called, its name may be longer.
    (tmp_path / "long.toml").write_text(PLANT.replace('"plant"', '"long"'))
    ask("apply", tmp_path / "long.toml", "--dir", live.directory)
    assert ask("code", "create", "--device", "x" * 65, "--ecosystem", "long", "--dir", live.directory)


def test_codes_can_be_taken_back(live: Live, tmp_path: Path) -> None:
    yard = ("--ecosystem", "yard", "--dir", live.directory)
    (tmp_path / "yard.toml").write_text(PLANT.replace('"plant"', '"yard"'))
    ask("apply", tmp_path / "yard.toml", "--dir", live.directory)
    (tmp_path / "pumps.csv").write_text("device,subject\n" + "".join(f"pump-{n},CN=Pump {n}\n" for n in range(1, 5)))
    ask("inventory", "import", tmp_path / "pumps.csv", *yard)
    made = ask("code", "create", "--device", "pump-1", "--device", "pump-2", "--device", "pump-3", *yard)
    codes = {one["device"]: one["code"] for one in made}
    enroll = ("enroll", *server_of(live, "yard"))
    third = ("--device", "pump-3", "--out", tmp_path / "3")
    wait_until(lambda: estd(*enroll, *third, given=codes["pump-3"]).returncode == 0)

    # The newest code is spent, and the newest that works is found all the same.
    assert ask("code", "list", "--unused", "--limit", "1", *yard)[0]["device"] == "pump-2"
    assert ask("code", "revoke", "Pump-2", *yard) == [{"device": "pump-2"}]
    assert [one["device"] for one in ask("code", "list", "--unused", *yard)] == ["pump-1"]
    second = ("--device", "pump-2", "--out", tmp_path / "2")
    status, error = refusal(*enroll, *second, given=codes["pump-2"])
    assert (status, "does not know this device name with this enrollment code" in error["message"]) == (1, True)
    [event] = [one for one in ask("audit", "list", *yard) if one["outcome"] == "refused"]
    assert (event["code"], event["detail"]) == ("credential-invalid", "this enrollment code has expired")
    assert ask("audit", "list", "--request", event["request_id"], "--dir", live.directory) == [event]
    assert ask("audit", "list", "--request", "nobodys", *yard) == []
    # A code that is spent ends as well: its request is repeated no more.
    pending = ("enroll", *server_of(live, "yard"), "--device", "pump-3", "--replace", "--out", tmp_path / "3")
    assert ask("code", "revoke", "pump-2", "pump-3", *yard) == [{"device": "pump-3"}]
    assert refusal(*pending, given=codes["pump-3"])[0] == 1
    assert len([one for one in ask("audit", "list", *yard) if one.get("code") == "credential-invalid"]) == 2
    status, error = refusal("code", "revoke", "pump-2", "pump-3", *yard)
    assert (status, error["problems"][0]["what"]) == (2, "has no code that still works")
    assert error["problems"][0]["where"] == "device 'pump-2', device 'pump-3'"
    (tmp_path / "semicolons.csv").write_text("name;device\nPump;pump-9\n")
    status, error = refusal("code", "create", "--devices-file", tmp_path / "semicolons.csv", *yard)
    assert (status, error["problems"][0]["what"]) == (2, "has semicolons where CSV has commas")
    assert ask("code", "revoke", "--all", *yard) == [{"device": "pump-1"}]
    assert ask("code", "list", "--unused", *yard) == []
    ours = [one for one in ask("audit", "list", *yard) if one["kind"] == "code.revoke"]
    assert [one["detail"] for one in ours] == [
        "all codes that were not used",
        "codes of pump-2, pump-3",
        "codes of pump-2",
    ]


def test_codes_as_people_see_them(live: Live) -> None:
    text = tell("code", "list", "--ecosystem", NORTH, "--limit", "100000", "--dir", live.directory)
    assert text.split()[:4] == ["device", "state", "made", "used"]
    assert "unused" in text
