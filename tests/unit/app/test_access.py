import getpass
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from estd.app.access import find_user, find_visible, get_ecosystem, make_data_directory, open_store
from estd.app.apply import apply_document
from estd.app.identity import ensure_ecosystem
from estd.app.playground import LABELS, lay_out
from estd.app.submitted import read_ecosystem
from estd.config import Config
from estd.errors import Invalid, Unavailable
from estd.ra.directory import INTERNAL_LABEL

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
KEK = bytes(32)


def test_others_may_pass_through_the_data_directory_and_see_nothing(tmp_path: Path) -> None:
    make_data_directory(tmp_path / "a" / "data")
    assert stat.S_IMODE((tmp_path / "a/data").stat().st_mode) == 0o711
    (tmp_path / "a/data").chmod(0o700)
    make_data_directory(tmp_path / "a" / "data")
    assert stat.S_IMODE((tmp_path / "a/data").stat().st_mode) == 0o700, "what an operator chose stays"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Invalid, match="cannot be made"):
        make_data_directory(tmp_path / "file" / "data")


async def test_the_servers_own_ecosystem_is_not_shown(tmp_path: Path, store: Any) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    await ensure_ecosystem(store, KEK)
    with pytest.raises(Invalid, match="estd apply"):
        await get_ecosystem(store, "plant")
    for label in reversed(LABELS):
        await apply_document(store, KEK, read_ecosystem(place.ecosystem(label)), "tester")
    assert [record.label for record in await find_visible(store)] == list(LABELS)
    assert (await get_ecosystem(store, LABELS[1])).label == LABELS[1]
    with pytest.raises(Invalid) as invalid:
        await get_ecosystem(store, "plant")
    assert invalid.value.problems[0].remedy == f"Known here: {', '.join(LABELS)}."
    assert INTERNAL_LABEL in {record.label for record in await store.find_ecosystems()}


async def test_a_database_of_the_operators_own_is_used_and_migrated(bare_database: Any, tmp_path: Path) -> None:
    config = Config(tmp_path / "data", database_url=bare_database.url)
    async with open_store(config) as store:
        assert await store.find_ecosystems() == []
    assert not (tmp_path / "data").exists()


async def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    config = Config(tmp_path / "data", database_url=f"postgresql://estd@/estd?host={tmp_path}")
    with pytest.raises(Unavailable, match=r"database\.url postgresql:///estd: "):
        async with open_store(config):
            pytest.fail("there is no server")


async def test_a_password_is_not_told(tmp_path: Path) -> None:
    config = Config(tmp_path / "data", database_url="postgresql://me:secret@127.0.0.1:1/estd?password=secret")
    with pytest.raises(Unavailable) as unavailable:
        async with open_store(config):
            pytest.fail("there is no server")
    assert "127.0.0.1:1/estd" in unavailable.value.detail
    assert "secret" not in unavailable.value.detail


def test_a_user_without_a_name_is_called_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError(os.getuid())

    assert find_user() == getpass.getuser()
    monkeypatch.setattr("estd.app.access.getpass.getuser", nameless)
    assert find_user() == f"uid {os.getuid()}"
