"""Subject alternative names, compared as a set by RFC 5280 §7.2, §7.4 and §7.5.

Names have one text form (``dns:…``, ``ip:…`` and so on), which profiles, inventories and logs share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

from estd.asn1 import der
from estd.errors import Code, Refused
from estd.names.distinguished import read_name, write_name

MAX_SANS = 64


@dataclass(frozen=True, slots=True)
class GeneralName:
    """One alternative name. Equality is by `kind` and `key`; see `read_san`."""

    kind: str
    """``dns``, ``ip``, ``uri``, ``email``, ``other``, ``dirname`` or ``rid``."""
    key: object = field(repr=False)
    text: str = field(compare=False)
    """``dns:host``, ``ip:192.0.2.1``, ``uri:…``, ``email:…``, ``other:1.2.3=#hex``, ``dirname:…``, ``rid:1.2.3``."""
    der: bytes = field(compare=False, repr=False)


def read_san(data: bytes) -> tuple[GeneralName, ...]:
    """The general names of a subjectAltName extension's value (RFC 5280 §4.2.1.6), at least one, at most `MAX_SANS`.

    Compared are: a dNSName without regard to case (§7.2); of a URI the scheme and host without regard to case, the rest
    exactly (§7.4; the further normalisations of RFC 3987 §5.3 are not made, so that two spellings are two names); of a
    mail address the local part exactly and the host without regard to case (§7.5); a directoryName by §7.1; an address,
    otherName or registered identifier by its bytes.
    """
    try:
        start, stop = der.read_whole(data, der.SEQUENCE)
        members = der.read_members(data, start, stop, MAX_SANS)
        if not members:
            raise _san("there is no alternative name where there must be one", "RFC 5280 §4.2.1.6")
        return tuple([_read_general_name(tag, data[inner:after], data[at:after]) for tag, at, inner, after in members])
    except Refused as refused:
        raise Refused(Code.SAN_REFUSED, refused.detail, refused.clause) from None


def same_san(a: bytes | None, b: bytes | None) -> bool:
    """Whether two extension values (None where the extension is absent) name the same set of names, in any order."""
    if a == b:
        return True
    return a is not None and b is not None and frozenset(read_san(a)) == frozenset(read_san(b))


def write_san(texts: Iterable[str]) -> bytes:
    """The value of a subjectAltName extension, from names as `GeneralName.text` spells them."""
    elements = [write_general_name(text) for text in texts]
    if not 1 <= len(elements) <= MAX_SANS:
        raise _san(f"{len(elements)} alternative names; there must be 1 to {MAX_SANS}", "RFC 5280 §4.2.1.6")
    return der.sequence(*elements)


def write_general_name(text: str) -> bytes:
    """One GeneralName, from its text. What comes out is accepted by `read_san`."""
    kind, _, value = text.partition(":")
    try:
        tag, contents = _write_contents(kind, value)
        element = der.tlv(tag, contents)
        _read_general_name(tag, contents, element)
    except (Refused, ValueError) as error:
        detail = error.detail if isinstance(error, Refused) else "it is not a name of that kind"
        raise _san(f"{text!r}: {detail}", "RFC 5280 §4.2.1.6") from None
    return element


# --- private ---------------------------------------------------------------------------------------------------------

_TAGS = {"email": 0x81, "dns": 0x82, "uri": 0x86}

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)(?://([^/?#@]*@)?([^/?#@]*))?(.*)")
_NOT_IN_URI = re.compile(r"[ \"<>\\^`{|}]")


def _san(detail: str, clause: str | None = None) -> Refused:
    return Refused(Code.SAN_REFUSED, detail, clause)


def _write_contents(kind: str, value: str) -> tuple[int, bytes]:
    match kind:
        case "dns" | "uri" | "email":
            return _TAGS[kind], value.encode("ascii")
        case "ip" if "%" not in value:
            return 0x87, ip_address(value).packed
        case "rid":
            return 0x88, der.oid_contents(value)
        case "dirname":
            return 0xA4, write_name(value)
        case "other":
            type_id, _, octets = value.partition("=#")
            return 0xA0, der.oid(type_id) + der.explicit(0, bytes.fromhex(octets))
        case _:
            raise _san("a name begins with dns:, ip:, uri:, email:, other:, dirname: or rid:")


def _read_general_name(tag: int, contents: bytes, element: bytes) -> GeneralName:
    match tag:
        case 0x82:
            name = _ascii(contents)
            if _HOST.fullmatch(name) is None:
                # A trailing dot falls here too: RFC 5280 §4.2.1.6 asks for the preferred name syntax without it.
                raise _san(f"dNSName {name!r} is not a host name", "RFC 5280 §4.2.1.6")
            return GeneralName("dns", name.lower(), f"dns:{name}", element)
        case 0x87:
            if len(contents) not in (4, 16):
                raise _san(f"an iPAddress of {len(contents)} bytes is neither IPv4 nor IPv6", "RFC 5280 §4.2.1.6")
            return GeneralName("ip", contents, f"ip:{ip_address(contents)}", element)
        case 0x86:
            name = _ascii(contents)
            parts = _URI.fullmatch(name)
            if parts is None or name.endswith(":") or _NOT_IN_URI.search(name):
                raise _san(f"{name!r} is not an absolute URI", "RFC 5280 §4.2.1.6")
            scheme, user, host, rest = parts.groups()
            return GeneralName("uri", (scheme.lower(), user, host and host.lower(), rest), f"uri:{name}", element)
        case 0x81:
            name = _ascii(contents)
            local, _, host = name.rpartition("@")
            if not local or "@" in local or " " in local or _HOST.fullmatch(host) is None:
                raise _san(f"rfc822Name {name!r} is not a mailbox", "RFC 5280 §4.2.1.6")
            return GeneralName("email", (local, host.lower()), f"email:{name}", element)
        case 0xA0:
            at, stop = der.read_tagged(contents, 0, len(contents), der.OID)
            value, end = der.read_tagged(contents, stop, len(contents), 0xA0)
            if end != len(contents):
                raise _san("an otherName is not one type and one value", "RFC 5280 §4.2.1.6")
            der.check_der(contents, value, end)
            text = f"other:{der.read_oid(contents[at:stop])}=#{contents[value:].hex()}"
            return GeneralName("other", contents, text, element)
        case 0xA4:
            directory = read_name(contents)
            return GeneralName("dirname", directory.key, f"dirname:{directory.text}", element)
        case 0x88:
            return GeneralName("rid", contents, f"rid:{der.read_oid(contents)}", element)
        case _:
            raise _san(f"a general name with identifier octet 0x{tag:02x} is not one we read", "RFC 5280 §4.2.1.6")


def _ascii(contents: bytes) -> str:
    name = contents.decode("latin-1")
    if not name.isascii() or not name.isprintable():
        raise _san(f"{name!r} holds a NUL, a control character or something outside ASCII", "RFC 5280 §4.2.1.6")
    return name
