"""What can be read off the private server's directory, and what must not be followed there."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from estd.errors import Invalid, Unavailable
from estd.store.cluster import Cluster, PidFile, read_tail, try_lock, wait_for, write_file
from estd.store.launcher import Account, Launcher, name_of

PID_FILE = "4711\n/d/data\n1893456000\n5432\n/d/socket\n\n  1234 56\nready   \n"
MYSELF = Launcher(Account(name_of(os.geteuid()), os.geteuid(), os.getegid()))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path / "postgres")
    cluster.prepare()
    cluster.data.mkdir()
    return cluster


def test_the_pid_file_whole_and_cut_short(cluster: Cluster) -> None:
    file = cluster.data / "postmaster.pid"
    assert cluster.read_pid_file() is None
    for length in range(len(PID_FILE) + 1):
        file.write_text(PID_FILE[:length])
        seen = cluster.read_pid_file()
        if length == 0:
            assert seen is None
        else:
            assert seen is not None
            assert seen.ready is (length >= len(PID_FILE) - 1)
    assert cluster.read_pid_file() == PidFile(4711, "/d/socket", ready=True)
    file.write_text(PID_FILE.replace("ready   ", "starting"))
    assert cluster.read_pid_file() == PidFile(4711, "/d/socket", ready=False)
    file.write_bytes(b"\xff\xfe\x00")
    assert cluster.read_pid_file() is None


def test_a_planted_link_is_not_followed(cluster: Cluster, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text(PID_FILE)
    (cluster.data / "postmaster.pid").symlink_to(target)
    assert cluster.read_pid_file() is None
    (cluster.directory / "pg_hba.conf").symlink_to(target)
    cluster.write_settings("/d/socket", MYSELF)
    assert target.read_text() == PID_FILE
    assert not (cluster.directory / "pg_hba.conf").is_symlink()
    (cluster.directory / "server.lock").symlink_to(target)
    with pytest.raises(Unavailable):
        cluster.lives()


def test_a_lock_tells_whether_anything_lives(cluster: Cluster) -> None:
    assert not cluster.lives()
    lock = cluster.open_lock("server.lock")
    assert try_lock(lock)
    assert cluster.lives()
    os.close(lock)
    assert not cluster.lives()


def test_a_stranger_with_the_recorded_number_is_not_the_server(cluster: Cluster) -> None:
    (cluster.data / "postmaster.pid").write_text(PID_FILE.replace("4711", str(os.getpid())))
    assert not cluster.holds(os.getpid())
    assert not cluster.lives()


def test_only_one_starts_or_stops(cluster: Cluster) -> None:
    with cluster.starting_or_stopping(1.0):
        failures: list[Unavailable] = []

        def second() -> None:
            try:
                with cluster.starting_or_stopping(0.1):
                    pass
            except Unavailable as error:
                failures.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "for too long" in failures[0].detail
    with cluster.starting_or_stopping(0.1):
        pass


def test_the_socket_lies_in_the_directory_where_its_name_fits(tmp_path: Path) -> None:
    for name in ("postgres", "x" * 120, "it's, a \\place", "späť"):
        cluster = Cluster(tmp_path / name)
        cluster.prepare()
        directory = Path(cluster.socket_directory(MYSELF))
        assert (directory == cluster.directory / "socket") is (name == "postgres")
        assert directory.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{directory}/.s.PGSQL.5432")
        (directory / ".s.PGSQL.5432").unlink()
        assert cluster.socket_directory(MYSELF) == str(directory)
        cluster.remove_short_socket_directory()
        assert directory.exists() is (name == "postgres")


def test_a_short_directory_that_others_may_enter_is_not_used_again(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / ("x" * 120))
    cluster.prepare()
    first = Path(cluster.socket_directory(MYSELF))
    first.chmod(0o755)
    second = Path(cluster.socket_directory(MYSELF))
    assert second != first
    first.rmdir()
    cluster.remove_short_socket_directory()
    assert not second.exists()


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "line\nbreak"):
        with pytest.raises(Invalid, match="hoose another"):
            Cluster(path).prepare()


def test_a_directory_of_somebody_else_is_not_tried_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, to whom no directory is closed."""

    def refuse(number: int) -> None:
        def refused(*_: object, **__: object) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("estd.store.cluster.os.open", refused)

    refuse(errno.EACCES)
    with pytest.raises(Invalid, match=r"cannot be used \(Permission denied\)\. Run estd as the user who owns it"):
        cluster.open_lock("start.lock")
    refuse(errno.ENOSPC)
    with pytest.raises(Unavailable, match="No space left"):
        cluster.open_lock("start.lock")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, "one\n")
    write_file(path, "two\n")
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_tail_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("".join(f"line {number}\n" for number in range(5000)))
    with path.open("rb") as file:
        assert read_tail(file, 2) == "line 4998\nline 4999\n"
    path.write_text("")
    with path.open("rb") as file:
        assert read_tail(file) == ""


def test_waiting_has_an_end() -> None:
    assert wait_for(lambda: True, 0)
    assert not wait_for(lambda: False, 0.03)
