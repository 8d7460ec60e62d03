"""The parts of a certificate as `estd.ca.lint` judges them: elements, times, names, keys, extensions.

Reads DER with a walk of its own and knows identifiers by their octets, so that a mistake in `estd.wire.der` or
`estd.ca.template` cannot hide itself. Each function reports findings by their code in `FINDINGS`.

Must not import `estd.wire.der`, `estd.ca.template` or anything of the floors above.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

FINDINGS: Final[Mapping[str, str]] = {
    "x690.10.1.malformed": "the bytes are not one TBSCertificate in strict DER",
    "x690.11.2.2.bits_not_minimal": "a key usage has trailing zero bits",
    "x690.11.5.default_encoded": "a value that is the default is encoded",
    "x690.11.6.set_not_sorted": "the attributes of a multi-valued RDN are not in order",
    "rfc5280.4.1.1.2.algorithm_differs": "the signature algorithm is not the issuer's",
    "rfc5280.4.1.2.1.version_not_3": "the version is not 3",
    "rfc5280.4.1.2.2.serial_not_positive": "the serial number is not positive",
    "rfc5280.4.1.2.2.serial_too_long": "the serial number has more than 20 octets",
    "rfc5280.4.1.2.4.issuer_differs": "the issuer is not the issuing certificate's subject, octet by octet",
    "rfc5280.4.1.2.4.issuer_empty": "the issuer is empty",
    "rfc5280.4.1.2.5.ends_before_start": "notAfter is not later than notBefore",
    "rfc5280.4.1.2.5.time_choice": "a time until 2049 is not a UTCTime, or a later one is",
    "rfc5280.4.1.2.5.time_malformed": "a time is not to the second and in Z",
    "rfc5280.4.1.2.6.ca_subject_empty": "a CA certificate has no subject",
    "rfc5280.4.1.2.6.subject_malformed": "the subject is not a Name",
    "rfc5280.4.1.2.6.subject_string_type": "an attribute has a string type it must not have, or text outside of it",
    "rfc5280.a.1.attribute_length": "an attribute is empty or longer than its upper bound",
    "rfc5280.4.1.2.7.key_malformed": "the public key is not well formed, or of no known algorithm",
    "rfc5280.4.1.2.8.unique_id_present": "there is a unique identifier",
    "rfc5280.4.1.2.9.extensions_missing": "there are no extensions",
    "rfc5280.4.2.critical_unknown": "an extension that verifiers may not know is critical",
    "rfc5280.4.2.extension_malformed": "an extension's value is not what its definition says",
    "rfc5280.4.2.extension_repeated": "an extension stands there twice",
    "rfc5280.4.2.1.1.authority_key_id_critical": "authorityKeyIdentifier is critical",
    "rfc5280.4.2.1.1.authority_key_id_differs": "authorityKeyIdentifier is not the issuer's subjectKeyIdentifier",
    "rfc5280.4.2.1.1.authority_key_id_missing": "authorityKeyIdentifier is missing",
    "rfc5280.4.2.1.2.subject_key_id_critical": "subjectKeyIdentifier is critical",
    "rfc5280.4.2.1.2.subject_key_id_differs": "subjectKeyIdentifier does not follow from the key",
    "rfc5280.4.2.1.2.subject_key_id_missing": "subjectKeyIdentifier is missing",
    "rfc5280.4.2.1.3.ca_without_key_cert_sign": "a CA certificate may not sign certificates",
    "rfc5280.4.2.1.3.key_cert_sign_without_ca": "a certificate that is no CA's may sign certificates",
    "rfc5280.4.2.1.3.key_usage_empty": "a key usage allows nothing",
    "rfc5280.4.2.1.3.key_usage_unfit": "a key usage is not one that a key of this kind may have",
    "rfc5280.4.2.1.3.only_without_agreement": "encipherOnly or decipherOnly stands there without keyAgreement",
    "rfc5280.4.2.1.4.policy_repeated": "a policy stands there twice",
    "rfc5280.4.2.1.6.dns_name_malformed": "a dNSName is not in preferred name syntax",
    "rfc5280.4.2.1.6.ip_address_length": "an iPAddress has neither 4 nor 16 octets",
    "rfc5280.4.2.1.6.mailbox_malformed": "an rfc822Name is not a mailbox",
    "rfc5280.4.2.1.6.name_malformed": "an alternative name is not what its kind says",
    "rfc5280.4.2.1.6.san_empty": "subjectAltName holds no name",
    "rfc5280.4.2.1.6.san_missing": "there is neither a subject nor a subjectAltName",
    "rfc5280.4.2.1.6.san_not_critical": "subjectAltName is not critical although the subject is empty",
    "rfc5280.4.2.1.6.uri_not_absolute": "a uniformResourceIdentifier is not absolute",
    "rfc4108.5.hardware_module_name_malformed": "a hardwareModuleName is not a type and a serial number",
    "rfc5280.4.2.1.9.basic_constraints_missing": "a CA certificate has no basicConstraints",
    "rfc5280.4.2.1.9.ca_not_critical": "basicConstraints of a CA certificate is not critical",
    "rfc5280.4.2.1.9.path_length_exceeded": "the issuer's path length does not allow this CA certificate",
    "rfc5280.4.2.1.9.path_length_without_ca": "there is a path length in a certificate that is no CA's",
    "rfc5280.4.2.1.9.unexpected_ca": "a device's certificate says it is a CA's",
    "rfc5280.4.2.1.10.name_outside": "a name is outside of what an issuer above may name",
    "rfc5280.4.2.1.10.name_constraints_misplaced": "name constraints are not critical, or not in a CA certificate",
    "rfc5280.4.2.1.12.any_purpose_critical": "anyExtendedKeyUsage is in a critical extension",
    "rfc5280.4.2.1.12.purpose_repeated": "a key purpose stands there twice",
    "rfc5280.4.2.1.12.purpose_without_usage": "a key purpose has no key usage that serves it",
    "rfc5280.4.2.1.13.crl_points_critical": "cRLDistributionPoints is critical",
    "rfc5280.4.2.2.1.access_critical": "authorityInfoAccess is critical",
    "rfc9525.6.3.server_without_san": "a server's certificate has no subjectAltName",
    "estd.serial_too_short": "the serial number has no room for 64 random bits, or not the length the profile sets",
    "estd.outside_issuer": "the certificate is valid when its issuer is not",
    "estd.validity_too_long": "the certificate is valid for longer than its profile says",
    "estd.too_large": "the certificate is larger than its profile allows",
    "estd.extension_unexpected": "there is an extension the profile does not name, or not as it names it",
    "estd.key_usage_differs": "the key usage is not that of the profile",
    "estd.purposes_differ": "the key purposes are not those of the profile",
    "estd.policies_differ": "the policies are not those of the profile",
}
"""Every finding, by its code: the standard, the section, the name."""


class Malformed(Exception):
    """Not DER, or not of the shape it must have."""


# --- elements --------------------------------------------------------------------------------------------------------


def element(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Identifier octet, start and end of the contents of the element at `at`."""
    start = at + 2
    if start > end:
        raise Malformed
    length = data[at + 1]
    if length >= 0x80:
        if length == 0x81:
            start += 1
            length = data[at + 2] if start <= end else 0
            if length < 0x80:
                raise Malformed
        elif length == 0x82:
            start += 2
            length = data[at + 2] << 8 | data[at + 3] if start <= end else 0
            if length < 0x100:
                raise Malformed
        else:
            raise Malformed
    stop = start + length
    if stop > end:
        raise Malformed
    return data[at], start, stop


def only(data: bytes, tag: int) -> tuple[int, int]:
    """The contents of the one element that `data` is."""
    found, start, stop = element(data, 0, len(data))
    if found != tag or stop != len(data):
        raise Malformed
    return start, stop


def members(data: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Identifier octet and contents of each element in a range."""
    while start < stop:
        tag, inner, after = element(data, start, stop)
        yield tag, data[inner:after]
        start = after


def dotted(contents: bytes) -> str:
    """An OBJECT IDENTIFIER in numbers (X.690 §8.19)."""
    if _OID.fullmatch(contents) is None:
        raise Malformed
    arcs = [0]
    for octet in contents:
        arcs[-1] = arcs[-1] << 7 | octet & 0x7F
        if octet < 0x80:
            arcs.append(0)
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:-1])))


_OID: Final = re.compile(rb"(?:[\x81-\xff][\x80-\xff]*[\x00-\x7f]|[\x00-\x7f])+", re.DOTALL)


# --- times -----------------------------------------------------------------------------------------------------------


def read_time(tag: int, contents: bytes) -> tuple[datetime | None, str | None]:
    """The time, and what is wrong with how it is written (RFC 5280 §4.1.2.5)."""
    try:
        if _TIME.fullmatch(contents) is None or len(contents) != {0x17: 13, 0x18: 15}.get(tag):
            return None, "rfc5280.4.1.2.5.time_malformed"
        year = int(contents[:-11])
        if tag == 0x17:
            # RFC 5280 §4.1.2.5.1: 50 to 99 are of the 20th century.
            year += 2000 if year < 50 else 1900
        parts = [int(contents[at : at + 2]) for at in range(len(contents) - 11, len(contents) - 1, 2)]
        at = datetime(year, parts[0], parts[1], parts[2], parts[3], parts[4], tzinfo=UTC)
    except ValueError:
        return None, "rfc5280.4.1.2.5.time_malformed"
    return at, "rfc5280.4.1.2.5.time_choice" if tag == 0x18 and year < 2050 else None


_TIME: Final = re.compile(rb"[0-9]{12,14}Z")


# --- names -----------------------------------------------------------------------------------------------------------

_PRINTABLE_STRING, _UTF8_STRING, _IA5_STRING = 0x13, 0x0C, 0x16
_STRING_TYPES: Final[Mapping[bytes, frozenset[int]]] = {
    # RFC 5280 appendix A.1: PrintableString only for these, IA5String only for those.
    b"\x55\x04\x06": frozenset({_PRINTABLE_STRING}),
    b"\x55\x04\x05": frozenset({_PRINTABLE_STRING}),
    b"\x55\x04\x2e": frozenset({_PRINTABLE_STRING}),
    b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19": frozenset({_IA5_STRING}),
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01": frozenset({_IA5_STRING}),
}
_DIRECTORY_STRING: Final = frozenset({_PRINTABLE_STRING, _UTF8_STRING})
_BOUNDS: Final[Mapping[bytes, int]] = {
    # RFC 5280 appendix A.1, upper bounds.
    b"\x55\x04\x03": 64,
    b"\x55\x04\x05": 64,
    b"\x55\x04\x06": 2,
    b"\x55\x04\x07": 128,
    b"\x55\x04\x08": 128,
    b"\x55\x04\x0a": 64,
    b"\x55\x04\x0b": 64,
    b"\x55\x04\x0c": 64,
    b"\x55\x04\x41": 128,
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01": 255,
    b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19": 63,
}
_NOT_PRINTABLE: Final = re.compile(rb"[^A-Za-z0-9 '()+,\-./:=?]")


def judge_name(contents: bytes) -> list[str]:
    """Findings on the contents of a Name (RFC 5280 §4.1.2.4, §4.1.2.6)."""
    findings: list[str] = []
    try:
        for tag, rdn in members(contents, 0, len(contents)):
            if tag != 0x31 or not rdn:
                raise Malformed
            at, previous = 0, b""
            while at < len(rdn):
                inner, start, stop = element(rdn, at, len(rdn))
                if inner != 0x30:
                    raise Malformed
                if rdn[at:stop] < previous:
                    findings.append("x690.11.6.set_not_sorted")
                previous, at = rdn[at:stop], stop
                kind, kind_start, kind_stop = element(rdn, start, stop)
                value, value_start, value_stop = element(rdn, kind_stop, stop)
                if kind != 0x06 or value_stop != stop:
                    raise Malformed
                findings += _judge_attribute(rdn[kind_start:kind_stop], value, rdn[value_start:value_stop])
    except Malformed:
        findings.append("rfc5280.4.1.2.6.subject_malformed")
    return findings


def _judge_attribute(kind: bytes, tag: int, value: bytes) -> list[str]:
    allowed = _STRING_TYPES.get(kind)
    if allowed is None:
        # Attribute types outside X.520 define their own syntax; X.520's are DirectoryStrings.
        allowed = _DIRECTORY_STRING if kind.startswith(b"\x55\x04") and kind not in _OTHER_SYNTAX else None
    length = len(value)
    if tag == _UTF8_STRING:
        try:
            length = len(value.decode("utf-8"))
        except UnicodeDecodeError:
            return ["rfc5280.4.1.2.6.subject_string_type"]
    if (
        (allowed is not None and tag not in allowed)
        or (tag == _PRINTABLE_STRING and _NOT_PRINTABLE.search(value))
        or (tag == _IA5_STRING and not value.isascii())
        or b"\0" in value
    ):
        return ["rfc5280.4.1.2.6.subject_string_type"]
    if not 1 <= length <= _BOUNDS.get(kind, 32_768) or (kind == b"\x55\x04\x06" and length != 2):
        return ["rfc5280.a.1.attribute_length"]
    return []


# x500UniqueIdentifier is a BIT STRING.
_OTHER_SYNTAX: Final = frozenset({b"\x55\x04\x2d"})


# --- keys ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A public key as far as its certificate depends on it."""

    family: str
    octets: bytes
    """Contents of the BIT STRING, without the count of unused bits."""
    signs_with: frozenset[bytes]
    """AlgorithmIdentifiers that such a key may sign certificates with."""


_RSA: Final = bytes.fromhex("300d06092a864886f70d0101010500")
_RSA_SIGNATURES: Final = frozenset(bytes.fromhex(f"300d06092a864886f70d0101{last}0500") for last in ("0b", "0c", "0d"))
_KEYS: Final[Mapping[bytes, tuple[str, int, bytes]]] = {
    # AlgorithmIdentifier → family, octets of the key, AlgorithmIdentifier of its signatures.
    bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"): ("ec", 65, bytes.fromhex("300a06082a8648ce3d040302")),
    bytes.fromhex("301006072a8648ce3d020106052b81040022"): ("ec", 97, bytes.fromhex("300a06082a8648ce3d040303")),
    bytes.fromhex("301006072a8648ce3d020106052b81040023"): ("ec", 133, bytes.fromhex("300a06082a8648ce3d040304")),
    bytes.fromhex("300506032b6570"): ("ed25519", 32, bytes.fromhex("300506032b6570")),
    bytes.fromhex("300b0609608648016503040311"): ("ml-dsa", 1312, bytes.fromhex("300b0609608648016503040311")),
    bytes.fromhex("300b0609608648016503040312"): ("ml-dsa", 1952, bytes.fromhex("300b0609608648016503040312")),
    bytes.fromhex("300b0609608648016503040313"): ("ml-dsa", 2592, bytes.fromhex("300b0609608648016503040313")),
}
_RSA_MIN_BITS: Final = 2048


def read_key(spki: bytes) -> Key | None:
    """The key of a SubjectPublicKeyInfo; None when it is not well formed (RFC 3279 §2.3, RFC 5480 §2, RFC 8410 §4)."""
    try:
        start, stop = only(spki, 0x30)
        tag, _, after = element(spki, start, stop)
        bits, inner, end = element(spki, after, stop)
        if tag != 0x30 or bits != 0x03 or end != stop or inner == end or spki[inner] != 0:
            return None
        algorithm, octets = spki[start:after], spki[inner + 1 : end]
        if algorithm == _RSA:
            return Key("rsa", octets, _RSA_SIGNATURES) if _is_rsa(octets) else None
    except Malformed:
        return None
    known = _KEYS.get(algorithm)
    if known is None or len(octets) != known[1] or (known[0] == "ec" and octets[0] != 0x04):
        return None
    return Key(known[0], octets, frozenset({known[2]}))


def _is_rsa(octets: bytes) -> bool:
    start, stop = only(octets, 0x30)
    numbers = [
        contents if tag == 0x02 and contents and contents[0] < 0x80 else b""
        for tag, contents in members(octets, start, stop)
    ]
    if len(numbers) != 2 or any(_is_padded(number) for number in numbers):
        return False
    modulus, exponent = (int.from_bytes(number, "big") for number in numbers)
    return modulus.bit_length() >= _RSA_MIN_BITS and modulus & exponent & 1 == 1 and exponent >= 3


def _is_padded(number: bytes) -> bool:
    return not number or (len(number) > 1 and number[0] == 0 and number[1] < 0x80)


def follows_from_key(key_id: bytes, octets: bytes) -> bool:
    """Whether a key identifier comes from the key by RFC 5280 §4.2.1.2 (1) or (2), or RFC 7093 §2 (1)."""
    if len(key_id) == 8:
        low = int.from_bytes(hashlib.sha1(octets, usedforsecurity=False).digest(), "big") & (1 << 60) - 1
        return key_id == (4 << 60 | low).to_bytes(8, "big")
    return key_id in (hashlib.sha256(octets).digest()[:20], hashlib.sha1(octets, usedforsecurity=False).digest())


# --- extensions ------------------------------------------------------------------------------------------------------

AKI, SKI, KU, SAN = b"\x55\x1d\x23", b"\x55\x1d\x0e", b"\x55\x1d\x0f", b"\x55\x1d\x11"
BC, EKU, CP, NC, CDP = b"\x55\x1d\x13", b"\x55\x1d\x25", b"\x55\x1d\x20", b"\x55\x1d\x1e", b"\x55\x1d\x1f"
AIA: Final = b"\x2b\x06\x01\x05\x05\x07\x01\x01"

USAGE_NAMES: Final = (
    *("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement"),
    *("keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """One extension, and what it says as far as others depend on it."""

    oid: bytes
    critical: bool
    value: bytes
    findings: tuple[str, ...]
    usages: frozenset[str] = frozenset()
    oids: tuple[str, ...] = ()
    """Key purposes or policies."""
    key_id: bytes | None = None
    ca: bool = False
    path_length: int | None = None


def judge_extension(extension: bytes) -> Judged:
    """One Extension, whole element.

    Raises:
        Malformed: it is not even an Extension.
    """
    start, stop = only(extension, 0x30)
    tag, oid_start, oid_stop = element(extension, start, stop)
    oid = extension[oid_start:oid_stop]
    if tag != 0x06 or _OID.fullmatch(oid) is None:
        raise Malformed
    findings: list[str] = []
    critical = False
    tag, value_start, value_stop = element(extension, oid_stop, stop)
    if tag == 0x01:
        flag = extension[value_start:value_stop]
        if flag not in (b"\x00", b"\xff"):
            raise Malformed
        critical = flag == b"\xff"
        if not critical:
            findings.append("x690.11.5.default_encoded")
        tag, value_start, value_stop = element(extension, value_stop, stop)
    if tag != 0x04 or value_stop != stop:
        raise Malformed
    value = extension[value_start:value_stop]
    judge = _JUDGES.get(oid)
    try:
        if judge is not None:
            return judge(oid, critical, value, findings)
        check_nested(value)
    except Malformed:
        findings.append("rfc5280.4.2.extension_malformed")
    return Judged(oid, critical, value, tuple(findings))


def check_nested(value: bytes, depth: int = 16) -> None:
    """One element, and elements all the way down where it is constructed."""
    tag, start, stop = element(value, 0, len(value))
    if stop != len(value) or depth == 0:
        raise Malformed
    if tag & 0x20:
        while start < stop:
            _, _, after = element(value, start, stop)
            check_nested(value[start:after], depth - 1)
            start = after


def _judge_key_usage(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x03)
    contents = value[start:stop]
    if not 1 <= len(contents) <= 3 or contents[0] > 7:
        raise Malformed
    bits = "".join(f"{octet:08b}" for octet in contents[1:])
    if len(contents) == 1 or "1" not in bits:
        # RFC 5280 §4.2.1.3: at least one of the bits MUST be set.
        return Judged(oid, critical, value, (*findings, "rfc5280.4.2.1.3.key_usage_empty"))
    if "1" in bits[len(bits) - contents[0] :] and contents[0]:
        raise Malformed
    if bits[: len(bits) - contents[0]][-1] == "0":
        findings.append("x690.11.2.2.bits_not_minimal")
    usages = frozenset(name for name, bit in zip(USAGE_NAMES, bits, strict=False) if bit == "1")
    if usages & {"encipherOnly", "decipherOnly"} and "keyAgreement" not in usages:
        findings.append("rfc5280.4.2.1.3.only_without_agreement")
    return Judged(oid, critical, value, tuple(findings), usages=usages)


def _judge_constraints(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x30)
    parts = list(members(value, start, stop))
    ca, path_length = False, None
    if parts and parts[0][0] == 0x01:
        ca = parts.pop(0)[1] == b"\xff"
        if not ca:
            findings.append("x690.11.5.default_encoded")
    if parts and parts[0][0] == 0x02:
        number = parts.pop(0)[1]
        if not number or number[0] >= 0x80 or _is_padded(number):
            raise Malformed
        path_length = int.from_bytes(number, "big")
    if parts:
        raise Malformed
    if path_length is not None and not ca:
        findings.append("rfc5280.4.2.1.9.path_length_without_ca")
    if ca and not critical:
        findings.append("rfc5280.4.2.1.9.ca_not_critical")
    return Judged(oid, critical, value, tuple(findings), ca=ca, path_length=path_length)


def _judge_purposes(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x30)
    parts = list(members(value, start, stop))
    if not parts or any(tag != 0x06 for tag, _ in parts):
        raise Malformed
    oids = tuple(dotted(contents) for _, contents in parts)
    if len(set(oids)) < len(oids):
        findings.append("rfc5280.4.2.1.12.purpose_repeated")
    if critical and "2.5.29.37.0" in oids:
        findings.append("rfc5280.4.2.1.12.any_purpose_critical")
    return Judged(oid, critical, value, tuple(findings), oids=oids)


def _judge_policies(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x30)
    oids: list[str] = []
    for tag, contents in members(value, start, stop):
        inner, kind_start, kind_stop = element(contents, 0, len(contents))
        if tag != 0x30 or inner != 0x06:
            raise Malformed
        oids.append(dotted(contents[kind_start:kind_stop]))
    if not oids:
        raise Malformed
    check_nested(value)
    if len(set(oids)) < len(oids):
        findings.append("rfc5280.4.2.1.4.policy_repeated")
    return Judged(oid, critical, value, tuple(findings), oids=tuple(oids))


def _judge_authority_key_id(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x30)
    parts = dict(members(value, start, stop))
    if critical:
        findings.append("rfc5280.4.2.1.1.authority_key_id_critical")
    return Judged(oid, critical, value, tuple(findings), key_id=parts.get(0x80))


def _judge_subject_key_id(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x04)
    if critical:
        findings.append("rfc5280.4.2.1.2.subject_key_id_critical")
    return Judged(oid, critical, value, tuple(findings), key_id=value[start:stop])


def _judge_crl_points(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x30)
    # RFC 5280 §4.2.1.13: SIZE (1..MAX), and a point names at least where the CRL or who its issuer is.
    points = list(members(value, start, stop))
    if not points or any(tag != 0x30 or not contents for tag, contents in points):
        raise Malformed
    check_nested(value)
    if critical:
        findings.append("rfc5280.4.2.1.13.crl_points_critical")
    return Judged(oid, critical, value, tuple(findings))


def _judge_access(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x30)
    methods = list(members(value, start, stop))
    if not methods:
        raise Malformed
    for tag, contents in methods:
        inner, kind_start, kind_stop = element(contents, 0, len(contents))
        if tag != 0x30 or inner != 0x06:
            raise Malformed
        dotted(contents[kind_start:kind_stop])
        _, location_start, location_stop = element(contents, kind_stop, len(contents))
        if location_stop != len(contents) or location_start == location_stop:
            raise Malformed
    if critical:
        findings.append("rfc5280.4.2.2.1.access_critical")
    return Judged(oid, critical, value, tuple(findings))


def _judge_alternative_names(oid: bytes, critical: bool, value: bytes, findings: list[str]) -> Judged:
    start, stop = only(value, 0x30)
    if start == stop:
        findings.append("rfc5280.4.2.1.6.san_empty")
    for tag, contents in members(value, start, stop):
        finding = _judge_general_name(tag, contents)
        if finding is not None:
            findings.append(finding)
    return Judged(oid, critical, value, tuple(findings))


_HOST: Final = re.compile(
    rb"(?=.{1,253}\Z)(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_URI: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:(?:[!#$&-;=?-\[\]_a-z~]|%[0-9A-Fa-f]{2})+")
_LOCAL_PART: Final = re.compile(rb"[!#-'*+\-/-9=?A-Z^-~]+(?:\.[!#-'*+\-/-9=?A-Z^-~]+)*")


def _judge_general_name(tag: int, contents: bytes) -> str | None:
    match tag:
        case 0x82:
            # RFC 5280 §4.2.1.6: the preferred name syntax of RFC 1034 §3.5 as amended by RFC 1123 §2.1, no final dot.
            return None if _HOST.fullmatch(contents) else "rfc5280.4.2.1.6.dns_name_malformed"
        case 0x87:
            return None if len(contents) in (4, 16) else "rfc5280.4.2.1.6.ip_address_length"
        case 0x86:
            return None if _URI.fullmatch(contents) else "rfc5280.4.2.1.6.uri_not_absolute"
        case 0x81:
            local, _, host = contents.rpartition(b"@")
            good = _LOCAL_PART.fullmatch(local) and _HOST.fullmatch(host)
            return None if good else "rfc5280.4.2.1.6.mailbox_malformed"
        case _:
            try:
                return _judge_other_kind(tag, contents)
            except Malformed:
                return "rfc5280.4.2.1.6.name_malformed"


_HARDWARE_MODULE_NAME: Final = b"\x2b\x06\x01\x05\x05\x07\x08\x04"


def _judge_other_kind(tag: int, contents: bytes) -> str | None:
    match tag:
        case 0xA0:
            kind, kind_start, kind_stop = element(contents, 0, len(contents))
            value, value_start, value_stop = element(contents, kind_stop, len(contents))
            if kind != 0x06 or value != 0xA0 or value_stop != len(contents):
                raise Malformed
            dotted(contents[kind_start:kind_stop])
            inner = contents[value_start:value_stop]
            check_nested(inner)
            if contents[kind_start:kind_stop] == _HARDWARE_MODULE_NAME and not _is_hardware_module_name(inner):
                return "rfc4108.5.hardware_module_name_malformed"
            return None
        case 0xA4:
            start, stop = only(contents, 0x30)
            if start == stop or judge_name(contents[start:stop]):
                raise Malformed
            return None
        case 0x88:
            dotted(contents)
            return None
        case _:
            raise Malformed


def _is_hardware_module_name(value: bytes) -> bool:
    start, stop = only(value, 0x30)
    parts = list(members(value, start, stop))
    return len(parts) == 2 and parts[0][0] == 0x06 and parts[1][0] == 0x04 and bool(parts[0][1]) and bool(parts[1][1])


_JUDGES: Final = {
    KU: _judge_key_usage,
    BC: _judge_constraints,
    EKU: _judge_purposes,
    CP: _judge_policies,
    AKI: _judge_authority_key_id,
    SKI: _judge_subject_key_id,
    CDP: _judge_crl_points,
    AIA: _judge_access,
    SAN: _judge_alternative_names,
}
