from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from estd.app.makers import Maker
from estd.app.playground import CODES_EACH, LABELS, Playground, lay_out, read_codes, write_codes
from estd.app.quickstart import prepare
from estd.app.quickstart import run as run_quickstart
from estd.app.submitted import read_ecosystem
from estd.config import read_config
from estd.errors import Invalid
from estd.ra.admission import hash_secret
from estd.store.contract import Store

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


async def run(place: Playground, store: Store) -> tuple[tuple[str, str], list[str]]:
    told: list[str] = []
    return await prepare(place, read_config(place.settings), store, told.append), told


async def test_the_first_start_makes_ecosystems_and_codes(tmp_path: Path, store: Any) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    (device, code), told = await run(place, store)
    records = {record.label: record for record in await store.find_ecosystems()}
    assert set(records) == set(LABELS)
    assert told == [f"Making the ecosystem {label}" for label in LABELS]
    for label in LABELS:
        rows = read_codes(place.bootstrap(label).codes)
        assert len(rows) == len({code for _, code in rows}) == CODES_EACH
        for name, secret in rows:
            [stored] = await store.find_codes(records[label].ecosystem_id, name)
            assert stored.secret_sha256 == hash_secret(secret)
            assert stored.single_use
    assert (device, code) == read_codes(place.bootstrap(LABELS[0]).codes)[0]


async def test_the_second_start_changes_nothing(tmp_path: Path, store: Any) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    first, _ = await run(place, store)
    before = await store.find_ecosystems()
    codes = [place.bootstrap(label).codes.read_bytes() for label in LABELS]
    # A document that was edited is applied when its operator says so, not by a restart.
    place.ecosystem(LABELS[0]).write_text("nonsense")
    assert await run(place, store) == (first, [])
    assert await store.find_ecosystems() == before
    assert [place.bootstrap(label).codes.read_bytes() for label in LABELS] == codes


async def test_when_all_codes_are_gone_there_are_new_ones_and_the_old_stay_listed(tmp_path: Path, store: Any) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    await run(place, store)
    path = place.bootstrap(LABELS[0]).codes
    old = [(name, "00000-00000-00000-00000") for name, _ in read_codes(path)]
    write_codes(path, old)
    (device, code), _ = await run(place, store)
    rows = read_codes(path)
    assert rows[:CODES_EACH] == old
    assert len(rows) == 2 * CODES_EACH
    assert (device, code) == rows[CODES_EACH]
    assert device.endswith(f"{CODES_EACH + 1:03d}")


def test_a_ca_key_that_others_can_read_is_told_and_imported(tmp_path: Path) -> None:
    maker = Maker.create("A root", NOW)
    (tmp_path / "ca.pem").write_bytes(maker.certificate_pem)
    (tmp_path / "ca.key").write_bytes(maker.key_pem)
    text = '[ecosystem]\nlabel = "plant"\nname = "x"\n[profile.pump]\nissuer = "root"\nenroll = ["code"]\n'
    text += '[[issuer]]\nname = "root"\nimport = { certificate = "ca.pem", key = "ca.key" }\n'
    (tmp_path / "plant.toml").write_text(text)
    for mode, told in ((0o600, 0), (0o640, 1), (0o604, 1)):
        (tmp_path / "ca.key").chmod(mode)
        warnings: list[str] = []
        assert read_ecosystem(tmp_path / "plant.toml", warnings.append).issuers[0].imported_key is not None
        assert (
            warnings
            == [f"{tmp_path}/ca.key is a private key, and others can read it: chmod 600 {tmp_path}/ca.key"][:told]
        )


async def test_a_name_that_is_none_starts_nothing(tmp_path: Path) -> None:
    """Neither in a new laboratory, of which nothing is made then, nor in one that is there, which stays as it is."""
    for is_there in (False, True):
        if is_there:
            lay_out(tmp_path / "lab", "127.0.0.1", 0, 0, NOW)
        before = sorted(tmp_path.rglob("*"))
        told: list[str] = []
        with pytest.raises(Invalid, match="--name: 'no name' is neither a host name nor an address"):
            await run_quickstart(
                *(tmp_path / "lab", None, 0, 0), names=("no name",), tell=told.append, when_ready=pytest.fail
            )
        assert (sorted(tmp_path.rglob("*")), told) == (before, [])
