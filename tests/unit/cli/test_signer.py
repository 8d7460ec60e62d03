"""``estd signer``: what a signer is told, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from estd.cli import run

SETTINGS = """
data_directory = "data"
[signers]
sockets = ["run/0.sock", "run/1.sock"]
users = [{users}]
"""


def write(folder: Path, users: str) -> Path:
    (folder / "signer.toml").write_text(SETTINGS.format(users=users))
    (folder / "data").mkdir(exist_ok=True)
    key = folder / "data" / "key-encryption.key"
    key.write_text("5a" * 32)
    key.chmod(0o600)
    return folder / "signer.toml"


def test_a_slot_has_its_socket_and_users_come_by_name_or_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = pwd.getpwuid(0).pw_name
    settings = write(tmp_path, f'"{name}", "64007"')
    assert run(["signer", "--config", str(settings), "--slot", "1", "--check", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "slot": 1,
        "socket": str(tmp_path / "run" / "1.sock"),
        "journal": str(tmp_path / "data" / "journal"),
    }


@pytest.mark.parametrize(
    ("users", "slot", "said"),
    [('"no-such-user-here"', "0", "'no-such-user-here' does not exist"), ('"0"', "2", "has none for slot 2")],
)
def test_what_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], users: str, slot: str, said: str
) -> None:
    assert run(["signer", "--config", str(write(tmp_path, users)), "--slot", slot, "--check"]) == 2
    assert said in capsys.readouterr().err


def test_without_its_key_it_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = write(tmp_path, '"0"')
    (tmp_path / "data" / "key-encryption.key").unlink()
    assert run(["signer", "--config", str(settings), "--slot", "0", "--check"]) == 2
    assert "key-encryption.key" in capsys.readouterr().err


def test_it_says_so_where_it_cannot_listen_and_ends_as_units_expect(tmp_path: Path) -> None:
    settings = write(tmp_path, f'"{os.getuid()}"')  # the directory run is missing
    command = [sys.executable, "-m", "estd", "signer", "--config", settings, "--slot", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78, done.stderr
    assert "cannot be listened on" in done.stderr


def test_the_process_that_holds_keys_imports_neither_sql_nor_http() -> None:
    code = "import estd.cli.signer, sys; print([m for m in ('asyncpg', 'aiohttp', 'OpenSSL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
