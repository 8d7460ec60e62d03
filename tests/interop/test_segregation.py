"""What one ecosystem knows of another's devices: nothing, whatever they bring and however they came.

Each refusal is checked three times: in the answer, in the audit trail of the ecosystem that was asked, and in the intents,
of which there must be none. A connection that was good for its own ecosystem is worth nothing at the neighbour's.
"""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7
from live_server import NORTH, SOUTH, Device, Live, make_device

from estd.ra.directory import INTERNAL_LABEL

pytestmark = pytest.mark.interop

_BOTH_WAYS = pytest.mark.parametrize(("home", "neighbour"), [(NORTH, SOUTH), (SOUTH, NORTH)])
_OPERATIONS = pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate that was delivered."""
        assert self.status == 200, self.body
        (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.body))
        return certificate


class Connection:
    """One TLS connection, which is never silently replaced by another."""

    def __init__(self, live: Live, certificate: Path | None = None, key: Path | None = None) -> None:
        context = ssl.create_default_context(cafile=live.trust)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        self._http = http.client.HTTPSConnection("127.0.0.1", live.port, context=context, timeout=15)
        self._http.connect()
        self._http.auto_open = 0

    def post(self, label: str, operation: str, csr: bytes, authorization: str | None = None) -> Answer:
        """One request on this connection."""
        headers = {"Content-Type": "application/pkcs10"}
        if authorization is not None:
            headers["Authorization"] = authorization
        self._http.request("POST", f"/.well-known/est/{label}/{operation}", base64.b64encode(csr), headers)
        answer = self._http.getresponse()
        return Answer(answer.status, answer.read())

    def close(self) -> None:
        """Hang up."""
        self._http.close()


class Fleet:
    """Connections and keys of the devices of one test."""

    def __init__(self, live: Live, folder: Path) -> None:
        self.live = live
        self.folder = folder
        self._connections: list[Connection] = []

    def connect(self, certificate: Path | None = None, key: Path | None = None) -> Connection:
        """A new TLS connection with that client certificate."""
        self._connections.append(Connection(self.live, certificate, key))
        return self._connections[-1]

    def enroll(self, device: Device, label: str) -> tuple[Path, Path]:
        """Files of a certificate that ecosystem issued to its own device, and of the key."""
        key = ec.generate_private_key(ec.SECP256R1())
        answer = self.connect(device.certificate, device.key).post(
            label, "simpleenroll", new_request(device.x509.subject, key)
        )
        certificate, key_path = (self.folder / f"{label}-{device.name}.{ending}" for ending in ("pem", "key"))
        certificate.write_bytes(answer.certificate.public_bytes(Encoding.PEM))
        key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key_path

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in self._connections:
            connection.close()


@pytest.fixture
def fleet(live: Live, tmp_path: Path) -> Iterator[Fleet]:
    devices = Fleet(live, tmp_path)
    yield devices
    devices.close()


def new_request(subject: x509.Name, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def basic(device: str, code: str) -> str:
    return "Basic " + base64.b64encode(f"{device}:{code}".encode()).decode()


def named(device: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])


class Watch:
    """What the database must show for one refusal, and that it shows nothing else."""

    def __init__(self, live: Live, label: str) -> None:
        self._live = live
        self._label = label
        self._issued = live.issuances()
        self._event = live.last_event()

    def expect_one_refusal(self, operation: str, code: str, identity: str = "") -> None:
        """One audit event of the ecosystem that was asked, and no intent anywhere."""
        (event,) = self._live.events(self._event)
        assert event["outcome"] == "refused"
        assert event["kind"] == f"est.{operation}"
        assert event["code"] == code
        assert event["ecosystem"] == self._label
        assert event["identity"] == identity
        assert event["serial"] is None
        ((asked,),) = self._live.sql("SELECT ecosystem_id FROM ecosystem WHERE label = $1", self._label)
        assert event["ecosystem_id"] == asked
        assert self._live.issuances() == self._issued


def identity_of(certificate: Path) -> str:
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    return "x509:" + read.fingerprint(hashes.SHA256()).hex()


# --- IDevIDs -----------------------------------------------------------------------------------------------------------


@_BOTH_WAYS
@_OPERATIONS
def test_a_foreign_idevid(live: Live, fleet: Fleet, home: str, neighbour: str, operation: str) -> None:
    device = live.device(home)
    watch = Watch(live, neighbour)
    connection = fleet.connect(device.certificate, device.key)
    answer = connection.post(neighbour, operation, new_request(device.x509.subject))
    assert answer.status == 403
    watch.expect_one_refusal(operation, "certificate-untrusted", identity_of(device.certificate))


@_BOTH_WAYS
def test_a_foreign_idevid_on_a_connection_that_served_at_home(
    live: Live, fleet: Fleet, home: str, neighbour: str
) -> None:
    device = live.device(home)
    connection = fleet.connect(device.certificate, device.key)
    subject = device.x509.subject
    assert connection.post(home, "simpleenroll", new_request(subject)).status == 200
    watch = Watch(live, neighbour)
    assert connection.post(neighbour, "simpleenroll", new_request(subject)).status == 403
    watch.expect_one_refusal("simpleenroll", "certificate-untrusted", identity_of(device.certificate))
    # Neither answer changes what the other ecosystem thinks of this connection.
    assert connection.post(home, "simpleenroll", new_request(subject)).status == 200
    assert connection.post(neighbour, "simpleenroll", new_request(subject)).status == 403


@_BOTH_WAYS
def test_a_refused_connection_still_serves_at_home(live: Live, fleet: Fleet, home: str, neighbour: str) -> None:
    device = live.device(home)
    connection = fleet.connect(device.certificate, device.key)
    assert connection.post(neighbour, "simpleenroll", new_request(device.x509.subject)).status == 403
    assert connection.post(home, "simpleenroll", new_request(device.x509.subject)).status == 200


def test_a_foreign_idevid_in_the_company_of_the_right_ca(live: Live, fleet: Fleet, tmp_path: Path) -> None:
    """Certificates a client sends along are material for a path and never an anchor (RFC 5280 §6.1)."""
    device = live.device(SOUTH)
    company = tmp_path / "company.pem"
    makers = [(live.directory / "bootstrap" / label / "maker.pem").read_bytes() for label in (NORTH, SOUTH)]
    issuers = [one.public_bytes(Encoding.PEM) for one in live.issuers(NORTH)]
    company.write_bytes(device.certificate.read_bytes() + b"".join(makers + issuers))
    watch = Watch(live, NORTH)
    connection = fleet.connect(company, device.key)
    assert connection.post(NORTH, "simpleenroll", new_request(device.x509.subject)).status == 403
    watch.expect_one_refusal("simpleenroll", "certificate-untrusted", identity_of(device.certificate))


@pytest.mark.parametrize("says", ["maker", "issuer"])
def test_a_ca_that_only_has_the_right_name(live: Live, fleet: Fleet, tmp_path: Path, says: str) -> None:
    """Same name, same key identifier in the certificate, another key."""
    real = live.maker(NORTH)[0] if says == "maker" else live.issuers(NORTH)[-1]
    forger = ec.generate_private_key(ec.SECP256R1())
    forged = make_device(tmp_path, "forged", real, forger)
    watch = Watch(live, NORTH)
    answer = fleet.connect(forged.certificate, forged.key).post(NORTH, "simpleenroll", new_request(forged.x509.subject))
    assert answer.status == 403
    watch.expect_one_refusal("simpleenroll", "certificate-untrusted", identity_of(forged.certificate))


# --- issued certificates -----------------------------------------------------------------------------------------------


@_BOTH_WAYS
@_OPERATIONS
def test_a_foreign_issued_certificate(live: Live, fleet: Fleet, home: str, neighbour: str, operation: str) -> None:
    device = live.device(home)
    certificate, key = fleet.enroll(device, home)
    watch = Watch(live, neighbour)
    answer = fleet.connect(certificate, key).post(neighbour, operation, new_request(device.x509.subject))
    assert answer.status == 403
    watch.expect_one_refusal(operation, "certificate-untrusted", identity_of(certificate))


@_BOTH_WAYS
def test_a_foreign_issued_certificate_on_a_connection_that_renewed_at_home(
    live: Live, fleet: Fleet, home: str, neighbour: str
) -> None:
    device = live.device(home)
    certificate, key = fleet.enroll(device, home)
    connection = fleet.connect(certificate, key)
    assert connection.post(home, "simplereenroll", new_request(device.x509.subject)).status == 200
    watch = Watch(live, neighbour)
    assert connection.post(neighbour, "simplereenroll", new_request(device.x509.subject)).status == 403
    watch.expect_one_refusal("simplereenroll", "certificate-untrusted", identity_of(certificate))
    assert connection.post(home, "simplereenroll", new_request(device.x509.subject)).status == 200


def test_twins_stay_apart(live: Live, fleet: Fleet, tmp_path: Path) -> None:
    """Two makers name a device alike; each gets its own ecosystem's certificate and neither renews the other's."""
    subject = live.device(NORTH).x509.subject
    found = {}
    for label in (NORTH, SOUTH):
        (tmp_path / label).mkdir()
        name = str(subject.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)[0].value)
        twin = make_device(tmp_path / label, name, *live.maker(label))
        found[label] = fleet.enroll(twin, label)
    read = {label: x509.load_pem_x509_certificate(files[0].read_bytes()) for label, files in found.items()}
    assert read[NORTH].subject == read[SOUTH].subject
    assert read[NORTH].issuer != read[SOUTH].issuer
    watch = Watch(live, NORTH)
    answer = fleet.connect(*found[SOUTH]).post(NORTH, "simplereenroll", new_request(subject))
    assert answer.status == 403
    watch.expect_one_refusal("simplereenroll", "certificate-untrusted", identity_of(found[SOUTH][0]))


# --- enrollment codes --------------------------------------------------------------------------------------------------


@_BOTH_WAYS
def test_a_foreign_code(live: Live, fleet: Fleet, home: str, neighbour: str) -> None:
    """RFC 7030 §3.2.3: to the neighbour it is no credential at all, so 401 rather than 403; at home it stays unspent."""
    device, code = live.code(home)
    watch = Watch(live, neighbour)
    connection = fleet.connect()
    answer = connection.post(neighbour, "simpleenroll", new_request(named(device)), basic(device, code))
    assert (answer.status, answer.body) == (401, b"")
    watch.expect_one_refusal("simpleenroll", "credential-invalid", f"code:{device}")
    answer = connection.post(home, "simpleenroll", new_request(named(device)), basic(device, code))
    assert live.stored(answer.certificate.public_bytes(Encoding.DER))[0]["label"] == home


def test_a_foreign_code_on_a_connection_that_spent_it_at_home(live: Live, fleet: Fleet) -> None:
    device, code = live.code(SOUTH)
    connection, csr = fleet.connect(), new_request(named(device))
    assert connection.post(SOUTH, "simpleenroll", csr, basic(device, code)).status == 200
    watch = Watch(live, NORTH)
    assert connection.post(NORTH, "simpleenroll", csr, basic(device, code)).status == 401
    watch.expect_one_refusal("simpleenroll", "credential-invalid", f"code:{device}")


def test_a_foreign_code_beside_a_good_certificate(live: Live, fleet: Fleet) -> None:
    """The credential that is shown on purpose decides; a wrong one is not overlooked for the sake of a right one."""
    device, (name, code) = live.device(NORTH), live.code(SOUTH)
    watch = Watch(live, NORTH)
    connection = fleet.connect(device.certificate, device.key)
    answer = connection.post(NORTH, "simpleenroll", new_request(device.x509.subject), basic(name, code))
    assert answer.status == 401
    watch.expect_one_refusal("simpleenroll", "credential-invalid", f"code:{name}")


def test_a_good_code_beside_a_foreign_certificate(live: Live, fleet: Fleet) -> None:
    """The code alone says who this is; the certificate of another world adds nothing to it."""
    device, (name, code) = live.device(SOUTH), live.code(NORTH)
    connection = fleet.connect(device.certificate, device.key)
    answer = connection.post(NORTH, "simpleenroll", new_request(named(name)), basic(name, code))
    (row,) = live.stored(answer.certificate.public_bytes(Encoding.DER))
    assert row["label"] == NORTH
    assert row["identity"].startswith("code:")
    # and it does not lend its name to the code
    name, code = live.code(NORTH)
    answer = connection.post(NORTH, "simpleenroll", new_request(device.x509.subject), basic(name, code))
    assert answer.status == 400


# --- the server's own ecosystem ----------------------------------------------------------------------------------------


def test_the_servers_own_ecosystem_has_no_label_outside(live: Live, fleet: Fleet) -> None:
    device = live.device(NORTH)
    assert INTERNAL_LABEL in {row["label"] for row in live.sql("SELECT label FROM ecosystem")}
    connection = fleet.connect(device.certificate, device.key)
    assert connection.post(INTERNAL_LABEL, "simpleenroll", new_request(device.x509.subject)).status == 404


def test_every_certificate_is_signed_by_its_own_ecosystem(live: Live) -> None:
    rows = live.sql(
        "SELECT c.der, c.ecosystem_id AS has, i.ecosystem_id AS signs, i.certificate AS issuer"
        " FROM certificate c JOIN issuer i USING (issuer_id)"
    )
    assert rows
    for row in rows:
        assert row["has"] == row["signs"]
        leaf, issuer = x509.load_der_x509_certificate(row["der"]), x509.load_der_x509_certificate(row["issuer"])
        leaf.verify_directly_issued_by(issuer)
