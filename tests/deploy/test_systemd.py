"""The units and their companions, judged by systemd's own tools, and held against what estd really reads."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from live_server import attempt, run

from estd.config import read_config

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("estd.service", "estd-signer@.service")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with the program where it is here."""
    program = Path(sys.executable).with_name("estd")
    for name in UNITS:
        text = (SYSTEMD / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/estd/bin/estd", str(program)), encoding="utf-8")
    return tmp_path


def test_systemd_accepts_the_units(units: Path) -> None:
    done = attempt("systemd-analyze", "verify", "--man=no", *(units / name for name in UNITS))
    assert (done.status, done.stderr, done.text) == (0, "", "")


# What is left of the server's: it needs the network, the TLS library's callbacks and a group. See deploy/README.md.
@pytest.mark.parametrize(("name", "at_most"), [("estd.service", 20), ("estd-signer@.service", 10)])
def test_systemd_finds_them_hardened(units: Path, name: str, at_most: int) -> None:
    options = ("--offline=true", "--no-pager", f"--threshold={at_most}")
    done = attempt("systemd-analyze", "security", *options, units / name)
    assert done.status == 0, done.text


def test_the_threshold_is_a_threshold(units: Path) -> None:
    path = units / "estd-signer@.service"
    path.write_text(path.read_text().replace("PrivateNetwork=yes\n", "").replace("CapabilityBoundingSet=\n", ""))
    assert attempt("systemd-analyze", "security", "--offline=true", "--threshold=10", path).status != 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give files away")
def test_users_and_directories_can_be_made(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "estd.sysusers.conf")
    users = {line.split(":")[0] for line in (etc / "passwd").read_text().splitlines()}
    assert {"estd", "estd-signer"} <= users
    assert re.findall(r"^estd-signer:x:\d+:(.*)$", (etc / "group").read_text(), re.MULTILINE) == ["estd"]
    (etc / "passwd").open("a").write("root:x:0:0::/root:/bin/sh\n")
    (etc / "group").open("a").write("root:x:0:\n")
    (etc / "estd").mkdir(mode=0o777)
    for name in ("estd.toml", "kek.cred"):
        (etc / "estd" / name).touch(mode=0o666)
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", SYSTEMD / "estd.tmpfiles.conf")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (etc / "estd", *(etc / "estd").iterdir())}
    assert modes == {"estd": 0o755, "estd.toml": 0o644, "kek.cred": 0o600}


def test_settings_and_units_name_the_same_places(tmp_path: Path) -> None:
    for name in ("estd.toml", "signer.toml", "admin.toml", "owner.toml", "auditor.toml"):
        text = (SYSTEMD / name).read_text(encoding="utf-8")
        url = re.search(r'^url_file = "(.+)"$', text, re.MULTILINE)
        if url is not None:
            (tmp_path / "url").touch(mode=0o600)
            (tmp_path / "url").write_text("postgresql://estd@db.example/estd")
            text = text.replace(url[1], str(tmp_path / "url"))
            if name == "estd.toml":  # systemd puts a credential where its unit's name says
                credential = re.search(r"^LoadCredentialEncrypted=(\S+?):", read("estd.service"), re.MULTILINE)
                assert credential is not None
                assert url[1] == f"/run/credentials/estd.service/{credential[1]}"
        (tmp_path / name).write_text(text)
        read_config(tmp_path / name)
    server, signer, admin = (read_config(tmp_path / name) for name in ("estd.toml", "signer.toml", "admin.toml"))
    assert server.signer_sockets == signer.signer_sockets
    assert [str(path) for path in signer.signer_sockets] == [f"/run/estd-signer/{slot}/socket" for slot in (0, 1)]
    assert "RuntimeDirectory=estd-signer/%i\n" in read("estd-signer@.service")
    assert f"LoadCredentialEncrypted={signer.key_credential}:" in read("estd-signer@.service")
    assert admin.key_credential == signer.key_credential
    assert "estd-kek" not in read("estd.service"), "the server's user gets no key"
    assert signer.signer_users == ("estd",)
    assert "User=estd\n" in read("estd.service")
    for config, unit in ((server, "estd.service"), (signer, "estd-signer@.service")):
        state = re.search(r"^StateDirectory=(.+)$", read(unit), re.MULTILINE)
        assert state is not None
        assert str(config.data_directory) == f"/var/lib/{state[1]}"


def test_the_ops_port_can_be_opened_for_who_asks_it_from_elsewhere(tmp_path: Path) -> None:
    """HAProxy and Prometheus ask over the network; the shipped settings have the line, to be filled in."""
    text = re.sub(
        r"^url_file = .*$", 'url = "postgresql://estd@db.example/estd"', read("estd.toml"), flags=re.MULTILINE
    )
    (tmp_path / "estd.toml").write_text(re.sub(r"^#(\[ops\]|address)", r"\1", text, flags=re.MULTILINE))
    address = read_config(tmp_path / "estd.toml").ops_address
    deploy = SYSTEMD.parent
    for path, port in (("prometheus/prometheus.yml", ":8081"), ("haproxy/passthrough.cfg", ":8443")):
        assert f"{address}{port}" in (deploy / path).read_text()


def test_a_signer_sees_callers_as_they_are() -> None:
    settings = [line for line in read("estd-signer@.service").splitlines() if not line.startswith("#")]
    assert "PrivateNetwork=yes" in settings
    assert not any(line.startswith("PrivateUsers=") for line in settings), "it would hide who calls"


def read(name: str) -> str:
    return (SYSTEMD / name).read_text(encoding="utf-8")
