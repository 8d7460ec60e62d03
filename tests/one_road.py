"""The one road on a real store and with a real signer process, for tests that send orders along it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from factory import KEK, NOW, make_csr, make_maker, make_name, make_order, make_record, make_rules
from postgres_fixture import Database

from estd.app.signers import SignerControl
from estd.audit import Event
from estd.errors import Broken
from estd.ra.enrollment import Enrollment
from estd.ra.order import Order, write_request_key
from estd.signer.client import SignerPool
from estd.signer.server import SignerSettings
from estd.store.contract import EcosystemRecord, Intent, NewIssuer
from estd.store.postgres import PostgresStore
from estd.wire.pkcs10 import read_request

EVENT = Event(NOW, "test", "granted")


class SignerProcess:
    """One real signer on a directory of its own."""

    def __init__(self, directory: Path, record: EcosystemRecord) -> None:
        self.socket = str(directory / "signer.sock")
        self._directory = directory
        self._record = record
        self._process: asyncio.subprocess.Process | None = None
        self._control: SignerControl | None = None

    async def start(self) -> None:
        settings = SignerSettings(
            slot=0,
            socket_path=self.socket,
            journal_directory=str(self._directory / "journal"),
            allowed_uids=[os.getuid()],
            clock_tolerance_seconds=1e9,
            log_level="error",
        )
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as file:
            file.write(msgspec.json.encode(settings))
            file.flush()
            fds = [file.fileno(), theirs.fileno()]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "estd.signer.server", *map(str, fds), pass_fds=fds
            )
        theirs.close()
        self._control = await SignerControl.open(ours)
        await self._control.unlock(KEK)
        await self.load(self._record)

    async def load(self, record: EcosystemRecord) -> None:
        assert self._control is not None
        assert await self._control.load([record]) == []

    async def kill(self) -> None:
        assert self._process is not None
        assert self._control is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self._control.close()


class Road:
    """An `Enrollment` and everything under it."""

    def __init__(self, store: PostgresStore, signer: SignerProcess, pool: SignerPool, record: EcosystemRecord) -> None:
        self.store = store
        self.signer = signer
        self.pool = pool
        self.record = record
        self.now: datetime = datetime.now(NOW.tzinfo).replace(microsecond=0)
        self.observed = Counter[str]()
        self.groups: list[float] = []
        self.enrollment = Enrollment(store, pool, lambda: self.now, self._observe)

    def _observe(self, what: str, value: float) -> None:
        self.observed[what] += 1
        if what == "group_size":
            self.groups.append(value)

    def order(self, name: str = "device-1", csr: bytes | None = None, **changes: Any) -> Order:
        der = csr or make_csr(make_name(name))
        digest = read_request(der).sha256
        fields: dict[str, Any] = {
            "request_key": write_request_key(self.record.ecosystem_id, name, "simpleenroll", digest),
            "ecosystem_id": self.record.ecosystem_id,
            "ecosystem_version": self.record.version,
            "node_id": self.record.node_id,
            "csr": der,
            "csr_sha256": digest,
            "subject": make_name(name).public_bytes(),
        }
        return make_order(name, **fields | changes)

    async def certificates(self) -> list[bytes]:
        return [row.certificate for row in await self.store.find_certificates(None, None, 10_000)]


@contextlib.asynccontextmanager
async def open_road(
    url: str, directory: Path, pool: type[SignerPool] = SignerPool, record: EcosystemRecord | None = None
) -> AsyncIterator[Road]:
    """`record`: an ecosystem that the store has; otherwise it gets one."""
    store = await PostgresStore.connect(url)
    record = record or await record_ecosystem(store, "campus")
    signer = SignerProcess(directory, record)
    (directory / "journal").mkdir(mode=0o700)
    await signer.start()
    signers = pool([signer.socket])
    road = Road(store, signer, signers, record)
    try:
        yield road
        await road.enrollment.drain()
    finally:
        await signers.close()
        await signer.kill()
        await store.close()


async def record_ecosystem(store: PostgresStore, label: str) -> EcosystemRecord:
    """An ecosystem with issuers of its own."""
    made = make_record(make_rules(make_maker(), label))
    issuers = [
        NewIssuer(issuer.name, "root" if issuer.parent_id is not None else None, issuer.certificate, issuer.sealed_key)
        for issuer in made.issuers
    ]
    return await store.record_ecosystem(label, made.document, issuers, 0, "test", EVENT)


async def closings(database: Database) -> Counter[str | None]:
    """How many intents are closed in each way."""
    return Counter(row["closed"] for row in await database.fetch("SELECT closed FROM intent"))


async def reserve_and_die(road: Road, order: Order) -> Intent:
    """As a worker that is killed right after its intent was committed."""
    waiting = Enrollment(road.store, road.pool, lambda: road.now, lambda _what, _value: None)

    class Killed(BaseException):
        pass

    async def die(journal: str, mine: object, unwanted: object) -> None:
        raise Killed

    waiting._sign = die  # type: ignore[method-assign]  # dies in its place
    with pytest.raises(Broken, match="issuance failed"):
        await waiting.enroll(order)
    intents = await road.store.find_open_intents(road.now + timedelta(minutes=1), 10)
    return next(intent for intent in intents if intent.request_key == order.request_key)


async def forget(database: Database, *certificates: bytes) -> None:
    """These certificates, their intents and their events, as if they had never been."""
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        for certificate in certificates:
            serial = await connection.fetchval("DELETE FROM certificate WHERE der = $1 RETURNING serial", certificate)
            await connection.execute("DELETE FROM intent WHERE serial = $1", serial)
            await connection.execute("DELETE FROM event WHERE serial = $1", serial.hex())
