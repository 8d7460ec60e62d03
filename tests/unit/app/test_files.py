from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from estd.app.files import write_file


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "f", b"old", 0o600)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("estd.app.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "f", b"new", 0o600)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_mode_does_not_depend_on_the_umask_or_on_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o644)
    before = os.umask(0o077)
    try:
        write_file(tmp_path / "f", b"new", 0o600)
        write_file(tmp_path / "g", b"new", 0o644)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("f", "g")]
    assert modes == [0o600, 0o644]
    assert (tmp_path / "f").read_bytes() == b"new"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (tmp_path / "f").symlink_to(tmp_path / "elsewhere")
    write_file(tmp_path / "f", b"ours", 0o600)
    assert (tmp_path / "elsewhere").read_bytes() == b"theirs"
    assert not (tmp_path / "f").is_symlink()
