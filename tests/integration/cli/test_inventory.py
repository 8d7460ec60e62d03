"""``estd inventory``: devices are brought in, listed page by page, and taken out."""

from __future__ import annotations

from pathlib import Path

from live_server import Live
from patience import wait_until
from program import PLANT, ask, estd, refusal, server_of, tell


def test_devices_can_be_taken_out(live: Live, tmp_path: Path) -> None:
    quay = ("--ecosystem", "quay", "--dir", live.directory)
    (tmp_path / "quay.toml").write_text(PLANT.replace('"plant"', '"quay"'))
    ask("apply", tmp_path / "quay.toml", "--dir", live.directory)
    (tmp_path / "pumps.csv").write_text("device,subject\n" + "".join(f"pump-{n},CN=Pump {n}\n" for n in range(1, 5)))
    ask("inventory", "import", tmp_path / "pumps.csv", *quay)
    [made] = ask("code", "create", "--device", "pump-3", *quay)
    enroll = ("enroll", *server_of(live, "quay"))
    third = ("--device", "pump-3", "--out", tmp_path / "3")
    wait_until(lambda: estd(*enroll, *third, given=made["code"]).returncode == 0)

    names = [one["device"] for one in ask("inventory", "list", *quay)]
    assert names == ["pump-1", "pump-2", "pump-3", "pump-4"]
    page = estd("inventory", "list", "--limit", "2", *quay)
    assert page.returncode == 0
    assert "pump-2" in page.stdout
    assert "pump-3" not in page.stdout
    assert "--after pump-2" in page.stderr
    assert [one["device"] for one in ask("inventory", "list", "--after", "pump-2", *quay)] == names[2:]
    removed = ask("inventory", "remove", "Pump-3", "pump-4", *quay)
    assert removed == [{"device": "pump-3", "removed": True}, {"device": "pump-4", "removed": True}]
    status, error = refusal("inventory", "remove", "pump-4", *quay)
    assert (status, error["problems"][0]["where"]) == (2, "device 'pump-4'")
    # Names are the inventory's affair with the first certificate only: to end a device, revoke what it has.
    assert ask(*enroll, "--out", tmp_path / "3", "--renew")["renewed"]
    [again] = ask("code", "create", "--device", "pump-4", *quay)
    status, error = refusal(*enroll, "--device", "pump-4", "--out", tmp_path / "4", given=again["code"])
    assert (status, "not-authorized" in error["message"]) == (1, True)
    ours = [one for one in ask("audit", "list", *quay) if one["kind"] == "inventory.remove"]
    assert [one["detail"] for one in ours] == ["pump-3, pump-4"]


def test_what_is_brought_in(live: Live, tmp_path: Path) -> None:
    pier = ("--ecosystem", "pier", "--dir", live.directory)
    (tmp_path / "pier.toml").write_text(PLANT.replace('"plant"', '"pier"'))
    ask("apply", tmp_path / "pier.toml", "--dir", live.directory)
    file = tmp_path / "pumps.csv"
    file.write_text("device,subject,san\nPump-1,CN=Pump 1,dns:a.example ip:192.0.2.1\nvalve,,\n")
    # Trying it changes nothing.
    tried = ask("inventory", "import", file, "--dry-run", *pier)
    assert tried == {"ecosystem": "pier", "devices": 2, "imported": False}
    assert estd("inventory", "import", file, "--dry-run", *pier).stderr == "2 devices would be imported into pier\n"
    assert ask("inventory", "list", *pier) == []
    assert tell("inventory", "list", *pier).startswith("No device here. Import some:")
    assert ask("inventory", "import", file, *pier) == {"ecosystem": "pier", "devices": 2, "imported": True}
    known = [
        {"device": "pump-1", "subject": "CN=Pump 1", "san": ["dns:a.example", "ip:192.0.2.1"]},
        {"device": "valve", "subject": None, "san": []},
    ]
    assert ask("inventory", "list", *pier) == known
    assert ask("inventory", "show", "PUMP-1", "valve", *pier) == known
    assert tell("inventory", "show", "pump-1", "valve", *pier).splitlines() == [
        "pump-1",
        "  subject            CN=Pump 1",
        "  alternative names  dns:a.example",
        "                     ip:192.0.2.1",
        "valve",
        "  subject            none",
        "  alternative names  none",
    ]
    assert tell("inventory", "list", "--after", "valve", *pier) == "There is no device behind valve.\n"
    # A device that is there already is replaced, and the others stay.
    file.write_text("device,subject\nPUMP-1,CN=Another\n")
    ask("inventory", "import", file, *pier)
    assert ask("inventory", "list", *pier) == [{"device": "pump-1", "subject": "CN=Another", "san": []}, known[1]]
    # Of a file with one wrong line nothing is taken.
    file.write_text("device,subject\ngate,CN=Gate\nhatch,XX\n")
    status, error = refusal("inventory", "import", file, *pier)
    assert (status, [one["where"] for one in error["problems"]]) == (2, ["pumps.csv, line 3"])
    assert [one["device"] for one in ask("inventory", "list", *pier)] == ["pump-1", "valve"]
    status, error = refusal("inventory", "show", "valve", "gate", *pier)
    assert (status, [one["where"] for one in error["problems"]]) == (2, ["device 'gate'"])
    status, error = refusal("inventory", "list", "--ecosystem", "nope", "--dir", live.directory)
    assert (status, error["problems"][0]["where"]) == (2, "ecosystem 'nope'")
