"""The private server starts, is shared, survives every kill, and lets nobody else in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from estd.errors import Unavailable
from estd.store.cluster import Cluster
from estd.store.launcher import find_binaries, find_launcher
from estd.store.private import PrivatePostgres, url_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that has been started once; each test finds it stopped and leaves it stopped."""
    directory = tmp_path_factory.mktemp("private")
    server = PrivatePostgres(directory)
    server.start()
    server.stop()
    return directory


@pytest.fixture
def server(directory: Path) -> Iterator[PrivatePostgres]:
    server = PrivatePostgres(directory, start_seconds=20)
    yield server
    assert server.stop()
    assert not server.status().running


async def ask(url: str, sql: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url, timeout=3)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


def socket_directory_of(directory: Path) -> Path:
    pointer = directory / "socket.path"
    return Path(pointer.read_text().strip()) if pointer.exists() else directory / "socket"


def pid_of(server: PrivatePostgres) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


async def test_start_use_stop_start_again(server: PrivatePostgres) -> None:
    assert not server.status().running
    url = server.start()
    assert server.status().url == url == server.start() == server.ensure_running()
    await ask(url, "CREATE TABLE kept (a integer)")
    await ask(url, "INSERT INTO kept VALUES (7)")
    assert server.stop()
    assert server.stop()
    with pytest.raises(OSError, match="No such file"):
        await ask(url, "SELECT 1")
    assert server.start() == url
    assert await ask(url, "SELECT a FROM kept") == [(7,)]
    await ask(url, "DROP TABLE kept")


async def test_it_is_durable_and_private(server: PrivatePostgres, directory: Path) -> None:
    url = server.start()
    settings = dict(await ask(url, "SELECT name, setting FROM pg_settings"))
    assert {
        name: settings[name]
        for name in (
            "fsync",
            "full_page_writes",
            "synchronous_commit",
            "listen_addresses",
            "TimeZone",
            "data_checksums",
        )
    } == {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
        "TimeZone": "UTC",
        "data_checksums": "on",
    }
    assert (directory / "socket").stat().st_mode & 0o777 == 0o700
    assert (directory / "socket/.s.PGSQL.5432").stat().st_mode & 0o777 == 0o700
    assert await ask(url, "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user") == [
        (False, False, False)
    ]
    assert await ask(
        url, "SELECT datcollate, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'estd'"
    ) == [("C", "UTF8")]
    for sql in ("COPY pg_class TO PROGRAM 'cat'", "SELECT pg_read_file('/etc/passwd')"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(url, sql)
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT 1")
    await connection.close()


async def test_the_last_to_leave_stops_it(directory: Path) -> None:
    one, other = PrivatePostgres(directory), PrivatePostgres(directory)
    url = one.start()
    assert other.start() == url
    assert one.stop() is False
    assert await ask(url, "SELECT 1") == [(1,)]
    assert other.stop() is True
    assert not one.status().running


def test_many_start_one(directory: Path) -> None:
    servers = [PrivatePostgres(directory) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(PrivatePostgres.start, servers))) == 1
        pids = {server.status().pid for server in servers}
        assert len(pids) == 1
        assert sorted(threads.map(PrivatePostgres.stop, servers)) == [False] * 5 + [True]


async def test_a_killed_server_is_started_again(server: PrivatePostgres) -> None:
    url = server.start()
    await ask(url, "CREATE TABLE kept (a integer)")
    await ask(url, "INSERT INTO kept VALUES (7)")
    first = pid_of(server)
    os.kill(first, signal.SIGKILL)
    assert server.ensure_running() == url
    assert pid_of(server) != first
    assert await ask(url, "SELECT a FROM kept") == [(7,)]
    await ask(url, "DROP TABLE kept")


async def test_a_server_that_hangs_is_ended_and_started_again(server: PrivatePostgres, directory: Path) -> None:
    url = server.start()
    await ask(url, "CREATE TABLE kept_by_another (a integer)")
    first = pid_of(server)
    os.kill(first, signal.SIGSTOP)
    impatient = PrivatePostgres(directory, start_seconds=3)
    try:
        assert impatient.start() == url
        assert pid_of(impatient) != first
        assert await ask(url, "SELECT a FROM kept_by_another") == []
        await ask(url, "DROP TABLE kept_by_another")
    finally:
        impatient.stop()


async def test_it_stops_at_once_in_the_middle_of_a_recovery(server: PrivatePostgres, directory: Path) -> None:
    """Told to stop at the wrong moment after a backend's crash, PostgreSQL 18 would go on only when told to quit."""
    connection = await asyncpg.connect(server.start(), timeout=3)
    os.kill(connection.get_server_pid(), signal.SIGKILL)
    cluster = Cluster(directory)
    deadline = time.monotonic() + 5
    while (seen := cluster.read_pid_file()) is None or seen.is_settled:
        assert time.monotonic() < deadline
    started = time.monotonic()
    assert server.stop()
    assert time.monotonic() - started < 15
    log = max((directory / "log").glob("*.log"), key=lambda file: file.stat().st_mtime).read_text()
    assert "reinitializing" in log
    assert "immediate shutdown" not in log[log.rindex("reinitializing") :]
    connection.terminate()


async def test_children_of_a_killed_server_do_not_hold_up_the_next(server: PrivatePostgres) -> None:
    connection = await asyncpg.connect(server.start())
    loop = "DO $$ BEGIN FOR i IN 1..2000000000 LOOP END LOOP; END $$"
    working = asyncio.ensure_future(connection.execute(loop))
    await asyncio.sleep(0.2)
    os.kill(pid_of(server), signal.SIGKILL)
    started = time.monotonic()
    await asyncio.to_thread(server.ensure_running)
    assert time.monotonic() - started < 5
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await working


def test_a_killed_owner_leaves_a_server_to_attach_to(directory: Path) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from estd.store.private import PrivatePostgres
        server = PrivatePostgres(Path(sys.argv[1]))
        print(server.start(), flush=True)
        time.sleep(60)
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    server = PrivatePostgres(directory)
    pid = pid_of(server)
    owner.kill()
    owner.communicate()
    assert server.start() == url
    assert pid_of(server) == pid
    assert server.stop() is True
    assert not server.status().running


def test_a_recycled_process_id_is_no_obstacle(server: PrivatePostgres, directory: Path) -> None:
    """The number in its files belongs to a stranger of the same user, which PostgreSQL takes for a running server."""
    with tempfile.TemporaryFile() as output:
        stranger = find_launcher(directory / "data", find_binaries(18)).popen(["/bin/sleep", "60"], output)
    try:
        stale = f"{stranger.pid}\n{directory}/data\n1893456000\n5432\n{directory}/socket\n\n 1 1\nready   \n"
        (directory / "data" / "postmaster.pid").write_text(stale)
        (socket_directory_of(directory) / ".s.PGSQL.5432.lock").write_text(stale)
        assert not server.status().running
        server.start()
        assert pid_of(server) != stranger.pid
    finally:
        stranger.kill()
        stranger.wait()


def test_a_forked_child_does_not_keep_the_server(directory: Path) -> None:
    """A worker forked from the supervisor has copies of its descriptors; stopping is the supervisor's word alone."""
    server = PrivatePostgres(directory)
    server.start()
    copy = os.dup(server._users_lock or -1)
    try:
        assert server.stop()
    finally:
        os.close(copy)


def test_a_lost_socket_directory_comes_back(server: PrivatePostgres, directory: Path) -> None:
    url = server.start()
    (directory / "socket/.s.PGSQL.5432").unlink()
    (directory / "socket/.s.PGSQL.5432.lock").unlink()
    (directory / "socket").rmdir()
    assert server.ensure_running() == url
    assert server.status().url == url


def test_settings_that_cannot_be_are_answered_with_the_servers_words(server: PrivatePostgres, directory: Path) -> None:
    (directory / "tuning.conf").write_text("shared_bufers = 1GB\n")
    try:
        with pytest.raises(Unavailable, match='unrecognized configuration parameter "shared_bufers"'):
            server.start()
        (directory / "tuning.conf").write_text("work_mem = 5MB\n")
        assert server.start()
    finally:
        (directory / "tuning.conf").unlink()


def test_another_versions_data_is_refused(server: PrivatePostgres, directory: Path) -> None:
    version = directory / "data" / "PG_VERSION"
    version.write_text("17\n")
    try:
        with pytest.raises(Unavailable, match=r"made by PostgreSQL 17 .* pg_dump"):
            server.start()
    finally:
        version.write_text("18\n")


async def test_a_first_start_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    """In a place whose name needs quoting and leaves no room for a socket."""
    directory = tmp_path / ("it's a \\place, " + "x" * 80)
    (directory / "data.unfinished").mkdir(parents=True)
    (directory / "data.unfinished" / "PG_VERSION").write_text("18\n")
    server = PrivatePostgres(directory)
    url = server.start()
    try:
        assert await ask(url, "SELECT current_user::text") == [("estd",)]
        pid_file = Cluster(directory).read_pid_file()
        assert pid_file is not None
        socket_directory = pid_file.socket_directory
        assert url == url_of(socket_directory)
        assert not socket_directory.startswith(str(tmp_path))
        assert not (directory / "data.unfinished").exists()
    finally:
        server.stop()
    assert not Path(socket_directory).exists()


def test_stopping_what_never_was(tmp_path: Path) -> None:
    server = PrivatePostgres(tmp_path / "nowhere")
    assert server.stop()
    assert not server.status().running
    assert not (tmp_path / "nowhere").exists()
