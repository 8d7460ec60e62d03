"""Two ecosystems in a real store, a real signer and a real `Est` between them, for tests that ask it as devices do.

The makers, the rules and the fleets of both are alike; nothing but the ecosystem tells them apart. Certificates are made
relative to the present time, because signer and store have clocks of their own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from factory import (
    CLIENT_AUTH,
    CMC_RA,
    KEK,
    Party,
    make_csr,
    make_device,
    make_maker,
    make_name,
    make_rules,
    unseal_issuer,
)
from postgres_fixture import Database
from store_values import make_event, make_intent, make_issued

from estd.app.apply import apply_document
from estd.app.signers import SignerControl
from estd.asn1 import der
from estd.est.operations import OWN_ROOT, ROOT, Est
from estd.ra.admission import Admission, hash_secret
from estd.ra.bulk import Bulk
from estd.ra.codes import generate_code
from estd.ra.directory import Directory
from estd.ra.enrollment import Enrollment
from estd.ra.limits import Quotas
from estd.ra.pace import Pace, Turnstile
from estd.ra.refusals import Refusals
from estd.ra.trail import Trail
from estd.signer.client import SignerPool
from estd.signer.server import SignerSettings
from estd.store.contract import EcosystemRecord, EnrollmentCode, IssuerRecord, Revocation
from estd.store.postgres import PostgresStore
from estd.wire.exchange import Exchange, Peer, Reply

HOME = "campus"
PROFILE = "campus-gateways"
"""The label of a profile of `HOME`."""
NEIGHBOUR = "south"
NOWHERE = "nowhere"
ADDRESS = "192.0.2.7"


def now() -> datetime:
    """The time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Caller:
    """What somebody brings, and the name that the bearer would ask for."""

    name: str
    certificates: tuple[bytes, ...] = ()
    authorization: str | None = None
    subject: x509.Name | None = None

    def csr(self, **more: Any) -> bytes:
        """A request by a new key for the name this caller has."""
        return make_csr(self.subject or make_name(self.name), **more)


@dataclass(frozen=True)
class Trace:
    """What the database gained."""

    intents: int
    certificates: int
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class World:
    """See the module."""

    store: PostgresStore
    database: Any
    """A connection of the superuser."""
    signers: SignerPool
    est: Est
    refusals: Refusals
    makers: dict[str, Party]
    records: dict[str, EcosystemRecord]
    tolerances: Counter[tuple[str, str]]
    names: int = 0

    # --- asking ------------------------------------------------------------------------------------------------------

    async def ask(
        self,
        operation: str,
        label: str | None,
        caller: Caller,
        *,
        method: str | None = None,
        path: str | None = None,
        body: bytes | None = None,
        peer: Peer | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[str, str, Reply]:
        """What `Est` answers to a request as the web floor would hand it in."""
        posting = operation.startswith("simple") or operation == "batch"
        if path is None:
            root = OWN_ROOT if operation == "batch" else ROOT
            path = f"{root}{'' if label is None else label + '/'}{operation}"
        fields = dict(headers or {})
        if caller.authorization is not None:
            fields["authorization"] = caller.authorization
        if posting:
            fields.setdefault("content-type", "text/csv" if operation == "batch" else "application/pkcs10")
            body = base64.b64encode(caller.csr()) if body is None else body
        exchange = Exchange(
            method=method or ("POST" if posting else "GET"),
            path=path,
            headers=fields,
            body=body or b"",
            peer=peer or Peer(ADDRESS, caller.certificates),
            request_id=f"request-{self.next_number()}",
            at=now(),
        )
        operation, outcome, reply = await self.est.answer(exchange)
        if reply.stream is not None:
            reply = msgspec.structs.replace(reply, body=b"".join([part async for part in reply.stream]), stream=None)
        return operation, outcome, reply

    async def mark(self) -> tuple[int, int, int]:
        """Where the database stands, for `since`."""
        row = await self.database.fetchrow(
            "SELECT (SELECT count(*) FROM intent), (SELECT count(*) FROM certificate),"
            " (SELECT coalesce(max(event_id), 0) FROM event)"
        )
        return int(row[0]), int(row[1]), int(row[2])

    async def since(self, mark: tuple[int, int, int]) -> Trace:
        """What the database gained since `mark`."""
        intents, certificates, _ = await self.mark()
        events = await self.database.fetch("SELECT * FROM event WHERE event_id > $1 ORDER BY event_id", mark[2])
        return Trace(intents - mark[0], certificates - mark[1], [dict(row) for row in events])

    def next_number(self) -> int:
        """A number no other test of this world has."""
        self.names += 1
        return self.names

    def new_name(self) -> str:
        """A device name no other test of this world uses."""
        return f"device-{self.next_number()}"

    # --- credentials -------------------------------------------------------------------------------------------------

    def born(self, label: str, name: str | None = None, **options: Any) -> Caller:
        """A device with the birth certificate of that ecosystem's maker."""
        name = name or self.new_name()
        options.setdefault("starts", now() - timedelta(hours=1))
        return Caller(name, (make_device(self.makers[label], name, **options).der,))

    async def authority(self, label: str) -> Caller:
        """A registration authority of that ecosystem."""
        return await self.recorded(label, "authority", eku=[CLIENT_AUTH, CMC_RA])

    async def enrolled(self, label: str, profile: str = "device") -> Caller:
        """A device that went through the front door of that ecosystem, and has the certificate it was given there."""
        device = self.born(label)
        certificate = read_certificate(await self.ask("simpleenroll", label, device))
        if profile == "gateway":
            first = Caller(device.name, (certificate,))
            certificate = read_certificate(await self.ask("simpleenroll", f"{label}-gateways", first))
        return Caller(device.name, (certificate,))

    async def recorded(self, label: str, profile: str = "device", **options: Any) -> Caller:
        """A certificate that this ecosystem's issuer signed with these flaws, put on record as issued."""
        party = self.signed(label, **options)
        issuer = self.issuer(label)
        intent = make_intent(
            issuer_id=issuer.issuer_id,
            serial=der.integer(party.certificate.serial_number)[2:],
            ecosystem_id=self.records[label].ecosystem_id,
            ecosystem_version=1,
            node_id=self.records[label].node_id,
            profile=profile,
            device=party.certificate.subject.rfc4514_string().removeprefix("CN="),
        )
        await self.store.reserve_intents([intent])
        await self.store.record_issued([make_issued(intent, certificate=party.der)])
        return Caller(intent.device, (party.der,))

    def signed(self, label: str, **options: Any) -> Party:
        """A certificate that this ecosystem's issuer signed and nobody recorded."""
        authority = unseal_issuer(self.issuer(label))
        options = {"eku": [CLIENT_AUTH], "starts": now() - timedelta(hours=1), **options}
        return make_device(authority, options.pop("name", None) or self.new_name(), **options)

    async def revoke(self, caller: Caller) -> None:
        """Revoke it, and let the worker know."""
        leaf = x509.load_der_x509_certificate(caller.certificates[0])
        for label in self.records:
            issuer = self.issuer(label)
            serial = der.integer(leaf.serial_number)[2:]
            if await self.store.find_certificate(issuer.issuer_id, serial) is not None:
                revocation = Revocation(issuer.issuer_id, serial, "keyCompromise", now())
                await self.store.record_revocation(revocation, make_event())
        await self.reload()

    async def coded(self, label: str, **options: Any) -> Caller:
        """A device with an enrollment code of that ecosystem."""
        name, secret = options.pop("name", None) or self.new_name(), generate_code()
        fields: dict[str, Any] = {
            "code_id": 0,
            "ecosystem_id": self.records[label].ecosystem_id,
            "device": name,
            "secret_sha256": hash_secret(secret),
            "single_use": True,
            "profile": None,
            "expires_at": None,
            "created_at": now(),
            "spent_at": None,
        }
        await self.store.record_codes([EnrollmentCode(**fields | options)])
        return Caller(name, (), basic(name, secret))

    def issuer(self, label: str) -> IssuerRecord:
        """The issuer of that ecosystem's devices."""
        return next(row for row in self.records[label].issuers if row.name == "devices")

    async def reload(self, default: str | None = HOME) -> None:
        """Let the worker see what the store holds."""
        ecosystems, revocations = await self.store.find_ecosystems(), await self.store.find_revocations()
        self.est.directory = Directory(ecosystems, revocations, default, await self.store.find_compromised_keys())


def basic(user: str, secret: str) -> str:
    """RFC 7617."""
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


def read_certificate(answer: tuple[str, str, Reply]) -> bytes:
    """The one certificate of a granted enrollment (DER)."""
    operation, outcome, reply = answer
    assert (outcome, reply.status) == ("ok", 200), reply.body
    if operation == "batch":
        line, end = reply.body.splitlines()
        assert json.loads(end)["end"] == "complete", end
        return base64.b64decode(json.loads(line)["certificate"])
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(reply.body))
    return certificate.public_bytes(Encoding.DER)


def identity_of(caller: Caller) -> str:
    """What the audit trail calls a refused caller: the name it claims, or else the certificate it showed."""
    if caller.authorization is not None and caller.authorization.startswith("Basic "):
        return "code:" + base64.b64decode(caller.authorization[6:]).decode().partition(":")[0]
    return "x509:" + hashlib.sha256(caller.certificates[0]).hexdigest() if caller.certificates else ""


@contextlib.asynccontextmanager
async def open_world(database: Database, profile: str = "", more: str = "") -> AsyncIterator[World]:
    """A world on an empty database; `profile` and `more` go into both ecosystems' documents."""
    async with contextlib.AsyncExitStack() as stack:
        store = await PostgresStore.connect(database.url)
        stack.push_async_callback(store.close)
        makers, records = {}, {}
        for label in (HOME, NEIGHBOUR):
            makers[label] = make_maker(f"Maker of {label}", starts=now() - timedelta(days=1))
            await apply_document(store, KEK, make_rules(makers[label], label, profile, more), "test")
        found = await store.find_ecosystems()
        records = {record.label: record for record in found}
        control, path = await stack.enter_async_context(_run_signer())
        await control.unlock(KEK)
        assert await control.load(found) == []
        signers = SignerPool([path])
        stack.push_async_callback(signers.close)
        trail = Trail(store)
        trail.start()
        stack.push_async_callback(trail.stop)
        tolerances: Counter[tuple[str, str]] = Counter()
        enrollment = Enrollment(store, signers, now, lambda _what, _value: None)
        bulk = Bulk(store, signers, enrollment, trail, now, lambda _what, _value: None)
        refusals = Refusals(time.monotonic)
        est = Est(
            Directory(found, [], HOME),
            Admission(store),
            enrollment,
            trail,
            lambda ecosystem, tolerance: tolerances.update([(ecosystem, tolerance)]),
            Quotas(time.monotonic, lambda _ecosystem, _limit: None),
            Turnstile(Pace(share=1.0, wait_seconds=0.05)),
            bulk,
            refusals,
        )
        connection = await stack.enter_async_context(database.session())
        yield World(store, connection, signers, est, refusals, makers, records, tolerances)


@contextlib.asynccontextmanager
async def _run_signer() -> AsyncIterator[tuple[SignerControl, str]]:
    with tempfile.TemporaryDirectory(prefix="estd-signer-") as temporary, tempfile.TemporaryFile() as file:
        path = str(Path(temporary) / "signer.sock")
        settings = SignerSettings(
            slot=0,
            journal_directory=temporary,
            allowed_uids=[os.getuid()],
            socket_path=path,
            log_level="error",
            drain_seconds=0.2,
        )
        file.write(msgspec.json.encode(settings))
        file.flush()
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "estd.signer.server", str(file.fileno()), str(theirs.fileno())),
            pass_fds=(file.fileno(), theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        control = await SignerControl.open(ours)
        try:
            yield control, path
        finally:
            control.close()
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                raise
