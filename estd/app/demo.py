"""`estd demo`: a private server, a fleet that enrolls at it, and proof that what came out is right.

The server is a process of its own in a directory of its own (`estd.app.served`); the fleet lives in this process
(`estd.app.fleet`). Afterwards every certificate is verified by `cryptography` and by the ``openssl`` program, looked up
in the store, and one device tries the ecosystem next door. Whatever happens, nothing that was started is left behind.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from estd.app.access import get_ecosystem, open_store
from estd.app.control import Control
from estd.app.files import write_file
from estd.app.fleet import Device, Life, Tally, run_fleet
from estd.app.makers import Maker
from estd.app.playground import LABELS, Playground, lay_out
from estd.app.quickstart import prepare, publish_trust
from estd.audit import Event
from estd.config import read_config
from estd.device.answers import ServerRefused, build_chain, write_pem
from estd.device.client import Credential, EstClient
from estd.device.requests import generate_key, write_request
from estd.errors import Broken, Invalid, Problem
from estd.ra.codes import make_code
from estd.store.contract import Store

_WITH_CODE_EVERY: Final = 4
"""Every fourth device has no birth certificate and shows an enrollment code."""
_OPENSSL_AT_ONCE: Final = 500
_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 40.0


class Watch(Protocol):
    """Whoever looks on."""

    def stage(self, what: str) -> None:
        """Something begins."""

    def progress(self, done: int, total: int) -> None:
        """So many devices are through."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What happened when a device of one ecosystem asked in another."""

    device: str
    label: str
    status: int
    detail: str
    event: Event | None
    """The refusal as the audit trail has it."""
    certificates: int
    """What the other ecosystem has issued to that device; must be none."""

    @property
    def refused(self) -> bool:
        """Whether everything went as it should."""
        recorded = self.event is not None and self.event.outcome == "refused"
        return self.status == 403 and recorded and self.certificates == 0


@dataclass(frozen=True, slots=True)
class Proof:
    """What was checked afterwards: how many of the certificates passed."""

    certificates: int
    by_cryptography: int
    by_openssl: int | None
    """None: there is no ``openssl`` program here."""
    in_store: int
    strangers: int
    """Certificates that verify under the root of the other ecosystem; must be none."""

    @property
    def complete(self) -> bool:
        """Whether every check passed for every certificate."""
        passed = (self.by_cryptography, self.in_store, *([] if self.by_openssl is None else [self.by_openssl]))
        return all(count == self.certificates for count in passed) and self.strangers == 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """All there is to tell."""

    devices: int
    tally: Tally
    proof: Proof | None
    neighbour: Neighbour | None

    @property
    def good(self) -> bool:
        """Whether the demonstration showed what it should."""
        return (
            not self.tally.failures
            and self.proof is not None
            and self.proof.complete
            and self.neighbour is not None
            and self.neighbour.refused
        )


async def run(devices: int, keep: Path | None, watch: Watch) -> Outcome:
    """The whole demonstration.

    Args:
        devices: how many, in all ecosystems together.
        keep: keep everything in this directory; None: in a temporary one that is removed.
        watch: told how it goes.

    Raises:
        Invalid, Unavailable, Broken: the server cannot run here.
    """
    with _directory(keep) as directory:
        place = lay_out(directory, "127.0.0.1", 0, 0, _now())
        config = read_config(place.settings)
        watch.stage("Starting a server of its own: database, signers, workers")
        async with open_store(config) as store:
            await prepare(place, config, store, lambda _: None)
            async with _server(place) as url:
                watch.stage(f"Making {devices} devices for {len(LABELS)} ecosystems")
                fleet = await _make_fleet(place, store, devices)
                watch.stage(f"Enrolling and renewing at {url}")
                done = 0

                def advance() -> None:
                    nonlocal done
                    done += 1
                    watch.progress(done, devices)

                tally = await run_fleet(fleet, url, place.trust, advance)
                if not tally.lives:
                    return Outcome(devices, tally, None, None)
                watch.stage(f"Verifying {2 * len(tally.lives)} certificates")
                proof = await _prove(place, store, tally.lives)
                watch.stage("Trying the ecosystem next door")
                neighbour = await _try_neighbour(place, store, url, tally.lives[0])
    return Outcome(devices, tally, proof, neighbour)


# --- the server and the devices ----------------------------------------------------------------------------------------


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    directory = Path(tempfile.mkdtemp(prefix="estd-demo-"))
    try:
        # Started by root, PostgreSQL runs under another account and has to pass through.
        directory.chmod(0o711)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def _server(place: Playground) -> AsyncIterator[str]:
    """A server process on this playground, ready; its URL."""
    ours, theirs = socket.socketpair()
    log = place.directory / "server.log"
    with theirs, log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "estd.app.served",
            str(place.settings),
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # an interrupt typed at us must not reach it before we are done with it
        )
    control = await Control.open(ours)
    try:
        try:
            async with asyncio.timeout(_START_SECONDS):
                message = await control.receive()
        except TimeoutError:
            message = {}
        if message is not None and "failed" in message:
            raise Invalid([Problem(*parts) for parts in message["failed"]])
        if not message:
            raise Broken(f"the server did not start; its last words:\n{_read_tail(log)}")
        publish_trust(place)
        yield f"https://127.0.0.1:{message['port']}"
    finally:
        control.close()
        await asyncio.shield(_wait_for(process))


async def _wait_for(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _make_fleet(place: Playground, store: Store, count: int) -> list[Device]:
    share = {label: count // len(LABELS) + (number < count % len(LABELS)) for number, label in enumerate(LABELS)}
    fleets = [await _make_share(place, store, label, share[label]) for label in LABELS]
    # Both ecosystems are busy at the same time.
    longest = max(len(fleet) for fleet in fleets)
    return [fleet[number] for number in range(longest) for fleet in fleets if number < len(fleet)]


async def _make_share(place: Playground, store: Store, label: str, count: int) -> list[Device]:
    now, directory = _now(), place.directory / "fleet" / label
    directory.mkdir(parents=True, exist_ok=True)
    ecosystem = (await get_ecosystem(store, label)).ecosystem_id
    maker = Maker.load(*place.bootstrap(label).maker)
    names = [f"{label}-sensor-{number:04d}" for number in range(1, count + 1)]
    with_code = {name for number, name in enumerate(names, 1) if number % _WITH_CODE_EVERY == 0}
    codes = {
        name: make_code(ecosystem, name, single_use=True, profile=None, expires_at=None, now=now)
        for name in sorted(with_code)
    }
    await store.record_codes([code.row for code in codes.values()])

    def make(name: str) -> Device:
        home = directory / name
        if name in codes:
            return Device(name, label, Credential(device=name, code=codes[name].secret), home)
        home.mkdir(exist_ok=True)
        certificate, key = maker.make_device([(NameOID.COMMON_NAME, "sensor"), (NameOID.SERIAL_NUMBER, name)], now)
        credential = Credential(home / "idevid.pem", home / "idevid.key")
        (home / "idevid.pem").write_bytes(certificate)
        write_file(home / "idevid.key", key, 0o600)
        return Device(name, label, credential, home)

    return await asyncio.gather(*(asyncio.to_thread(make, name) for name in names))


# --- proof -------------------------------------------------------------------------------------------------------------


async def _prove(place: Playground, store: Store, lives: Sequence[Life]) -> Proof:
    proof = Proof(0, 0, 0, 0, 0)
    for label in LABELS:
        mine = [life for life in lives if life.device.label == label]
        others = next((life for life in lives if life.device.label != label), None)
        if mine:
            proof = _add(proof, await _prove_one(place, store, label, mine, others))
    return proof


async def _prove_one(place: Playground, store: Store, label: str, lives: Sequence[Life], other: Life | None) -> Proof:
    certificates = [certificate for life in lives for certificate in (life.first, life.second)]
    intermediates, root = build_chain(certificates[0], lives[0].authorities)
    ecosystem = (await get_ecosystem(store, label)).ecosystem_id
    stored = {one.certificate for one in await store.find_certificates(ecosystem, None, len(certificates) + 100)}
    passed = await asyncio.to_thread(_verify, certificates, intermediates, root)
    by_openssl = await _verify_by_openssl(place.directory / "fleet" / label, certificates, intermediates, root)
    strangers = 0
    if other is not None:
        foreign = build_chain(other.first, other.authorities)[1]
        strangers = await asyncio.to_thread(_verify, certificates, intermediates, foreign)
    in_store = sum(certificate.public_bytes(Encoding.DER) in stored for certificate in certificates)
    return Proof(len(certificates), passed, by_openssl, in_store, strangers)


def _add(one: Proof, other: Proof) -> Proof:
    both = None if one.by_openssl is None or other.by_openssl is None else one.by_openssl + other.by_openssl
    return Proof(
        one.certificates + other.certificates,
        one.by_cryptography + other.by_cryptography,
        both,
        one.in_store + other.in_store,
        one.strangers + other.strangers,
    )


def _verify(
    certificates: Sequence[x509.Certificate], intermediates: Sequence[x509.Certificate], root: x509.Certificate
) -> int:
    """How many of the certificates lead to that root (RFC 5280 §6.1), judged by `cryptography`."""
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([root]))
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
            # Device certificates need no subjectAltName, which the web's rules insist on.
            ee_policy=verification.ExtensionPolicy.permit_all(),
        )
        .build_client_verifier()
    )
    passed = 0
    for certificate in certificates:
        try:
            verifier.verify(certificate, list(intermediates))
        except verification.VerificationError:
            continue
        passed += 1
    return passed


async def _verify_by_openssl(
    directory: Path,
    certificates: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    root: x509.Certificate,
) -> int | None:
    """The same, judged by the ``openssl`` program; many certificates to a call."""
    program = shutil.which("openssl")
    if program is None:
        return None
    (directory / "root.pem").write_bytes(write_pem([root]))
    options = ["-purpose", "sslclient", "-CAfile", "root.pem"]
    if intermediates:
        (directory / "intermediates.pem").write_bytes(write_pem(intermediates))
        options += ["-untrusted", "intermediates.pem"]
    files = []
    for number, certificate in enumerate(certificates):
        files.append(f"issued-{number}.pem")
        (directory / files[-1]).write_bytes(write_pem([certificate]))
    passed = 0
    for at in range(0, len(files), _OPENSSL_AT_ONCE):
        process = await asyncio.create_subprocess_exec(
            program,
            "verify",
            *options,
            *files[at : at + _OPENSSL_AT_ONCE],
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await process.communicate()
        passed += sum(line.endswith(b": OK") for line in said.splitlines())
    return passed


async def _try_neighbour(place: Playground, store: Store, url: str, life: Life) -> Neighbour:
    """One device, with a certificate that is good at home, asks in the other ecosystem."""
    label = next(label for label in LABELS if label != life.device.label)
    ecosystem = (await get_ecosystem(store, label)).ecosystem_id
    request = write_request(generate_key("ec-p256"), life.second.subject.public_bytes())
    found = Neighbour(life.device.name, label, 200, "it got a certificate", None, 0)
    request_id = ""
    async with EstClient(url, place.trust, label, life.credential) as client:
        try:
            await client.simpleenroll(request)
        except ServerRefused as refused:
            found = replace(found, status=refused.status, detail=refused.detail)
            request_id = refused.request_id
    # The trail writes in groups, within a second at most.
    deadline = time.monotonic() + 5
    while found.event is None and time.monotonic() < deadline:
        events = await store.find_events(ecosystem, 100)
        event = next((event for event in events if request_id and event.request_id == request_id), None)
        found = replace(found, event=event)
        if event is None:
            await asyncio.sleep(0.1)
    certificates = await store.find_certificates(ecosystem, life.device.name, 10)
    return replace(found, certificates=len(certificates))


def _read_tail(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
