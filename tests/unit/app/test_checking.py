import fcntl
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from estd.app.access import make_data_directory
from estd.app.checking import check_room, check_server, is_running
from estd.app.makers import Maker
from estd.config import Config
from estd.device.requests import write_key
from estd.errors import Invalid
from estd.keys.software import SoftwareKey

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    make_data_directory(tmp_path / "data")
    key = tmp_path / "data" / "key-encryption.key"
    key.write_text("00" * 32)
    key.chmod(0o600)
    return Config(tmp_path / "data", address="127.0.0.1", port=0, ops_port=0)


def change(config: Config, **changes: Any) -> Config:
    return replace(config, **changes)


def wheres(invalid: pytest.ExceptionInfo[Invalid]) -> list[str]:
    return [problem.where for problem in invalid.value.problems]


def test_a_free_place_is_fine(config: Config) -> None:
    check_room(config)


def test_taken_ports_are_all_named(config: Config, taken: int) -> None:
    with pytest.raises(Invalid) as invalid:
        check_room(change(config, port=taken, ops_port=taken))
    assert wheres(invalid) == ["listen:", "ops:"]
    assert "already in use" in invalid.value.problems[0].what


def test_workers_of_a_killed_server_are_waited_for(config: Config, tmp_path: Path) -> None:
    """They hold its port until they have noticed; the runtime directory that it left behind says that it was killed."""
    left = tmp_path / "estd-left"
    left.mkdir()
    (config.data_directory / "lock").write_text(str(left))
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        config = replace(config, port=listener.getsockname()[1])
        worker = threading.Timer(0.3, listener.close)
        worker.start()
        check_room(config)
        assert not worker.is_alive()


def test_an_address_that_is_not_ours(config: Config) -> None:
    with pytest.raises(Invalid, match="cannot be opened"):
        check_room(change(config, address="192.0.2.1", port=8443))


def test_a_running_server_is_seen_by_its_lock(config: Config) -> None:
    assert not is_running(config)
    with (config.data_directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_running(config)
        with pytest.raises(Invalid, match="in use by a running estd"):
            check_room(config)
    assert not is_running(config)


async def test_the_check_names_everything_that_is_wrong(config: Config, taken: int, tmp_path: Path) -> None:
    (config.data_directory / "key-encryption.key").chmod(0o644)
    bad = change(config, port=taken, tls_certificate=tmp_path / "absent.pem", tls_key=tmp_path / "absent.key")
    with pytest.raises(Invalid) as invalid:
        await check_server(bad)
    assert [where.split("/")[0] for where in wheres(invalid)] == ["", "tls: ", "listen:"]


async def test_a_key_of_another_certificate_is_noticed(config: Config, tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_bytes(Maker.create("x", NOW).certificate_pem)
    (tmp_path / "k.pem").write_bytes(write_key(SoftwareKey(ec.generate_private_key(ec.SECP256R1()))))
    for certificate, key, said in (("c.pem", "k.pem", "not the certificate's"), ("k.pem", "c.pem", "unencrypted key")):
        with pytest.raises(Invalid, match=said):
            await check_server(change(config, tls_certificate=tmp_path / certificate, tls_key=tmp_path / key))


async def test_the_check_leaves_no_database_behind(config: Config) -> None:
    facts = await check_server(config)
    assert "first start" in facts["database"]
    assert (facts["running"], facts["ecosystems"]) == (False, [])
    assert not (config.data_directory / "postgres").exists()
