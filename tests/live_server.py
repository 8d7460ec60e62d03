"""A whole estd for the tests to talk to: real processes, real TLS, a real PostgreSQL.

The session-scoped fixture `live` runs ``estd quickstart`` from the environment the tests run in, and stops it by SIGTERM
at the end; a server that does not stop cleanly is a failure. `judge` finds a foreign program: where it is missing the
test is skipped, except in CI, where every judge has to speak.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

NORTH = "campus-north"
SOUTH = "campus-south"
NAME = "est.lab.example"
"""What the server's certificate calls it besides its addresses."""

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # IEEE 802.1AR §8.7
_TAIL_LINES = 60


# --- foreign programs --------------------------------------------------------------------------------------------------


def judge(program: str) -> str:
    """Where a foreign program, or a file that stands for one, is on this machine; skips the test if it is not."""
    found = program if Path(program).is_file() else shutil.which(program)
    if found is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{program} is missing, and in CI every judge has to speak")
    pytest.skip(f"{program} is not installed")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a foreign program said."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")


def attempt(*argv: str | Path, given: bytes = b"", seconds: float = 20.0, cwd: Path | None = None) -> Finished:
    """Run a foreign program to its end, whatever that is; one that never ends is a failure."""
    command = [judge(str(argv[0])), *map(str, argv[1:])]
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=seconds, cwd=cwd, check=False)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{' '.join(command)} was not done after {seconds:.0f} s: {late.stderr!r}")
    return Finished(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))


def run(*argv: str | Path, given: bytes = b"", seconds: float = 20.0, cwd: Path | None = None) -> bytes:
    """Run a foreign program that has to succeed; its standard output."""
    done = attempt(*argv, given=given, seconds=seconds, cwd=cwd)
    if done.status != 0:
        pytest.fail(f"{' '.join(map(str, argv))} failed with {done.status}:\n{done.stderr}\n{done.text[-2000:]}")
    return done.stdout


# --- devices -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it leaves its maker: an IDevID and its key, as files and as values."""

    name: str
    certificate: Path
    key: Path

    @property
    def x509(self) -> x509.Certificate:
        """Its certificate, read."""
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())

    @property
    def subject(self) -> str:
        """Its subject as ``openssl req -subj`` wants it, most significant part first."""
        parts = []
        for attribute in self.x509.subject:
            value = str(attribute.value).replace("\\", "\\\\").replace("/", "\\/")
            parts.append(f"{attribute.rfc4514_attribute_name}={value}".replace("2.5.4.5=", "serialNumber="))
        return "/" + "/".join(parts)

    def make_csr(self) -> bytes:
        """A request for its own subject and key, as OpenSSL writes it (DER)."""
        return run("openssl", "req", "-new", "-key", self.key, "-subj", self.subject, "-outform", "DER")


# --- the server --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Live:
    """A running ``estd quickstart`` and what its makers, its operator and its database know."""

    directory: Path
    log: Path
    scratch: Path
    process: subprocess.Popen[bytes]
    port: int = 0
    ops_port: int = 0
    database: dict[str, str] = field(default_factory=dict)
    _codes: dict[str, Iterator[tuple[str, str]]] = field(default_factory=dict)
    _made: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def trust(self) -> Path:
        """The certificates that verify the server's own."""
        return self.directory / "trust.pem"

    def url(self, operation: str, label: str | None = None, host: str = "127.0.0.1") -> str:
        """The address of an EST operation (RFC 7030 §3.2.2)."""
        return f"https://{host}:{self.port}/.well-known/est/{label + '/' if label else ''}{operation}"

    # --- credentials -------------------------------------------------------------------------------------------------
    def device(self, label: str, key: str = "ec-p256", **properties: Any) -> Device:
        """A device nobody has seen yet, made by that ecosystem's demo maker; `properties` as for `make_device`."""
        name = f"t{next(self._made):05d}{secrets.token_hex(4)}"
        return make_device(self.scratch, name, *self.maker(label), key, **properties)

    def maker(self, label: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The demo maker that only this ecosystem trusts."""
        bootstrap = self.directory / "bootstrap" / label
        key = serialization.load_pem_private_key((bootstrap / "maker.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate((bootstrap / "maker.pem").read_bytes()), key

    def code(self, label: str) -> tuple[str, str]:
        """The next device name and enrollment code of that ecosystem that no test has used."""
        if label not in self._codes:
            with (self.directory / "bootstrap" / label / "codes.csv").open(encoding="utf-8", newline="") as file:
                rows = [(row["device"], row["code"]) for row in csv.DictReader(file)]
            self._codes[label] = iter(rows)
        try:
            return next(self._codes[label])
        except StopIteration:
            pytest.fail(f"the tests have used up the enrollment codes of {label}")

    # --- what the server remembers -----------------------------------------------------------------------------------
    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """Ask the server's database."""
        connection = await asyncpg.connect(timeout=10, **self.database)
        try:
            return list(await connection.fetch(query, *arguments, timeout=10))
        finally:
            await connection.close(timeout=5)

    def sql(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """The same for a test that is no coroutine."""
        return asyncio.run(self.fetch(query, *arguments))

    def issuances(self, label: str | None = None) -> int:
        """How many certificates were ever begun, in that ecosystem or in all: intents, not only results."""
        query = "SELECT count(*) FROM intent JOIN ecosystem USING (ecosystem_id) WHERE $1::text IS NULL OR label = $1"
        return int(self.sql(query, label)[0][0])

    def stored(self, der: bytes) -> list[asyncpg.Record]:
        """The rows that hold exactly this certificate, with the intents they came from."""
        return self.sql(
            "SELECT * FROM certificate JOIN intent USING (issuer_id, serial, ecosystem_id)"
            " JOIN ecosystem USING (ecosystem_id) WHERE der = $1",
            der,
        )

    def events(self, after: int, **wanted: str) -> list[asyncpg.Record]:
        """Audit events newer than `after` whose columns have these values."""
        rows = self.sql("SELECT * FROM event WHERE event_id > $1 ORDER BY event_id", after)
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    def last_event(self) -> int:
        """The newest audit event."""
        return int(self.sql("SELECT coalesce(max(event_id), 0) FROM event")[0][0])

    def issuers(self, label: str) -> list[x509.Certificate]:
        """All CA certificates of an ecosystem, oldest first."""
        rows = self.sql(
            "SELECT certificate FROM issuer JOIN ecosystem USING (ecosystem_id) WHERE label = $1 ORDER BY issuer_id",
            label,
        )
        return [x509.load_der_x509_certificate(row["certificate"]) for row in rows]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name that carry these labels."""
        total = 0.0
        time.sleep(0.5)  # workers show what they counted some times a second
        for line in self.ops("/metrics").splitlines():
            sample = _SAMPLE.fullmatch(line)
            if sample is None or sample["name"] != name:
                continue
            found = dict(_LABEL.findall(sample["labels"] or ""))
            if all(found.get(key) == value for key, value in labels.items()):
                total += float(sample["value"])
        return total

    def ops(self, path: str) -> str:
        """An answer of the ops port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}{path}", timeout=10) as answer:
            return str(answer.read().decode("utf-8"))

    def log_tail(self) -> str:
        """The server's last words so far."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])


_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_KEYS: dict[str, Callable[[], PrivateKey]] = {
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def make_device(
    folder: Path,
    name: str,
    maker: x509.Certificate,
    maker_key: ec.EllipticCurvePrivateKey,
    key: str = "ec-p256",
    *,
    starts: datetime | None = None,
    ends: datetime = _NO_END,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Device:
    """Write an IDevID (IEEE 802.1AR §8) signed by that maker, and its key; `extensions` come with their criticality."""
    private = _KEYS[key]()
    maker_key_id = maker.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, name)]))
        .issuer_name(maker.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts or maker.not_valid_before_utc)
        .not_valid_after(ends)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(maker_key_id), critical=False)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    device = Device(name, folder / f"{name}.pem", folder / f"{name}.key")
    device.certificate.write_bytes(builder.sign(maker_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    device.key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return device


# --- fixtures and hooks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """A server for the whole session."""
    program = Path(sys.executable).with_name("estd")
    if not program.exists():
        pytest.fail(f"{program} is missing: install estd into the environment the tests run in")
    # A short path, which the account that PostgreSQL runs under may enter.
    with tempfile.TemporaryDirectory(prefix="estd-live-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        (folder / "scratch").mkdir()
        log = folder / "estd.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, "quickstart", "--dir", folder / "server", "--port", "0", "--ops-port", "0", "--name", NAME],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,  # an interrupt typed at pytest must not reach it before the tests are done
            )
        server = Live(folder / "server", log, folder / "scratch", process)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            _stop(server)


def pytest_configure(config: pytest.Config) -> None:
    """Make our marker known."""
    config.addinivalue_line("markers", "last: judges what all other tests left behind, so it runs after them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Judges speak last."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test that used the server shows what the server had to say."""
    report = yield
    server = getattr(item, "funcargs", {}).get("live")
    if report.failed and isinstance(server, Live):
        report.sections.append(("estd's log", server.log_tail()))
    return report


# --- private -----------------------------------------------------------------------------------------------------------


def _wait_until_ready(server: Live) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            pytest.fail(f"estd ended with {server.process.returncode} before it was ready:\n{server.log_tail()}")
        try:
            facts = json.loads((server.directory / "run.json").read_text(encoding="utf-8"))
            server.port, server.ops_port = int(facts["port"]), int(facts["ops_port"])
            ready = json.loads(server.ops("/readyz"))["status"] == "ready"
        except (OSError, ValueError, KeyError):  # not written, half written, or not answering yet
            ready = False
        if ready:
            server.database = _find_database(server.directory)
            return
        time.sleep(0.1)
    pytest.fail(f"estd was not ready after {_START_SECONDS:.0f} s:\n{server.log_tail()}")


def _find_database(directory: Path) -> dict[str, str]:
    """The private PostgreSQL says in its pid file where its socket is (fifth line)."""
    pid_file = next(directory.rglob("postmaster.pid"))
    return {"host": pid_file.read_text(encoding="utf-8").splitlines()[4], "user": "estd", "database": "estd"}


def _stop(server: Live) -> None:
    """SIGTERM, and a deadline; then nothing of it may be left, and what it said last is shown."""
    running = server.process.poll() is None
    pid_files = list(server.directory.rglob("postmaster.pid"))
    postgres = [int(path.read_text(encoding="utf-8").splitlines()[0]) for path in pid_files]
    if running:
        server.process.send_signal(signal.SIGTERM)
    try:
        status = server.process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        status = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(_STOP_SECONDS)
    left = [pid for pid in postgres if Path(f"/proc/{pid}").exists()]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
    if not running:
        pytest.fail(f"estd ended by itself with {status}:\n{server.log_tail()}")
    if status is None:
        pytest.fail(f"estd did not stop within {_STOP_SECONDS:.0f} s of SIGTERM:\n{server.log_tail()}")
    if status != 0 or left:
        pytest.fail(f"estd stopped with {status}, PostgreSQL left behind: {left}\n{server.log_tail()}")
