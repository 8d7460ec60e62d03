from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from estd.app.listening import explain_port, is_passed, open_listener
from estd.errors import Invalid

PROGRAM = """
import json, os, sys
from estd.app.listening import is_passed, open_listener
os.environ["LISTEN_PID"] = str(os.getpid())
passed = is_passed()
listener = open_listener("127.0.0.1", 1)
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps([passed, listener.getsockname()[1], os.get_inheritable(listener.fileno()), left]))
"""


def test_a_socket_of_our_own_listens() -> None:
    with open_listener("127.0.0.1", 0, {}) as listener:
        socket.create_connection(listener.getsockname()[:2]).close()
        with pytest.raises(Invalid, match="cannot be opened"):
            open_listener("127.0.0.1", listener.getsockname()[1], {})
    with open_listener("::1", 0, {}) as listener:
        assert listener.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "CAP_NET_BIND_SERVICE"),
        (errno.EADDRINUSE, "stop what uses it"),
        (errno.EADDRNOTAVAIL, "an address of this machine"),
    ],
)
def test_why_a_port_cannot_be_opened(number: int, remedy: str) -> None:
    problem = explain_port("listen.port", "127.0.0.1", 80, OSError(number, "as asyncio words it"))
    assert f"127.0.0.1 port 80 cannot be opened ({os.strerror(number)})" == problem.what
    assert remedy in problem.remedy


def test_the_kernel_holds_little_for_who_reads_nothing() -> None:
    with open_listener("127.0.0.1", 0, {}) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        listener.setblocking(True)
        end, _ = listener.accept()
        with client, end:
            # Linux books twice what was asked for (socket(7)).
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 131_072


def test_what_was_passed_to_another_process_is_not_ours() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "OTHER": "y"}
    assert not is_passed(environment)
    with open_listener("127.0.0.1", 0, environment):
        assert environment == {"OTHER": "y"}


def test_two_sockets_are_one_too_many() -> None:
    with pytest.raises(Invalid, match="2 sockets"):
        open_listener("127.0.0.1", 0, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"})


def test_a_passed_socket_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # As systemd does it: descriptor 3, whatever it was before.
        script = f"import os; os.dup2({listener.fileno()}, 3); os.set_inheritable(3, True)\n"
        script += (
            f"os.environ['LISTEN_FDS'] = '1'\nos.execv({sys.executable!r}, [{sys.executable!r}, '-c', {PROGRAM!r}])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], pass_fds=[listener.fileno()], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == [True, listener.getsockname()[1], False, []]
