"""The program as people meet it: real processes, run to their end, and what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from live_server import NORTH, Live

ESTD = Path(sys.executable).with_name("estd")
PLANT = """\
[ecosystem]
label = "plant"
name = "Harbour Plant"

[[issuer]]
name = "root"

[profile.pump]
issuer = "root"
enroll = ["code"]
subject = "inventory"
san = "inventory"
validity = "30d"
"""
"""A document to apply; tests beside a server that others use give it a label of their own."""


def estd(*arguments: object, given: str = "", seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ESTD_")}
    return subprocess.run(
        [str(ESTD), *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=environment,
    )


def ask(*arguments: object) -> Any:
    """The JSON a command answers with, which must succeed."""
    done = estd(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tell(*arguments: object) -> str:
    """What a command that must succeed tells people, and it has nothing to complain of."""
    done = estd(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refusal(*arguments: object, given: str = "") -> tuple[int, dict[str, Any]]:
    """Exit status and error of a command that must fail."""
    done = estd(*arguments, "--json", given=given)
    assert done.returncode != 0, done.stdout
    return done.returncode, json.loads(done.stderr)["error"]


def server_of(live: Live, label: str = NORTH) -> tuple[object, ...]:
    """The options that lead a device to an ecosystem of that server."""
    return ("--url", f"https://127.0.0.1:{live.port}", "--trust", live.trust, "--label", label)


def write_site(directory: Path, database_url: str | None = None) -> tuple[object, ...]:
    """Settings and a key-encryption key of a server that is never started; the options that name them.

    Without `database_url` each command starts a private database and stops it.
    """
    (directory / "kek").touch(mode=0o600)
    (directory / "kek").write_text("1" * 64)
    database = "" if database_url is None else f"database.url = {json.dumps(database_url)}\n"
    (directory / "estd.toml").write_text(f'data_directory = "data"\nkeys.file = "kek"\n{database}')
    return "--config", directory / "estd.toml"


def read_pem(path: Path) -> x509.Certificate:
    """The first certificate of a file."""
    return x509.load_pem_x509_certificate(path.read_bytes())
