"""Extensions as the linter judges them, one at a time: RFC 5280 §4.2."""

from __future__ import annotations

from typing import Final, NamedTuple

from estd.ca.lint.names import judge_general_name
from estd.ca.lint.walk import Malformed, check_nested, dotted, element, is_oid, is_padded, members, only

AKI, SKI, KU, SAN = b"\x55\x1d\x23", b"\x55\x1d\x0e", b"\x55\x1d\x0f", b"\x55\x1d\x11"
BC, EKU, CP, NC, CDP = b"\x55\x1d\x13", b"\x55\x1d\x25", b"\x55\x1d\x20", b"\x55\x1d\x1e", b"\x55\x1d\x1f"
AIA: Final = b"\x2b\x06\x01\x05\x05\x07\x01\x01"

_PLAIN_KEY_ID: Final = b"\x30\x1d\x06\x03" + SKI + b"\x04\x16\x04\x14"
"""What precedes a subjectKeyIdentifier of 20 octets that is not critical."""

USAGE_NAMES: Final = (
    *("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement"),
    *("keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"),
)


class Judged(NamedTuple):
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
    if extension.startswith(_PLAIN_KEY_ID) and len(extension) == len(_PLAIN_KEY_ID) + 20:
        # The one extension that differs in each certificate and is otherwise always the same.
        return Judged(SKI, False, extension[-22:], (), key_id=extension[-20:])
    start, stop = only(extension, 0x30)
    tag, oid_start, oid_stop = element(extension, start, stop)
    oid = extension[oid_start:oid_stop]
    judge = _JUDGES.get(oid)
    if tag != 0x06 or (judge is None and not is_oid(oid)):
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
    try:
        if judge is not None:
            return judge(oid, critical, value, findings)
        check_nested(value)
    except Malformed:
        findings.append("rfc5280.4.2.extension_malformed")
    return Judged(oid, critical, value, tuple(findings))


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
        if not number or number[0] >= 0x80 or is_padded(number):
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
        finding = judge_general_name(tag, contents)
        if finding is not None:
            findings.append(finding)
    return Judged(oid, critical, value, tuple(findings))


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
