"""From the start until a signal, in a process of its own; reloads, upgrades and kills are in tests/integration."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from factory import KEK
from postgres_fixture import Database

from estd.app.checking import is_running
from estd.app.running import serve
from estd.config import Config, default_key_path, read_config
from estd.errors import Invalid
from estd.signer.journal import Journal

PROGRAM = """
import asyncio, json, os, signal, sys
from pathlib import Path
from estd.app.running import serve
from estd.app.supervisor import Supervisor
from estd.config import read_config
from estd.errors import Invalid, Problem

settings, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
start = Supervisor.start

def say(event, **facts):
    print(json.dumps({"event": event, **facts}), flush=True)

def ask(when):
    for number in plan.get(when, []):
        os.kill(os.getpid(), number)

async def tell_start(self):
    ask("before the start")
    say("start")
    await start(self)
    say("started")
    ask("after the start")
    for _ in range(9):  # the handler has its turn
        await asyncio.sleep(0)

async def when_ready(supervisor):
    say("ready", port=supervisor.port, ops_port=supervisor.ops_port)
    if "fault" in plan:
        raise Invalid([Problem("run.json", "cannot be written", "Make room.")])

Supervisor.start = tell_start
if "held" in plan:  # as a predecessor leaves them
    signal.pthread_sigmask(signal.SIG_BLOCK, plan["held"])
    ask("held")
try:
    asyncio.run(serve(read_config(settings), settings, when_ready))
except Invalid as invalid:
    say("refused", why=str(invalid))
    sys.exit(3)
say("over")
"""

LIFE = ("serving", "draining", "stopped")
TERM, INT, HUP, USR2 = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2


@dataclass
class Server:
    """One process that serves, and what it said."""

    process: subprocess.Popen[str]
    log: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, event: str) -> dict[str, Any]:
        """Its next word, which has to be this one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.events.append(json.loads(line))
        assert self.events[-1]["event"] == event, self.log.read_text()
        return self.events[-1]

    def end(self) -> list[str]:
        """What else it said until it ended, and all of its children with it: each of them holds this pipe open."""
        rest, _ = self.process.communicate(timeout=60)
        return [json.loads(line)["event"] for line in rest.splitlines()]

    def logged(self) -> list[str]:
        """What its own log tells of its life."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["message"] for line in lines if line["process"] == "supervisor" and line["message"] in LIFE]

    def assert_nothing_left(self, site: Site) -> None:
        """Neither socket nor lock, nor a signer that holds the journal."""
        assert self.process.poll() is not None
        for event in self.events:
            if "port" in event:
                assert not is_open(event["port"])
                assert not is_open(event["ops_port"])
        assert not is_running(site.config)
        assert list(site.runtime.iterdir()) == []
        now = datetime.now(UTC)
        Journal.open(site.data / "journal", 0, now).close(now)


def is_open(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Site:
    """Settings, key and database of a server, and the servers that were started with them."""

    settings: Path
    data: Path
    log: Path
    runtime: Path
    servers: list[Server] = field(default_factory=list)

    @property
    def config(self) -> Config:
        return read_config(self.settings)

    def stop(self) -> None:
        """Those that a test which failed has left."""
        for server in self.servers:
            server.process.terminate()
            server.process.communicate(timeout=60)

    def start(self, **plan: Any) -> Server:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                self.settings,
                json.dumps({key.replace("_", " "): plan[key] for key in plan}),
            ],
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"TMPDIR": str(self.runtime)},
        )
        self.servers.append(Server(process, self.log))
        return self.servers[-1]


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Iterator[Site]:
    data = tmp_path / "data"
    data.mkdir()
    key = default_key_path(data)
    key.write_text(KEK.hex())
    key.chmod(0o600)
    settings = tmp_path / "estd.toml"
    settings.write_text(
        f'data_directory = "{data}"\n'
        '[listen]\naddress = "127.0.0.1"\nport = 0\n'
        "[ops]\nport = 0\n"
        f'[database]\nurl = "{database.url}"\n'
        "[processes]\nworkers = 1\nsigners = 1\n"
    )
    with tempfile.TemporaryDirectory(prefix="estd-t-") as runtime:  # short, as the paths of sockets have to be
        site = Site(settings, data, tmp_path / "log", Path(runtime))
        try:
            yield site
        finally:
            site.stop()


# --- a start that comes to its end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [TERM, INT])
def test_it_serves_until_a_signal_and_then_nothing_is_left(site: Site, number: signal.Signals) -> None:
    server = site.start()
    server.hear("start")
    server.hear("started")
    ready = server.hear("ready")
    assert is_open(ready["port"])
    assert is_open(ready["ops_port"])
    server.process.send_signal(number)
    assert server.end() == ["over"]
    assert server.process.returncode == 0
    assert server.logged() == ["serving", "draining", "stopped"]
    server.assert_nothing_left(site)


def test_what_would_reload_a_server_does_nothing_to_one_that_starts(site: Site) -> None:
    """It reads its settings and its program in any case; by default these signals would end it."""
    server = site.start(before_the_start=[HUP, USR2])
    for event in ("start", "started", "ready"):
        server.hear(event)
    server.process.send_signal(TERM)
    assert server.end() == ["over"]
    assert server.logged() == ["serving", "draining", "stopped"]
    server.assert_nothing_left(site)


# --- a signal before it is ready ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [TERM, INT])
@pytest.mark.parametrize("moment", ["before_the_start", "after_the_start"])
def test_a_signal_during_the_start_stops_what_was_started_and_nobody_is_told_that_it_serves(
    site: Site, number: signal.Signals, moment: str
) -> None:
    server = site.start(**{moment: [number]})
    assert server.end() == ["start", "started", "over"]
    assert server.process.returncode == 0
    assert server.logged() == ["serving", "stopped"]
    server.assert_nothing_left(site)


def test_a_signal_that_a_predecessor_held_back_is_obeyed_and_does_not_kill(site: Site) -> None:
    server = site.start(held=[TERM])
    assert server.end() == ["start", "started", "over"]
    assert server.process.returncode == 0
    server.assert_nothing_left(site)


# --- a start that fails ------------------------------------------------------------------------------------------------


def test_whoever_cannot_be_told_stops_everything_again(site: Site) -> None:
    server = site.start(fault=True)
    for event in ("start", "started", "ready"):
        server.hear(event)
    assert server.hear("refused")["why"] == "run.json: cannot be written. Make room."
    assert server.end() == []
    assert server.process.returncode == 3
    assert server.logged() == ["serving", "stopped"]
    server.assert_nothing_left(site)


def test_a_start_that_fails_half_way_leaves_nothing_and_can_be_repeated(site: Site) -> None:
    key = default_key_path(site.data)
    first = site.start(before_the_start=[TERM])
    assert first.end() == ["start", "started", "over"]  # its own ecosystem is sealed under this key now
    key.write_text(bytes(32).hex())
    failed = site.start()
    failed.hear("start")
    assert "key" in failed.hear("refused")["why"]
    assert failed.end() == []
    assert failed.process.returncode == 3
    failed.assert_nothing_left(site)
    key.write_text(KEK.hex())
    again = site.start(before_the_start=[TERM])
    assert again.end() == ["start", "started", "over"]


async def test_what_is_taken_is_found_before_anything_is_made(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        config = Config(tmp_path / "data", address="127.0.0.1", port=port, ops_port=0)
        with pytest.raises(Invalid) as caught:
            await serve(config, None)
        (problem,) = caught.value.problems
        assert problem.where == "listen.port"
    one_port = Config(tmp_path / "data", address="127.0.0.1", port=port, ops_port=port)
    with pytest.raises(Invalid, match="which devices use"):
        await serve(one_port, None)
    assert not (tmp_path / "data").exists()
