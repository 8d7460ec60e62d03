"""Subjects and alternative names as the linter judges them: RFC 5280 §4.1.2.4, §4.1.2.6, §4.2.1.6 and appendix A.1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from estd.ca.lint.walk import Malformed, check_nested, dotted, element, members, only

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
        whole = 0
        while whole < len(contents):
            tag, start, whole = element(contents, whole, len(contents))
            rdn = contents[start:whole]
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


_HOST: Final = re.compile(
    rb"(?=.{1,253}\Z)(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_URI: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:(?:[!#$&-;=?-\[\]_a-z~]|%[0-9A-Fa-f]{2})+")
_LOCAL_PART: Final = re.compile(rb"[!#-'*+\-/-9=?A-Z^-~]+(?:\.[!#-'*+\-/-9=?A-Z^-~]+)*")


def judge_general_name(tag: int, contents: bytes) -> str | None:
    """What is wrong with one GeneralName, if anything (RFC 5280 §4.2.1.6)."""
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
