"""Whether a decided subject and subjectAltName keep the rules of a profile.

The registration authority decides which names a certificate will carry; the signer asks here whether the profile allows
them, so that a worker in the wrong hands can mint no name beyond the profile. Comparison is RFC 5280 §7.1, patterns
have to match a whole value (`estd.ca.pattern`).

Must not import anything of the floors above; no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from estd.asn1 import der
from estd.asn1.oids import NAMES, OIDS
from estd.ca.profile import AttributeRule, Profile
from estd.ca.vocabulary import name_attribute_type
from estd.errors import Code, Refused
from estd.names import EMPTY_NAME, GeneralName, read_name, read_san, same_name


def check_subject(profile: Profile, subject: bytes) -> None:
    """Refuse a subject (DER Name) that the profile does not allow."""
    if profile.subject == "empty":
        if subject != EMPTY_NAME:
            raise _subject("this profile issues certificates without a subject")
        return
    if profile.subject == "fixed" and not same_name(subject, profile.fixed_subject):
        raise _subject("this profile has one fixed subject, and this is another")
    rules = profile.subject_attributes
    if not rules:
        return
    name = read_name(subject)
    seen: set[str] = set()
    for rdn in name.rdns:
        for kind, value in rdn:
            _check_attribute(kind, value, [rule for rule in rules if rule.type == kind])
            seen.add(kind)
    for rule in rules:
        if rule.required and rule.type not in seen:
            raise _subject(f"the subject needs {name_attribute_type(rule.type)}")
    if any(rule.string_type is not None for rule in rules):
        _check_string_types(rules, subject)


def check_san(profile: Profile, subject: bytes, san: bytes | None) -> None:
    """Refuse a subjectAltName (DER GeneralNames, None for none) that the profile does not allow."""
    if san is None:
        if subject == EMPTY_NAME:
            raise Refused(
                Code.SUBJECT_REFUSED, "a certificate needs a subject or a subjectAltName", "RFC 5280 §4.2.1.6"
            )
        if profile.san_rule.required:
            raise _san(f"the subjectAltName needs {', '.join(map(_call, profile.san_rule.required))}")
        return
    if profile.san == "none":
        raise _san("this profile issues certificates without a subjectAltName")
    rule = profile.san_rule
    names = read_san(san)
    if len(names) > rule.maximum:
        raise _san(f"{len(names)} alternative names are more than the {rule.maximum} this profile allows")
    kinds = [_kind(name) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if rule.types and kind not in rule.types:
            raise _san(f"a subjectAltName of kind {_call(kind)} is not allowed by this profile")
        for patterned, pattern in rule.patterns:
            if patterned == kind:
                text = _value(name)
                if not pattern.matches(text):
                    raise _san(f"{name.text!r} is not of the form this profile asks for")
    for required in rule.required:
        if required not in kinds:
            raise _san(f"the subjectAltName needs a name of kind {_call(required)}")


# --- private ---------------------------------------------------------------------------------------------------------

_HARDWARE_MODULE_NAME: Final = f"other:{OIDS['hardwareModuleName']}"
_TAGS: Final = {"utf8": der.UTF8_STRING, "printable": der.PRINTABLE_STRING, "ia5": der.IA5_STRING}


def _check_attribute(kind: str, value: str | bytes, rules: list[AttributeRule]) -> None:
    attribute = name_attribute_type(kind)
    if not rules:
        raise _subject(f"this profile does not allow {attribute} in the subject")
    if isinstance(value, bytes):
        raise _subject(f"the value of {attribute} is not a character string")
    fixed = [rule.value for rule in rules if rule.value is not None]
    if fixed and value not in fixed:
        raise _subject(f"{attribute} must be {' or '.join(map(repr, fixed))}")
    for rule in rules:
        if rule.pattern is not None and not rule.pattern.matches(value):
            raise _subject(f"{attribute} {value!r} is not of the form this profile asks for")


def _check_string_types(rules: tuple[AttributeRule, ...], subject: bytes) -> None:
    for kind, tag in _walk_tags(subject):
        for rule in rules:
            if rule.type == kind and rule.string_type is not None and tag != _TAGS[rule.string_type]:
                raise _subject(f"{name_attribute_type(kind)} must be encoded as {rule.string_type}")


def _walk_tags(subject: bytes) -> Iterator[tuple[str, int]]:
    """Attribute type and identifier octet of the value of each attribute."""
    start, stop = der.read_whole(subject, der.SEQUENCE)
    for _, _, rdn, rdn_stop in der.read_members(subject, start, stop):
        for _, _, pair, pair_stop in der.read_members(subject, rdn, rdn_stop):
            kind, value = der.read_members(subject, pair, pair_stop)
            yield der.read_oid(subject[kind[2] : kind[3]]), value[0]


def _kind(name: GeneralName) -> str:
    return name.text.partition("=")[0] if name.kind == "other" else name.kind


def _call(kind: str) -> str:
    return f"other:{NAMES.get(kind[6:], kind[6:])}" if kind.startswith("other:") else kind


def _value(name: GeneralName) -> str:
    """What a pattern is held against: the name without its kind; of a hardwareModuleName type and serial in hex."""
    if _kind(name) == _HARDWARE_MODULE_NAME:
        value = bytes.fromhex(name.text.partition("=#")[2])
        tag, start, stop = der.read_tlv(value, 0, len(value))
        members = der.read_members(value, start, stop) if tag == der.SEQUENCE else []
        if [member[0] for member in members] != [der.OID, der.OCTET_STRING]:
            raise _san("a hardwareModuleName is a type and a serial number", "RFC 4108 §5")
        (_, _, kind, kind_stop), (_, _, serial, serial_stop) = members
        return f"{der.read_oid(value[kind:kind_stop])}:{value[serial:serial_stop].hex()}"
    return name.text.partition("=#" if name.kind == "other" else ":")[2]


def _subject(detail: str) -> Refused:
    return Refused(Code.SUBJECT_REFUSED, detail, "RFC 7030 §4.2.1")


def _san(detail: str, clause: str = "RFC 7030 §4.2.1") -> Refused:
    return Refused(Code.SAN_REFUSED, detail, clause)
