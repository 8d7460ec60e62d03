"""An LDevID of IEEE 802.1AR: from an IDevID's names to a certificate, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from cryptography import x509

from estd.asn1 import der
from estd.ca.issuer import Issuer
from estd.errors import Refused
from estd.keys.software import SoftwareKey
from estd.names import write_name, write_san
from estd.wire.pkcs10 import VerifiedRequest

HARDWARE = "other:1.3.6.1.5.5.7.8.4=#" + der.sequence(der.oid("1.2.3.4"), der.octet_string(b"SN1")).hex()
IDEVID = write_name("serialNumber=SN1,CN=Model X,O=Maker,C=CH")


@pytest.fixture(scope="module")
def issuer(make_hierarchy: Callable[..., Any], head: str) -> Issuer:
    text = f'{head}[profile.ldevid]\nbase = "ldevid"\nissuer = "devices"\nenroll = []\n'
    return make_hierarchy(text).issuer()


def test_names_of_the_birth_certificate_are_kept(
    issuer: Issuer,
    device_key: SoftwareKey,
    make_request: Callable[..., VerifiedRequest],
    now: datetime,
    randomness: bytes,
) -> None:
    san = write_san([HARDWARE])
    approved = issuer.prepare("ldevid", make_request(device_key), IDEVID, san, now, randomness)
    certificate = x509.load_der_x509_certificate(issuer.seal(approved))
    assert certificate.subject.public_bytes() == IDEVID
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.public_bytes() == san
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.value.digital_signature, usage.value.key_agreement, usage.critical) == (True, False, True)
    assert certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("CN=Model X", []),
        ("serialNumber=SN1,UID=x", []),
        ("serialNumber=SN1", ["dns:a.example.com"]),
        ("serialNumber=SN1", [HARDWARE, HARDWARE]),
    ],
)
def test_what_is_no_ldevid(
    subject: str,
    names: list[str],
    issuer: Issuer,
    device_key: SoftwareKey,
    make_request: Callable[..., VerifiedRequest],
    now: datetime,
    randomness: bytes,
) -> None:
    san = write_san(names) if names else None
    with pytest.raises(Refused):
        issuer.prepare("ldevid", make_request(device_key), write_name(subject), san, now, randomness)
