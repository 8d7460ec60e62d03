"""`estd quickstart`: a server to play with, complete after one command and the same again after the next.

The playground's files are made where they are missing (`estd.app.playground`), its ecosystems applied and its codes
stored unless they are there already, then the server runs in this process until a signal ends it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from estd.app.access import find_user, open_store
from estd.app.apply import apply_document
from estd.app.checking import check_room
from estd.app.files import write_file
from estd.app.playground import (
    CODES_EACH,
    DEFAULT_ADDRESS,
    DEFAULT_OPS_PORT,
    DEFAULT_PORT,
    LABELS,
    Playground,
    lay_out,
    read_codes,
    remove_run_file,
    write_codes,
    write_run_file,
)
from estd.app.running import serve
from estd.app.submitted import read_ecosystem
from estd.app.supervisor import Supervisor
from estd.config import Config, check_tls_names, read_config, read_key_encryption_key
from estd.errors import Invalid
from estd.names import normalise_device
from estd.ra.admission import hash_secret
from estd.ra.codes import make_code
from estd.store.contract import EcosystemRecord, Store


@dataclass(frozen=True, slots=True)
class Running:
    """A playground whose server answers."""

    place: Playground
    host: str
    port: int
    ops_port: int
    code: tuple[str, str]
    """A device of the default ecosystem whose enrollment code is not used yet, and that code."""

    @property
    def url(self) -> str:
        """Where devices connect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"


async def run(
    directory: Path,
    address: str | None,
    port: int | None,
    ops_port: int | None,
    *,
    names: tuple[str, ...] = (),
    tell: Callable[[str], None],
    when_ready: Callable[[Running], None],
) -> None:
    """Serve from that directory until SIGINT or SIGTERM.

    Args:
        directory: the playground; what is missing there is made.
        address, port, ops_port: where to listen; None: as the settings there say, or the defaults in new ones.
        names: what clients call the server besides its addresses and what the settings there say.
        tell: told what is being done, one line at a time.
        when_ready: called once devices can enroll; ``run.json`` exists from just before until the server stops.

    Raises:
        Invalid, Unavailable, Broken: it cannot start.
    """
    place = lay_out(
        directory,
        address or DEFAULT_ADDRESS,
        DEFAULT_PORT if port is None else port,
        DEFAULT_OPS_PORT if ops_port is None else ops_port,
        _now(),
        names,
    )
    config = _choose_settings(place, address, port, ops_port, names)
    check_room(config)
    tell("Starting the database" if (place.data / "postgres").exists() else "Making the database")
    async with open_store(config) as store:
        code = await prepare(place, config, store, tell)

        async def note(supervisor: Supervisor) -> None:
            publish_trust(place)
            host = "127.0.0.1" if config.address in ("0.0.0.0", "::") else config.address  # noqa: S104  # a comparison
            running = Running(place, host, supervisor.port, supervisor.ops_port, code)
            write_run_file(place, describe(running))
            when_ready(running)

        tell("Starting the server")
        try:
            await serve(config, place.settings, note)
        finally:
            remove_run_file(place, os.getpid())


def describe(running: Running) -> dict[str, Any]:
    """What ``run.json`` says."""
    return {
        "url": running.url,
        "port": running.port,
        "ops_port": running.ops_port,
        "pid": os.getpid(),
        "trust": str(running.place.trust),
        "started_at": _now().isoformat().replace("+00:00", "Z"),
    }


async def prepare(place: Playground, config: Config, store: Store, tell: Callable[[str], None]) -> tuple[str, str]:
    """Apply the ecosystems that the store lacks and store their codes; a device with an unused code."""
    kek = read_key_encryption_key(config)
    present = {record.label for record in await store.find_ecosystems()}
    for label in LABELS:
        if label not in present:
            tell(f"Making the ecosystem {label}")
            await apply_document(store, kek, read_ecosystem(place.ecosystem(label)), find_user())
    records = {record.label: record for record in await store.find_ecosystems()}
    unused = [await _keep_codes(place, store, records[label]) for label in LABELS]
    return unused[0]


def publish_trust(place: Playground) -> None:
    """Put what verifies the server's certificate where people look for it."""
    content = (place.data / "server-trust.pem").read_bytes()
    if not place.trust.exists() or place.trust.read_bytes() != content:
        write_file(place.trust, content, 0o644)


# --- private -------------------------------------------------------------------------------------------------------


def _choose_settings(
    place: Playground, address: str | None, port: int | None, ops_port: int | None, names: tuple[str, ...]
) -> Config:
    config = read_config(place.settings)
    together = tuple(dict.fromkeys((*config.tls_names, *names)))
    if problems := check_tls_names("--name", together):
        raise Invalid(problems)
    config = replace(config, tls_names=together)
    given = {"address": address, "port": port, "ops_port": ops_port}
    if set(given.values()) != {None}:
        config = replace(config, source=None)  # what is said of a setting may be an option's fault
    return replace(config, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # names and types are those of Config


async def _keep_codes(place: Playground, store: Store, record: EcosystemRecord) -> tuple[str, str]:
    """Make sure that the file holds codes which work; a device of it whose code is unused."""
    path = place.bootstrap(record.label).codes
    rows = read_codes(path)
    for device, code in rows:
        stored = await store.find_codes(record.ecosystem_id, normalise_device(device))
        if any(row.secret_sha256 == hash_secret(code) and row.spent_at is None for row in stored):
            return device, code
    made = [
        (name, make_code(record.ecosystem_id, name, single_use=True, profile=None, expires_at=None, now=_now()))
        for name in (f"{record.label}-{number:03d}" for number in range(len(rows) + 1, len(rows) + CODES_EACH + 1))
    ]
    await store.record_codes([code.row for _, code in made])
    new = [(name, code.secret) for name, code in made]
    write_codes(path, [*rows, *new])
    return new[0]


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
