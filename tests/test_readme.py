"""The README's commands work as they stand there.

Blocks below ``<!-- run -->`` are pasted into one shell, in order; the one below ``<!-- run: server -->`` runs beside them
until the end. Only the ports are others than in the text.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from live_server import judge
from patience import wait_for_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^<!-- run(?:: (?P<name>\w+))? -->\n```\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(match["name"], match["commands"]) for match in BLOCK.finditer(README)]


def test_blocks_are_marked() -> None:
    assert [name for name, _ in BLOCKS] == ["server", None, None, None]
    assert README.count("<!-- run") == len(BLOCKS)


def test_make_has_the_targets_named() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)$", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_the_commands_work(tmp_path: Path) -> None:
    judge("openssl")
    tmp_path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {key: value for key, value in environment.items() if not key.startswith("ESTD_")}
    [server] = [commands for name, commands in BLOCKS if name == "server"]
    server = server.replace("estd quickstart", "exec estd quickstart --port 0 --ops-port 0")
    with (tmp_path / "server.log").open("wb") as log:
        running = subprocess.Popen(
            ["bash", "-e"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        assert running.stdin is not None
        running.stdin.write(server.encode())
        running.stdin.close()
        try:
            port = wait_for_port(running, tmp_path)
            script = "".join(commands for name, commands in BLOCKS if name is None)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script.replace(":8443", f":{port}")],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(40) == 0
    assert done.returncode == 0, done.stderr
    assert "device.pem: OK" in done.stdout
    certificate = x509.load_pem_x509_certificate((tmp_path / "pump-17/device.pem").read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=pump-17"
    assert done.stdout.count("pump-17  ") >= 2


def wait_for_port(running: subprocess.Popen[bytes], directory: Path) -> int:
    """The port of the server, once it serves."""
    wait_for_file(directory / "lab/run.json", running, 60, (directory / "server.log").read_text)
    return int(json.loads((directory / "lab/run.json").read_bytes())["port"])
