"""A server and an operator on a PostgreSQL set up as ``deploy/postgresql`` says, each with its own role in it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patience import wait_for_file
from production_postgres import ProductionPostgres

ECOSYSTEM = """
[ecosystem]
label = "plant"
name = "Harbour Plant"

[[issuer]]
name = "devices"

[profile.pump]
issuer = "devices"
enroll = ["code"]
validity = "90d"
"""


class Site:
    """A PostgreSQL as shipped, and estd's commands, each with the settings of the role that gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = ProductionPostgres(folder)
        key = folder / "kek"
        key.write_text("5a" * 32)
        key.chmod(0o600)
        self.data = folder / "estd"
        self.port = 0

    def settings(self, role: str) -> Path:
        path = self.folder / f"{role}.toml"
        path.touch(mode=0o600)  # it holds a password
        path.write_text(
            f'data_directory = "{self.data}"\ndatabase.url = "{self.postgres.url(role)}"\nkeys.file = "{self.folder}/kek"\n'
            'listen.address = "127.0.0.1"\nlisten.port = 0\nops.port = 0\nprocesses.workers = 1\nprocesses.signers = 1\n'
        )
        return path

    def estd(self, role: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "estd", *map(str, arguments), "--config", str(self.settings(role))]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A server, as the role of servers."""
        ready, log = self.folder / "ready.json", self.folder / "estd.log"
        command = [
            sys.executable,
            "-m",
            "estd",
            "serve",
            "--config",
            str(self.settings("estd")),
            "--ready-file",
            str(ready),
        ]
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            wait_for_file(ready, process, 60, log.read_text)
            self.port = json.loads(ready.read_text())["port"]
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()

    def enroll(self, device: str) -> Path:
        codes = self.folder / f"{device}.csv"
        done = self.estd("estd_admin", "code", "create", "--ecosystem", "plant", "--device", device, "--out", codes)
        assert done.returncode == 0, done.stderr
        with codes.open(newline="") as file:
            code = next(csv.DictReader(file))["code"]
        (self.folder / "code").write_text(code)
        (self.folder / "code").chmod(0o600)
        done = self._as_device(device, "--device", device, "--code-file", str(self.folder / "code"))
        assert done.returncode == 0, done.stderr
        return self.folder / device

    def renew(self, device: str) -> subprocess.CompletedProcess[str]:
        return self._as_device(device, "--renew")

    def _as_device(self, device: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "estd",
            "enroll",
            "--url",
            f"https://127.0.0.1:{self.port}",
            "--label",
            "plant",
        ]
        command += ["--trust", str(self.data / "server-trust.pem"), "--out", str(self.folder / device), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
