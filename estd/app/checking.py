"""What a start needs, tried without starting: settings, key, certificate, ports, database."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from estd.app.access import open_store
from estd.app.handover import is_successor
from estd.app.listening import is_passed
from estd.config import Config, read_key_encryption_key
from estd.errors import Invalid, Problem
from estd.ra.directory import INTERNAL_LABEL

_LEFT_BEHIND_SECONDS: Final = 10.0
_LEFT_BEHIND_PAUSE_SECONDS: Final = 0.05
_MAKES_DATABASE: Final = "a private PostgreSQL, to be made at the first start"


async def check_server(config: Config) -> dict[str, Any]:
    """What was found, in the words of a person; nothing is left running that was not.

    Raises:
        Invalid: with everything that has to be changed.
        Unavailable: the database does not answer.
    """
    problems: list[Problem] = []
    if not config.signer_sockets:  # signers that run on their own hold the key
        try:
            read_key_encryption_key(config)
        except Invalid as invalid:
            problems += invalid.problems
    problems += _check_tls(config)
    running = is_running(config)
    if not running:
        problems += _try_ports(config)
    if problems:
        raise Invalid(problems)
    facts: dict[str, Any] = {
        "listen": f"{config.address} port {config.port}",
        "ops": f"{config.ops_address} port {config.ops_port}",
        "workers": config.worker_count,
        "signers": config.signer_count,
        "running": running,
    }
    if config.database_url is None and not (config.data_directory / "postgres").exists():
        return {**facts, "database": _MAKES_DATABASE, "ecosystems": []}
    async with open_store(config) as store:
        labels = sorted(record.label for record in await store.find_ecosystems() if record.label != INTERNAL_LABEL)
    database = "the private PostgreSQL answers" if config.database_url is None else "answers"
    return {**facts, "database": database, "ecosystems": labels}


def check_room(config: Config) -> None:
    """Whether a server with these settings could start beside what runs here; tried before anything else is.

    Raises:
        Invalid: its data directory or a port is taken.
    """
    if is_successor():
        return  # what is taken is taken by ourselves
    if is_running(config):
        remedy = "Stop that one, or give this one a directory of its own."
        raise Invalid([Problem(str(config.data_directory), "is in use by a running estd", remedy)])
    patience_seconds = 0.0 if find_left_behind(config) is None else _LEFT_BEHIND_SECONDS
    give_up_at = time.monotonic() + patience_seconds
    while problems := _try_ports(config):
        if time.monotonic() > give_up_at:
            raise Invalid(problems)
        # Workers of a server that was killed let go of its port as soon as they have noticed.
        time.sleep(_LEFT_BEHIND_PAUSE_SECONDS)


def find_left_behind(config: Config) -> Path | None:
    """The runtime directory of a server that was killed, if its successor has not removed it yet."""
    try:
        left = Path((config.data_directory / "lock").read_text(encoding="utf-8"))
        return left if left.name.startswith("estd-") and left.stat().st_uid == os.geteuid() else None
    except OSError:
        return None


def is_running(config: Config) -> bool:
    """Whether a server with this data directory runs."""
    try:
        lock = os.open(config.data_directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


# --- private -------------------------------------------------------------------------------------------------------


def _check_tls(config: Config) -> list[Problem]:
    if config.tls_certificate is None or config.tls_key is None:
        return []
    try:
        certificate = x509.load_pem_x509_certificates(config.tls_certificate.read_bytes())[0]
        key = load_pem_private_key(config.tls_key.read_bytes(), None)
    except OSError as error:
        return [Problem(f"tls: {error.filename}", f"cannot be read ({error.strerror})", "Name readable files.")]
    except (ValueError, TypeError):
        where = f"tls: {config.tls_certificate}, {config.tls_key}"
        return [Problem(where, "are no certificate and unencrypted key", "Give both in PEM.")]
    if key.public_key() != certificate.public_key():
        return [Problem("tls", "names a key that is not the certificate's", "Name the files that belong together.")]
    return []


def _try_ports(config: Config) -> list[Problem]:
    # A service manager that opened the port for us holds it already.
    listen = [] if is_passed(os.environ) else _try_port("listen:", config.address, config.port)
    return listen + _try_port("ops:", config.ops_address, config.ops_port)


def _try_port(where: str, address: str, port: int) -> list[Problem]:
    if port == 0:
        return []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            what = f"{address} port {port} cannot be opened ({error.strerror})"
            return [Problem(where, what, "Choose another port, or stop what uses it.")]
    return []
