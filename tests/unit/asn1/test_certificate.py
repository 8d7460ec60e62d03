"""The identifying fields of a certificate: the octets that stand there, and nothing but a refusal for anything else."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from factory import make_device, make_maker

from estd.asn1.certificate import read_fields
from estd.errors import Refused


def test_the_fields_are_the_octets_of_the_certificate() -> None:
    maker = make_maker()
    for serial in (1, 0x7F, 0x80, 2**159 - 1):
        device = make_device(maker, serial=serial)
        fields = read_fields(device.der)
        assert int.from_bytes(fields.serial, "big") == serial
        assert fields.issuer == maker.certificate.subject.public_bytes()
        assert fields.subject == device.certificate.subject.public_bytes()
        public = device.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert fields.spki == public


def test_a_first_version_certificate_has_no_version_field() -> None:
    der = make_device(make_maker()).der
    parsed = x509.load_der_x509_certificate(der)
    at = der.index(b"\xa0\x03\x02\x01\x02")
    tbs = parsed.tbs_certificate_bytes
    inner = tbs[4:].replace(b"\xa0\x03\x02\x01\x02", b"", 1)
    short = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner + der[4 + len(tbs) :]
    whole = b"\x30\x82" + len(short).to_bytes(2, "big") + short
    assert at > 0
    assert read_fields(whole).subject == parsed.subject.public_bytes()


def test_anything_shorter_or_longer_is_refused() -> None:
    der = make_device(make_maker()).der
    for end in range(len(der)):
        with pytest.raises(Refused):
            read_fields(der[:end])
    with pytest.raises(Refused):
        read_fields(der + b"\x00")
