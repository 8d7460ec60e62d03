"""Incidents of other certificate authorities, tried on a running server: each is refused as documented and harms nobody.

After every test the same processes must be there, no answer may have been a 5xx, the number of certificates must be the
one that the test expects, and the next honest request is answered at once.

Cases that other tests cover whole:

===  ==================================================================================================================
A1   unit/est/test_operations.py::test_matrix, ::test_a_part_of_admission_that_fails_admits_nobody
A6   interop/test_segregation.py (every credential, both ways)
A9   unit/est/test_operations.py::test_matrix (own_forged), interop/test_segregation.py
A13  faults/test_abuse_of_a_new_server.py::test_a13_before_any_ecosystem_nobody_gets_anything
A15  interop/test_curl_openssl.py::test_the_wrong_code_of_a_known_device_looks_like_that_of_an_unknown_one
A16  unit/est/test_operations.py::test_paths_that_are_not_ours
A17  unit/est/test_operations.py::test_matrix (the path without label, and the label of a profile)
A19  unit/web/test_tls_context.py (no session is ever resumed); here too, against the running server
A20  faults/test_abuse_of_a_new_server.py::test_a20_an_anchor_taken_away_counts_no_more_on_a_kept_connection
A23  faults/test_abuse_of_a_new_server.py::test_a23_a_bundle_that_is_missing_or_garbled_changes_nothing
A24  unit/est/test_operations.py::test_matrix (nobody, idevid_for_servers_only, ca_of_a_maker, maker_itself)
A28  unit/web/test_connection.py::test_a_hundred_thousand_chunks_of_one_byte_cost_little
A29  unit/web/test_tls.py, test_tls_session.py (slow heads, KeyUpdate floods), unit/web/test_connection.py (slow bodies)
A40  unit/ca/test_validity.py, unit/ca/test_issuer.py, interop/test_judges.py (serials, dates and keys)
A42  faults/test_abuse_of_a_new_server.py::test_a42_*
A46  faults/test_abuse_of_a_new_server.py::test_a46_no_secret_is_written_down
===  ==================================================================================================================
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import random  # noqa: TID251  # a fixed seed makes a failure come again
import secrets
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from factory import make_key
from line import EST, Answer, Line, basic
from live_server import NAME, NORTH, SOUTH, Device, Live
from odd_certificates import ODD_CERTIFICATES, make_odd

from estd.asn1 import der
from estd.asn1.oids import OIDS


@dataclass
class Guard:
    """What a test may have caused."""

    granted: int = 0


def children(pid: int) -> set[int]:
    """All processes below that one."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return below


def estd_children(pid: int) -> set[int]:
    """The workers and signers among them."""
    found = set()
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"estd." in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(child)
    return found


@pytest.fixture(scope="module", autouse=True)
def faultless(live: Live) -> Iterator[None]:
    """No fault of ours in any of these tests; a fault is in the log with its request id."""
    faults = live.metric("estd_requests_total", outcome="internal-error")
    yield
    assert live.metric("estd_requests_total", outcome="internal-error") == faults


@pytest.fixture(autouse=True)
def guard(live: Live) -> Iterator[Guard]:
    """No process lost, nothing granted beyond what the test says, and the next answer at once."""
    processes, issued = estd_children(live.process.pid), live.issuances()
    guard = Guard()
    yield guard
    assert estd_children(live.process.pid) == processes
    assert live.issuances() - issued == guard.granted
    with Line(live.port, live.trust) as line:
        started = time.monotonic()
        assert line.ask("GET", f"{EST}cacerts").status == 200
        assert time.monotonic() - started < 1.0


@pytest.fixture(scope="module")
def codes(live: Live) -> Iterator[tuple[str, str]]:
    """Device names and enrollment codes of `NORTH` that nobody else uses."""
    estd = Path(sys.executable).with_name("estd")
    prefix = f"abuse-{secrets.token_hex(4)}"
    argv = [estd, "code", "create", "--ecosystem", NORTH, "--count", "100", "--prefix", prefix, "--dir", live.directory]
    done = subprocess.run([*argv, "--json"], capture_output=True, check=True, timeout=60)
    return iter([(row["device"], row["code"]) for row in json.loads(done.stdout)])


def dial(live: Live, device: Device | None = None, **options: Any) -> Line:
    certificate, key = (None, None) if device is None else (device.certificate, device.key)
    return Line(live.port, live.trust, certificate, key, **options)


def sign(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey | None = None,
    *extensions: x509.ExtensionType,
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def enrolled(live: Live, folder: Path, label: str = NORTH) -> Device:
    """A device with a certificate of that ecosystem."""
    device, key = live.device(label), ec.generate_private_key(ec.SECP256R1())
    with dial(live, device) as line:
        certificate = line.enroll(label, sign(device.x509.subject, key)).certificate
    own = Device(device.name, folder / f"{device.name}-own.pem", folder / f"{device.name}-own.key")
    own.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    own.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return own


# --- A2: every value of every discriminator -----------------------------------------------------------------------------


def test_a02_mutated_requests_are_refused_or_mean_what_they_say(live: Live, guard: Guard) -> None:
    """500 mutations of a good request, each with a changed signature or none: 4xx, and nothing is signed."""
    device = live.device(NORTH)
    good = sign(device.x509.subject, None, x509.SubjectAlternativeName([x509.DNSName("a.example")]))
    chance = random.Random(20260907)
    seen: Counter[str] = Counter()
    with dial(live, device) as line:
        for _ in range(500):
            answer = line.enroll(NORTH, mutate(good, chance))
            assert answer.status in (400, 415), answer
            seen[answer.code] += 1
    assert seen["csr-malformed"] > 50
    assert set(seen) <= {
        *("csr-malformed", "csr-signature-invalid", "key-refused", "key-weak", "subject-refused", "san-refused"),
        *("extension-refused", "malformed-request", "channel-binding-refused"),
    }


def mutate(good: bytes, chance: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice((0, 0x7F, 0x80, 0xFF, 0x30, 0x31, 0xA0))
        elif kind == 2:
            del data[at : at + chance.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 4:
            data[at:at] = data[at : at + chance.randrange(1, 40)]
        else:
            data = data[: max(1, at)]
    return bytes(data) if bytes(data) != good else bytes(data[:-1])


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
def test_a02_bodies_at_random(live: Live, operation: str) -> None:
    chance = random.Random(4)
    with dial(live, live.device(NORTH)) as line:
        for size in (0, 1, 2, 5, 100, 5000, 65_536):
            for kind in ("application/pkcs10", "application/pkcs7-mime", "x", ""):
                headers = {"Content-Type": kind} if kind else {}
                answer = line.ask("POST", f"{EST}{NORTH}/{operation}", chance.randbytes(size), headers)
                assert 400 <= answer.status < 500, answer


# --- A7, A8, A10: names -------------------------------------------------------------------------------------------------

GENERAL_NAMES: dict[str, x509.GeneralName] = {
    "dns": x509.DNSName("bank.example"),
    "wildcard": x509.DNSName("*.bank.example"),
    "trailing dot": x509.DNSName("bank.example."),
    "upper case": x509.DNSName("BANK.EXAMPLE"),
    "idna": x509.DNSName("xn--bnk-pla.example"),
    "localhost": x509.DNSName("localhost"),
    "email": x509.RFC822Name("root@bank.example"),
    "uri": x509.UniformResourceIdentifier("https://bank.example/"),
    "spiffe": x509.UniformResourceIdentifier("spiffe://bank.example/admin"),
    "ip": x509.IPAddress(ip_address("192.0.2.1")),
    "ip 6": x509.IPAddress(ip_address("::1")),
    "directory": x509.DirectoryName(named("admin")),
    "registered": x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
    "other": x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x05admin"),
}


@pytest.mark.parametrize("kind", GENERAL_NAMES)
def test_a07_a_name_that_nobody_granted_is_refused(live: Live, codes: Iterator[tuple[str, str]], kind: str) -> None:
    device = live.device(NORTH)
    extension = x509.SubjectAlternativeName([GENERAL_NAMES[kind]])
    with dial(live, device) as line:
        for subject in (device.x509.subject, x509.Name([])):
            answer = line.enroll(NORTH, sign(subject, None, extension))
            assert (answer.status, answer.code) in ((400, "san-refused"), (400, "csr-malformed")), answer
    name, code = next(codes)
    with dial(live) as line:
        answer = line.enroll(NORTH, sign(named(name), None, extension), basic(name, code))
        assert (answer.status, answer.code) in ((400, "san-refused"), (400, "csr-malformed")), answer


@pytest.mark.parametrize(
    "attribute",
    [
        *("COMMON_NAME", "ORGANIZATION_NAME", "ORGANIZATIONAL_UNIT_NAME", "EMAIL_ADDRESS", "DOMAIN_COMPONENT"),
        *("USER_ID", "SERIAL_NUMBER", "DN_QUALIFIER", "TITLE", "PSEUDONYM"),
    ],
)
def test_a08_an_attribute_beside_the_devices_own_name_is_refused(live: Live, attribute: str) -> None:
    device = live.device(NORTH)
    extra = x509.NameAttribute(getattr(x509.NameOID, attribute), "admin")
    own = list(device.x509.subject.rdns)
    subjects = [
        x509.Name([*own, x509.RelativeDistinguishedName([extra])]),
        x509.Name([x509.RelativeDistinguishedName([extra]), *own]),
        x509.Name([x509.RelativeDistinguishedName([extra])]),
    ]
    if attribute != "SERIAL_NUMBER":
        subjects.append(x509.Name([x509.RelativeDistinguishedName([*own[0], extra])]))
    with dial(live, device) as line:
        for subject in subjects:
            answer = line.enroll(NORTH, sign(subject))
            assert (answer.status, answer.code) == (400, "subject-refused"), answer


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(True, None),
        x509.BasicConstraints(True, 0),
        x509.KeyUsage(True, False, False, False, False, True, True, False, False),
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.OCSP_SIGNING]),
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        x509.NameConstraints([x509.DNSName("example")], None),
        x509.OCSPNoCheck(),
        x509.SubjectKeyIdentifier(b"of somebody else"),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.311.25.2"), b"\x30\x00"),
    ],
    ids=lambda extension: type(extension).__name__,
)
def test_a08_an_extension_that_nobody_granted_is_absent_or_refused(
    live: Live, guard: Guard, extension: x509.ExtensionType
) -> None:
    device = live.device(NORTH)
    with dial(live, device) as line:
        answer = line.enroll(NORTH, sign(device.x509.subject, None, extension))
    if answer.status != 200:
        assert (answer.status, answer.code) in ((400, "extension-refused"), (400, "csr-malformed")), answer
        return
    guard.granted = 1
    issued = answer.certificate.extensions
    assert extension not in [one.value for one in issued]
    constraints = [one.value for one in issued if isinstance(one.value, x509.BasicConstraints)]
    assert not any(one.ca for one in constraints)
    assert not issued.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(issued.get_extension_for_class(x509.ExtendedKeyUsage).value) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a10_nobody_renews_another_devices_name(live: Live, guard: Guard, tmp_path: Path) -> None:
    first, second = enrolled(live, tmp_path), enrolled(live, tmp_path)
    guard.granted = 2
    for bearer, victim in ((first, second), (second, first)):
        with dial(live, bearer) as line:
            answer = line.enroll(NORTH, sign(victim.x509.subject), operation="simplereenroll")
            assert (answer.status, answer.code) == (400, "identity-mismatch")
            # Neither does naming the certificate meant, as some servers let a request do (RFC 6402 §2.8).
            headers = {"Client-Cert": base64.b64encode(victim.x509.public_bytes(Encoding.DER)).decode()}
            headers |= {"X-SSL-Client-S-DN": victim.x509.subject.rfc4514_string(), "X-Forwarded-Client-Cert": "x"}
            answer = line.enroll(NORTH, sign(victim.x509.subject), operation="simplereenroll", headers=headers)
            assert (answer.status, answer.code) == (400, "identity-mismatch")
    # A certificate in a header is no certificate at all.
    with dial(live) as line:
        answer = line.enroll(NORTH, sign(first.x509.subject), operation="simplereenroll", headers=headers)
        assert (answer.status, answer.body) == (401, b"")


# --- A14, A18: text that means something to somebody else ---------------------------------------------------------------

HOSTILE = ["*", "%", "_", "' OR '1'='1", "'; DROP TABLE intent; --", ".*", "(?:)", "$(id)", "`id`", "../../etc/passwd"]
HOSTILE += ["\x00", "\r\nX-A: b", "{{7*7}}", "${jndi:ldap://x}", "%00", "\u202eegdirf", "null", "true", "0", "a" * 5000]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_a14_what_is_special_elsewhere_is_only_wrong_here(
    live: Live, codes: Iterator[tuple[str, str]], text: str
) -> None:
    name, _ = next(codes)
    with dial(live) as line:
        for user, secret in ((text, text), (name, text), (text, "x"), (f"{name}{text}", "x")):
            answer = line.enroll(NORTH, sign(named(name)), basic(user, secret))
            # Names that cannot be a device's are no credential either.
            assert answer.status in (400, 401, 431), answer
    ((tables,),) = live.sql("SELECT count(*) FROM pg_tables WHERE tablename = 'intent'")
    assert tables == 1


def test_a18_another_spelling_is_the_same_device_and_no_other(
    live: Live, codes: Iterator[tuple[str, str]], guard: Guard
) -> None:
    name, code = next(codes)
    with dial(live) as line:
        for other in (name.replace("a", "\u0430"), name.replace("e", "ｅ"), name + "\u200b", name[:-1], name + "x"):
            answer = line.enroll(NORTH, sign(named(other)), basic(other, code))
            assert answer.status in (400, 401), (other, answer)
        answer = line.enroll(NORTH, sign(named(name.upper())), basic(f" {name.upper()} ", code))
        guard.granted = 1
    (row,) = live.stored(answer.certificate.public_bytes(Encoding.DER))
    assert row["device"] == name
    with dial(live) as line:  # and it is spent, however it is spelled
        assert line.enroll(NORTH, sign(named(name)), basic(name, code)).code == "code-spent"


# --- A19, A21, A22: which server is meant --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a19_no_session_is_resumed(live: Live, guard: Guard, version: ssl.TLSVersion) -> None:
    device = live.device(NORTH)
    with dial(live, device, version=version) as line:
        assert line.enroll(NORTH, sign(device.x509.subject)).status == 200
        guard.granted = 1
        session = line.tls.session
        assert session is None or not session.has_ticket
        if session is not None:
            with line.connect(session) as again:
                assert not again.session_reused


@pytest.mark.parametrize(
    "name", [None, NAME, NAME.upper(), "localhost", "127.0.0.1", "other.example", "a" * 63 + ".example"]
)
def test_a21_whatever_name_a_client_says_the_same_rules_hold(live: Live, guard: Guard, name: str | None) -> None:
    device = live.device(NORTH)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with dial(live, name=name, version=version) as line:
            assert line.enroll(NORTH, sign(device.x509.subject)).status == 401
        with dial(live, device, name=name, version=version) as line:
            assert line.enroll(NORTH, sign(device.x509.subject)).status == 200
            guard.granted += 1
            assert line.enroll(SOUTH, sign(device.x509.subject)).status == 403


def test_a22_neither_host_nor_target_chooses_an_ecosystem(live: Live) -> None:
    device = live.device(NORTH)
    body = base64.b64encode(sign(device.x509.subject))
    fields = {"Content-Type": "application/pkcs10"}
    with dial(live, device) as line:
        for host in ("other.example", f"{NORTH}.example", "localhost:1", "[::1]", "127.0.0.1"):
            headers = {**fields, "Host": host, "X-Forwarded-Host": NORTH}
            assert line.ask("POST", f"{EST}{SOUTH}/simpleenroll", body, headers).status == 403
        target = f"https://{NORTH}.example{EST}{SOUTH}/simpleenroll"
        assert line.ask("POST", target, body, fields).status == 403
    head = f"POST {EST}{NORTH}/simpleenroll HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: {len(body)}\r\n"
    with dial(live, device) as line:
        line.send(head.encode() + b"Content-Type: application/pkcs10\r\n\r\n" + body)
        assert line.receive().status == 400


# --- A26, A27: HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip"])
def test_a26_an_encoded_body_is_not_looked_at(live: Live, coding: str) -> None:
    device = live.device(NORTH)
    bombs = [gzip.compress(b"") * 2000, gzip.compress(bytes(10_000_000)), b"\x1f\x8b" + bytes(60_000)]
    for bomb in bombs:
        with dial(live, device) as line:
            headers = {"Content-Type": "application/pkcs10", "Content-Encoding": coding}
            answer = line.ask("POST", f"{EST}{NORTH}/simpleenroll", bomb, headers)
            assert (answer.status, answer.code) == (415, "content-encoding-refused")


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
        "Content-Length: %d\r\nContent-Length: 0\r\n",
        "Content-Length : %d\r\n",
        "X: y\r\n Content-Length: %d\r\n",
        "X: y\nContent-Length: %d\r\n",
        "Transfer-Encoding: chunked, identity\r\nX: %d\r\n",
    ],
)
def test_a27_one_request_is_never_two(live: Live, framing: str) -> None:
    """The second request would enroll, had anybody read it. (The whole corpus: unit/web/test_connection.py.)"""
    device = live.device(NORTH)
    body = base64.b64encode(sign(device.x509.subject))
    inner = f"POST {EST}{NORTH}/simpleenroll HTTP/1.1\r\nHost: a\r\nContent-Type: application/pkcs10\r\n"
    inner += f"Content-Length: {len(body)}\r\n\r\n{body.decode()}"
    outer = f"POST {EST}{NORTH}/simpleenroll HTTP/1.1\r\nHost: a\r\nContent-Type: application/pkcs10\r\n"
    outer += framing % len(inner) + "\r\n"
    for prefix in ("", "0\r\n\r\n"):
        with dial(live, device) as line:
            line.send((outer + prefix + inner).encode())
            said = line.rest()
        assert said.count(b"HTTP/1.") == 1, said
        assert said[9:12] == b"400", said


# --- A32, A33, A34, A44: requests that cost or confuse ---------------------------------------------------------------------


def timed(line: Line, csr: bytes, *, raw: bool = False) -> tuple[Answer, float]:
    started = time.monotonic()
    if raw:
        answer = line.ask("POST", f"{EST}{NORTH}/simpleenroll", csr, {"Content-Type": "application/pkcs10"})
    else:
        answer = line.enroll(NORTH, csr)
    return answer, time.monotonic() - started


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName(f"{number}.a") for number in range(4000)],
        [x509.DNSName(("a." * 126) + "a")] * 100,
        [x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")] * 200))] * 10,
        [x509.RFC822Name("a" * 60 + "@example.com")] * 300,
    ],
    ids=["4000 names", "deep names", "long directory names", "addresses"],
)
def test_a32_many_names_cost_little(live: Live, names: list[x509.GeneralName]) -> None:
    device = live.device(NORTH)
    request = sign(device.x509.subject, None, x509.SubjectAlternativeName(names))
    with dial(live, device) as line:
        answer, seconds = timed(line, request, raw=True)
    assert answer.status in (400, 413)
    assert seconds < 0.5


def test_a33_depth_costs_little(live: Live) -> None:
    bombs = [b"\x30\x80" * 20_000]
    nested = b""
    for _ in range(3000):
        nested = der.sequence(nested)
    bombs += [
        nested,
        der.sequence(nested, nested),
        b"\x30\x84\x7f\xff\xff\xff" + bytes(100),
        b"\xbf" + b"\xff" * 60_000,
    ]
    bombs.append(der.sequence(der.integer(1 << 400_000)))
    with dial(live, live.device(NORTH)) as line:
        for bomb in bombs:
            for raw in (True, False):
                if not raw and len(bomb) > 49_000:
                    continue
                answer, seconds = timed(line, bomb, raw=raw)
                assert answer.status == 400, answer
                assert seconds < 0.5


KEYS: dict[str, Callable[[], Any]] = {
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "secp224r1": lambda: ec.generate_private_key(ec.SECP224R1()),
    "brainpool": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa-1024": lambda: rsa.generate_private_key(65537, 1024),
    "rsa e=3": lambda: rsa.generate_private_key(3, 2048),
    "dsa": lambda: dsa.generate_private_key(2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
def test_a34_keys_that_no_profile_names_are_refused(live: Live, kind: str) -> None:
    device = live.device(NORTH)
    key = KEYS[kind]()
    builder = x509.CertificateSigningRequestBuilder().subject_name(device.x509.subject)
    digest = None if kind.startswith("ed") else hashes.SHA256()
    with dial(live, device) as line:
        answer = line.enroll(NORTH, builder.sign(key, digest).public_bytes(Encoding.DER))
    assert answer.status == 400
    assert answer.code in ("key-refused", "key-weak", "csr-malformed")


def test_a34_a_key_that_is_no_point_or_no_signing_key(live: Live) -> None:
    device = live.device(NORTH)
    key = ec.generate_private_key(ec.SECP256R1())
    good = sign(device.x509.subject, key)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    point = spki[-64:]
    numbers = key.public_key().public_numbers()
    off_curve = numbers.x.to_bytes(32) + (numbers.y ^ 1).to_bytes(32)
    too_large = ((1 << 256) - 1).to_bytes(32) * 2
    other = x25519.X25519PrivateKey.generate().public_key()
    requests = [good.replace(point, bad) for bad in (off_curve, too_large, bytes(64))]
    requests.append(good.replace(spki, other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)))
    with dial(live, device) as line:
        for request in requests:
            assert request != good
            answer = line.enroll(NORTH, request)
            assert answer.status == 400, answer
            assert answer.code in ("key-refused", "key-weak", "csr-malformed", "csr-signature-invalid")


def test_a44_what_two_parsers_might_read_differently_is_refused(live: Live, guard: Guard) -> None:
    device = live.device(NORTH)
    key = ec.generate_private_key(ec.SECP256R1())

    def request(*attributes: bytes, subject: bytes | None = None, version: bytes = b"\x02\x01\x00") -> bytes:
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        name = device.x509.subject.public_bytes() if subject is None else subject
        info = der.sequence(version, name, spki, der.tlv(0xA0, b"".join(attributes)))
        algorithm = der.sequence(der.oid("1.2.840.10045.4.3.2"))
        signature = b"\x00" + key.sign(info, ec.ECDSA(hashes.SHA256()))
        return der.sequence(info, algorithm, der.tlv(0x03, signature))

    def extensions(*content: bytes) -> bytes:
        return der.sequence(der.oid(OIDS["extensionRequest"]), der.tlv(0x31, der.sequence(*content)))

    def san(*names: bytes) -> bytes:
        return der.sequence(der.oid(OIDS["subjectAltName"]), der.octet_string(der.sequence(*names)))

    usage = der.sequence(der.oid(OIDS["keyUsage"]), der.octet_string(b"\x03\x02\x07\x80"))
    plain = request()
    odd = {
        "trailing bytes": plain + b"\x00",
        "a second request": plain + plain,
        "indefinite length": b"\x30\x80" + plain[4:] + b"\x00\x00",
        "a length that is not the shortest": b"\x30\x83\x00" + plain[2:4] + plain[4:],
        "version 2": request(version=b"\x02\x01\x01"),
        "version in two octets": request(version=b"\x02\x02\x00\x00"),
        "an extension twice": request(extensions(usage, usage)),
        "two lists of extensions": request(extensions(usage), extensions(usage)),
        "NUL in a subject": request(subject=named(f"{device.name}x").public_bytes().replace(b"x", b"\x00")),
        "NUL in a DNS name": request(extensions(san(der.tlv(0x82, b"a\x00.example")))),
        "an empty list of names": request(extensions(san())),
        "a DNS name in UTF-8": request(extensions(san(der.tlv(0x82, "bänk.example".encode())))),
        "an IP address of five octets": request(extensions(san(der.tlv(0x87, bytes(5))))),
        "a challenge twice": request(
            *[der.sequence(der.oid(OIDS["challengePassword"]), der.tlv(0x31, b"\x0c\x01x"))] * 2
        ),
    }
    with dial(live, device) as line:
        for what, csr in odd.items():
            answer = line.enroll(NORTH, csr)
            assert answer.status == 400, (what, answer)
            assert answer.code in ("csr-malformed", "san-refused", "subject-refused"), (what, answer)
        assert line.enroll(NORTH, plain).status == 200  # it was the oddity that was refused each time
        guard.granted = 1


# --- A45: one-time secrets -------------------------------------------------------------------------------------------------


def test_a45_one_code_is_one_certificate_however_often_it_is_used_at_once(
    live: Live, codes: Iterator[tuple[str, str]], guard: Guard
) -> None:
    name, code = next(codes)
    answers: list[Answer] = []
    barrier = threading.Barrier(100)
    requests = [sign(named(name)) for _ in range(100)]

    def use(request: bytes) -> None:
        with dial(live) as line:
            barrier.wait(30)
            answers.append(line.enroll(NORTH, request, basic(name, code)))

    threads = [threading.Thread(target=use, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    guard.granted = 1
    found = Counter(answer.status if answer.status == 200 else (answer.status, answer.code) for answer in answers)
    assert found == {200: 1, (403, "code-spent"): 99}


def test_a45_the_time_taken_does_not_tell_who_is_known(live: Live, codes: Iterator[tuple[str, str]]) -> None:
    """Medians of many refusals, alternating, so that whatever else the machine does happens to both."""
    rounds, known = 8, [next(codes)[0] for _ in range(4)]
    request = sign(named("x"))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with dial(live) as line:
        for number in range(rounds * len(known)):
            for is_known in (True, False):
                user = known[number % len(known)] if is_known else hashlib.sha256(b"%d" % number).hexdigest()[:16]
                started = time.perf_counter()
                answer = line.enroll(NORTH, request, basic(user, "00000-00000-00000-00000"))
                seconds[is_known].append(time.perf_counter() - started)
                assert (answer.status, answer.body) == (401, b"")
    medians = {is_known: statistics.median(taken) for is_known, taken in seconds.items()}
    assert abs(medians[True] - medians[False]) < 0.5 * max(medians.values()), medians


def test_a45_guessing_is_paused_however_the_name_is_spelled(live: Live) -> None:
    name = f"guessed-{time.monotonic_ns()}"
    spellings = (name, name.upper(), f" {name} ", f"{name[:3].upper()}{name[3:]}")
    statuses = []
    with dial(live) as line:
        for number in range(40):
            answer = line.enroll(NORTH, sign(named(name)), basic(spellings[number % 4], f"guess-{number}"))
            statuses.append(answer.status)
    assert set(statuses) == {401, 429}
    assert statuses == sorted(statuses)
    assert 0 < int(answer.headers["retry-after"]) <= 300 * 5 / 4 + 1  # up to a quarter more, so that a crowd disperses


def test_whatever_certificate_a_stranger_shows_is_a_refusal_and_a_line_of_json(live: Live, tmp_path: Path) -> None:
    written, key = live.log.stat().st_size, make_key()
    device = Device("odd", tmp_path / "odd.pem", tmp_path / "odd.key")
    device.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    zero, negative = b"\x02\x01\x00", b"\x02\x01\xff"
    odd = {what: (make(None, key), "certificate-unfit") for what, make in ODD_CERTIFICATES.items()}
    for serial in (zero, negative):
        odd[f"serial {serial.hex()}"] = (make_odd(key=key, serial=serial), "certificate-untrusted")
    shown = set()
    for what, (certificate, code) in odd.items():
        device.certificate.write_text(ssl.DER_cert_to_PEM_cert(certificate))
        with contextlib.suppress(ssl.SSLError), dial(live, device) as line:  # some no client would take for its own
            shown.add(what)
            for operation in ("simpleenroll", "simplereenroll"):
                answer = line.enroll(NORTH, sign(named("odd")), operation=operation)
                assert (answer.status, answer.code) == (403, code), what
    assert {"version 2", "CDP with an x400Address", "an unknown TLS feature", "serial 020100"} <= shown
    with live.log.open("rb") as log:
        log.seek(written)
        lines = log.read().splitlines()
    assert not [line for line in lines if "level" not in json.loads(line)]


@pytest.mark.parametrize("header", ["Basic \xe9", "\xff", "Basic YTpi\xa0"])
def test_a_header_that_is_not_ascii_is_a_refusal_in_the_trail(live: Live, header: str) -> None:
    with dial(live) as line:
        for octets in (header.encode("latin-1"), header.encode()):
            before = live.last_event()
            line.send(b"POST %ssimpleenroll HTTP/1.1\r\nHost: 127.0.0.1\r\n" % f"{EST}{NORTH}/".encode())
            line.send(b"Content-Length: 0\r\nAuthorization: " + octets + b"\r\n\r\n")
            assert line.receive("POST").status == 401
            (event,) = live.events(before, kind="est.simpleenroll")
            assert event["code"] == "credential-invalid"


def test_no_clock_of_ours_is_far_off(live: Live) -> None:
    """A certificate is valid at once and backdated by little (what A40 is about, seen from outside)."""
    rows = live.sql("SELECT not_before, issued_at FROM certificate ORDER BY issued_at DESC LIMIT 5")
    for row in rows:
        # An hour, and what a busy machine takes from the dates in it to the record of it.
        assert 0 <= (row["issued_at"] - row["not_before"]).total_seconds() <= 3600 + 60
        assert abs((datetime.now(UTC) - row["issued_at"]).total_seconds()) < 3600
