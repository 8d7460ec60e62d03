"""What a person with a shell does: curl, the openssl command line and gnutls-cli, nothing of ours in between.

Covers RFC 7030 §3.2, §4.1, §4.2, §4.5 and RFC 8951 §3 on the wire, the habits of deployed clients that estd puts up
with, and the refusals; every refusal is also looked up in the database, where it must have left no intent.
"""

from __future__ import annotations

import base64
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from live_server import NAME, NORTH, SOUTH, Device, Live, attempt, judge, run
from patience import wait_until
from tls_programs import Client, connect_gnutls, connect_openssl

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("_programs")]

_PKCS10 = ("-H", "Content-Type: application/pkcs10")
_CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"


@pytest.fixture(scope="module")
def _programs() -> None:
    for program in ("curl", "openssl", "base64"):
        judge(program)


# --- the tools ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as curl received it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The only value of a header, if it is there."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} stands there {len(values)} times"
        return values[0] if values else None


class Curl:
    """curl with the server's trust, in a scratch directory."""

    def __init__(self, live: Live, folder: Path) -> None:
        self._live = live
        self._folder = folder

    def __call__(
        self,
        operation: str,
        *options: str | Path,
        label: str | None = None,
        body: bytes | None = None,
        url: str | None = None,
    ) -> Answer:
        """One request, which has to be answered; `body` makes it a POST."""
        head, content = self._folder / "head", self._folder / "content"
        content.write_bytes(b"")
        code = run(
            "curl",
            *("--silent", "--show-error", "--max-time", "15", "--cacert", self._live.trust),
            *("--dump-header", head, "--output", content, "--write-out", "%{http_code}"),
            *(() if body is None else ("--data-binary", "@-")),
            *options,
            url or self._live.url(operation, label),
            given=body or b"",
        )
        # With an interim 100 Continue there are two heads; the last one counts.
        lines = head.read_bytes().decode("latin-1").strip().split("\r\n\r\n")[-1].split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        return Answer(int(code), headers, content.read_bytes())


@pytest.fixture
def curl(live: Live, tmp_path: Path) -> Curl:
    return Curl(live, tmp_path)


def with_certificate(certificate: Path, key: Path) -> tuple[str | Path, ...]:
    return ("--cert", certificate, "--key", key)


def of(device: Device) -> tuple[str | Path, ...]:
    return with_certificate(device.certificate, device.key)


_KEYS = {
    "ec-p256": ("EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ec-p384": ("EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "rsa-2048": ("RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "rsa-1024": ("RSA", "-pkeyopt", "rsa_keygen_bits:1024"),
}


def new_key(path: Path, kind: str = "ec-p256") -> Path:
    run("openssl", "genpkey", "-algorithm", *_KEYS[kind], "-out", path)
    return path


def new_request(key: Path, subject: str, *options: str | Path, form: str = "DER") -> bytes:
    return run("openssl", "req", "-new", "-key", key, "-subj", subject, "-sha256", "-outform", form, *options)


def wrapped(der: bytes, ending: bytes = b"\n") -> bytes:
    return ending.join(base64.encodebytes(der).split()) + ending


def print_certificates(body: bytes, *decode: str | Path) -> list[x509.Certificate]:
    """``base64 -d | openssl pkcs7 -inform DER -print_certs``, as in many a script."""
    der = run(*decode, given=body)
    return x509.load_pem_x509_certificates(run("openssl", "pkcs7", "-inform", "DER", "-print_certs", given=der))


def read_certificates(body: bytes) -> list[x509.Certificate]:
    return print_certificates(body, "openssl", "base64", "-d", "-A")


def write_pem(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates))
    return path


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def check_delivered(live: Live, answer: Answer, label: str) -> x509.Certificate:
    """RFC 7030 §4.2.3: exactly the issued certificate, in the clothes that every known client takes; and on record."""
    assert answer.status == 200, answer.body
    assert answer.header("Content-Type") == _CERTS_ONLY
    assert answer.header("Content-Transfer-Encoding") == "base64"
    assert answer.header("Content-Length") == str(len(answer.body))
    assert answer.header("Transfer-Encoding") is None
    (certificate,) = read_certificates(answer.body)
    (row,) = live.stored(der_of(certificate))
    assert row["label"] == label
    assert row["closed"] is None
    return certificate


# --- cacerts (RFC 7030 §4.1) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
def test_cacerts_hold_a_verifiable_chain(live: Live, curl: Curl, tmp_path: Path, label: str | None) -> None:
    answer = curl("cacerts", label=label)
    assert answer.status == 200
    assert re.fullmatch(r"application/pkcs7-mime(; smime-type=certs-only)?", answer.header("Content-Type") or "")
    assert answer.header("Content-Transfer-Encoding") == "base64"
    assert answer.header("Content-Length") == str(len(answer.body))
    assert answer.header("Transfer-Encoding") is None
    certificates = read_certificates(answer.body)
    roots = [certificate for certificate in certificates if certificate.issuer == certificate.subject]
    between = [certificate for certificate in certificates if certificate not in roots]
    assert len(roots) == 1
    assert between
    root, untrusted = write_pem(tmp_path / "root.pem", *roots), write_pem(tmp_path / "between.pem", *between)
    run("openssl", "verify", "-x509_strict", "-CAfile", root, "-untrusted", untrusted, root, untrusted)
    assert {der_of(one) for one in certificates} <= {der_of(one) for one in live.issuers(label or NORTH)}


def test_the_path_without_label_is_the_default_ecosystem(curl: Curl) -> None:
    assert curl("cacerts").body == curl("cacerts", label=NORTH).body


def test_neighbours_share_no_ca_certificate(curl: Curl) -> None:
    north, south = (read_certificates(curl("cacerts", label=label).body) for label in (NORTH, SOUTH))
    assert not {der_of(one) for one in north} & {der_of(one) for one in south}
    assert not {one.subject for one in north} & {one.subject for one in south}


def test_cacerts_decode_with_gnu_base64(curl: Curl) -> None:
    body = curl("cacerts").body
    assert b"\r" not in body
    assert print_certificates(body, "base64", "-d") == read_certificates(body)


def test_cacerts_are_wrapped_for_libest(curl: Curl) -> None:
    """libest 3.2.0 reads wrapped base64 only, and so does ``openssl base64 -d`` without -A."""
    body = curl("cacerts", "--user-agent", "libest 1.0").body
    lines = body.rstrip(b"\n").split(b"\n")
    assert len(lines) > 1
    assert all(len(line) <= 64 for line in lines)
    assert print_certificates(body, "openssl", "base64", "-d") == read_certificates(curl("cacerts").body)


def test_cacerts_are_one_line_for_others(curl: Curl) -> None:
    """strongSwan before 5.9.11 takes no line break."""
    body = curl("cacerts", "-H", "User-Agent:").body
    assert not body.split()[1:]
    assert body == body.strip()


def test_the_certificates_of_an_answer_are_sorted_as_der_wants_it(curl: Curl) -> None:
    body = curl("cacerts").body
    shown = [der_of(one) for one in read_certificates(body)]
    assert shown == sorted(shown)


def test_head_answers_like_get_without_body(curl: Curl) -> None:
    got, head = curl("cacerts"), curl("cacerts", "--head")
    assert head.status == 200
    assert head.body == b"" or head.body.startswith(b"HTTP/")  # curl writes the head where the body would be
    for name in ("Content-Type", "Content-Length", "Content-Transfer-Encoding"):
        assert head.header(name) == got.header(name)


def test_a_trailing_slash_is_put_up_with(curl: Curl) -> None:
    assert curl("cacerts/").body == curl("cacerts").body


def test_cacerts_take_a_credential_nobody_asked_for(curl: Curl) -> None:
    """Azure IoT Edge shows its Basic credential to every operation."""
    assert curl("cacerts", "--user", "someone:something").status == 200


def test_heads_are_as_libest_reads_them(live: Live, curl: Curl, tmp_path: Path) -> None:
    """libest compares header names by case, takes sixteen at most, and wants its media types at the value's start."""
    device = live.device(NORTH)
    enrolled = curl("simpleenroll", *of(device), *_PKCS10, body=some_csr(tmp_path, device.subject))
    for answer in (enrolled, curl("cacerts"), curl("csrattrs"), curl("simpleenroll", *_PKCS10, body=b"x")):
        names = [name for name, _ in answer.headers]
        assert len(names) <= 16
        for wanted in ("Content-Length", "Content-Type", "Content-Transfer-Encoding", "WWW-Authenticate"):
            assert [name for name in names if name.lower() == wanted.lower()] in ([], [wanted])


# --- TLS and HTTP versions (RFC 7030 §3.3, RFC 8996) -------------------------------------------------------------------


@pytest.mark.parametrize(("option", "most"), [("--tlsv1.2", "1.2"), ("--tlsv1.3", "1.3")])
def test_tls_versions(live: Live, curl: Curl, tmp_path: Path, option: str, most: str) -> None:
    device = live.device(NORTH)
    body = base64.b64encode(new_request(new_key(tmp_path / "key.pem"), device.subject))
    answer = curl("simpleenroll", option, "--tls-max", most, *of(device), *_PKCS10, body=body)
    check_delivered(live, answer, NORTH)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_deprecated_tls_is_refused(live: Live, version: str) -> None:
    done = attempt(
        "curl",
        *("--silent", "--show-error", "--max-time", "15", "--cacert", live.trust),
        *(f"--tlsv{version}", "--tls-max", version, "--ciphers", "DEFAULT@SECLEVEL=0"),
        live.url("cacerts"),
    )
    assert done.status == 35  # SSL connect error
    assert "protocol version" in done.stderr


def test_a_server_certificate_for_name_and_address(live: Live, curl: Curl) -> None:
    assert curl("", url=live.url("cacerts", host="127.0.0.1")).status == 200
    by_name = ("--resolve", f"{NAME}:{live.port}:127.0.0.1")
    assert curl("", *by_name, url=live.url("cacerts", host=NAME)).status == 200
    done = attempt("curl", "--silent", "--cacert", live.trust, live.url("cacerts", host="localhost"))
    assert done.status == 60  # it is not called that


def test_the_server_is_not_trusted_without_its_anchor(live: Live) -> None:
    done = attempt("curl", "--silent", "--max-time", "15", live.url("cacerts"))
    assert done.status == 60  # peer certificate cannot be authenticated


@pytest.mark.parametrize("options", [("--http1.0",), ("--http1.0", "-H", "Host:"), ("--http1.1",)])
def test_http_versions(live: Live, curl: Curl, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert curl("cacerts", *options).status == 200
    device = live.device(NORTH)
    body = base64.b64encode(new_request(new_key(tmp_path / "key.pem"), device.subject))
    check_delivered(live, curl("simpleenroll", *options, *of(device), *_PKCS10, body=body), NORTH)


# --- csrattrs (RFC 7030 §4.5, RFC 9908) --------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
def test_csrattrs_are_a_sequence_or_nothing(curl: Curl, label: str | None) -> None:
    answer = curl("csrattrs", label=label)
    if answer.status == 204:
        assert answer.body == b""
        return
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/csrattrs"
    assert answer.header("Content-Transfer-Encoding") == "base64"
    der = run("openssl", "base64", "-d", "-A", given=answer.body)
    parsed = run("openssl", "asn1parse", "-inform", "DER", given=der).decode()
    assert re.match(r"\s*0:d=0 .*cons: SEQUENCE", parsed)
    assert parsed.count("d=0") == 1


# --- simpleenroll (RFC 7030 §4.2.1) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa-2048"])
def test_enroll_with_an_idevid(live: Live, curl: Curl, tmp_path: Path, label: str | None, kind: str) -> None:
    device, key = live.device(label or NORTH), new_key(tmp_path / "key.pem", kind)
    before = live.last_event()
    answer = curl(
        "simpleenroll", *of(device), *_PKCS10, label=label, body=base64.b64encode(new_request(key, device.subject))
    )
    certificate = check_delivered(live, answer, label or NORTH)
    assert certificate.public_key() == x509.load_pem_x509_csr(new_request(key, "/", form="PEM")).public_key()
    assert certificate.subject == device.x509.subject
    verify(live, tmp_path, certificate, label or NORTH)
    (event,) = live.events(before, outcome="granted", serial=f"{certificate.serial_number:x}".zfill(40))
    assert event["kind"] == "est.simpleenroll"


def verify(live: Live, folder: Path, certificate: x509.Certificate, label: str) -> None:
    """`openssl verify` with the ecosystem's own certificates, and not with its neighbour's."""
    leaf = write_pem(folder / "leaf.pem", certificate)
    neighbour = SOUTH if label == NORTH else NORTH
    for place, accepted in ((label, True), (neighbour, False)):
        issuers = live.issuers(place)
        roots = write_pem(folder / "roots.pem", *(one for one in issuers if one.issuer == one.subject))
        between = write_pem(folder / "between.pem", *(one for one in issuers if one.issuer != one.subject))
        done = attempt(
            "openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", roots, "-untrusted", between, leaf
        )
        assert (done.status == 0) is accepted, done.stderr


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
def test_enroll_with_a_code(live: Live, curl: Curl, tmp_path: Path, label: str | None) -> None:
    device, code = live.code(label or NORTH)
    body = base64.b64encode(new_request(new_key(tmp_path / "key.pem"), f"/CN={device}"))
    answer = curl("simpleenroll", "--user", f"{device}:{code}", *_PKCS10, label=label, body=body)
    certificate = check_delivered(live, answer, label or NORTH)
    assert certificate.subject.rfc4514_string() == f"CN={device}"
    verify(live, tmp_path, certificate, label or NORTH)


@pytest.mark.parametrize("kind", ["ec-p384", "ec-p521", "rsa-2048", "ed25519"])
def test_idevids_of_every_key_type(live: Live, curl: Curl, tmp_path: Path, kind: str) -> None:
    """The maker chose the IDevID's key long ago; the profile's rules are for the new one."""
    device = live.device(NORTH, kind)
    body = some_csr(tmp_path, device.subject)
    check_delivered(live, curl("simpleenroll", *of(device), *_PKCS10, body=body), NORTH)


def test_an_empty_subject_asks_for_the_devices_own(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(NORTH)
    body = base64.b64encode(new_request(new_key(tmp_path / "key.pem"), "/"))
    certificate = check_delivered(live, curl("simpleenroll", *of(device), *_PKCS10, body=body), NORTH)
    assert certificate.subject == device.x509.subject


def test_a_retry_gets_the_same_bytes(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(NORTH)
    body = base64.b64encode(new_request(new_key(tmp_path / "key.pem"), device.subject))
    first = curl("simpleenroll", *of(device), *_PKCS10, body=body)
    check_delivered(live, first, NORTH)
    issued, repeated = live.issuances(), live.metric("estd_repeated_answers_total")
    again = curl("simpleenroll", *of(device), *_PKCS10, body=body)
    assert again.body == first.body
    assert live.issuances() == issued
    assert live.metric("estd_repeated_answers_total") == repeated + 1


def test_a_retry_with_a_spent_code_gets_the_same_bytes_and_nothing_else(live: Live, curl: Curl, tmp_path: Path) -> None:
    device, code = live.code(SOUTH)
    credential = ("--user", f"{device}:{code}")
    body = base64.b64encode(new_request(new_key(tmp_path / "key.pem"), f"/CN={device}"))
    first = curl("simpleenroll", *credential, *_PKCS10, label=SOUTH, body=body)
    check_delivered(live, first, SOUTH)
    issued = live.issuances()
    assert curl("simpleenroll", *credential, *_PKCS10, label=SOUTH, body=body).body == first.body
    other = base64.b64encode(new_request(new_key(tmp_path / "other.pem"), f"/CN={device}"))
    refused = curl("simpleenroll", *credential, *_PKCS10, label=SOUTH, body=other)
    assert refused.status in (401, 403)
    assert live.issuances() == issued


def test_one_request_sent_eight_times_at_once_is_one_certificate(live: Live, tmp_path: Path) -> None:
    device = live.device(NORTH)
    csr = tmp_path / "csr"
    csr.write_bytes(base64.b64encode(new_request(new_key(tmp_path / "key.pem"), device.subject)))
    issued = live.issuances()
    curl = ["curl", "--silent", "--max-time", "15", "--cacert", live.trust, *of(device), *_PKCS10]
    processes = [
        subprocess.Popen([*curl, "--data-binary", f"@{csr}", live.url("simpleenroll")], stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    bodies = {process.communicate(timeout=30)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    assert len(bodies) == 1
    assert len(read_certificates(bodies.pop())) == 1
    assert live.issuances() == issued + 1


# --- simplereenroll (RFC 7030 §4.2.2) ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A certificate that was just issued, with its key, and the subject it carries."""

    certificate: Path
    key: Path
    subject: str

    @property
    def options(self) -> tuple[str | Path, ...]:
        return with_certificate(self.certificate, self.key)


def enroll(live: Live, curl: Curl, folder: Path, label: str | None = None, kind: str = "ec-p256") -> Enrolled:
    device, key = live.device(label or NORTH), new_key(folder / f"{secrets.token_hex(4)}.key", kind)
    body = base64.b64encode(new_request(key, device.subject))
    certificate = check_delivered(
        live, curl("simpleenroll", *of(device), *_PKCS10, label=label, body=body), label or NORTH
    )
    return Enrolled(write_pem(folder / f"{secrets.token_hex(4)}.pem", certificate), key, device.subject)


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
def test_renew_with_a_new_key(live: Live, curl: Curl, tmp_path: Path, label: str | None) -> None:
    old = enroll(live, curl, tmp_path, label)
    key = new_key(tmp_path / "new.key")
    body = base64.b64encode(new_request(key, old.subject))
    answer = curl("simplereenroll", *old.options, *_PKCS10, label=label, body=body)
    certificate = check_delivered(live, answer, label or NORTH)
    before = x509.load_pem_x509_certificate(old.certificate.read_bytes())
    assert certificate.subject == before.subject
    assert certificate.public_key() != before.public_key()
    verify(live, tmp_path, certificate, label or NORTH)
    # and the renewed one renews again
    new = write_pem(tmp_path / "new.pem", certificate)
    body = base64.b64encode(new_request(new_key(tmp_path / "third.key"), old.subject))
    check_delivered(
        live, curl("simplereenroll", *with_certificate(new, key), *_PKCS10, label=label, body=body), label or NORTH
    )


def test_renew_with_the_same_key(live: Live, curl: Curl, tmp_path: Path) -> None:
    old = enroll(live, curl, tmp_path, kind="rsa-2048")
    body = base64.b64encode(new_request(old.key, old.subject))
    certificate = check_delivered(live, curl("simplereenroll", *old.options, *_PKCS10, body=body), NORTH)
    before = x509.load_pem_x509_certificate(old.certificate.read_bytes())
    assert certificate.public_key() == before.public_key()
    assert certificate.serial_number != before.serial_number


# --- habits of deployed clients (RFC 8951 §3, RFC 9110) ----------------------------------------------------------------


def _pem(der: bytes, label: str = "CERTIFICATE REQUEST") -> bytes:
    return f"-----BEGIN {label}-----\n".encode() + wrapped(der) + f"-----END {label}-----\n".encode()


_HABITS: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "plain": (base64.b64encode, _PKCS10),
    "wrapped in LF": (wrapped, _PKCS10),
    "wrapped in CRLF": (lambda der: wrapped(der, b"\r\n"), _PKCS10),
    "spaces and tabs": (lambda der: wrapped(der, b" \t"), _PKCS10),
    "PEM": (_pem, _PKCS10),
    "PEM with the old armour": (lambda der: _pem(der, "NEW CERTIFICATE REQUEST"), _PKCS10),
    "raw DER": (lambda der: der, _PKCS10),
    "CTE base64": (base64.b64encode, (*_PKCS10, "-H", "Content-Transfer-Encoding: base64")),
    "CTE Base64 in odd case": (base64.b64encode, (*_PKCS10, "-H", "content-transfer-encoding: BASE64")),
    "CTE binary on base64": (base64.b64encode, (*_PKCS10, "-H", "Content-Transfer-Encoding: binary")),
    "CTE base64 on DER": (lambda der: der, (*_PKCS10, "-H", "Content-Transfer-Encoding: base64")),
    "CTE twice": (
        base64.b64encode,
        (*_PKCS10, "-H", "Content-Transfer-Encoding: base64", "-H", "Content-Transfer-Encoding: 8bit"),
    ),
    "chunked": (base64.b64encode, (*_PKCS10, "-H", "Transfer-Encoding: chunked")),
    "chunked and wrapped": (wrapped, (*_PKCS10, "-H", "Transfer-Encoding: chunked")),
    "no media type": (base64.b64encode, ("-H", "Content-Type:")),
    "media type with parameters": (base64.b64encode, ("-H", "Content-Type: application/pkcs10; charset=utf-8")),
    "media type in odd case": (base64.b64encode, ("-H", "Content-Type: Application/PKCS10")),
    "expects 100": (base64.b64encode, (*_PKCS10, "-H", "Expect: 100-continue")),
    "closes": (base64.b64encode, (*_PKCS10, "-H", "Connection: close")),
    "header names in lower case": (base64.b64encode, ("-H", "content-type: application/pkcs10")),
    "content encoding identity": (base64.b64encode, (*_PKCS10, "-H", "Content-Encoding: identity")),
}


@pytest.mark.parametrize("habit", _HABITS)
def test_habits_of_deployed_clients(live: Live, curl: Curl, tmp_path: Path, habit: str) -> None:
    write, options = _HABITS[habit]
    device = live.device(NORTH)
    body = write(new_request(new_key(tmp_path / "key.pem"), device.subject))
    check_delivered(live, curl("simpleenroll", *of(device), *options, body=body), NORTH)


def test_a_query_names_no_other_resource(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(NORTH)
    body = base64.b64encode(new_request(new_key(tmp_path / "key.pem"), device.subject))
    check_delivered(live, curl("simpleenroll?a=b", *of(device), *_PKCS10, body=body), NORTH)


@pytest.mark.parametrize("habit", ["PEM", "raw DER", "no media type"])
def test_each_tolerance_is_counted(live: Live, curl: Curl, tmp_path: Path, habit: str) -> None:
    write, options = _HABITS[habit]
    device = live.device(SOUTH)
    body = write(new_request(new_key(tmp_path / "key.pem"), device.subject))
    north, south = (live.metric("estd_tolerances_total", ecosystem=label) for label in (NORTH, SOUTH))
    check_delivered(live, curl("simpleenroll", *of(device), *options, label=SOUTH, body=body), SOUTH)
    assert live.metric("estd_tolerances_total", ecosystem=SOUTH) == south + 1
    assert live.metric("estd_tolerances_total", ecosystem=NORTH) == north


def test_a_connection_carries_many_requests(live: Live, tmp_path: Path) -> None:
    """Authorization is per request, the connection is only a connection."""
    device = live.device(NORTH)
    bodies = []
    for number in range(3):
        bodies.append(tmp_path / f"csr{number}")
        bodies[-1].write_bytes(base64.b64encode(new_request(new_key(tmp_path / f"{number}.key"), device.subject)))
    argv: list[str | Path] = ["--silent", "--cacert", live.trust, "--max-time", "15"]
    for number, body in enumerate(bodies):
        argv += ["--next", "--silent", "--cacert", live.trust] if number else []
        argv += [*of(device), *_PKCS10, "--data-binary", f"@{body}", "--output", tmp_path / f"out{number}"]
        argv += ["--write-out", "%{http_code} %{num_connects}\n", live.url("simpleenroll")]
    assert run("curl", *argv).decode().splitlines() == ["200 1", "200 0", "200 0"]
    assert len({(tmp_path / f"out{number}").read_bytes() for number in range(3)}) == 3


# --- refusals (RFC 7030 §3.2.3, §4.2.3; each leaves an audit event and no intent) -------------------------------------


@pytest.fixture
def nothing_issued(live: Live) -> Iterator[None]:
    """After the test there are as many intents as before it."""
    before = live.issuances()
    yield
    assert live.issuances() == before


def check_text(answer: Answer, status: int, code: str) -> None:
    """RFC 8951 §3.2.4 wants text for people; ours starts with a stable word for machines."""
    assert answer.status == status, answer.body
    assert (answer.header("Content-Type") or "").startswith("text/plain")
    assert code in answer.body.decode()
    assert answer.header("Content-Length") == str(len(answer.body))


def check_challenge(answer: Answer) -> None:
    assert answer.status == 401
    assert (answer.header("WWW-Authenticate") or "").startswith("Basic realm=")
    assert answer.body == b""  # Bouncy Castle reads the challenge only if nothing follows it
    assert answer.header("Content-Length") == "0"


def some_csr(tmp_path: Path, subject: str = "/CN=nobody") -> bytes:
    return base64.b64encode(new_request(new_key(tmp_path / "some.key"), subject))


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
def test_no_credential(live: Live, curl: Curl, tmp_path: Path, operation: str) -> None:
    before = live.last_event()
    check_challenge(curl(operation, *_PKCS10, body=some_csr(tmp_path)))
    (event,) = live.events(before, outcome="refused")
    assert (event["kind"], event["code"]) == (f"est.{operation}", "credential-missing")


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize(
    "credential",
    [
        ("--user", "nobody:wrong"),
        ("--user", ":"),
        ("--user", "nobody:" + "x" * 2000),
        ("-H", "Authorization: Basic"),
        ("-H", "Authorization: Basic !!!"),
        ("-H", "Authorization: Basic bm9jb2xvbg=="),
        ("-H", "Authorization: Basic /////w=="),
        ("-H", "Authorization: Bearer abc"),
        ("-H", 'Authorization: Digest username="a", realm="b", nonce="c", uri="d", response="e"'),
    ],
)
def test_a_wrong_credential(curl: Curl, tmp_path: Path, credential: tuple[str, str]) -> None:
    check_challenge(curl("simpleenroll", *credential, *_PKCS10, body=some_csr(tmp_path)))


@pytest.mark.usefixtures("nothing_issued")
def test_the_wrong_code_of_a_known_device_looks_like_that_of_an_unknown_one(
    live: Live, curl: Curl, tmp_path: Path
) -> None:
    device, _ = live.code(NORTH)
    body = some_csr(tmp_path, f"/CN={device}")
    known = curl("simpleenroll", "--user", f"{device}:AAAAA-AAAAA", *_PKCS10, body=body)
    unknown = curl("simpleenroll", "--user", "no-such-device:AAAAA-AAAAA", *_PKCS10, body=body)
    check_challenge(known)
    check_challenge(unknown)
    varying = {"date", "x-request-id", "request-id", "estd-request"}
    assert [header for header in known.headers if header[0].lower() not in varying] == [
        header for header in unknown.headers if header[0].lower() not in varying
    ]


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
def test_the_neighbours_idevid(live: Live, curl: Curl, tmp_path: Path, operation: str) -> None:
    device = live.device(SOUTH)
    answer = curl(operation, *of(device), *_PKCS10, label=NORTH, body=some_csr(tmp_path, device.subject))
    check_text(answer, 403, "certificate-untrusted")


_NOW = datetime.now(UTC).replace(microsecond=0)
_UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"starts": _NOW - timedelta(hours=2), "ends": _NOW - timedelta(hours=1)}, "certificate-expired"),
    "not yet valid": ({"starts": _NOW + timedelta(days=3)}, "certificate-not-yet-valid"),
    "a CA": ({"extensions": [(x509.BasicConstraints(True, None), True)]}, "certificate-unfit"),
    "for servers": (
        {"extensions": [(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False)]},
        "certificate-unfit",
    ),
    "with a critical extension nobody knows": (
        {"extensions": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"), True)]},
        "certificate-",
    ),
}


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize("flaw", _UNFIT)
def test_an_idevid_that_does_not_do(live: Live, curl: Curl, tmp_path: Path, flaw: str) -> None:
    """TLS proves possession of the key; what the certificate is worth is said in words, not by an alert."""
    properties, code = _UNFIT[flaw]
    device = live.device(NORTH, **properties)
    answer = curl("simpleenroll", *of(device), *_PKCS10, body=some_csr(tmp_path, device.subject))
    check_text(answer, 403, code)


@pytest.mark.usefixtures("nothing_issued")
def test_the_makers_own_certificate_is_no_device(live: Live, curl: Curl, tmp_path: Path) -> None:
    bootstrap = live.directory / "bootstrap" / NORTH
    maker = with_certificate(bootstrap / "maker.pem", bootstrap / "maker.key")
    answer = curl("simpleenroll", *maker, *_PKCS10, body=some_csr(tmp_path, "/"))
    check_text(answer, 403, "certificate-unfit")


def test_an_issued_certificate_does_not_enroll_again(live: Live, curl: Curl, tmp_path: Path) -> None:
    """Azure IoT Edge renews that way; a profile may allow it (treat_as_reenroll), and by default none does."""
    old = enroll(live, curl, tmp_path)
    issued = live.issuances()
    answer = curl("simpleenroll", *old.options, *_PKCS10, body=some_csr(tmp_path, old.subject))
    check_text(answer, 403, "not-authorized")
    assert live.issuances() == issued


@pytest.mark.usefixtures("nothing_issued")
def test_a_request_with_any_byte_changed(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(NORTH)
    der = new_request(new_key(tmp_path / "key.pem", "rsa-2048"), device.subject)
    for position in range(0, len(der), 17):
        changed = bytearray(der)
        changed[position] ^= 0x81
        for body in (bytes(changed), der[:position], der + der[: position + 1]):
            answer = curl("simpleenroll", *of(device), *_PKCS10, body=base64.b64encode(body))
            assert answer.status == 400, (position, answer.body)


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"!!!! not base64 !!!!",
        base64.b64encode(b"\x30\x03\x02\x01\x00"),
        base64.b64encode(b"\x30\x80\x00\x00"),
        b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
        b"\x00" * 1000,
    ],
)
def test_garbage(live: Live, curl: Curl, body: bytes) -> None:
    answer = curl("simpleenroll", *of(live.device(NORTH)), *_PKCS10, body=body)
    assert answer.status == 400, answer.body
    assert (answer.header("Content-Type") or "").startswith("text/plain")
    assert answer.body


@pytest.mark.usefixtures("nothing_issued")
def test_a_request_whose_signature_is_wrong(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(NORTH)
    der = bytearray(new_request(new_key(tmp_path / "key.pem", "rsa-2048"), device.subject))
    der[-5] ^= 1
    answer = curl("simpleenroll", *of(device), *_PKCS10, body=base64.b64encode(bytes(der)))
    check_text(answer, 400, "csr-signature-invalid")


@pytest.mark.usefixtures("nothing_issued")
def test_a_key_the_profile_does_not_allow(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(NORTH)
    der = new_request(new_key(tmp_path / "key.pem", "rsa-1024"), device.subject)
    answer = curl("simpleenroll", *of(device), *_PKCS10, body=base64.b64encode(der))
    assert answer.status == 400
    assert re.search(rb"key-(refused|weak)", answer.body)


@pytest.mark.usefixtures("nothing_issued")
def test_somebody_elses_name(live: Live, curl: Curl, tmp_path: Path) -> None:
    answer = curl("simpleenroll", *of(live.device(NORTH)), *_PKCS10, body=some_csr(tmp_path, "/CN=somebody else"))
    check_text(answer, 400, "subject-refused")


@pytest.mark.usefixtures("nothing_issued")
def test_a_name_for_good_measure(live: Live, curl: Curl, tmp_path: Path) -> None:
    """A subjectAltName nobody granted is refused, not silently left out."""
    device = live.device(NORTH)
    der = new_request(new_key(tmp_path / "key.pem"), device.subject, "-addext", "subjectAltName=DNS:bank.example")
    check_text(curl("simpleenroll", *of(device), *_PKCS10, body=base64.b64encode(der)), 400, "san-refused")


def test_renewal_under_another_name(live: Live, curl: Curl, tmp_path: Path) -> None:
    old = enroll(live, curl, tmp_path)
    issued = live.issuances()
    answer = curl("simplereenroll", *old.options, *_PKCS10, body=some_csr(tmp_path, "/CN=other"))
    check_text(answer, 400, "identity-mismatch")
    assert live.issuances() == issued


@pytest.mark.usefixtures("nothing_issued")
def test_renewal_needs_an_issued_certificate(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(NORTH)
    answer = curl("simplereenroll", *of(device), *_PKCS10, body=some_csr(tmp_path, device.subject))
    check_text(answer, 403, "not-authorized")


@pytest.mark.usefixtures("nothing_issued")
def test_renewal_needs_the_certificate_not_a_code(live: Live, curl: Curl, tmp_path: Path) -> None:
    device, code = live.code(NORTH)
    body = some_csr(tmp_path, f"/CN={device}")
    check_challenge(curl("simplereenroll", "--user", f"{device}:{code}", *_PKCS10, body=body))


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_enrolling_is_a_post(live: Live, curl: Curl, operation: str, method: str) -> None:
    options = ("--head",) if method == "HEAD" else ("--request", method)
    answer = curl(operation, *options, *of(live.device(NORTH)))
    assert answer.status == 405
    assert answer.header("Allow") == "POST"


@pytest.mark.parametrize("operation", ["cacerts", "csrattrs"])
def test_reading_is_a_get(curl: Curl, operation: str) -> None:
    answer = curl(operation, *_PKCS10, body=b"x")
    assert answer.status == 405
    assert (answer.header("Allow") or "").replace(" ", "").split(",")[0] == "GET"


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/json", "application/x-www-form-urlencoded", "application/pkcs7-mime"]
)
def test_another_media_type(live: Live, curl: Curl, tmp_path: Path, media_type: str) -> None:
    device = live.device(NORTH)
    body = some_csr(tmp_path, device.subject)
    answer = curl("simpleenroll", *of(device), "-H", f"Content-Type: {media_type}", body=body)
    check_text(answer, 415, "media-type-unsupported")


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "nonsense"])
def test_a_content_encoding(live: Live, curl: Curl, tmp_path: Path, coding: str) -> None:
    device = live.device(NORTH)
    body = some_csr(tmp_path, device.subject)
    before = live.last_event()
    answer = curl("simpleenroll", *of(device), *_PKCS10, "-H", f"Content-Encoding: {coding}", body=body)
    check_text(answer, 415, "content-encoding-refused")
    # Also what was refused before its body was read is on record, by the operation and the id that the device was told.
    told = wait_until(lambda: live.events(before, code="content-encoding-refused"))
    assert [(event["kind"], event["request_id"]) for event in told] == [
        ("est.simpleenroll", answer.header("X-Request-Id"))
    ]


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize("size", [65_537, 1_000_000])
@pytest.mark.parametrize("framing", [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect:")])
def test_a_body_that_is_too_large(live: Live, curl: Curl, size: int, framing: tuple[str, ...]) -> None:
    before = live.last_event()
    answer = curl("simpleenroll", *of(live.device(NORTH)), *_PKCS10, *framing, body=b"A" * size)
    assert answer.status == 413
    assert live.metric("estd_requests_total", operation="simpleenroll", outcome="body-too-large") > 0
    told = wait_until(lambda: live.events(before, code="body-too-large"))
    assert [event["request_id"] for event in told] == [answer.header("X-Request-Id")]


@pytest.mark.usefixtures("nothing_issued")
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nowhere/cacerts", "label-unknown"),
        ("nowhere/csrattrs", "label-unknown"),
        (f"{NORTH}/nothing", "path-unknown"),
        ("nothing", "path-unknown"),
        ("", "path-unknown"),
        (f"{NORTH}/{SOUTH}/cacerts", "path-unknown"),
        (f"{NORTH.upper()}/cacerts", ""),
        (f"{NORTH}//cacerts", ""),
        (f"/{NORTH}/cacerts", ""),
        (f"{NORTH}/../{SOUTH}/cacerts", ""),
        (f"%63{NORTH[1:]}/cacerts", ""),
        (f"{NORTH}%2fcacerts", ""),
        (f"{NORTH};x=y/cacerts", ""),
        ("cacerts/cacerts", ""),
    ],
)
def test_paths_that_lead_nowhere(live: Live, curl: Curl, path: str, code: str) -> None:
    answer = curl("", "--path-as-is", url=live.url(path))
    check_text(answer, 404, code)


@pytest.mark.parametrize("path", ["/", "/.well-known/", "/.well-known/est", "/.well-known/acme", "/favicon.ico"])
def test_nothing_else_is_served(live: Live, curl: Curl, path: str) -> None:
    assert curl("", url=f"https://127.0.0.1:{live.port}{path}").status == 404


def test_a_refusal_says_what_is_wrong_and_hides_what_is_not_the_callers(live: Live, curl: Curl, tmp_path: Path) -> None:
    device = live.device(SOUTH)
    answer = curl("simpleenroll", *of(device), *_PKCS10, label=NORTH, body=some_csr(tmp_path, device.subject))
    text = answer.body.decode()
    assert SOUTH not in text
    assert "Traceback" not in text
    assert str(live.directory) not in text
    assert answer.header("Server") in (None, "estd")


def test_plain_http_is_turned_away(live: Live) -> None:
    done = attempt(
        "curl", "--silent", "--max-time", "15", "--include", f"http://127.0.0.1:{live.port}/.well-known/est/cacerts"
    )
    assert done.status != 0 or done.stdout.startswith(b"HTTP/1.1 400") or done.stdout.startswith(b"HTTP/1.0 400")


# --- channel binding (RFC 7030 §3.5, RFC 9266; tls-unique is in test_bouncycastle.py) ---------------------------------


Connect = Callable[[Live, Device, str], Client]
_CLIENTS = pytest.mark.parametrize("connect", [connect_openssl, connect_gnutls])


@_CLIENTS
def test_a_request_bound_to_its_connection(live: Live, tmp_path: Path, connect: Connect) -> None:
    device = live.device(NORTH)
    with connect(live, device, "1.3") as client:
        status, body = client.enroll(client.binding(), tmp_path, device)
    assert status == 200, body
    (certificate,) = read_certificates(body)
    assert live.stored(der_of(certificate))[0]["label"] == NORTH


@_CLIENTS
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_request_bound_to_another_connection(live: Live, tmp_path: Path, connect: Connect, version: str) -> None:
    device, issued = live.device(NORTH), live.issuances()
    with connect(live, device, version) as first, connect(live, device, version) as second:
        binding = first.binding()
        assert binding != second.binding()
        status, body = second.enroll(binding, tmp_path, device)
    assert (status, body.split(b":")[0]) == (400, b"channel-binding-refused")
    assert live.issuances() == issued


@_CLIENTS
def test_below_tls_1_3_an_exporter_without_context_is_another_value(
    live: Live, tmp_path: Path, connect: Connect
) -> None:
    """RFC 9266 §2 has an empty context; both programs leave it out, which TLS 1.2 tells apart (RFC 5705 §4)."""
    device = live.device(NORTH)
    with connect(live, device, "1.2") as client:
        status, body = client.enroll(client.binding(), tmp_path, device)
    assert (status, body.split(b":")[0]) == (400, b"channel-binding-refused")
