"""Bouncy Castle 1.72's ESTService, with the JDK's TLS and with its own (which knows tls-unique, RFC 7030 §3.5).

The driver beside this file (`bouncycastle/EstDriver.java`) is compiled here against Debian's jars.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from live_server import NORTH, SOUTH, Device, Live, judge, run

pytestmark = pytest.mark.interop

_DRIVER = Path(__file__).parent / "bouncycastle" / "EstDriver.java"
_JARS = tuple(f"/usr/share/java/{name}.jar" for name in ("bcpkix", "bcprov", "bcutil", "bctls"))
_PASSWORD = "pass:estd"

Facts = dict[str, list[str]]
Drive = Callable[..., Facts]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path with the compiled driver on it."""
    judge("java")
    judge("javac")
    path = ":".join(judge(jar) for jar in _JARS)
    out = tmp_path_factory.mktemp("classes")
    run("javac", "-encoding", "UTF-8", "-d", out, "-cp", path, _DRIVER, seconds=60)
    return f"{out}:{path}"


@pytest.fixture
def drive(live: Live, classes: str) -> Drive:
    """Run one operation; what it printed, by the first word of each line."""

    def run_driver(op: str, **options: str | Path | None) -> Facts:
        given = [f"{name}={value}" for name, value in options.items() if value is not None]
        out = run(
            *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classes, "EstDriver", f"op={op}"),
            *(f"server=127.0.0.1:{live.port}", f"trust={live.trust}", *given),
            seconds=60,
        )
        facts: Facts = {}
        for line in out.decode().splitlines():
            word, _, rest = line.partition(" ")
            facts.setdefault(word, []).append(rest)
        return facts

    return run_driver


def keystore(folder: Path, device: Device) -> Path:
    """The IDevID and its key as a PKCS#12 file."""
    path = folder / f"{device.name}.p12"
    files = ("-in", device.certificate, "-inkey", device.key)
    run("openssl", "pkcs12", "-export", *files, "-name", "device", "-passout", _PASSWORD, "-out", path)
    return path


def check_issued(live: Live, facts: Facts, label: str, operation: str) -> x509.Certificate:
    """Exactly one certificate, byte for byte the one on record."""
    assert "refused" not in facts, facts
    (text,) = facts["certificate"]
    (row,) = live.stored(base64.b64decode(text))
    assert (row["label"], row["operation"]) == (label, operation)
    return x509.load_der_x509_certificate(row["der"])


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
@pytest.mark.parametrize("tls", ["jdk", "bc"])
def test_cacerts(live: Live, drive: Drive, label: str | None, tls: str) -> None:
    facts = drive("cacerts", label=label, tls=tls)
    got = {base64.b64decode(text) for text in facts["cacert"]}
    assert got == {one.public_bytes(Encoding.DER) for one in live.issuers(label or NORTH)}
    assert facts["trusted"] == ["true"]


def test_csrattrs(drive: Drive) -> None:
    facts = drive("csrattrs", label=NORTH)
    assert "refused" not in facts
    assert facts.get("csrattr"), "the profile wants something, and says so"


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
@pytest.mark.parametrize(("tls", "key"), [("jdk", "ec"), ("bc", "rsa")])
def test_idevid_then_renewal(live: Live, drive: Drive, tmp_path: Path, label: str | None, tls: str, key: str) -> None:
    device, out = live.device(label or NORTH), tmp_path / "device.p12"
    facts = drive("enroll", label=label, tls=tls, key=key, client=keystore(tmp_path, device), out=out)
    first = check_issued(live, facts, label or NORTH, "simpleenroll")
    assert first.subject == device.x509.subject
    facts = drive("reenroll", label=label, tls=tls, key="ec", client=out)
    second = check_issued(live, facts, label or NORTH, "simplereenroll")
    assert second.subject == first.subject
    assert second.serial_number != first.serial_number


@pytest.mark.parametrize("label", [None, SOUTH])
def test_basic(live: Live, drive: Drive, label: str | None) -> None:
    """It asks without a credential first, so the challenge has to be one it can read."""
    device, code = live.code(label or NORTH)
    before = live.last_event()
    facts = drive("enroll", label=label, user=device, secret=code, subject=f"CN={device}")
    check_issued(live, facts, label or NORTH, "simpleenroll")
    assert [event["outcome"] for event in live.events(before)] == ["refused", "granted"]


@pytest.mark.parametrize("protocol", ["TLSv1.2", "TLSv1.3"])
def test_tls_versions(live: Live, drive: Drive, tmp_path: Path, protocol: str) -> None:
    client = keystore(tmp_path, live.device(NORTH))
    facts = drive("enroll", client=client, protocol=protocol)
    check_issued(live, facts, NORTH, "simpleenroll")


def test_a_request_bound_by_tls_unique(live: Live, drive: Drive, tmp_path: Path) -> None:
    """RFC 7030 §3.5 to the letter: tls-unique of a TLS 1.2 connection in challengePassword."""
    client = keystore(tmp_path, live.device(NORTH))
    facts = drive("enroll-bound", client=client, tls="bc", protocol="TLSv1.2")
    check_issued(live, facts, NORTH, "simpleenroll")
    assert facts["tls"][0].startswith("TLSv1.2 ")


def test_refusals_are_readable(live: Live, drive: Drive, tmp_path: Path) -> None:
    issued = live.issuances()
    (said,) = drive("enroll", label=NORTH, client=keystore(tmp_path, live.device(SOUTH)))["refused"]
    assert said.startswith("403 ")
    (said,) = drive("enroll", label=NORTH, subject="CN=nobody")["refused"]
    assert said.startswith("401 ")
    (said,) = drive("cacerts", label="nowhere")["refused"]
    assert said.startswith("404 ")
    assert live.issuances() == issued
