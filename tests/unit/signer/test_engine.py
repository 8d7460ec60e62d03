from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from estd.ca.authority import read_authority
from estd.ca.ecosystem import read_document, write_document
from estd.ca.issuer import RANDOM_BYTES, issue_authority
from estd.errors import Broken, Code, Invalid, Refused, Unavailable
from estd.keys.software import SoftwareKey, generate, seal
from estd.names import write_name
from estd.signer.engine import KEPT_SECONDS, IssuanceEngine
from estd.signer.frames import Load, LoadedIssuer, PrepareItem

NOW = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)
KEK = bytes(range(32))
SUBJECT = write_name("CN=pump-17")

DOCUMENT = """
[ecosystem]
label = "plant"

[[issuer]]
name = "root"
subject = "CN=Plant Root"
key = "{key}"
validity = "20y"

[[issuer]]
name = "devices"
parent = "root"
subject = "CN=Plant Devices"
key = "{key}"
validity = "10y"

[profile.device]
issuer = "devices"
keys = ["ec-p256"]
subject = "request"
validity = "{validity}"

[[profile.device.subject_attribute]]
type = "CN"
required = true
pattern = "pump-[0-9]+"
"""


class Plant:
    """An ecosystem as the store would hand it over."""

    def __init__(self, key: str = "ec-p256") -> None:
        self.key_type = key
        self.keys: dict[int, SoftwareKey] = {}
        self.issuers: list[LoadedIssuer] = []
        rules = self.rules()
        self.add(1, "root", None)
        self.add(2, "devices", 1)
        self.document = write_document(rules)

    def rules(self, validity: str = "1y") -> Any:
        text = DOCUMENT.format(key=self.key_type, validity=validity)
        return read_document(text, "plant.toml", _no_files)

    def add(self, issuer_id: int, name: str, parent_id: int | None) -> None:
        key = generate(self.key_type)
        parent = next((issuer for issuer in self.issuers if issuer.issuer_id == parent_id), None)
        certificate = issue_authority(
            self.rules().get_issuer(name),
            key,
            None if parent is None else read_authority(parent.certificate),
            None if parent_id is None else self.keys[parent_id],
            NOW,
            bytes(range(RANDOM_BYTES)),
        )
        self.keys[issuer_id] = key
        sealed = seal(key, KEK, read_authority(certificate).spki)
        self.issuers.append(LoadedIssuer(issuer_id, name, parent_id, certificate, sealed))

    def load(self, version: int = 1, validity: str = "1y") -> Load:
        return Load(1, 7, "plant", version, write_document(self.rules(validity)), tuple(self.issuers))


def _no_files(path: str) -> bytes:
    raise FileNotFoundError(path)


def request(
    key: Any = None,
    name: str = "pump-17",
    version: int = 1,
    profile: str = "device",
    alter: Callable[..., bytes] = bytes,
) -> PrepareItem:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    encoded = alter(csr.public_bytes(serialization.Encoding.DER))
    return PrepareItem(b"k" * 32, 7, version, profile, encoded, write_name(f"CN={name}"), None)


@pytest.fixture
def plant() -> Plant:
    return Plant()


@pytest.fixture
def engine(plant: Plant) -> IssuanceEngine:
    engine = IssuanceEngine()
    engine.unlock(KEK)
    engine.load(plant.load(), 0.0)
    return engine


@pytest.mark.parametrize("key_type", ["ec-p256", "ed25519", "ml-dsa-44", "rsa-2048"])
def test_a_request_becomes_a_certificate(key_type: str):
    plant = Plant(key_type)
    engine = IssuanceEngine()
    engine.unlock(KEK)
    engine.load(plant.load(), 0.0)
    ready = [engine.prepare(request(name=f"pump-{number}"), NOW) for number in range(3)]
    assert {one.issuer_id for one in ready} == {2}
    assert ready[0].not_before <= NOW < ready[0].not_after
    certificates = engine.seal(ready)
    issuer = x509.load_der_x509_certificate(plant.issuers[1].certificate)
    for one, certificate in zip(ready, certificates, strict=True):
        assert isinstance(certificate, bytes)
        parsed = x509.load_der_x509_certificate(certificate)
        parsed.verify_directly_issued_by(issuer)
        assert parsed.tbs_certificate_bytes == one.tbs
        assert parsed.serial_number == int.from_bytes(one.serial, "big")
    assert engine.is_repeatable(2) is (key_type != "ml-dsa-44")
    if key_type == "ml-dsa-44":
        with pytest.raises(Broken):
            engine.repeat(2, ready[0].tbs)
    else:
        assert [engine.repeat(2, one.tbs) for one in ready] == certificates


def test_the_signer_checks_the_request_itself(engine: IssuanceEngine):
    def break_signature(encoded: bytes) -> bytes:
        return encoded[:-1] + bytes([encoded[-1] ^ 1])

    cases = [
        (request(alter=break_signature), Code.CSR_SIGNATURE),
        (request(alter=lambda encoded: encoded + b"\0"), Code.CSR_MALFORMED),
        (request(alter=lambda _encoded: b"0\x00"), Code.CSR_MALFORMED),
        (request(key=rsa.generate_private_key(65537, 2048)), Code.KEY_REFUSED),
        (request(name="valve-1"), Code.SUBJECT_REFUSED),
        (request(profile="nonesuch"), Code.NOT_AUTHORIZED),
    ]
    for item, code in cases:
        with pytest.raises(Refused) as refusal:
            engine.prepare(item, NOW)
        assert refusal.value.code is code


def test_read_ahead_or_not_makes_no_difference(engine: IssuanceEngine):
    good, forged = request(), request(alter=lambda csr: csr[:-1] + bytes([csr[-1] ^ 1]))
    engine.read_all([good, forged, good])
    for _ in range(2):  # what was read ahead is spent by the first
        assert engine.prepare(good, NOW).spki_sha256 == engine.prepare(good, NOW).spki_sha256
        with pytest.raises(Refused) as refused:
            engine.prepare(forged, NOW)
        assert refused.value.code is Code.CSR_SIGNATURE
    engine.read_all([good])
    engine.read_all([])
    assert not engine._read  # nobody came for it


def test_only_loaded_versions_are_served(plant: Plant, engine: IssuanceEngine):
    for version in (0, 2):
        with pytest.raises(Unavailable) as refusal:
            engine.prepare(request(version=version), NOW)
        assert refusal.value.code is Code.SIGNER_UNAVAILABLE
    engine.load(plant.load(2, "30d"), 100.0)
    assert engine.versions() == {7: [1, 2]}
    old, new = (engine.prepare(request(version=version), NOW) for version in (1, 2))
    assert new.not_after < old.not_after
    engine.expire(100.0 + KEPT_SECONDS - 1)
    assert engine.versions() == {7: [1, 2]}
    engine.expire(100.0 + KEPT_SECONDS)
    assert engine.versions() == {7: [2]}
    with pytest.raises(Unavailable):
        engine.prepare(request(version=1), NOW)
    # What was prepared under the version that is gone can still be sealed.
    assert all(isinstance(certificate, bytes) for certificate in engine.seal([old, new]))


def test_an_issuer_that_has_ended_is_told_of_once(
    plant: Plant, engine: IssuanceEngine, caplog: pytest.LogCaptureFixture
):
    late = read_authority(plant.issuers[1].certificate).ends + timedelta(days=1)
    for _ in range(3):
        with pytest.raises(Unavailable, match="the issuer expired on") as caught:
            engine.prepare(request(), late)
        assert caught.value.code is Code.ISSUER_NOT_VALID
    (told,) = caplog.records
    assert told.message == "nothing can be issued under a profile"
    facts = told.__dict__
    assert (facts["ecosystem"], facts["issuer"], facts["profile"]) == ("plant", "devices", "device")
    assert facts["why"] == caught.value.detail
    with pytest.raises(Unavailable, match="the issuer is not valid before"):
        engine.prepare(request(), NOW - timedelta(days=1))
    assert len(caplog.records) == 2


def test_older_or_known_versions_change_nothing(plant: Plant, engine: IssuanceEngine):
    engine.load(plant.load(3), 0.0)
    engine.load(plant.load(2), 0.0)
    engine.load(plant.load(3, "1d"), 0.0)
    assert engine.versions() == {7: [1, 3]}


def test_what_cannot_be_loaded_leaves_the_rest(plant: Plant, engine: IssuanceEngine):
    other = IssuanceEngine()
    other.unlock(bytes(32))
    with pytest.raises(Invalid, match="key-encryption key"):
        other.load(plant.load(), 0.0)
    assert other.versions() == {}
    good = plant.load(2)
    for bad in (
        Load(1, 7, "plant", 2, {}, good.issuers),
        Load(
            1, 7, "plant", 2, good.document, (good.issuers[0], _with_key(good.issuers[1], good.issuers[0].sealed_key))
        ),
        Load(1, 7, "plant", 2, good.document, (good.issuers[0], _with_key(good.issuers[1], b"junk"))),
        Load(1, 7, "plant", 2, good.document, (good.issuers[0], _with_certificate(good.issuers[1], b"0\x00"))),
        Load(1, 7, "plant", 2, good.document, (good.issuers[0], _with_certificate(good.issuers[1], _leaf(plant)))),
    ):
        fresh = IssuanceEngine()
        fresh.unlock(KEK)
        with pytest.raises(Invalid):
            fresh.load(bad, 0.0)
        assert fresh.versions() == {}
    assert engine.versions() == {7: [1]}


def _with_key(issuer: LoadedIssuer, sealed: bytes | None) -> LoadedIssuer:
    return LoadedIssuer(issuer.issuer_id, issuer.name, issuer.parent_id, issuer.certificate, sealed)


def _with_certificate(issuer: LoadedIssuer, certificate: bytes) -> LoadedIssuer:
    return LoadedIssuer(issuer.issuer_id, issuer.name, issuer.parent_id, certificate, issuer.sealed_key)


def _leaf(plant: Plant) -> bytes:
    """A certificate that is no CA's."""
    engine = IssuanceEngine()
    engine.unlock(KEK)
    engine.load(plant.load(), 0.0)
    (certificate,) = engine.seal([engine.prepare(request(), NOW)])
    assert isinstance(certificate, bytes)
    return certificate


def test_a_former_issuer_that_is_damaged_repeats_nothing(plant: Plant, caplog: pytest.LogCaptureFixture):
    """Whoever asks for what it signed is told to come back; nobody else notices."""
    load = plant.load()
    plant.add(3, "devices", 1)
    damaged = (plant.issuers[0], _with_certificate(plant.issuers[1], b"0\x00"), plant.issuers[2])
    engine = IssuanceEngine()
    engine.unlock(KEK)
    engine.load(Load(1, 7, "plant", 1, load.document, damaged), 0.0)
    assert engine.prepare(request(), NOW).issuer_id == 3
    assert engine.is_repeatable(2) is None
    with pytest.raises(Unavailable):
        engine.repeat(2, b"0\x00")
    assert "a former issuer cannot be used" in caplog.text


def test_an_issuer_without_its_key_signs_nothing(plant: Plant):
    engine = IssuanceEngine()
    engine.unlock(KEK)
    load = plant.load()
    engine.load(Load(1, 7, "plant", 1, load.document, (load.issuers[0], _with_key(load.issuers[1], None))), 0.0)
    with pytest.raises(Unavailable, match="not here"):
        engine.prepare(request(), NOW)
    assert engine.is_repeatable(2) is None


def test_the_newest_issuer_of_a_name_signs_and_the_one_before_can_repeat(plant: Plant, engine: IssuanceEngine):
    before = engine.prepare(request(), NOW)
    (certificate,) = engine.seal([before])
    plant.add(3, "devices", 1)
    fresh = IssuanceEngine()
    fresh.unlock(KEK)
    fresh.load(plant.load(2), 0.0)
    assert fresh.prepare(request(version=2), NOW).issuer_id == 3
    assert fresh.is_repeatable(2) is True
    assert fresh.repeat(2, before.tbs) == certificate


def test_one_batch_may_have_several_issuers(plant: Plant, engine: IssuanceEngine):
    first = engine.prepare(request(), NOW)
    plant.add(3, "devices", 1)
    engine.load(plant.load(2), 0.0)
    second = engine.prepare(request(version=2), NOW)
    third = engine.prepare(request(version=1), NOW)
    certificates = engine.seal([first, second, third])
    issuers = {issuer.issuer_id: x509.load_der_x509_certificate(issuer.certificate) for issuer in plant.issuers}
    for one, certificate in zip((first, second, third), certificates, strict=True):
        assert isinstance(certificate, bytes)
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(issuers[one.issuer_id])


def test_a_forged_journal_does_not_get_what_no_profile_allows(engine: IssuanceEngine):
    tbs = engine.prepare(request(), NOW).tbs
    ca_true = tbs.replace(bytes.fromhex("0603551d130101ff04023000"), bytes.fromhex("0603551d130101ff04033003"))
    assert ca_true != tbs
    with pytest.raises(Refused) as refusal:
        engine.repeat(2, ca_true)
    assert refusal.value.code is Code.LINT
    with pytest.raises(Refused):
        engine.repeat(2, b"0\x00")


def test_issuers_nobody_loaded_cannot_repeat(engine: IssuanceEngine):
    assert engine.is_repeatable(99) is None
    with pytest.raises(Unavailable):
        engine.repeat(99, b"0\x00")


def test_a_dropped_ecosystem_is_gone(engine: IssuanceEngine):
    ready = engine.prepare(request(), NOW)
    engine.drop(7)
    engine.drop(8)
    assert engine.versions() == {}
    assert engine.is_repeatable(2) is None
    with pytest.raises(Unavailable):
        engine.prepare(request(), NOW)
    with pytest.raises(Unavailable):
        engine.repeat(2, ready.tbs)


def test_serials_differ(engine: IssuanceEngine):
    item = request()
    engine.read_all([item] * 20)
    assert len({engine.prepare(item, NOW).serial for _ in range(50)}) == 50
    serials = {engine.prepare(item, NOW + timedelta(seconds=second)).serial for second in range(50)}
    assert len(serials) == 50
