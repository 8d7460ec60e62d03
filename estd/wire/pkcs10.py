"""PKCS #10 certification requests (RFC 2986): bytes to a value, and the proof that the sender holds the key.

Promises one meaning: the request is read here as strict DER and by `cryptography`, and where the two disagree it is
refused (BER, trailing bytes, an attribute or extension twice, a NUL in a name). The attributes of RFC 2985, RFC 6402,
RFC 7894 and RFC 9908 become fields, any other is kept by its identifier. `verify_request` is the only maker of a
`VerifiedRequest`, so whoever holds one knows that the signature was checked.

What the request asks for is not judged here; only its form (`Code.CSR_MALFORMED`), the kind of key
(`Code.KEY_REFUSED`) and the signature (`Code.CSR_SIGNATURE`). No I/O, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from types import MappingProxyType
from typing import Any, cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from estd.asn1 import der
from estd.asn1.foreign import Unreadable, reading
from estd.asn1.oids import OIDS
from estd.asn1.spki import key_type
from estd.errors import Broken, Code, Refused
from estd.names import GeneralName, Name, read_name, read_san

MAX_ATTRIBUTES = 32
MAX_EXTENSIONS = 32
MAX_CHALLENGE_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Extension:
    """A requested extension (RFC 5280 §4.2). `value` is what is inside extnValue, strict DER."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class ChangeSubjectName:
    """The names a re-enrolling client wants from now on (RFC 6402 §2.8); one of the two at least is there.

    An absent `subject` asks for the empty name, an absent `san` for a certificate without alternative names.
    """

    subject: bytes | None
    san: bytes | None
    """A SubjectAltName, as the value of the extension would be."""


class CertificationRequest(msgspec.Struct, frozen=True):
    """What a request says. Its signature has not been checked; see `VerifiedRequest`."""

    der: bytes
    info: bytes
    """The CertificationRequestInfo: what is signed."""
    subject: bytes
    spki: bytes
    spki_sha256: bytes
    key_type: str
    signature_algorithm: bytes
    """AlgorithmIdentifier, whole element."""
    signature: bytes
    attributes: Mapping[str, tuple[bytes, ...]]
    """Dotted type to the values' elements, every attribute included."""
    extensions: Mapping[str, Extension]
    """Dotted identifier to the requested extension (RFC 2985 §5.4.2)."""
    san: bytes | None
    """The value of the requested subjectAltName extension."""
    challenge_password: str | None = None
    """RFC 2985 §5.4.1; RFC 7030 §3.5 puts the channel binding here."""
    otp_challenge: str | None = None
    """RFC 7894 §3.1."""
    revocation_challenge: str | None = None
    """RFC 7894 §3.2."""
    est_identity_linking: str | None = None
    """RFC 7894 §3.3."""
    change_subject_name: ChangeSubjectName | None = None

    @property
    def sha256(self) -> bytes:
        """The hash of `der`."""
        return hashlib.sha256(self.der).digest()

    @property
    def name(self) -> Name:
        """`subject` as read."""
        return read_name(self.subject)

    @property
    def sans(self) -> tuple[GeneralName, ...]:
        """`san` as read."""
        return () if self.san is None else read_san(self.san)


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """A request whose sender proved to hold the private key (RFC 2986 §4.2). Only `verify_request` makes one."""

    request: CertificationRequest
    maker: InitVar[object]

    def __post_init__(self, maker: object) -> None:
        if maker is not _MAKER:
            raise Broken("a VerifiedRequest was made without verifying a signature")


def read_request(data: bytes) -> CertificationRequest:
    """The request these bytes encode."""
    try:
        request = _read_request(data)
        read_name(request.subject)
        if request.san is not None:
            read_san(request.san)
        # After our own caps: the other parser has none.
        _check_other_parser(request)
    except Refused as refused:
        raise _malformed_unless_key(refused) from None
    return request


def read_request_again(data: bytes) -> CertificationRequest:
    """The request of bytes that `read_request` accepted in the process they came to from outside.

    As strict about structure, key and attributes, for whoever does not take that process at its word. It asks no second
    parser and does not read the names: what is signed for takes from a request nothing but the key, whose signature
    `verify_request` checks over the very octets read here, and names are judged where they enter a certificate.
    """
    try:
        return _read_request(data)
    except Refused as refused:
        raise _malformed_unless_key(refused) from None


def read_asked(data: bytes) -> tuple[bytes, bytes | None, bytes]:
    """Subject (DER Name), subjectAltName (DER GeneralNames, or None) and SubjectPublicKeyInfo of a request, no more of it.

    For whoever hands the request on to somebody who reads it whole with `read_request_again`, which refuses everything
    that is refused here; only a request without attributes is read faster.
    """
    info_start = der.read_whole(data, der.SEQUENCE)[0]
    subject_at = der.read_tagged(data, info_start, len(data), der.SEQUENCE)[0] + 3
    subject_stop = der.read_tagged(data, subject_at, len(data), der.SEQUENCE)[1]
    spki_stop = der.read_tagged(data, subject_stop, len(data), der.SEQUENCE)[1]
    if data[spki_stop : spki_stop + 2] != b"\xa0\x00":
        request = read_request_again(data)
        return request.subject, request.san, request.spki
    return data[subject_at:subject_stop], None, data[subject_stop:spki_stop]


def verify_request(request: CertificationRequest) -> VerifiedRequest:
    """Check the signature with the key in the request itself (RFC 7030 §4.2.1).

    The hash is SHA-256 or better: a SHA-1 collision would let one signature stand for two requests.
    """
    kind, verify = _SIGNATURES.get(request.signature_algorithm, (None, None))
    if verify is None:
        kind, verify = _other_signature(request)
    family = request.key_type.partition("-")[0]
    if kind not in (family, request.key_type):
        raise _bad_signature(f"a {request.key_type} key cannot have made this kind of signature")
    try:
        key = load_der_public_key(request.spki)
    except (ValueError, UnsupportedAlgorithm):
        raise Refused(Code.KEY_REFUSED, "the public key is not a valid key of its type", "RFC 2986 §4.1") from None
    try:
        verify(key, request.signature, request.info)
    except (InvalidSignature, ValueError):
        raise _bad_signature("the signature was not made with the key in the request") from None
    return VerifiedRequest(request, _MAKER)


# --- private: reading ------------------------------------------------------------------------------------------------

_MAKER = object()

_EXTENSION_REQUEST = OIDS["extensionRequest"]
_MICROSOFT_EXTENSION_REQUEST = OIDS["microsoftExtensionRequest"]
_SUBJECT_ALT_NAME = OIDS["subjectAltName"]
_CHANGE_SUBJECT_NAME = OIDS["changeSubjectName"]
_CHALLENGES = {
    OIDS["challengePassword"]: "challenge_password",
    OIDS["otpChallenge"]: "otp_challenge",
    OIDS["revocationChallenge"]: "revocation_challenge",
    OIDS["estIdentityLinking"]: "est_identity_linking",
}
_NOTHING: Mapping[str, Any] = MappingProxyType({})
# Attributes whose values are read to their leaves anyway.
_READ_ELSEWHERE = frozenset((_EXTENSION_REQUEST, _CHANGE_SUBJECT_NAME, *_CHALLENGES))


def _malformed(detail: str, clause: str | None = "RFC 2986 §4.1") -> Refused:
    return Refused(Code.CSR_MALFORMED, detail, clause)


def _malformed_unless_key(refused: Refused) -> Refused:
    return refused if refused.code is Code.KEY_REFUSED else _malformed(refused.detail, refused.clause)


def _read_request(data: bytes) -> CertificationRequest:
    start, stop = der.read_whole(data, der.SEQUENCE)
    info_start, info_stop = der.read_tagged(data, start, stop, der.SEQUENCE)
    algorithm_stop = der.read_tagged(data, info_stop, stop, der.SEQUENCE)[1]
    signature_start, signature_stop = der.read_tagged(data, algorithm_stop, stop, der.BIT_STRING)
    if signature_stop != stop:
        raise _malformed("something follows the signature", "RFC 2986 §4.2")

    subject_at = info_start + 3
    if data[info_start:subject_at] != b"\x02\x01\x00":
        raise _malformed("the version is not 0, or the subject does not follow it")
    subject_stop = der.read_tagged(data, subject_at, info_stop, der.SEQUENCE)[1]
    spki_stop = der.read_tagged(data, subject_stop, info_stop, der.SEQUENCE)[1]
    attributes_start, attributes_stop = der.read_tagged(data, spki_stop, info_stop, 0xA0)
    if attributes_stop != info_stop:
        raise _malformed("something follows the attributes")

    info = data[start:info_stop]
    signature = der.read_octets(data, signature_start, signature_stop)
    spki = data[subject_stop:spki_stop]
    kind = key_type(spki)
    spki_sha256 = hashlib.sha256(spki).digest()
    subject, algorithm = data[subject_at:subject_stop], data[info_stop:algorithm_stop]
    if attributes_start == attributes_stop:
        return CertificationRequest(
            data, info, subject, spki, spki_sha256, kind, algorithm, signature, _NOTHING, _NOTHING, None
        )
    attributes = _read_attributes(data, attributes_start, attributes_stop)
    extensions = _read_extensions(attributes)
    san = extensions.get(_SUBJECT_ALT_NAME)
    change = attributes.get(_CHANGE_SUBJECT_NAME)
    return CertificationRequest(
        der=data,
        info=info,
        subject=subject,
        spki=spki,
        spki_sha256=spki_sha256,
        key_type=kind,
        signature_algorithm=algorithm,
        signature=signature,
        attributes=MappingProxyType(attributes),
        extensions=MappingProxyType(extensions),
        san=None if san is None else san.value,
        change_subject_name=None if change is None else _read_change_subject_name(_single(change)),
        **{
            _CHALLENGES[kind]: _read_challenge(_single(values))
            for kind, values in attributes.items()
            if kind in _CHALLENGES
        },
    )


def _check_other_parser(request: CertificationRequest) -> None:
    """Two parsers, one meaning: `cryptography` re-encodes what it understood, and that must be what we read."""
    try:
        with reading():
            other = x509.load_der_x509_csr(request.der)
            agreed = other.tbs_certrequest_bytes == request.info and other.signature == request.signature
            if request.extensions and agreed:
                agreed = {one.oid.dotted_string: one.critical for one in other.extensions} == {
                    dotted: extension.critical for dotted, extension in request.extensions.items()
                }
    except Unreadable as error:
        raise _malformed(f"a second parser refuses the request: {error}") from None
    if not agreed:
        raise _malformed("two parsers read the request differently")


def _read_attributes(data: bytes, at: int, end: int) -> dict[str, tuple[bytes, ...]]:
    attributes: dict[str, tuple[bytes, ...]] = {}
    while at < end:
        start, at = der.read_tagged(data, at, end, der.SEQUENCE)
        kind_start, kind_stop = der.read_tagged(data, start, at, der.OID)
        values_start, values_stop = der.read_tagged(data, kind_stop, at, der.SET)
        kind = der.read_oid(data[kind_start:kind_stop])
        if values_stop != at or values_start == values_stop:
            raise _malformed(f"the attribute {der.oid_name(kind)} is not one type and a set of values")
        if kind in attributes:
            raise _malformed(f"the attribute {der.oid_name(kind)} stands there twice")
        if len(attributes) == MAX_ATTRIBUTES:
            raise _malformed(f"there are more than {MAX_ATTRIBUTES} attributes")
        values = []
        for _, value_at, _, value_stop in der.read_members(data, values_start, values_stop):
            if kind not in _READ_ELSEWHERE:
                der.check_der(data, value_at, value_stop)
            values.append(data[value_at:value_stop])
        attributes[kind] = tuple(values)
    return attributes


def _read_extensions(attributes: Mapping[str, tuple[bytes, ...]]) -> dict[str, Extension]:
    """RFC 2985 §5.4.2. Windows of old writes the same value under an identifier of its own; never both."""
    values = attributes.get(_EXTENSION_REQUEST)
    theirs = attributes.get(_MICROSOFT_EXTENSION_REQUEST)
    if values is None:
        values = theirs
    elif theirs is not None:
        raise _malformed("extensions are requested under two identifiers", "RFC 2985 §5.4.2")
    if values is None:
        return {}
    data = _single(values)
    at, end = der.read_whole(data, der.SEQUENCE)
    if at == end:
        raise _malformed("an extension request requests nothing", "RFC 5280 §4.1.2.9")
    extensions: dict[str, Extension] = {}
    while at < end:
        start, at = der.read_tagged(data, at, end, der.SEQUENCE)
        kind_start, value_at = der.read_tagged(data, start, at, der.OID)
        kind = der.read_oid(data[kind_start:value_at])
        # DEFAULT FALSE is never encoded (X.690 §11.5).
        critical = data[value_at : value_at + 3] == b"\x01\x01\xff"
        value_start, value_stop = der.read_tagged(data, value_at + 3 * critical, at, der.OCTET_STRING)
        if value_stop != at:
            raise _malformed(f"something follows the value of the extension {der.oid_name(kind)}", "RFC 5280 §4.1")
        if kind in extensions:
            raise _malformed(f"the extension {der.oid_name(kind)} is requested twice", "RFC 5280 §4.2")
        if len(extensions) == MAX_EXTENSIONS:
            raise _malformed(f"more than {MAX_EXTENSIONS} extensions are requested")
        if kind != _SUBJECT_ALT_NAME:
            der.check_der(data, value_start, value_stop)
        extensions[kind] = Extension(critical, data[value_start:value_stop])
    return extensions


def _single(values: tuple[bytes, ...]) -> bytes:
    if len(values) != 1:
        raise _malformed("an attribute that has one value has several", "RFC 2985 §5.4")
    return values[0]


def _read_challenge(value: bytes) -> str:
    """DirectoryString, or the IA5String that OpenSSL may write (RFC 2985 §5.4.1, RFC 7894 §3)."""
    tag, start, stop = der.read_tlv(value, 0, len(value))
    text = der.read_string(tag, value[start:stop])
    if text is None or not 1 <= len(text) <= MAX_CHALLENGE_CHARACTERS:
        raise _malformed(f"a challenge is not a string of 1 to {MAX_CHALLENGE_CHARACTERS} characters", "RFC 7894 §3")
    return text


def _read_change_subject_name(value: bytes) -> ChangeSubjectName:
    """RFC 6402 §2.8 gives both fields the tag SEQUENCE; erratum 3943 puts [1] on the second. Both spellings are clear.

    The members of a Name are SETs and those of GeneralNames have context tags, and GeneralNames are never empty, so
    that even an untagged lone field can be only one of the two.
    """
    start, stop = der.read_whole(value, der.SEQUENCE)
    subject = san = None
    for tag, at, inner, after in der.read_members(value, start, stop):
        is_san = tag == 0xA1 or (inner < after and value[inner] & 0xC0 == 0x80)
        if tag not in (der.SEQUENCE, 0xA1) or san is not None or (subject is not None and not is_san):
            raise _malformed("ChangeSubjectName is not a subject, then alternative names", "RFC 6402 §2.8")
        if is_san:
            san = der.tlv(der.SEQUENCE, value[inner:after])
            read_san(san)
        else:
            subject = value[at:after]
            read_name(subject)
    if subject is None and san is None:
        raise _malformed("ChangeSubjectName asks for nothing", "RFC 6402 §2.8")
    return ChangeSubjectName(subject, san)


# --- private: signatures ---------------------------------------------------------------------------------------------

_Verify = Callable[[object, bytes, bytes], None]


def _bad_signature(detail: str) -> Refused:
    return Refused(Code.CSR_SIGNATURE, detail, "RFC 2986 §4.2")


def _rsa(hash_: HashAlgorithm, scheme: padding.AsymmetricPadding) -> _Verify:
    def verify(key: object, signature: bytes, info: bytes) -> None:
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(signature, info, scheme, hash_)

    return verify


def _ecdsa(hash_: HashAlgorithm) -> _Verify:
    algorithm = ec.ECDSA(hash_)

    def verify(key: object, signature: bytes, info: bytes) -> None:
        # Not asked of the key itself, whose abstract class answers slowly: `verify_request` knows its type.
        cast(ec.EllipticCurvePublicKey, key).verify(signature, info, algorithm)

    return verify


def _pure(key: object, signature: bytes, info: bytes) -> None:
    assert isinstance(
        key, ed25519.Ed25519PublicKey | mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
    )
    key.verify(signature, info)


_PKCS1 = padding.PKCS1v15()
_HASHES: dict[str, HashAlgorithm] = {"SHA256": SHA256(), "SHA384": SHA384(), "SHA512": SHA512()}
# RFC 4055 §5: the parameters MUST be NULL, and their absence MUST be accepted.
_SIGNATURES: dict[bytes, tuple[str, _Verify]] = {
    **{
        der.sequence(der.oid(f"{name.lower()}WithRSAEncryption"), parameters): ("rsa", _rsa(hash_, _PKCS1))
        for name, hash_ in _HASHES.items()
        for parameters in (der.NULL, b"")
    },
    **{der.sequence(der.oid(f"ecdsaWith{name}")): ("ec", _ecdsa(hash_)) for name, hash_ in _HASHES.items()},
    der.sequence(der.oid("ed25519")): ("ed25519", _pure),
    der.sequence(der.oid("mlDsa44")): ("ml-dsa-44", _pure),
    der.sequence(der.oid("mlDsa65")): ("ml-dsa-65", _pure),
    der.sequence(der.oid("mlDsa87")): ("ml-dsa-87", _pure),
}


def _other_signature(request: CertificationRequest) -> tuple[str, _Verify]:
    """RSASSA-PSS (RFC 4055 §3.1), whose parameters have more than one encoding; everything else is refused."""
    try:
        with reading():
            other = x509.load_der_x509_csr(request.der)
            dotted = other.signature_algorithm_oid.dotted_string
            scheme = other.signature_algorithm_parameters if dotted == OIDS["rsassaPss"] else None
            hash_ = None if scheme is None else _HASHES.get((other.signature_hash_algorithm or SHA256()).name.upper())
    except Unreadable:
        raise _bad_signature("the signature's algorithm or its parameters are not accepted") from None
    if isinstance(scheme, padding.PSS) and hash_ is not None:
        return "rsa", _rsa(hash_, scheme)
    raise _bad_signature(f"signatures by {der.oid_name(dotted)} are not accepted")
