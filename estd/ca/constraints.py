"""Name constraints (RFC 5280 §4.2.1.10): how an issuer's document says them, and which names stay inside.

Texts are ``dns:example.com`` (that name and everything below), ``email:`` and ``uri:`` (a host, or with a leading dot
everything below a domain; for email a mailbox too), ``ip:`` (a network such as 10.0.0.0/8) and ``dirname:`` (RFC 4514,
everything that begins with it). A name of a kind that no permitted subtree mentions is not constrained.

Must not import anything but the ground floor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.errors import Code, Refused
from estd.names import EMPTY_NAME, read_name, read_san, write_name


@dataclass(frozen=True, slots=True)
class NameConstraints:
    """Subtrees as texts; see the module."""

    permitted: tuple[str, ...]
    excluded: tuple[str, ...]


def write_subtree(text: str) -> bytes:
    """One GeneralSubtree.

    Raises:
        Refused: SAN_REFUSED, no such subtree.
    """
    kind, _, value = text.partition(":")
    try:
        match kind:
            case "dns" if _HOST.fullmatch(value):
                base = der.tlv(0x82, value.encode("ascii"))
            case "email" if _HOST.fullmatch(value.removeprefix(".")) or _MAILBOX.fullmatch(value):
                base = der.tlv(0x81, value.encode("ascii"))
            case "uri" if _HOST.fullmatch(value.removeprefix(".")):
                base = der.tlv(0x86, value.encode("ascii"))
            case "ip":
                network = ip_network(value)
                base = der.tlv(0x87, network.network_address.packed + network.netmask.packed)
            case "dirname":
                base = der.tlv(0xA4, write_name(value))
            case _:
                raise ValueError(text)
    except ValueError:
        raise Refused(Code.SAN_REFUSED, f"{text!r} is not a subtree of names", "RFC 5280 §4.2.1.10") from None
    # minimum is its DEFAULT 0 and maximum absent, as RFC 5280 §4.2.1.10 demands.
    return der.sequence(base)


def write_name_constraints(constraints: NameConstraints) -> bytes:
    """The extension's value."""
    members = [
        der.tlv(tag, b"".join(write_subtree(text) for text in texts))
        for tag, texts in ((0xA0, constraints.permitted), (0xA1, constraints.excluded))
        if texts
    ]
    return der.sequence(*members)


def read_name_constraints(value: bytes) -> NameConstraints:
    """The extension's value of an issuer's certificate.

    Raises:
        Refused: not such a value, or a kind of subtree that this code does not judge.
    """
    found: dict[int, list[str]] = {0xA0: [], 0xA1: []}
    start, stop = der.read_whole(value, der.SEQUENCE)
    for tag, _, inner, after in der.read_members(value, start, stop):
        if tag not in found:
            raise Refused(Code.EXTENSION_REFUSED, "a name constraint is malformed", "RFC 5280 §4.2.1.10")
        for _, _, subtree, end in der.read_members(value, inner, after):
            kind, base, base_end = der.read_tlv(value, subtree, end)
            if base_end != end:
                raise Refused(Code.EXTENSION_REFUSED, "a subtree has a minimum or maximum", "RFC 5280 §4.2.1.10")
            found[tag].append(_read_base(kind, value[base:base_end]))
    return NameConstraints(tuple(found[0xA0]), tuple(found[0xA1]))


def find_violation(constraints: Iterable[NameConstraints], subject: bytes, san: bytes | None) -> str | None:
    """The first name of a certificate that leaves the namespace of an issuer above it, as text; None when none does."""
    names = [] if san is None else [name.text for name in read_san(san)]
    if subject != EMPTY_NAME:
        name = read_name(subject)
        names.append(f"dirname:{name.text}")
        if san is None:
            # What was there before SAN was: RFC 5280 §4.2.1.10 lets an address in the subject be no way around.
            names += [f"email:{value!s}" for rdn in name.rdns for kind, value in rdn if kind == _EMAIL_ADDRESS]
    for constraint in constraints:
        for text in names:
            kind = text.partition(":")[0]
            permitted = [base for base in constraint.permitted if base.startswith(f"{kind}:")]
            if permitted and not any(_is_inside(text, base) for base in permitted):
                return text
            if any(_is_inside(text, base) for base in constraint.excluded):
                return text
    return None


# --- private ---------------------------------------------------------------------------------------------------------

_EMAIL_ADDRESS: Final = OIDS["emailAddress"]
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAILBOX: Final = re.compile(rf"[!-?A-~]+@{_LABEL}(?:\.{_LABEL})*")
_URI_HOST: Final = re.compile(r"[^:]+://(?:[^/?#@]*@)?(\[[^]]*\]|[^/?#:]*)")


def _read_base(tag: int, contents: bytes) -> str:
    match tag:
        case 0x82:
            return f"dns:{contents.decode('latin-1')}"
        case 0x81:
            return f"email:{contents.decode('latin-1')}"
        case 0x86:
            return f"uri:{contents.decode('latin-1')}"
        case 0x87 if len(contents) in (8, 32):
            half = len(contents) // 2
            bits = int.from_bytes(contents[half:], "big").bit_count()
            return f"ip:{ip_network((contents[:half], bits))}"
        case 0xA4:
            return f"dirname:{read_name(contents).text}"
        case _:
            # RFC 5280 §4.2.1.10: a constraint that cannot be processed means that the certificate is not accepted.
            raise Refused(Code.EXTENSION_REFUSED, "a kind of subtree that is not judged here", "RFC 5280 §4.2.1.10")


def _is_inside(name: str, subtree: str) -> bool:
    kind, _, value = name.partition(":")
    subtree_kind, _, base = subtree.partition(":")
    if kind != subtree_kind:
        return False
    match kind:
        case "dns":
            return value.lower() == base.lower() or value.lower().endswith(f".{base.lower()}")
        case "email":
            local, _, host = value.rpartition("@")
            base_local, _, base_host = base.rpartition("@")
            return local == base_local and host.lower() == base_host.lower() if base_local else _is_host(host, base)
        case "uri":
            match = _URI_HOST.match(value)
            # RFC 5280 §4.2.1.10: a URI without a host name is not inside any subtree.
            return match is not None and _is_host(match[1], base)
        case "ip":
            return ip_address(value) in ip_network(base)
        case _:
            prefix = read_name(write_name(base)).key
            return read_name(write_name(value)).key[: len(prefix)] == prefix


def _is_host(host: str, base: str) -> bool:
    return host.lower().endswith(base.lower()) if base.startswith(".") else host.lower() == base.lower()
