"""The operator's first five steps, carried out as they are written, but for their directories and the user's name."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_users import Interpreter, find_interpreter

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
USER = "nobody"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the steps are root's")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where another user may pass."""
    path = Path(tempfile.mkdtemp(prefix="estd-steps-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def make_interpreter(folder: Path) -> Interpreter:
    (folder / "python").mkdir()
    return find_interpreter(folder / "python")


def read_steps(folder: Path) -> list[str]:
    """The first block of the page, a step for each line."""
    block = re.search(r"## A server in five steps\n.*?```\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    text = block[1].replace("/var/lib/estd", f"{folder}/lib").replace("/etc/estd", f"{folder}/etc")
    return re.sub(r"(-o|-u|chown) estd\b", rf"\1 {USER}", text).splitlines()


def test_they_make_a_server_that_its_user_can_start(folder: Path) -> None:
    add, *steps, check = read_steps(folder)
    assert len(steps) == 3
    assert add.startswith("useradd ")
    assert add.endswith(" estd")
    for step in steps:
        subprocess.run(["sh", "-ec", step], check=True, cwd="/")
    key = folder / "lib" / "key-encryption.key"
    assert (key.stat().st_mode & 0o777, key.stat().st_uid) == (0o600, pwd.getpwnam(USER).pw_uid)
    # Taken once more, they keep the key.
    content = key.read_bytes()
    for step in steps:
        subprocess.run(["sh", "-ec", step], check=False, cwd="/", stderr=subprocess.DEVNULL)
    assert key.read_bytes() == content

    begin = f"runuser -u {USER} -- estd "
    assert check.startswith(begin)
    interpreter = make_interpreter(folder)
    arguments = check.removeprefix(begin).split()
    status, said = interpreter.run(USER, "-m", "estd", *arguments)
    assert (status, "nothing is wrong" in said) == (0, True), said

    # A key of root's is no reason to make another one.
    os.chown(key, 0, 0)
    status, said = interpreter.run(USER, "-m", "estd", *arguments)
    assert (status, f"{key} cannot be read (Permission denied)" in said) == (2, True), said
    assert f"chown {USER} {key}" in said
    assert "openssl" not in said


def test_a_directory_of_somebody_else_is_not_tried_again(folder: Path) -> None:
    interpreter = make_interpreter(folder)
    (folder / "lib").mkdir(mode=0o711)
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text("ab" * 32)
    os.chown(key, pwd.getpwnam(USER).pw_uid, -1)
    settings = folder / "estd.toml"
    settings.write_text(f'data_directory = "{folder}/lib"\nlisten.port = 0\nops.port = 0\nkeys.file = "{key}"\n')
    settings.chmod(0o644)
    for command in (("serve",), ("cert", "list")):
        status, said = interpreter.run(USER, "-m", "estd", *command, "--config", settings)
        assert (status, f"{folder}/lib" in said, "Permission denied" in said) == (2, True, True), said
        assert "user who owns" in said


def test_a_port_that_takes_a_right_says_so(folder: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("here everybody may open any port")
    interpreter = make_interpreter(folder)
    (folder / "lib").mkdir(mode=0o711)
    os.chown(folder / "lib", pwd.getpwnam(USER).pw_uid, -1)
    key = folder / "lib" / "key-encryption.key"
    key.touch(mode=0o600)
    key.write_text("ab" * 32)
    os.chown(key, pwd.getpwnam(USER).pw_uid, -1)
    settings = folder / "estd.toml"
    settings.write_text(f'data_directory = "{folder}/lib"\nlisten.port = 81\nops.port = 0\n')
    status, said = interpreter.run(USER, "-m", "estd", "serve", "--config", settings)
    assert (status, "CAP_NET_BIND_SERVICE" in said) == (2, True), said
