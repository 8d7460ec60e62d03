"""Distinguished names: compared by RFC 5280 §7.1, spelled by RFC 4514.

Comparison prepares strings by RFC 4518 §2, whatever string type they came in; the order of RDNs counts, the order
inside an RDN does not. A name with a NUL or with text outside its character set is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from unicodedata import category, normalize

from estd.asn1 import der
from estd.asn1.oids import NAMES, OIDS
from estd.errors import Code, Refused

MAX_NAME_BYTES = 4096
MAX_ATTRIBUTES = 64

EMPTY_NAME = b"\x30\x00"


@dataclass(frozen=True, slots=True)
class Name:
    """A distinguished name. Equality is RFC 5280 §7.1; the encoding it was read from takes no part in it."""

    der: bytes = field(compare=False)
    rdns: tuple[tuple[tuple[str, str | bytes], ...], ...] = field(compare=False)
    """Outermost first, as encoded: (dotted type, text), or the value's element where it is not a character string."""
    key: tuple[tuple[tuple[str, str], ...], ...] = field(repr=False)
    """What is compared: RDN order kept, order inside an RDN not, text prepared by RFC 4518 §2."""

    @property
    def text(self) -> str:
        """RFC 4514 string, innermost RDN first; a control or invisible character is always escaped."""
        return ",".join(
            "+".join(f"{_keyword(kind)}={_write_value(value)}" for kind, value in rdn) for rdn in reversed(self.rdns)
        )

    def find(self, attribute: str) -> str | None:
        """The text of the innermost attribute of that type (a name of `OIDS`), or None."""
        dotted = OIDS[attribute]
        for rdn in reversed(self.rdns):
            for kind, value in rdn:
                if kind == dotted and isinstance(value, str):
                    return value
        return None


def read_name(data: bytes) -> Name:
    """The name these bytes encode."""
    try:
        return _read_name(data)
    except Refused as refused:
        raise Refused(Code.SUBJECT_REFUSED, refused.detail, refused.clause) from None


def same_name(a: bytes, b: bytes) -> bool:
    """Whether two encodings are one name. Equal bytes are not looked into."""
    return a == b or read_name(a).key == read_name(b).key


def write_name(text: str) -> bytes:
    """The encoding of an RFC 4514 string, most significant part last; an empty string is the empty name.

    Beside the keywords of RFC 4514 §3 every attribute name of `OIDS` is known, in any case, and ``1.2.3=…``. ``SN`` is
    not: half of its users mean surname, the other half serialNumber.
    """
    if len(text) > MAX_NAME_BYTES:
        raise _subject(f"a name of {len(text)} characters is too long")
    if not text.strip(" "):
        return EMPTY_NAME
    rdns: list[list[bytes]] = [[]]
    at = 0
    separator = ","
    while separator:
        match = _PAIR.match(text, at)
        if match is None:
            raise _subject(f"{text[at:]!r} is not an attribute and its value as RFC 4514 writes them", "RFC 4514 §3")
        keyword, value, separator = match.groups()
        raw = value.startswith("#")
        rdns[-1].append(write_attribute(keyword, value if raw else _read_value(value), raw))
        if separator == ",":
            rdns.append([])
        at = match.end()
    return _name(der.set_of(rdn) for rdn in reversed(rdns))


def write_rdns(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The name of these (type, text) pairs, one RDN each, outermost first: no RFC 4514 escaping is involved."""
    return _name(der.tlv(der.SET, write_attribute(kind, value)) for kind, value in pairs)


@lru_cache(maxsize=1024)
def write_attribute(kind: str, value: str, raw: bool = False) -> bytes:
    """AttributeTypeAndValue in the string type and within the bound that RFC 5280 appendix A sets for that type.

    Args:
        kind: an RFC 4514 keyword, a name of `OIDS`, or dotted.
        value: the text, or with `raw` the value's element as ``#`` and hexadecimal (RFC 4514 §2.4).
        raw: see `value`.
    """
    dotted = _KEYWORDS.get(kind.lower(), kind)
    try:
        return der.sequence(der.oid(dotted), _raw(value) if raw else _string(dotted, value))
    except Refused as refused:
        raise _subject(f"{kind}: {refused.detail}", refused.clause or "RFC 4514 §3") from None


# --- private ---------------------------------------------------------------------------------------------------------

_KEYWORDS = {
    **{
        name.lower(): dotted
        for name, dotted in OIDS.items()
        if dotted.startswith(("2.5.4.", "0.9.2342.", "1.3.6.1.4.1.37244."))
    },
    "emailaddress": OIDS["emailAddress"],
    "unstructuredname": OIDS["unstructuredName"],
    "unstructuredaddress": OIDS["unstructuredAddress"],
    "cn": OIDS["commonName"],
    "l": OIDS["localityName"],
    "st": OIDS["stateOrProvinceName"],
    "o": OIDS["organizationName"],
    "ou": OIDS["organizationalUnitName"],
    "c": OIDS["countryName"],
    "street": OIDS["streetAddress"],
    "dc": OIDS["domainComponent"],
    "uid": OIDS["userId"],
}

_SHORT = {_KEYWORDS[short]: short.upper() for short in ("cn", "l", "st", "o", "ou", "c", "street", "dc", "uid")}

_PRINTABLE_TYPES = frozenset(OIDS[name] for name in ("countryName", "serialNumber", "dnQualifier"))
_IA5_TYPES = frozenset(OIDS[name] for name in ("domainComponent", "emailAddress"))

_BOUNDS = {
    OIDS[name]: bounds
    for name, bounds in {
        "commonName": (1, 64),
        "serialNumber": (1, 64),
        "countryName": (2, 2),
        "localityName": (1, 128),
        "stateOrProvinceName": (1, 128),
        "organizationName": (1, 64),
        "organizationalUnitName": (1, 64),
        "title": (1, 64),
        "pseudonym": (1, 128),
        "emailAddress": (1, 255),
        "domainComponent": (1, 63),
    }.items()
}

# One "type=value" and what follows it. A value is #hex or a string whose specials are escaped (RFC 4514 §3); spaces
# around it are not part of it (RFC 2253 §4 writers put them there).
_PAIR = re.compile(
    r" *([A-Za-z][A-Za-z0-9-]*|[0-9][0-9.]*) *= *"
    r"(#(?:[0-9A-Fa-f]{2})+|(?!#)(?:[^\\\"+,;<>\0]|\\[ \"#+,;<=>\\]|\\[0-9A-Fa-f]{2})*) *([,+]|\Z)"
)
_ESCAPED = re.compile(r"((?:\\[0-9A-Fa-f]{2})+)|\\([ \"#+,;<=>\\])")
_NOT_PLAIN = re.compile(r"[\\\"+,;<>]|^[ #]| $")
_TO_ESCAPE = re.compile(r"[\\\"+,;<>]")

# RFC 4518 §2.2: what is mapped to nothing, and what is mapped to a space.
_TO_NOTHING = (
    *((0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x6DD, 0x6DD)),
    *((0x70F, 0x70F), (0x1806, 0x1806), (0x180B, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2063)),
    *((0x206A, 0x206F), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFC), (0x1D173, 0x1D17A), (0xE0001, 0xE0001)),
    (0xE0020, 0xE007F),
)
_TO_SPACE = (0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F)
_MAP = dict.fromkeys((code for first, last in _TO_NOTHING for code in range(first, last + 1)), "") | dict.fromkeys(
    (*_TO_SPACE, 0x3000), " "
)


def _subject(detail: str, clause: str | None = None) -> Refused:
    return Refused(Code.SUBJECT_REFUSED, detail, clause)


@lru_cache(maxsize=256)
def _read_name(data: bytes) -> Name:
    """Kept: a device's request mostly asks for the name that its certificate has, and was read a moment before."""
    if len(data) > MAX_NAME_BYTES:
        raise _subject(f"a name of {len(data)} bytes is longer than the {MAX_NAME_BYTES} we read")
    start, stop = der.read_whole(data, der.SEQUENCE)
    rdns = []
    keys = []
    for tag, _, inner, after in der.read_members(data, start, stop, MAX_ATTRIBUTES):
        if tag != der.SET or inner == after:
            raise _subject("a relative distinguished name is not a SET of at least one attribute", "RFC 5280 §4.1.2.4")
        rdn, key = _read_rdn(data[inner:after])
        rdns.append(rdn)
        keys.append(key)
    if sum(map(len, rdns)) > MAX_ATTRIBUTES:
        raise _subject(f"a name has more than the {MAX_ATTRIBUTES} attributes we read")
    return Name(data, tuple(rdns), tuple(keys))


@lru_cache(maxsize=1024)
def _read_rdn(data: bytes) -> tuple[tuple[tuple[str, str | bytes], ...], tuple[tuple[str, str], ...]]:
    """The attributes of one RDN, and what is compared of them. Kept: a fleet shares all but one or two of its RDNs."""
    rdn: list[tuple[str, str | bytes]] = []
    key: list[tuple[str, str]] = []
    end = len(data)
    stop = 0
    while stop < end:
        start, stop = der.read_tagged(data, stop, end, der.SEQUENCE)
        kind_start, kind_stop = der.read_tagged(data, start, stop, der.OID)
        tag, value_start, value_stop = der.read_tlv(data, kind_stop, stop)
        if value_stop != stop:
            raise _subject("an attribute is not one type and one value", "RFC 5280 §4.1.2.4")
        kind = der.read_oid(data[kind_start:kind_stop])
        text = der.read_string(tag, data[value_start:stop])
        if text is None:
            der.check_der(data, kind_stop, stop)
            rdn.append((kind, data[kind_stop:stop]))
            # No prepared text holds a NUL, so bytes never equal text.
            key.append((kind, "\0" + data[kind_stop:stop].hex()))
        else:
            rdn.append((kind, text))
            key.append((kind, _prepare(text)))
    return tuple(rdn), tuple(sorted(key))


def _name(rdns: Iterable[bytes]) -> bytes:
    name = der.sequence(*rdns)
    if len(name) > MAX_NAME_BYTES:
        raise _subject(f"a name of {len(name)} bytes is longer than {MAX_NAME_BYTES}")
    return name


def _prepare(text: str) -> str:
    """RFC 4518 §2: map, fold, normalise, prohibit, then make white space single and trim it."""
    if text.isascii() and text.isprintable():
        return " ".join(text.lower().split())
    text = normalize("NFKC", normalize("NFKC", text.translate(_MAP).casefold()).casefold())
    for character in text:
        if character == "\ufffd" or category(character) in ("Cn", "Co", "Cs"):
            raise _subject(f"a name holds U+{ord(character):04X}, which stands for no character", "RFC 4518 §2.4")
    return " ".join(text.translate(_MAP).split())


def _raw(value: str) -> bytes:
    if len(value) % 2 == 0:
        raise _subject("an odd number of hexadecimal digits")
    element = bytes.fromhex(value[1:])
    der.check_der(element)
    return element


def _string(dotted: str, value: str) -> bytes:
    least, most = _BOUNDS.get(dotted, (1, 32768))
    if not least <= len(value) <= most:
        raise _subject(f"it must have {least} to {most} characters, not {len(value)}", "RFC 5280 appendix A.1")
    if "\0" in value:
        raise _subject("it holds a NUL", "RFC 4518 §2.2")
    if dotted in _PRINTABLE_TYPES:
        if not der.is_printable(value):
            raise _subject(f"a PrintableString cannot hold {value!r}", "RFC 5280 appendix A.1")
        return der.printable(value)
    if dotted in _IA5_TYPES:
        if not value.isascii():
            raise _subject(f"{value!r} is not ASCII", "RFC 5280 appendix A.1")
        return der.ia5(value)
    try:
        return der.utf8(value)
    except UnicodeEncodeError:
        raise _subject(f"{value!r} holds half a character", "RFC 4518 §2.4") from None


def _keyword(dotted: str) -> str:
    return _SHORT.get(dotted) or NAMES.get(dotted, dotted)


def _write_value(value: str | bytes) -> str:
    """RFC 4514 §2.4, and every character that does not print as the hexadecimal of its octets."""
    if isinstance(value, bytes):
        return "#" + value.hex()
    if value.isascii() and value.isprintable() and _NOT_PLAIN.search(value) is None:
        return value
    text = _TO_ESCAPE.sub(r"\\\g<0>", value)
    if not text.isprintable():
        text = "".join(
            one if one.isprintable() else "".join(f"\\{octet:02x}" for octet in one.encode()) for one in text
        )
    if text[:1] in (" ", "#"):
        text = "\\" + text
    if len(value) > 1 and text[-1] == " ":
        text = text[:-1] + "\\ "
    return text


def _read_value(text: str) -> str:
    """RFC 4514 §3 reversed."""
    if "\\" not in text:
        return text.rstrip(" ")
    stripped = text.rstrip(" ")
    if len(stripped) < len(text) and (len(stripped) - len(stripped.rstrip("\\"))) % 2:
        stripped += " "
    try:
        return _ESCAPED.sub(lambda part: part[2] or bytes.fromhex(part[1].replace("\\", " ")).decode(), stripped)
    except UnicodeDecodeError:
        raise _subject(f"{text!r} escapes octets that are not UTF-8", "RFC 4514 §3") from None
