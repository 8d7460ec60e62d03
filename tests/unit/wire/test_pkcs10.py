"""estd.wire.pkcs10: one meaning, and a signature that was checked."""

import contextlib
import dataclasses
import time
from functools import cache

import msgspec
import pytest
from asn1crypto import csr as judge
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_certificates import ODD_EXTENSIONS

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.errors import Broken, Code, Refused
from estd.names import EMPTY_NAME, write_name, write_san
from estd.wire.pkcs10 import (
    ChangeSubjectName,
    VerifiedRequest,
    read_asked,
    read_request,
    read_request_again,
    verify_request,
)

KEY = ec.generate_private_key(ec.SECP256R1())
SAN = write_san(["dns:device.example.com", "uri:urn:dev:1"])
ES256 = der.sequence(der.oid("ecdsaWithSHA256"))


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def spki_of(public: object) -> bytes:
    encoding: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined] # every public key has it
    return encoding


def attribute(kind: str, *values: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.set_of(values))


def extension(kind: str, value: bytes, critical: bool = False) -> bytes:
    return der.sequence(der.oid(kind), der.boolean(True) if critical else b"", der.octet_string(value))


def extension_request(*extensions: bytes, kind: str = "extensionRequest") -> bytes:
    return attribute(kind, der.sequence(*extensions))


def info_of(
    *attributes: bytes,
    subject: bytes | None = None,
    spki: bytes | None = None,
    version: bytes = b"\x02\x01\x00",
    tail: bytes = b"",
) -> bytes:
    return der.sequence(
        version,
        write_name("CN=Device 1,O=Acme") if subject is None else subject,
        spki_of(KEY.public_key()) if spki is None else spki,
        der.set_of(attributes, 0xA0),
        tail,
    )


def signed(info: bytes, algorithm: bytes = ES256, signature: bytes | None = None) -> bytes:
    if signature is None:
        signature = KEY.sign(info, ec.ECDSA(hashes.SHA256()))
    return der.sequence(info, algorithm, der.bit_string(signature))


FULL = signed(
    info_of(
        extension_request(
            extension("subjectAltName", SAN, critical=True),
            extension("keyUsage", der.named_bits([0])),
            extension("extKeyUsage", der.sequence(der.oid("clientAuth"))),
        ),
        attribute("challengePassword", der.printable("secret")),
        attribute("otpChallenge", der.utf8("otp")),
        attribute("revocationChallenge", der.utf8("stop")),
        attribute("estIdentityLinking", der.utf8("YmluZGluZw==")),
        attribute("changeSubjectName", der.sequence(write_name("CN=New"), der.implicit(1, SAN))),
        attribute("1.2.3.4", der.NULL, der.integer(1)),
    )
)


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as refused:
        read_request(data)
    return refused.value


@pytest.mark.parametrize("what", ODD_EXTENSIONS)
def test_an_extension_that_the_second_parser_cannot_read_is_malformed(what: str) -> None:
    assert refusal(signed(info_of(extension_request(ODD_EXTENSIONS[what])))).code is Code.CSR_MALFORMED


def test_everything_a_request_can_say() -> None:
    request = read_request(FULL)
    assert request.der == FULL
    assert request.subject == write_name("CN=Device 1,O=Acme")
    assert request.name.text == "CN=Device 1,O=Acme"
    assert request.spki == spki_of(KEY.public_key())
    assert request.key_type == "ec-p256"
    assert request.signature_algorithm == ES256
    assert request.san == SAN
    assert [name.text for name in request.sans] == ["dns:device.example.com", "uri:urn:dev:1"]
    assert set(request.extensions) == {OIDS["subjectAltName"], OIDS["keyUsage"], OIDS["extKeyUsage"]}
    assert request.extensions[OIDS["subjectAltName"]].critical
    assert request.extensions[OIDS["keyUsage"]].value == der.named_bits([0])
    assert not request.extensions[OIDS["keyUsage"]].critical
    assert request.challenge_password == "secret"
    assert request.otp_challenge == "otp"
    assert request.revocation_challenge == "stop"
    assert request.est_identity_linking == "YmluZGluZw=="
    assert request.change_subject_name == ChangeSubjectName(write_name("CN=New"), SAN)
    assert request.attributes["1.2.3.4"] == (der.integer(1), der.NULL)
    assert len(request.attributes) == 7
    assert (request.sha256, request.spki_sha256) != (b"", b"")
    assert verify_request(request).request is request


def test_another_parser_reads_the_same() -> None:
    request = read_request(FULL)
    theirs = judge.CertificationRequest.load(FULL, strict=True)["certification_request_info"]
    assert theirs.dump() == request.info
    assert theirs["subject"].dump() == request.subject
    assert theirs["subject_pk_info"].dump() == request.spki
    assert {one["type"].dotted for one in theirs["attributes"]} == set(request.attributes)


def test_a_bare_request() -> None:
    request = read_request(signed(info_of(subject=EMPTY_NAME)))
    assert request.subject == EMPTY_NAME
    assert request.san is None
    assert request.sans == ()
    assert not request.attributes
    assert not request.extensions
    assert request.challenge_password is None
    assert request.change_subject_name is None


def test_truncated_at_each_byte_and_followed_by_one() -> None:
    for length in range(len(FULL)):
        assert refusal(FULL[:length]).code is Code.CSR_MALFORMED
    assert refusal(FULL + b"\0").code is Code.CSR_MALFORMED


def test_what_is_asked_for_is_what_the_whole_request_asks_for() -> None:
    whole = read_request(FULL)
    assert whole.san is not None
    assert read_asked(FULL) == (whole.subject, whole.san, whole.spki)
    bare = signed(info_of())
    assert read_request(bare).attributes == {}
    assert read_asked(bare) == (read_request(bare).subject, None, read_request(bare).spki)
    # A request that is cut short has no names, or is refused by whoever reads it whole.
    for length in range(len(bare)):
        with pytest.raises(Refused):
            read_asked(bare[:length])


def test_read_again_it_says_the_same() -> None:
    again = read_request_again(FULL)
    assert again == read_request(FULL)
    assert verify_request(again).request == again
    for length in range(len(FULL)):
        with pytest.raises(Refused) as refused:
            read_request_again(FULL[:length])
        assert refused.value.code is Code.CSR_MALFORMED
    with pytest.raises(Refused):
        read_request_again(FULL + b"\0")


def test_reading_again_leaves_the_names_to_whoever_uses_them() -> None:
    nul = write_name("CN=a").replace(b"\x0c\x01a", b"\x0c\x01\0")
    again = read_request_again(signed(info_of(subject=nul)))
    assert again.subject == nul
    with pytest.raises(Refused):
        _ = again.name


@settings(max_examples=300)
@given(st.integers(0, len(FULL) * 8 - 1))
def test_no_flipped_bit_is_believed(bit: int) -> None:
    flipped = bytearray(FULL)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Refused):
        verify_request(read_request(bytes(flipped)))


@given(st.binary(max_size=300))
def test_random_bytes_never_crash(data: bytes) -> None:
    for encoding in (data, der.sequence(data), signed(der.sequence(b"\x02\x01\x00", data)), signed(info_of(data))):
        with contextlib.suppress(Refused):
            read_request(encoding)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(signed(info_of(version=b"\x02\x01\x01")), id="version 1"),
        pytest.param(signed(info_of(version=b"\x02\x02\x00\x00")), id="version not minimal"),
        pytest.param(signed(info_of(tail=der.NULL)), id="after the attributes"),
        pytest.param(der.sequence(info_of(), ES256, der.bit_string(b"a"), der.NULL), id="after the signature"),
        pytest.param(der.sequence(info_of(), ES256, der.octet_string(b"a")), id="no bit string"),
        pytest.param(b"\x30\x80" + info_of() + ES256 + der.bit_string(b"a") + b"\0\0", id="indefinite length"),
        pytest.param(signed(der.sequence(b"\x02\x01\x00", EMPTY_NAME, spki_of(KEY.public_key()))), id="no attributes"),
        pytest.param(signed(info_of(subject=write_name("CN=a").replace(b"\x0c\x01a", b"\x0c\x01\0"))), id="NUL"),
        pytest.param(signed(info_of(attribute("1.2.3", der.NULL), attribute("1.2.3", der.NULL))), id="attribute twice"),
        pytest.param(signed(info_of(attribute("1.2.3"))), id="attribute without value"),
        pytest.param(signed(info_of(der.sequence(der.oid("1.2.3"), der.set_of([der.NULL]), der.NULL))), id="third"),
        pytest.param(signed(info_of(attribute("1.2.3", b"\x24\x00"))), id="value in pieces"),
        pytest.param(signed(info_of(*[attribute(f"1.2.{n}", der.NULL) for n in range(33)])), id="33 attributes"),
        pytest.param(
            signed(info_of(attribute("1.2.3", der.NULL), attribute("1.2.2", der.NULL))).replace(
                attribute("1.2.2", der.NULL) + attribute("1.2.3", der.NULL),
                attribute("1.2.3", der.NULL) + attribute("1.2.2", der.NULL),
            ),
            id="attributes out of order",
        ),
        pytest.param(signed(info_of(extension_request())), id="no extension"),
        pytest.param(signed(info_of(attribute("extensionRequest", der.sequence(), der.NULL))), id="two values"),
        pytest.param(signed(info_of(attribute("extensionRequest", der.NULL))), id="no extensions"),
        pytest.param(signed(info_of(extension_request(*[extension("1.2.3", der.NULL)] * 2))), id="extension twice"),
        pytest.param(
            signed(info_of(extension_request(*[extension(f"1.2.{n}", der.NULL) for n in range(33)]))),
            id="33 extensions",
        ),
        pytest.param(
            signed(
                info_of(
                    extension_request(extension("1.2.3", der.NULL)),
                    extension_request(extension("1.2.4", der.NULL), kind="microsoftExtensionRequest"),
                )
            ),
            id="extensions under two identifiers",
        ),
        pytest.param(
            signed(info_of(extension_request(der.sequence(der.oid("1.2.3"), der.boolean(False), b"\x04\0")))),
            id="critical FALSE encoded",
        ),
        pytest.param(signed(info_of(extension_request(extension("1.2.3", b"\x05\0\0")))), id="value not DER"),
        pytest.param(signed(info_of(extension_request(extension("1.2.3", b"")))), id="value empty"),
        pytest.param(
            signed(info_of(extension_request(extension("basicConstraints", der.integer(1))))), id="value not its type"
        ),
        pytest.param(
            signed(info_of(extension_request(extension("subjectAltName", der.sequence(der.tlv(0x82, b"a\0b")))))),
            id="NUL in a dNSName",
        ),
        pytest.param(
            signed(info_of(extension_request(extension("subjectAltName", der.sequence(der.tlv(0x82, b"a.b.")))))),
            id="trailing dot",
        ),
        pytest.param(
            signed(
                info_of(extension_request(extension("subjectAltName", der.sequence(*[der.tlv(0x82, b"a.b")] * 65))))
            ),
            id="65 names",
        ),
        pytest.param(signed(info_of(attribute("challengePassword", der.octet_string(b"a")))), id="no string"),
        pytest.param(signed(info_of(attribute("challengePassword", der.utf8("")))), id="empty challenge"),
        pytest.param(signed(info_of(attribute("challengePassword", der.utf8("a" * 256)))), id="long challenge"),
        pytest.param(signed(info_of(attribute("challengePassword", der.utf8("a"), der.utf8("b")))), id="two"),
        pytest.param(signed(info_of(attribute("changeSubjectName", der.sequence()))), id="no change"),
        pytest.param(signed(info_of(attribute("changeSubjectName", der.sequence(SAN, write_name("CN=a"))))), id="turn"),
        pytest.param(signed(info_of(attribute("changeSubjectName", der.sequence(SAN, SAN)))), id="two SANs"),
        pytest.param(signed(info_of(attribute("changeSubjectName", der.sequence(EMPTY_NAME, EMPTY_NAME)))), id="names"),
        pytest.param(signed(info_of(attribute("changeSubjectName", der.sequence(der.explicit(1, SAN))))), id="[1] EXP"),
    ],
)
def test_what_has_two_meanings_or_none_is_refused(data: bytes) -> None:
    assert refusal(data).code is Code.CSR_MALFORMED


def test_windows_of_old_asks_for_extensions_under_its_own_identifier() -> None:
    old = signed(info_of(extension_request(extension("subjectAltName", SAN), kind="microsoftExtensionRequest")))
    assert read_request(old).san == SAN


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (der.sequence(write_name("CN=New")), ChangeSubjectName(write_name("CN=New"), None)),
        (der.sequence(EMPTY_NAME), ChangeSubjectName(EMPTY_NAME, None)),
        (der.sequence(SAN), ChangeSubjectName(None, SAN)),
        (der.sequence(der.implicit(1, SAN)), ChangeSubjectName(None, SAN)),
        (der.sequence(EMPTY_NAME, SAN), ChangeSubjectName(EMPTY_NAME, SAN)),
        (der.sequence(write_name("CN=New"), SAN), ChangeSubjectName(write_name("CN=New"), SAN)),
    ],
)
def test_change_subject_name_in_either_spelling(value: bytes, expected: ChangeSubjectName) -> None:
    assert read_request(signed(info_of(attribute("changeSubjectName", value)))).change_subject_name == expected


def test_an_unsupported_key_is_named() -> None:
    refused = refusal(signed(info_of(spki=spki_of(ec.generate_private_key(ec.SECP256K1()).public_key()))))
    assert refused.code is Code.KEY_REFUSED
    assert "1.3.132.0.10" in refused.detail


def built(key: object, algorithm: object, **options: object) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device")])
    )
    return builder.sign(key, algorithm, **options).public_bytes(Encoding.DER)  # type: ignore[arg-type] # the table below pairs them


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa_key, hashes.SHA256()),
        (rsa_key, hashes.SHA384()),
        (rsa_key, hashes.SHA512()),
        (lambda: KEY, hashes.SHA256()),
        (lambda: ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
        (lambda: ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()),
        (lambda: ec.generate_private_key(ec.SECP521R1()), hashes.SHA256()),
        (ed25519.Ed25519PrivateKey.generate, None),
        (mldsa.MLDSA44PrivateKey.generate, None),
        (mldsa.MLDSA65PrivateKey.generate, None),
        (mldsa.MLDSA87PrivateKey.generate, None),
    ],
)
def test_signatures_of_every_kind(key: object, algorithm: object) -> None:
    data = built(key(), algorithm)  # type: ignore[operator] # a maker of keys
    request = read_request(data)
    assert verify_request(request).request is request
    forged = bytearray(data)
    forged[-1] ^= 1
    with pytest.raises(Refused) as refused:
        verify_request(read_request(bytes(forged)))
    assert refused.value.code is Code.CSR_SIGNATURE


@pytest.mark.parametrize("hash_", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_pss(hash_: hashes.HashAlgorithm) -> None:
    scheme = padding.PSS(padding.MGF1(hash_), hash_.digest_size)
    verify_request(read_request(built(rsa_key(), hash_, rsa_padding=scheme)))


def test_parameters_may_be_absent_in_an_rsa_signature() -> None:
    info = info_of(spki=spki_of(rsa_key().public_key()))
    signature = rsa_key().sign(info, padding.PKCS1v15(), hashes.SHA256())
    for parameters in (der.NULL, b""):
        algorithm = der.sequence(der.oid("sha256WithRSAEncryption"), parameters)
        verify_request(read_request(signed(info, algorithm, signature)))


@pytest.mark.parametrize(
    "algorithm",
    [
        der.sequence(der.oid("sha1WithRSAEncryption"), der.NULL),
        der.sequence(der.oid("md5WithRSAEncryption"), der.NULL),
        der.sequence(der.oid("ecdsaWithSHA1")),
        der.sequence(der.oid("ecdsaWithSHA256"), der.NULL),
        der.sequence(der.oid("ed25519")),
        der.sequence(der.oid("sha256WithRSAEncryption"), der.NULL),
        der.sequence(der.oid("rsassaPss")),
        der.sequence(der.oid("rsassaPss"), der.NULL),
        der.sequence(der.oid("1.2.3.4"), der.NULL),
    ],
)
def test_other_signature_algorithms_are_refused(algorithm: bytes) -> None:
    with pytest.raises(Refused) as refused:
        verify_request(read_request(signed(info_of(), algorithm)))
    # The second parser already refuses some parameters.
    assert refused.value.code in (Code.CSR_SIGNATURE, Code.CSR_MALFORMED)


def test_pss_with_sha1_is_refused() -> None:
    info = info_of(spki=spki_of(rsa_key().public_key()))
    scheme = padding.PSS(padding.MGF1(hashes.SHA1()), 20)
    signature = rsa_key().sign(info, scheme, hashes.SHA1())
    with pytest.raises(Refused) as refused:
        verify_request(read_request(signed(info, der.sequence(der.oid("rsassaPss"), der.sequence()), signature)))
    assert refused.value.code is Code.CSR_SIGNATURE


def test_a_signature_over_another_request_is_refused() -> None:
    one = read_request(signed(info_of()))
    other = read_request(signed(info_of(subject=write_name("CN=Other"))))
    with pytest.raises(Refused) as refused:
        verify_request(msgspec.structs.replace(one, signature=other.signature))
    assert refused.value.code is Code.CSR_SIGNATURE


def test_a_point_off_the_curve_is_refused() -> None:
    spki = bytearray(spki_of(KEY.public_key()))
    spki[-1] ^= 1
    with pytest.raises(Refused) as refused:
        verify_request(read_request(signed(info_of(spki=bytes(spki)))))
    assert refused.value.code is Code.KEY_REFUSED


def test_nothing_else_makes_a_verified_request() -> None:
    request = read_request(FULL)
    for maker in (None, object()):
        with pytest.raises(Broken):
            VerifiedRequest(request, maker)
    with pytest.raises((Broken, ValueError, TypeError)):
        dataclasses.replace(verify_request(request), request=request)  # type: ignore[call-arg] # the point


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(signed(info_of(subject=der.sequence(*[b"\x31\x00"] * 30_000))), id="empty RDNs"),
        pytest.param(signed(info_of(attribute("1.2.3", *[der.NULL] * 30_000))), id="many values"),
        pytest.param(
            signed(info_of(extension_request(extension("subjectAltName", der.sequence(*[b"\x82\x01a"] * 20_000))))),
            id="many names",
        ),
        pytest.param(signed(info_of(attribute("1.2.3", der.sequence(*[der.sequence()] * 30_000)))), id="many members"),
        pytest.param(signed(info_of(attribute("1.2.3", b"\x30\x80" * 30_000))), id="nesting"),
        pytest.param(signed(info_of(attribute("challengePassword", der.utf8("a" * 60_000)))), id="long string"),
        pytest.param(b"\x30" * 65_536, id="all sequences"),
    ],
)
def test_a_full_body_of_nonsense_costs_little(data: bytes) -> None:
    assert len(data) > 50_000
    begun = time.process_time()
    with contextlib.suppress(Refused):
        read_request(data)
    assert time.process_time() - begun < 0.05
