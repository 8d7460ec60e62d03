from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from estd.app import handover
from estd.app.handover import find_estate, is_successor, try_program

PROGRAM = """
import json, os, signal, socket, sys
from estd.app.handover import Estate, Heir, accept_signals, become_successor, find_estate, is_successor
if not is_successor():
    listener, (ours, theirs), lock = socket.create_server(("127.0.0.1", 0)), socket.socketpair(), open("/dev/null")
    theirs.set_inheritable(True)
    os.environ["TOLD"] = json.dumps([os.getpid(), listener.getsockname()[1], theirs.fileno()])
    heir = Heir(name="worker-1-0", pid=1, control=ours.fileno())
    become_successor(Estate(listener=listener.fileno(), lock=lock.fileno(), runtime="/x", generation=7,
                            workers=[heir], signers=[]))
pid, port, theirs = json.loads(os.environ["TOLD"])
os.kill(os.getpid(), signal.SIGTERM)  # held back
estate = find_estate()
listener, control = socket.socket(fileno=estate.listener), socket.socket(fileno=estate.workers[0].control)
control.sendall(b"hello")
got = []
signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
accept_signals()
print(json.dumps({
    "same process": pid == os.getpid(),
    "same port": listener.getsockname()[1] == port,
    "channel": socket.socket(fileno=theirs).recv(9).decode(),
    "inheritable": [os.get_inheritable(fd) for fd in (estate.listener, estate.lock, estate.workers[0].control)],
    "signals": got,
    "again": is_successor(),
    "rest": [estate.runtime, estate.generation, estate.workers[0].name],
}))
"""


def test_a_successor_is_the_same_process_with_the_same_descriptors() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    assert json.loads(done.stdout) == {
        "same process": True,
        "same port": True,
        "channel": "hello",
        "inheritable": [False, False, False],
        "signals": [signal.SIGTERM],
        "again": False,
        "rest": ["/x", 7, "worker-1-0"],
    }


def test_an_ordinary_start_finds_nothing() -> None:
    assert not is_successor()
    assert find_estate() is None


async def test_a_program_that_cannot_be_loaded_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await try_program() is None
    monkeypatch.setattr(handover, "_TRIAL", "import estd.no_such_thing")
    assert "no_such_thing" in (await try_program() or "")
    monkeypatch.setattr(handover, "_TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(handover, "_TRIAL_SECONDS", 0.2)
    assert "not loaded within" in (await try_program() or "")
    assert os.environ.get("ESTD_HANDOVER") is None
