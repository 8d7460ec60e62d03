from datetime import UTC, datetime
from pathlib import Path

from estd.app.fleet import AT_ONCE, OPERATIONS, Device, Tally, run_fleet
from estd.app.makers import Maker
from estd.device.client import DEFAULT_PATIENCE, Credential

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


async def test_devices_that_fail_are_counted_and_the_others_go_on(tmp_path: Path) -> None:
    trust = tmp_path / "trust.pem"
    trust.write_bytes(Maker.create("x", NOW).certificate_pem)
    devices = [
        # Nobody listens at port 1; the second one's files do not even exist.
        Device("code", "plant", Credential(device="code", code="x"), tmp_path / "code"),
        Device("files", "plant", Credential(tmp_path / "absent.pem", tmp_path / "absent.key"), tmp_path / "files"),
    ]
    through: list[None] = []
    tally = await run_fleet(devices, "https://127.0.0.1:1", trust, lambda: through.append(None), at_once=2)
    assert len(through) == 2
    assert tally.lives == []
    assert {(name, operation) for name, operation, _ in tally.failures} == {("code", "cacerts"), ("files", "cacerts")}
    assert tally.count_failures("cacerts") == 2
    assert tally.count_failures("enroll") == 0
    assert tally.elapsed_seconds < DEFAULT_PATIENCE.tries * 2


async def test_no_devices_are_no_trouble(tmp_path: Path) -> None:
    tally = await run_fleet([], "https://127.0.0.1:1", tmp_path / "absent", lambda: None)
    assert (tally.lives, tally.failures) == ([], [])
    assert AT_ONCE > 0
    assert set(Tally().seconds) == set(OPERATIONS)
