"""The abuse cases of ``test_abuse.py`` that need a server of their own: new, talkative, and with a database to take away.

The tests are in the order of a server's life: before its first ecosystem, then with one.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from factory import FOREVER, Party, make_csr, make_maker, make_name
from factory import make_device as make_party
from line import EST, Answer, Line, basic
from patience import wait_for_file, wait_until

import estd
from estd.app.submitted import read_ecosystem
from estd.errors import Invalid
from estd.store.private import PrivatePostgres

ESTD = Path(sys.executable).with_name("estd")
PATIENCE_SECONDS = 20.0
PLANT = """
[ecosystem]
label = "plant"
default_profile = "pump"
[[issuer]]
name = "root"
[[anchor]]
name = "maker"
certificates = ["{anchor}"]
[profile.pump]
issuer = "root"
enroll = ["anchor:maker", "code"]
"""


@dataclass
class New:
    """A server that has just been installed."""

    folder: Path
    process: subprocess.Popen[bytes]
    postgres: PrivatePostgres
    database: str
    maker: Party
    port: int
    ops_port: int

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def trust(self) -> Path:
        return self.folder / "data" / "server-trust.pem"

    def estd(self, *argv: object) -> subprocess.CompletedProcess[str]:
        """A command of the operator's."""
        argv = (ESTD, *argv, "--config", self.folder / "estd.toml")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ESTD_")}
        return subprocess.run(
            [*map(str, argv)], capture_output=True, text=True, timeout=60, check=False, env=environment
        )

    def apply(self, anchor: str) -> subprocess.CompletedProcess[str]:
        """Put the rules into force with that file as the maker's anchor."""
        (self.folder / "plant.toml").write_text(PLANT.format(anchor=anchor))
        return self.estd("apply", self.folder / "plant.toml")

    def born(self, name: str | None = None, maker: Party | None = None) -> tuple[str, Path, Path]:
        """A device's name, certificate and key."""
        name = name or f"pump-{secrets.token_hex(4)}"
        party = make_party(maker or self.maker, name, starts=datetime.now(UTC) - timedelta(days=1), ends=FOREVER)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_text(party.pem)
        key.write_bytes(party.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return name, certificate, key

    def dial(self, certificate: Path | None = None, key: Path | None = None) -> Line:
        return Line(self.port, self.trust, certificate, key)

    def ops(self, path: str) -> tuple[int, dict[str, str], Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}{path}", timeout=10) as answer:
                return answer.status, dict(answer.headers), json.loads(answer.read())
        except urllib.error.HTTPError as answer:
            return answer.code, dict(answer.headers), json.loads(answer.read())

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database)
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()

    async def intents(self) -> int:
        return int((await self.fetch("SELECT count(*) FROM intent"))[0][0])

    def children(self, word: bytes) -> set[int]:
        """Its processes with that word on their command line."""
        found = set()
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
                if parent == self.process.pid and word in (status.parent / "cmdline").read_bytes():
                    found.add(int(status.parent.name))
        return found


@pytest.fixture(scope="module")
def new() -> Iterator[New]:
    with tempfile.TemporaryDirectory(prefix="estd-new-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        postgres = PrivatePostgres(folder / "postgres")
        database = postgres.start()
        (folder / "data").mkdir()
        key = folder / "data" / "key-encryption.key"
        key.write_text(secrets.token_hex(32))
        key.chmod(0o600)
        (folder / "estd.toml").write_text(
            f'data_directory = "data"\n[database]\nurl = "{database}"\n[listen]\naddress = "127.0.0.1"\nport = 0\n'
            '[ops]\nport = 0\n[est]\ndefault_ecosystem = "plant"\n[log]\nlevel = "debug"\n'
        )
        ready = folder / "ready"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [ESTD, "serve", "--config", folder / "estd.toml", "--ready-file", ready],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for_file(ready, process, 60, lambda: (folder / "log").read_text()[-3000:])
            ports = json.loads(ready.read_text())
            maker = make_maker("Pump maker", starts=datetime.now(UTC) - timedelta(days=2), ends=FOREVER)
            (folder / "maker.pem").write_text(maker.pem)
            server = New(folder, process, postgres, database, maker, ports["port"], ports["ops_port"])
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                postgres.stop()
        assert status == 0, (folder / "log").read_text()[-3000:]


@pytest.fixture(scope="module")
def plant(new: New) -> New:
    """The same server once it has an ecosystem."""
    done = new.apply("maker.pem")
    assert done.returncode == 0, done.stderr
    _, certificate, key = new.born()
    with new.dial(certificate, key) as line:
        wait_until(lambda: line.ask("GET", f"{EST}plant/cacerts").status == 200, PATIENCE_SECONDS)
    return new


@pytest.fixture(scope="module")
def successor(plant: New) -> Party:
    """Another maker, whose anchor may take the place of the first one's."""
    maker = make_maker("Successor", starts=datetime.now(UTC) - timedelta(days=2), ends=FOREVER)
    (plant.folder / "successor.pem").write_text(maker.pem)
    return maker


def csr(name: str) -> bytes:
    return make_csr(make_name(name))


# --- A13 ----------------------------------------------------------------------------------------------------------------


async def test_a13_before_any_ecosystem_nobody_gets_anything(new: New) -> None:
    """No built-in ecosystem, account, code or maker answers on a server that was only installed."""
    intents = await new.intents()
    _, certificate, key = new.born()
    answers: list[Answer] = []
    claims = (None, basic("admin", "admin"), basic("estuser", "estpwd"), basic("", ""))
    for credential in ((certificate, key), (new.folder / "data" / "server.pem", new.folder / "data" / "server.key")):
        if not all(path.exists() for path in credential):
            continue
        with new.dial(*credential) as line:
            for label in (None, "plant", "estd-server", "default", "est", "test", "demo", "campus-north"):
                for operation in ("simpleenroll", "simplereenroll"):
                    answers += [line.enroll(label, csr("x"), claim, operation) for claim in claims]
                path = f"{EST}{label + '/' if label else ''}"
                answers += [line.ask("GET", path + operation) for operation in ("cacerts", "csrattrs")]
    assert len(answers) >= 80
    assert {answer.status for answer in answers} == {404}
    assert await new.intents() == intents
    assert (await new.fetch("SELECT count(*) FROM enrollment_code"))[0][0] == 0


def test_a13_no_module_for_tests_is_installed() -> None:
    package = Path(estd.__file__).parent
    names = [path.stem for path in package.rglob("*.py")]
    assert len(names) > 50
    assert [name for name in names if re.search(r"(^|_)(tests?|mock|fake|dummy|stub|conftest)", name)] == []


# --- A20, A23 -----------------------------------------------------------------------------------------------------------


def test_a20_an_anchor_taken_away_counts_no_more_on_a_kept_connection(plant: New, successor: Party) -> None:
    name, certificate, key = plant.born()
    with plant.dial(certificate, key) as kept:
        assert kept.enroll("plant", csr(name)).status == 200
        connection = kept.tls
        assert plant.apply("successor.pem").returncode == 0
        wait_until(lambda: kept.enroll("plant", csr(name)).status == 403, 5)
        assert kept.enroll("plant", csr(name)).code == "certificate-untrusted"
        assert plant.apply("maker.pem").returncode == 0
        wait_until(lambda: kept.enroll("plant", csr(name)).status == 200, 5)
        assert kept.tls is connection
    name, certificate, key = plant.born(maker=successor)
    with plant.dial(certificate, key) as line:
        assert line.enroll("plant", csr(name)).code == "certificate-untrusted"


async def test_a23_a_bundle_that_is_missing_or_garbled_changes_nothing(plant: New) -> None:
    version = "SELECT max(version) FROM ecosystem_version JOIN ecosystem USING (ecosystem_id) WHERE label = 'plant'"
    before = (await plant.fetch(version))[0][0]
    _, leaf, leaf_key = plant.born()
    head, *lines, foot = plant.maker.pem.splitlines()
    garbled = "\n".join([head, *reversed(lines), foot, ""])
    bundles = {
        "missing.pem": None,
        "empty.pem": b"",
        "text.pem": b"no certificate at all\n",
        "garbled.pem": garbled.encode(),
        "cut.pem": plant.maker.pem[:-60].encode(),
        "key.pem": leaf_key.read_bytes(),
        "leaf.pem": leaf.read_bytes(),
        "half.pem": plant.maker.pem.encode() + garbled.encode(),
    }
    for file, content in bundles.items():
        if content is not None:
            (plant.folder / file).write_bytes(content)
        document = plant.folder / f"{file}.toml"
        document.write_text(PLANT.format(anchor=file))
        with pytest.raises(Invalid) as caught:
            read_ecosystem(document)
        assert "anchor" in str(caught.value) or file in str(caught.value)
    for file in ("missing.pem", "half.pem"):  # and as the operator sees it
        done = plant.apply(file)
        assert done.returncode == 2, (file, done)
        assert "Traceback" not in done.stderr
    assert (await plant.fetch(version))[0][0] == before
    name, certificate, key = plant.born()
    with plant.dial(certificate, key) as line:
        assert line.enroll("plant", csr(name)).status == 200
    with plant.dial() as line:  # and it is still asked for
        assert line.enroll("plant", csr(name)).status == 401


# --- A42 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("successor")
async def test_a42_without_its_database_it_says_so_signs_nothing_and_comes_back(plant: New) -> None:
    """Let's Encrypt's proxies killed every job when the orchestrator of their database vanished."""
    processes = plant.children(b"estd.")
    name, certificate, key = plant.born()
    request, intents = csr(name), await plant.intents()
    event = (await plant.fetch("SELECT max(event_id) FROM event"))[0][0]
    with plant.dial(certificate, key) as kept:
        assert plant.postgres.stop()
        try:
            answers = [kept.enroll("plant", request) for _ in range(3)]
            with plant.dial() as line:
                started = time.monotonic()
                assert line.ask("GET", f"{EST}plant/cacerts").status == 200
                assert time.monotonic() - started < 1
                answers.append(line.enroll("plant", request, basic("pump-1", "x")))
            status, headers, report = plant.ops("/readyz")
            assert (status, set(report["missing"])) == (503, {"database"})
            assert headers["Retry-After"] == "5"
            assert plant.ops("/healthz")[0] == 200
            assert plant.children(b"estd.") == processes
        finally:
            assert plant.postgres.start() == plant.database
        for answer in answers:
            assert (answer.status, answer.code) == (503, "store-unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert await plant.intents() == intents
        restarted = time.monotonic()
        wait_until(lambda: plant.ops("/readyz")[0] == 200)
        assert time.monotonic() - restarted < 10
        granted = kept.enroll("plant", request)
        assert granted.status == 200
        assert kept.enroll("plant", request).body == granted.body
    assert plant.children(b"estd.") == processes
    assert await plant.intents() == intents + 1
    # What was refused meanwhile is on the trail now, each of it.
    query = "SELECT count(*) FROM event WHERE event_id > $1 AND code = 'store-unavailable' AND outcome = 'failed'"
    for _ in range(100):
        found = (await plant.fetch(query, event))[0][0]
        if found == len(answers):
            break
        time.sleep(0.05)
    assert found == len(answers)
    # An anchor changed after the outage is heard of: the listener is back as well.
    assert plant.apply("successor.pem").returncode == 0
    with plant.dial(certificate, key) as line:
        wait_until(lambda: line.enroll("plant", csr(name)).status == 403, PATIENCE_SECONDS)
        assert plant.apply("maker.pem").returncode == 0
        wait_until(lambda: line.enroll("plant", csr(name)).status == 200, PATIENCE_SECONDS)


async def test_a42_without_its_signers_it_says_so_and_comes_back(plant: New) -> None:
    name, certificate, key = plant.born()
    request, intents, signers = csr(name), await plant.intents(), plant.children(b"estd.signer")
    assert signers
    with plant.dial(certificate, key) as kept:
        for pid in signers:
            os.kill(pid, signal.SIGSTOP)
        try:
            answer = kept.enroll("plant", request)
            assert kept.ask("GET", f"{EST}plant/cacerts").status == 200
        finally:
            for pid in signers:
                os.kill(pid, signal.SIGCONT)
        assert (answer.status, answer.code) == (503, "signer-unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert await plant.intents() == intents
        wait_until(lambda: kept.enroll("plant", request).status == 200, PATIENCE_SECONDS)
    assert await plant.intents() == intents + 1
    assert plant.children(b"estd.signer") == signers


# --- A46 ----------------------------------------------------------------------------------------------------------------


async def test_a46_no_secret_is_written_down(plant: New) -> None:
    """Every place where a client may put a secret, honest or by mistake; then every place where estd writes."""
    canaries = {what: f"CANARY{what}{secrets.token_hex(6)}" for what in ("Wrong", "Query", "Header", "Bearer")}
    canaries |= {what: f"CANARY{what}{secrets.token_hex(6)}" for what in ("Challenge", "Body", "Field", "Csr")}
    done = plant.estd("code", "create", "--ecosystem", "plant", "--device", "secretive", "--json")
    ((code,),) = [[row["code"] for row in json.loads(done.stdout)]]
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    name, certificate, key = plant.born()
    challenged = make_csr(make_name(name), challenge=canaries["Challenge"].encode())
    odd = x509.CertificateSigningRequestBuilder().subject_name(make_name(name))
    odd = odd.add_extension(
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), canaries["Csr"].encode()), critical=False
    )
    with plant.dial(certificate, key) as line:
        refused = [
            line.enroll("plant", csr("secretive"), basic("secretive", canaries["Wrong"])),
            line.enroll("plant", csr("secretive"), basic(code, "secretive")),  # the fields the wrong way round
            line.enroll("plant", csr("secretive"), basic("somebody-else", code)),
            line.enroll("plant", csr(name), f"Bearer {canaries['Bearer']}"),
            line.enroll("plant", csr(name), f"Basic {canaries['Bearer']}!"),
            line.enroll("plant", challenged),
            line.enroll("plant", odd.sign(private, hashes.SHA256()).public_bytes(Encoding.DER)),
            line.ask("POST", f"{EST}plant/simpleenroll", pem, {"Content-Type": "application/pkcs10"}),
            line.ask(
                "POST", f"{EST}plant/simpleenroll", canaries["Body"].encode(), {"Content-Type": "application/pkcs10"}
            ),
            line.ask("GET", f"{EST}plant/nothing?token={canaries['Query']}", headers={"X-Token": canaries["Header"]}),
        ]
        line.send(f"GET / HTTP/1.1\r\nHost: a\r\nX Token: {canaries['Field']}\r\n\r\n".encode())
        refused.append(line.receive())
        granted = line.enroll("plant", csr("secretive"), basic("secretive", code))
    assert granted.status == 200
    assert {answer.status for answer in refused} <= {400, 401, 404}, refused
    written = {
        "log": plant.log,
        "answers": "\n".join(answer.body.decode("latin-1") for answer in (*refused, granted)),
        "metrics": urllib.request.urlopen(f"http://127.0.0.1:{plant.ops_port}/metrics").read().decode(),
        "database": await dump(plant),
    }
    assert "est.simpleenroll" in written["log"]
    assert "est.simpleenroll" in written["database"]
    key_text = base64.b64encode(private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).decode()
    kek = (plant.folder / "data" / "key-encryption.key").read_text()
    authorization = basic("secretive", code).partition(" ")[2]
    for what, secret in {**canaries, "code": code, "key": key_text[40:80], "kek": kek, "basic": authorization}.items():
        for place, text in written.items():
            if (what, place) == ("Field", "answers"):
                continue  # the client's own words may come back to it
            for spelling in (secret, secret.lower(), base64.b64encode(secret.encode()).decode().rstrip("=")[:-2]):
                assert spelling not in text, (what, place)
            assert secret.encode().hex() not in text, (what, place)
    # Every refusal is on the trail all the same, but for what was no HTTP.
    rows = await plant.fetch("SELECT request_id FROM event WHERE outcome = 'refused'")
    known = {row["request_id"] for row in rows}
    assert all(answer.headers["x-request-id"] in known for answer in refused[:-1])


async def dump(plant: New) -> str:
    """All that is in the database but the certificates and sealed keys, as text; octets in hexadecimal."""
    tables = await plant.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    parts = []
    for table in tables:
        rows = await plant.fetch(f"SELECT t::text AS row FROM {table['tablename']} t")
        parts += [row["row"] for row in rows]
    return "\n".join(parts)
