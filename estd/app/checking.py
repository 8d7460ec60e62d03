"""What a start needs, tried without starting: settings, key, certificate, ports, database."""

from __future__ import annotations

import fcntl
import os
import pwd
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from estd.app.access import open_store
from estd.app.handover import is_successor
from estd.app.listening import explain_port, is_passed
from estd.app.own_certificate import find_date_problem, find_open_key, find_uncovered, read_own
from estd.app.sealed_keys import check_key
from estd.ca.ecosystem import peek_labels
from estd.config import Config, check_blocklist, describe_key, is_one_port, read_key_encryption_key
from estd.errors import Invalid, Problem
from estd.ra.directory import INTERNAL_LABEL
from estd.store.contract import EcosystemRecord

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
    warnings = _find_stranger(config)
    kek = None
    try:
        check_blocklist(config)
    except Invalid as invalid:
        problems += invalid.problems
    if not config.signer_sockets:  # signers that run on their own hold the key
        try:
            kek = read_key_encryption_key(config)
        except Invalid as invalid:
            problems += invalid.problems
    problems += _check_tls(config, warnings)
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
        "warnings": warnings,
    }
    if config.database_url is None and not _has_database(config):
        return {**facts, "database": _MAKES_DATABASE, "ecosystems": []}
    async with open_store(config) as store:
        records = await store.find_ecosystems()
    problems += _check_contents(config, kek, records)
    if problems:
        raise Invalid(problems)
    if kek is not None:
        warnings += _find_sealed_otherwise(kek, records)
    database = "the private PostgreSQL answers" if config.database_url is None else "answers"
    labels = sorted(record.label for record in records if record.label != INTERNAL_LABEL)
    return {**facts, "database": database, "ecosystems": labels}


def check_default(config: Config, records: Sequence[EcosystemRecord]) -> None:
    """Whether the default ecosystem is there. Before the first one was applied it cannot be.

    Raises:
        Invalid: there are others, and it is none of them.
    """
    labels: set[str] = set()
    for record in records:
        if record.label != INTERNAL_LABEL:
            labels |= peek_labels(record.document)
    if config.default_ecosystem is not None and labels and config.default_ecosystem not in labels:
        what = f"{config.default_ecosystem!r} is no ecosystem here"
        remedy = f"Apply it first, or name one of {', '.join(sorted(labels))}."
        raise Invalid([Problem(config.where("est.default_ecosystem"), what, remedy)])


def check_room(config: Config) -> None:
    """Whether a server with these settings could start beside what runs here; tried before anything else is.

    Raises:
        Invalid: its data directory or a port is taken, or its own certificate cannot be shown.
    """
    if is_successor():
        return  # what is taken is taken by ourselves
    if is_one_port(config.address, config.port, config.ops_address, config.ops_port):
        raise Invalid([Problem("ops.port", "is listen.port, which devices use", "Choose another port for one.")])
    if is_running(config):
        remedy = "Stop that one, or give this one a directory of its own."
        raise Invalid([Problem(str(config.data_directory), "is in use by a running estd", remedy)])
    if config.tls_certificate is not None and config.tls_key is not None:
        read_own(config.tls_certificate, config.tls_key)
        problem = find_open_key(config.tls_key)
        if problem is not None:
            raise Invalid([problem])
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


def _has_database(config: Config) -> bool:
    try:
        return (config.data_directory / "postgres").exists()
    except OSError as error:
        what = f"cannot be used ({error.strerror})"
        remedy = "Run estd as the user who owns it, or name another one."
        raise Invalid([Problem(str(config.data_directory), what, remedy)]) from None


def _check_contents(config: Config, kek: bytes | None, records: Sequence[EcosystemRecord]) -> list[Problem]:
    problems: list[Problem] = []
    try:
        check_default(config, records)
    except Invalid as invalid:
        problems += invalid.problems
    try:
        if kek is not None:
            check_key(kek, records, describe_key(config))
    except Invalid as invalid:
        problems += invalid.problems
    return problems


def _find_stranger(config: Config) -> list[str]:
    """Root may read everything, so a check by root says little about a server that runs as somebody else."""
    try:
        owner = config.data_directory.stat().st_uid
    except OSError:
        return []
    if os.geteuid() != 0 or owner == 0:
        return []
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    return [f"root reads what {name} may not: let {name} check as well (runuser -u {name} -- estd serve ... --check)"]


def _find_sealed_otherwise(kek: bytes, records: Sequence[EcosystemRecord]) -> list[str]:
    found = []
    for record in records:
        try:
            check_key(kek, [record])
        except Invalid:
            found.append(f"{record.label} is sealed under another key-encryption key and would not be served")
    return found


def _check_tls(config: Config, warnings: list[str]) -> list[Problem]:
    if config.tls_certificate is None or config.tls_key is None:
        return []
    try:
        chain, _ = read_own(config.tls_certificate, config.tls_key)
    except Invalid as invalid:
        return invalid.problems
    warnings += [
        f"{config.tls_certificate} is not for {name}, which tls.names has: devices that call the server so refuse it"
        for name in find_uncovered(chain, config.tls_names)
    ]
    dates = find_date_problem(chain, datetime.now(UTC), f"tls.certificate: {config.tls_certificate}")
    return [problem for problem in (find_open_key(config.tls_key), dates) if problem is not None]


def _try_ports(config: Config) -> list[Problem]:
    # A service manager that opened the port for us holds it already.
    listen = [] if is_passed(os.environ) else _try_port(config.where("listen.port"), config.address, config.port)
    return listen + _try_port(config.where("ops.port"), config.ops_address, config.ops_port)


def _try_port(where: str, address: str, port: int) -> list[Problem]:
    if port == 0:
        return []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return [explain_port(where, address, port, error)]
    return []
