"""estd.wire.cms: certs-only messages."""

import contextlib
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given
from hypothesis import strategies as st

from estd.asn1 import der
from estd.errors import Code, Refused
from estd.wire.cms import MAX_BYTES, read_certs_only, write_certs_only


def certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(1)
        .public_key(key.public_key())
        .not_valid_before(datetime(2025, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2060, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


LONG, SHORT = certificate("a much longer name"), certificate("a")
MESSAGE = write_certs_only([LONG, SHORT])


def test_written_as_other_implementations_write_it() -> None:
    one = x509.load_der_x509_certificate(SHORT)
    assert write_certs_only([SHORT]) == pkcs7.serialize_certificates([one], Encoding.DER)


def test_certificates_stand_in_der_order_and_other_implementations_read_them() -> None:
    der.check_der(MESSAGE)
    assert write_certs_only([SHORT, LONG]) == MESSAGE
    assert read_certs_only(MESSAGE) == sorted([LONG, SHORT])
    theirs = [one.public_bytes(Encoding.DER) for one in pkcs7.load_der_pkcs7_certificates(MESSAGE)]
    assert theirs == sorted([LONG, SHORT])


def test_ber_from_other_servers_is_read() -> None:
    ends = b"\0\0"
    indefinite = (
        b"\x30\x80" + der.oid("signedData") + b"\xa0\x80\x30\x80" + der.integer(1) + der.set_of(())
        + b"\x30\x80" + der.oid("data") + ends + b"\xa0\x80" + LONG + SHORT + ends + der.set_of(()) + ends * 3
    )  # fmt: skip
    assert read_certs_only(indefinite) == [LONG, SHORT]


def test_a_newline_after_the_message_is_forgiven() -> None:
    assert read_certs_only(MESSAGE + b"\n") == sorted([LONG, SHORT])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not CMS",
        SHORT,
        write_certs_only([]),
        der.sequence(der.oid("data"), der.explicit(0, der.octet_string(b""))),
        bytes(MAX_BYTES + 1),
        b"\x30\x80" * 30_000,
    ],
)
def test_what_is_not_certs_only_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_certs_only(data)
    assert refused.value.code is Code.MALFORMED_REQUEST


def test_truncated_at_each_byte() -> None:
    for length in range(len(MESSAGE)):
        with pytest.raises(Refused):
            read_certs_only(MESSAGE[:length])


@given(st.integers(0, len(MESSAGE) * 8 - 1))
def test_bit_flips_never_crash(bit: int) -> None:
    flipped = bytearray(MESSAGE)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(Refused):
        read_certs_only(bytes(flipped))


@given(st.binary(max_size=200))
def test_random_bytes_never_crash(data: bytes) -> None:
    for message in (data, der.sequence(data), der.sequence(der.oid("signedData"), der.explicit(0, der.sequence(data)))):
        with contextlib.suppress(Refused):
            read_certs_only(message)
