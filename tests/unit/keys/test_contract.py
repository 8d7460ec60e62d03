"""The algorithms keys sign with: identifiers as another library writes them. Keys themselves: ``test_software.py``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.asn1.spki import KEY_TYPES
from estd.keys.contract import ALGORITHMS
from estd.keys.software import generate

STARTS = datetime(2031, 1, 1, tzinfo=UTC)
DIGESTS = {"rsa-4096": hashes.SHA384(), "ec-p384": hashes.SHA384(), "ec-p521": hashes.SHA512()}


def test_every_key_type_has_its_algorithm() -> None:
    assert set(ALGORITHMS) == set(KEY_TYPES)


@pytest.mark.parametrize("key_type", [name for name in KEY_TYPES if name not in ("rsa-3072", "rsa-4096")])
def test_identifiers_are_those_another_library_writes(key_type: str) -> None:
    key = generate(key_type).private_key
    digest = None if key_type.startswith(("ed", "ml")) else DIGESTS.get(key_type, hashes.SHA256())
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, STARTS, STARTS + timedelta(days=1))
    certificate = builder.sign(key, digest)  # type: ignore[arg-type]  # every kind of key signs certificates
    algorithm = ALGORITHMS[key_type]
    assert algorithm.identifier in certificate.tbs_certificate_bytes
    assert certificate.signature_algorithm_oid.dotted_string == OIDS[algorithm.name]
    assert len(certificate.signature) <= algorithm.signature_max_bytes


@pytest.mark.parametrize(("key_type", "last"), [("rsa-2048", 11), ("rsa-3072", 11), ("rsa-4096", 12)])
def test_rsa_parameters_are_null(key_type: str, last: int) -> None:
    # RFC 4055 §5
    assert ALGORITHMS[key_type].identifier == der.sequence(der.oid(f"1.2.840.113549.1.1.{last}"), der.NULL)
