"""Which names a certificate gets: from the credential, the request, the inventory or the profile, and never more."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from factory import NOW, make_csr, make_key, make_maker, make_name, make_record, make_rules
from msgspec.structs import replace

from estd.errors import Code, Refused
from estd.names import same_san, write_san
from estd.ra import admission
from estd.ra.admission import Admitted, Credential, Purpose
from estd.ra.directory import Directory
from estd.ra.naming import decide_names
from estd.store.contract import Device, StoredCertificate
from estd.wire.pkcs10 import CertificationRequest, read_request

SUBJECT = make_name("device-1")
SAN = [x509.DNSName("device-1.campus.example")]
EMPTY = x509.Name([])


def admitted(
    purpose: Purpose, profile: str = "", san: bytes | None = None, inventory: Device | None = None, **credential: Any
) -> Admitted:
    record = make_record(make_rules(make_maker(), profile=profile))
    place = Directory([record], [], None).find_place("campus")
    base = Credential("anchor", "x509:00", "device-1", SUBJECT.public_bytes(), san, spki_sha256=bytes(32))
    return Admitted(replace(base, **credential), place, purpose, inventory, admission._SEAL)


def request(subject: x509.Name = SUBJECT, san: list[x509.GeneralName] | None = None) -> CertificationRequest:
    return read_request(make_csr(subject, san=san or ()))


def refused(who: Admitted, asked: CertificationRequest) -> Code:
    with pytest.raises(Refused) as caught:
        decide_names(who, asked)
    assert caught.value.clause is not None
    return caught.value.code


def test_an_admitted_cannot_be_made_up() -> None:
    with pytest.raises(TypeError, match="made by Admission only"):
        Admitted(None, None, Purpose.ENROLL, None, object())  # type: ignore[arg-type]  # that is the point


def test_the_credentials_subject_may_be_repeated_or_left_out() -> None:
    who = admitted(Purpose.ENROLL)
    assert decide_names(who, request()) == (SUBJECT.public_bytes(), None)
    assert decide_names(who, request(EMPTY)) == (SUBJECT.public_bytes(), None)


def test_the_same_name_in_another_encoding_is_the_same_name() -> None:
    printable = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DEVICE-1 ", x509.name._ASN1Type.PrintableString)])
    subject, _ = decide_names(admitted(Purpose.ENROLL), request(printable))
    # RFC 5280 §7.1: case and outer spaces do not matter; the certificate has the bytes that its credential has.
    assert subject == SUBJECT.public_bytes()


LOOK_ALIKES = ["device\u200b-1", "device\u00ad-1", "\uff44evice-1", "DEVICE-1"]
"""Spellings of device-1 that are equal to it after the string preparation of RFC 4518."""


@pytest.mark.parametrize("spelling", LOOK_ALIKES)
@pytest.mark.parametrize("purpose", [Purpose.ENROLL, Purpose.REENROLL])
def test_no_other_spelling_of_a_name_is_certified(purpose: Purpose, spelling: str) -> None:
    own = write_san(["dns:device-1.campus.example"])
    who = renewal(san=own) if purpose is Purpose.REENROLL else admitted(purpose, 'san = "credential"', own)
    asked = request(make_name(spelling), [x509.DNSName("DEVICE-1.campus.example")])
    assert decide_names(who, asked) == (SUBJECT.public_bytes(), own)


@pytest.mark.parametrize("spelling", LOOK_ALIKES)
def test_the_inventorys_spelling_is_certified(spelling: str) -> None:
    row = Device(1, "device-1", "CN=device-1", ())
    who = admitted(Purpose.ENROLL, 'subject = "inventory"', inventory=row)
    assert decide_names(who, request(make_name(spelling))) == (SUBJECT.public_bytes(), None)


@pytest.mark.parametrize(
    "name",
    [
        make_name("device-2"),
        x509.Name([*SUBJECT, x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Other")]),
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "device-1")]),
    ],
)
def test_another_subject_is_refused(name: x509.Name) -> None:
    assert refused(admitted(Purpose.ENROLL), request(name)) is Code.SUBJECT_REFUSED


@pytest.mark.parametrize(
    "name",
    [
        x509.DNSName("victim.example"),
        x509.DNSName("*.campus.example"),
        x509.IPAddress(ip_address("192.0.2.1")),
        x509.UniformResourceIdentifier("urn:example:victim"),
        x509.RFC822Name("victim@example.com"),
        x509.DirectoryName(make_name("victim")),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4"), b"\x05\x00"),
    ],
    ids=lambda name: type(name).__name__,
)
def test_a_request_cannot_add_any_kind_of_name(name: x509.GeneralName) -> None:
    assert refused(admitted(Purpose.ENROLL), request(san=[name])) is Code.SAN_REFUSED
    with_own = admitted(Purpose.ENROLL, 'san = "credential"', write_san(["dns:device-1.campus.example"]))
    assert refused(with_own, request(san=[*SAN, name])) is Code.SAN_REFUSED


def test_the_credentials_san_is_given_whether_or_not_it_is_asked_for() -> None:
    own = write_san(["dns:Device-1.campus.example"])
    who = admitted(Purpose.ENROLL, 'san = "credential"', own)
    assert decide_names(who, request()) == (SUBJECT.public_bytes(), own)
    assert decide_names(who, request(san=SAN)) == (SUBJECT.public_bytes(), own)


def test_a_profile_may_take_the_requests_names() -> None:
    who = admitted(
        Purpose.ENROLL,
        """
        subject = "request"
        san = "request"
        san_rule = { types = ["dns"] }
        [[profile.device.subject_attribute]]
        type = "CN"
        """,
    )
    other = make_name("what-it-wants")
    subject, san = decide_names(who, request(other, SAN))
    assert subject == other.public_bytes()
    assert same_san(san, write_san(["dns:device-1.campus.example"]))


def test_the_inventorys_names_are_given_and_no_others() -> None:
    row = Device(1, "device-1", "CN=Pump 7,O=Campus", ("uri:urn:campus:pump-7",))
    who = admitted(
        Purpose.ENROLL, 'subject = "inventory"\nsan = "inventory"\nsan_rule = { types = ["uri"] }', inventory=row
    )
    subject, san = decide_names(who, request(EMPTY))
    assert b"Pump 7" in subject
    assert san == write_san(["uri:urn:campus:pump-7"])
    assert refused(who, request(SUBJECT)) is Code.SUBJECT_REFUSED
    assert refused(who, request(EMPTY, SAN)) is Code.SAN_REFUSED


def test_a_device_without_alternative_names_in_the_inventory_gets_none() -> None:
    row = Device(1, "device-1", "CN=Pump 7", ())
    who = admitted(Purpose.ENROLL, 'subject = "inventory"\nsan = "inventory"', inventory=row)
    subject, san = decide_names(who, request(EMPTY))
    assert b"Pump 7" in subject
    assert san is None
    assert refused(who, request(EMPTY, SAN)) is Code.SAN_REFUSED


def renewal(profile: str = "", san: bytes | None = None, spki: bytes = bytes(32)) -> Admitted:
    stored = StoredCertificate(1, b"\x01", 1, "device", "device-1", "", b"", NOW, NOW, NOW, None)
    return admitted(Purpose.REENROLL, profile, san, issued=stored, kind="issued", spki_sha256=spki)


def test_a_renewal_keeps_subject_and_san() -> None:
    own = write_san(["dns:device-1.campus.example"])
    subject, san = decide_names(renewal(san=own), request(san=[x509.DNSName("DEVICE-1.campus.example")]))
    assert (subject, san) == (SUBJECT.public_bytes(), own)


@pytest.mark.parametrize(
    ("name", "san"),
    [
        (make_name("device-2"), SAN),
        (EMPTY, SAN),
        (SUBJECT, []),
        (SUBJECT, [*SAN, x509.DNSName("more.campus.example")]),
        (SUBJECT, [x509.DNSName("other.campus.example")]),
    ],
)
def test_a_renewal_under_other_names_is_refused(name: x509.Name, san: list[x509.GeneralName]) -> None:
    who = renewal(san=write_san(["dns:device-1.campus.example"]))
    assert refused(who, request(name, san)) is Code.IDENTITY_MISMATCH


@pytest.mark.parametrize(
    ("rule", "same_key", "allowed"),
    [
        ("either", True, True),
        ("either", False, True),
        ("rekey", True, False),
        ("rekey", False, True),
        ("same-key", True, True),
        ("same-key", False, False),
    ],
)
def test_the_profile_says_whether_a_renewal_brings_a_new_key(rule: str, same_key: bool, allowed: bool) -> None:
    key = make_key()
    asked = read_request(make_csr(SUBJECT, key))
    who = renewal(f'renew = "{rule}"', spki=asked.spki_sha256 if same_key else bytes(32))
    if allowed:
        assert decide_names(who, asked)[0] == SUBJECT.public_bytes()
    else:
        assert refused(who, asked) is Code.RENEWAL_REFUSED
