"""Templates: the exact bytes, as a foreign reader and a foreign writer see them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_der_public_key

from estd.asn1.spki import read_spki
from estd.ca.document import INFINITE
from estd.ca.template import KEY_IDS, Template, write_certificate, write_extension
from estd.errors import Broken
from estd.keys.software import SoftwareKey
from estd.names import EMPTY_NAME, write_name, write_san

SERIAL = b"\x01" + bytes(range(19))
STARTS, ENDS = datetime(2031, 1, 1, tzinfo=UTC), datetime(2032, 1, 1, tzinfo=UTC)
SUBJECT = write_name("CN=device-1,O=Acme")
SAN = write_san(["dns:a.example.com", "uri:urn:device:1"])


def fill(hierarchy: Any, key: SoftwareKey, subject: bytes = SUBJECT, san: bytes | None = SAN, **changes: Any) -> bytes:
    (profile,) = hierarchy.ecosystem.profiles.values()
    template = Template(profile, changes.pop("authority", hierarchy.devices))
    dates = changes.pop("dates", (STARTS, ENDS))
    return template.fill(SERIAL, *dates, subject, key.spki, san)


def parse(hierarchy: Any, tbs: bytes) -> x509.Certificate:
    key = hierarchy.devices_key
    certificate = x509.load_der_x509_certificate(write_certificate(tbs, key.algorithm, key.sign_many([tbs])[0]))
    assert certificate.tbs_certificate_bytes == tbs
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(hierarchy.devices.certificate))
    return certificate


def test_byte_for_byte_what_another_library_writes(hierarchy: Any, device_key: SoftwareKey) -> None:
    issuer = x509.load_der_x509_certificate(hierarchy.devices.certificate)
    digest = hashlib.sha256(read_spki(device_key.spki)[1]).digest()[:20]
    uri = x509.UniformResourceIdentifier
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject,
        subject_name=x509.Name.from_rfc4514_string("CN=device-1,O=Acme"),
        public_key=load_der_public_key(device_key.spki),  # type: ignore[arg-type]  # an EC key
        serial_number=int.from_bytes(SERIAL, "big"),
        not_valid_before=STARTS,
        not_valid_after=ENDS,
    )
    for extension, critical in (
        (x509.BasicConstraints(False, None), True),
        (x509.KeyUsage(True, *[False] * 8), True),
        (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.AuthorityKeyIdentifier(hierarchy.devices.key_id, None, None), False),
        (
            x509.CRLDistributionPoints(
                [x509.DistributionPoint([uri("http://pki.example.com/devices.crl")], None, None, None)]
            ),
            False,
        ),
        (
            x509.AuthorityInformationAccess(
                [
                    x509.AccessDescription(x509.AuthorityInformationAccessOID.OCSP, uri("http://ocsp.example.com")),
                    x509.AccessDescription(
                        x509.AuthorityInformationAccessOID.CA_ISSUERS, uri("http://pki.example.com/devices.cer")
                    ),
                ]
            ),
            False,
        ),
        (x509.SubjectKeyIdentifier(digest), False),
        (x509.SubjectAlternativeName([x509.DNSName("a.example.com"), uri("urn:device:1")]), False),
    ):
        builder = builder.add_extension(extension, critical)
    theirs = builder.sign(hierarchy.devices_key.private_key, hashes.SHA256())
    assert fill(hierarchy, device_key) == theirs.tbs_certificate_bytes


def test_a_smallest_profile_has_smallest_bytes(
    make_hierarchy: Callable[..., Any], minimal: str, device_key: SoftwareKey
) -> None:
    hierarchy = make_hierarchy(
        minimal
        + "basic_constraints = false\nsubject_key_id = false\naia = false\ncdp = false\nextended_key_usage = []\n"
    )
    certificate = parse(hierarchy, fill(hierarchy, device_key, san=None))
    assert [one.oid for one in certificate.extensions] == [
        x509.KeyUsage.oid,
        x509.AuthorityKeyIdentifier.oid,
    ]


def test_everything_a_profile_may_add(
    make_hierarchy: Callable[..., Any], minimal: str, device_key: SoftwareKey
) -> None:
    hierarchy = make_hierarchy(
        minimal
        + """
key_usage = ["digitalSignature", "keyAgreement", "decipherOnly"]
key_usage_critical = false
extended_key_usage = ["clientAuth", "1.3.6.1.4.1.45605.1"]
extended_key_usage_critical = true
keys = ["ec-p256"]
policies = ["1.3.6.1.4.1.40732.1.3", "1.3.6.1.4.1.40732.2.1"]
policies_critical = true
basic_constraints_critical = false
key_id = "sha1-64"
extension = [{ oid = "1.2.3.4", critical = true, value = "0500" }]
san = "credential"
san_rule = { critical = true }
"""
    )
    certificate = parse(hierarchy, fill(hierarchy, device_key))
    found = {one.oid.dotted_string: one for one in certificate.extensions}
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.value.key_agreement, usage.value.decipher_only, usage.critical) == (True, True, False)
    # X.690 §11.2.2: bit 8 is in a second octet, of which seven bits are unused.
    assert bytes.fromhex("0303078880") in certificate.tbs_certificate_bytes
    assert found["2.5.29.37"].critical is True
    assert [one.policy_identifier.dotted_string for one in found["2.5.29.32"].value] == [
        "1.3.6.1.4.1.40732.1.3",
        "1.3.6.1.4.1.40732.2.1",
    ]
    assert found["2.5.29.32"].critical is True
    assert found["2.5.29.19"].critical is False
    assert found["2.5.29.17"].critical is True
    assert found["1.2.3.4"].critical is True
    assert found["1.2.3.4"].value.value == b"\x05\x00"
    assert len(found["2.5.29.14"].value.digest) == 8


def test_an_empty_subject_makes_the_names_critical(hierarchy: Any, device_key: SoftwareKey) -> None:
    # RFC 5280 §4.2.1.6
    certificate = parse(hierarchy, fill(hierarchy, device_key, subject=EMPTY_NAME))
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical is True
    certificate = parse(hierarchy, fill(hierarchy, device_key))
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical is False


@pytest.mark.parametrize(
    ("dates", "encoded"),
    [
        (
            (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)),
            b"\x17\x0d491231235959Z\x18\x0f20500101000000Z",
        ),
        ((STARTS, INFINITE), b"\x17\x0d310101000000Z\x18\x0f99991231235959Z"),
    ],
)
def test_times_change_their_form_in_2050(
    dates: tuple[datetime, datetime], encoded: bytes, hierarchy: Any, device_key: SoftwareKey
) -> None:
    # RFC 5280 §4.1.2.5
    assert encoded in fill(hierarchy, device_key, dates=dates)


def test_filling_twice_mixes_nothing(hierarchy: Any, device_key: SoftwareKey) -> None:
    (profile,) = hierarchy.ecosystem.profiles.values()
    template = Template(profile, hierarchy.devices)
    one = template.fill(SERIAL, STARTS, ENDS, SUBJECT, device_key.spki, SAN)
    two = template.fill(b"\x02", STARTS, INFINITE, EMPTY_NAME, device_key.spki, SAN)
    assert template.fill(SERIAL, STARTS, ENDS, SUBJECT, device_key.spki, SAN) == one
    assert template.fill(b"\x02", STARTS, INFINITE, EMPTY_NAME, device_key.spki, SAN) == two


@pytest.mark.parametrize("serial", [b"", bytes(21)])
def test_a_serial_number_of_no_length_is_a_fault(serial: bytes, hierarchy: Any, device_key: SoftwareKey) -> None:
    (profile,) = hierarchy.ecosystem.profiles.values()
    with pytest.raises(Broken):
        Template(profile, hierarchy.devices).fill(serial, STARTS, ENDS, SUBJECT, device_key.spki, None)


def test_key_identifiers_by_each_method(device_key: SoftwareKey) -> None:
    octets = read_spki(device_key.spki)[1]
    public_key = load_der_public_key(device_key.spki)
    theirs = x509.SubjectKeyIdentifier.from_public_key(public_key).digest  # type: ignore[arg-type]  # an EC key
    assert KEY_IDS["sha1-160"](octets) == theirs
    assert KEY_IDS["sha256-160"](octets) == hashlib.sha256(octets).digest()[:20]
    # RFC 5280 §4.2.1.2 (2): 0100 and the last 60 bits.
    assert KEY_IDS["sha1-64"](octets).hex() == "4" + theirs.hex()[-15:]


def test_the_default_of_critical_is_not_encoded() -> None:
    assert write_extension("1.2.3", False, b"\x05\x00").hex() == "300806022a0304020500"
    assert write_extension("1.2.3", True, b"\x05\x00").hex() == "300b06022a030101ff04020500"
