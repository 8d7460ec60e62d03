import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from postgres_fixture import Database

from estd.app.access import make_data_directory
from estd.app.apply import apply_document
from estd.app.checking import check_room, check_server, is_running
from estd.app.identity import ensure_ecosystem
from estd.app.makers import Maker
from estd.ca.ecosystem import read_document
from estd.config import Config
from estd.device.requests import write_key
from estd.errors import Invalid
from estd.keys.software import SoftwareKey
from estd.store.postgres import PostgresStore

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
        check_room(change(config, port=taken, ops_address="127.0.0.2", ops_port=taken))
    assert wheres(invalid) == ["listen.port"]
    with closing(socket.create_server(("127.0.0.2", 0))) as other, pytest.raises(Invalid) as invalid:
        check_room(
            change(config, port=taken, ops_address="127.0.0.2", ops_port=other.getsockname()[1], source=Path("e.toml"))
        )
    assert wheres(invalid) == ["e.toml: listen.port", "e.toml: ops.port"]
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
    assert [where.split("/")[0] for where in wheres(invalid)] == ["", "tls: ", "tls: ", "listen.port"]


async def test_a_key_of_another_certificate_is_noticed(config: Config, tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_bytes(Maker.create("x", NOW).certificate_pem)
    (tmp_path / "k.pem").write_bytes(write_key(SoftwareKey(ec.generate_private_key(ec.SECP256R1()))))
    (tmp_path / "k.pem").chmod(0o600)
    for certificate, key, said in (("c.pem", "k.pem", "is not the key of"), ("k.pem", "c.pem", "no unencrypted key")):
        own = change(config, tls_certificate=tmp_path / certificate, tls_key=tmp_path / key)
        with pytest.raises(Invalid, match=said):
            await check_server(own)
        with pytest.raises(Invalid, match=said):
            check_room(own)


def bring_certificate(config: Config, tmp_path: Path, starts_days: int, ends_days: int) -> Config:
    """An operator's own, for ca.plant.example."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    starts, ends = (now + timedelta(days=days) for days in (starts_days, ends_days))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, starts, ends).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("ca.plant.example")]), critical=False
    )
    (tmp_path / "c.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (tmp_path / "k.pem").write_bytes(write_key(SoftwareKey(key)))
    (tmp_path / "k.pem").chmod(0o600)
    return change(
        config, tls_certificate=tmp_path / "c.pem", tls_key=tmp_path / "k.pem", tls_names=("ca.plant.example",)
    )


@pytest.mark.parametrize(("starts_days", "ends_days", "said"), [(-9, -1, "ended on"), (1, 9, "begins on")])
async def test_a_certificate_that_is_not_valid_now_is_refused(
    config: Config, tmp_path: Path, starts_days: int, ends_days: int, said: str
) -> None:
    own = bring_certificate(config, tmp_path, starts_days, ends_days)
    with pytest.raises(Invalid, match=said) as invalid:
        await check_server(own)
    assert wheres(invalid) == [f"tls.certificate: {tmp_path}/c.pem"]
    check_room(own)  # a start shows it: somebody may not look at dates, or the clock is wrong


async def test_a_tls_key_that_others_can_read_is_refused(config: Config, tmp_path: Path) -> None:
    own = bring_certificate(config, tmp_path, -1, 9)
    assert (await check_server(own))["warnings"] == []
    (tmp_path / "k.pem").chmod(0o644)
    with pytest.raises(Invalid, match="can be read by others"):
        await check_server(own)
    with pytest.raises(Invalid, match="can be read by others"):
        check_room(own)


async def test_names_that_the_certificate_lacks_are_a_warning(config: Config, tmp_path: Path) -> None:
    own = change(bring_certificate(config, tmp_path, -1, 9), tls_names=("ca.plant.example", "other.example"))
    (warning,) = (await check_server(own))["warnings"]
    assert f"{tmp_path}/c.pem is not for other.example" in warning


async def apply(store: PostgresStore, label: str, kek: bytes, *, new_key: bool = False) -> None:
    text = f'[ecosystem]\nlabel = "{label}"\nname = "x"\n[[issuer]]\nname = "root"\n'
    text += f'[profile.pump]\nlabel = "{label}-pumps"\nissuer = "root"\nenroll = ["code"]\n'
    rules = read_document(text, "test.toml", lambda path: path.encode())
    await apply_document(store, kek, rules, "tester", new_key=new_key)


async def test_another_key_encryption_key_is_refused(config: Config, database: Database, store: PostgresStore) -> None:
    config = change(config, database_url=database.url)
    await ensure_ecosystem(store, bytes(32))
    assert (await check_server(config))["warnings"] == []
    await apply(store, "plant", bytes(range(32)), new_key=True)
    (warning,) = (await check_server(config))["warnings"]
    assert warning.startswith("plant is sealed under another key-encryption key")
    (config.data_directory / "key-encryption.key").write_text("11" * 32)
    with pytest.raises(Invalid) as invalid:
        await check_server(config)
    assert wheres(invalid) == [f"the key-encryption key ({config.data_directory}/key-encryption.key)"]
    assert "Name that one in the settings" in invalid.value.problems[0].remedy


async def test_a_default_ecosystem_that_is_not_there(config: Config, database: Database, store: PostgresStore) -> None:
    wanted = change(config, database_url=database.url, default_ecosystem="nope", source=Path("estd.toml"))
    await ensure_ecosystem(store, bytes(32))
    await check_server(wanted)  # it may be the first that is applied
    await apply(store, "plant", bytes(32))
    with pytest.raises(Invalid) as invalid:
        await check_server(wanted)
    assert wheres(invalid) == ["estd.toml: est.default_ecosystem"]
    assert invalid.value.problems[0].remedy == "Apply it first, or name one of plant, plant-pumps."
    for label in ("plant", "plant-pumps"):
        await check_server(change(wanted, default_ecosystem=label))


def test_one_port_for_both(config: Config) -> None:
    with pytest.raises(Invalid, match="which devices use"):
        check_room(change(config, port=18443, ops_port=18443))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_root_is_told_that_it_sees_more_than_the_server_will(config: Config) -> None:
    os.chown(config.data_directory, 12345, -1)
    (warning,) = (await check_server(config))["warnings"]
    assert "runuser -u 12345 -- estd serve" in warning


async def test_the_check_leaves_no_database_behind(config: Config) -> None:
    facts = await check_server(config)
    assert "first start" in facts["database"]
    assert (facts["running"], facts["ecosystems"]) == (False, [])
    assert not (config.data_directory / "postgres").exists()
