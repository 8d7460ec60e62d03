"""Distinguished Encoding Rules: a strict reader and small writers.

The reader promises that what it accepts has exactly one encoding: definite and minimal lengths, minimal integers, no
trailing bytes, at most `MAX_BYTES` and `MAX_ELEMENTS` in all and `MAX_DEPTH` levels (X.690 §8, §10, §11; RFC 7030 §6
asks for care with ASN.1). It hands out offsets into the bytes it was given and builds no tree, so the caller pays only
for what it looks at. The writers are total: given a value of the documented range they return its one encoding.

An *element* is a whole encoding (identifier, length, contents); *contents* are what is inside. Everything is refused
with `Code.MALFORMED_REQUEST`; readers of a particular message give it that message's code.

This module must import nothing of estd but `estd.errors` and `estd.asn1.oids`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

from estd.asn1.oids import NAMES, OIDS
from estd.errors import Broken, Code, Refused

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_ELEMENTS = 4096

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL_TAG = 0x05
OID = 0x06
UTF8_STRING = 0x0C
NUMERIC_STRING = 0x12
PRINTABLE_STRING = 0x13
TELETEX_STRING = 0x14
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
VISIBLE_STRING = 0x1A
UNIVERSAL_STRING = 0x1C
BMP_STRING = 0x1E
SEQUENCE = 0x30
SET = 0x31

NULL = b"\x05\x00"


# --- reading ---------------------------------------------------------------------------------------------------------


def read_tlv(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """The element at `at`, which must end by `end`: its identifier octet, where its contents start, where they stop."""
    start = at + 2
    if start > end:
        raise _refused("the encoding is cut short", "X.690 §8.1")
    tag = data[at]
    if tag & 0x1F == 0x1F or tag == 0:
        # Nothing in PKIX has a tag above 30; end-of-contents belongs to indefinite lengths.
        raise _refused(f"identifier octet 0x{tag:02x} has no place in a certification message", "X.690 §8.1.2")
    length = data[at + 1]
    if length > 0x7F:
        octets = length & 0x7F
        if not 1 <= octets <= 3:
            raise _refused("a length is indefinite or beyond any message we read", "X.690 §10.1")
        length = int.from_bytes(data[start : start + octets], "big")
        start += octets
        if start > end or length < 0x80 or length >> (8 * (octets - 1)) == 0:
            raise _refused("a length is not in its shortest form", "X.690 §10.1")
    stop = start + length
    if stop > end:
        raise _refused("an element runs past the end of what holds it", "X.690 §8.1.3")
    return tag, start, stop


def read_tagged(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Like `read_tlv` for an element that must have this identifier octet: where its contents start and stop."""
    start = at + 2
    if start <= end and data[at] == tag and data[at + 1] < 0x80:
        # Nearly every element of a request: short, and what it should be. The rest is told apart by `read_tlv`.
        stop = start + data[at + 1]
        if stop <= end:
            return start, stop
    found, start, stop = read_tlv(data, at, end)
    if found != tag:
        raise _refused(f"identifier octet 0x{found:02x} stands where 0x{tag:02x} belongs", "X.690 §8.1.2")
    return start, stop


def read_whole(data: bytes, tag: int) -> tuple[int, int]:
    """Like `read_tagged` for an element that is all of `data`: nothing may follow it."""
    end = len(data)
    if end > MAX_BYTES:
        raise _refused(f"{end} bytes are more than the {MAX_BYTES} we read", "RFC 7030 §6")
    start, stop = read_tagged(data, 0, end, tag)
    if stop != end:
        raise _refused(f"{end - stop} bytes follow the encoding", "X.690 §8.1")
    return start, stop


def read_members(data: bytes, start: int, stop: int, most: int = 256) -> list[tuple[int, int, int, int]]:
    """The elements that fill these contents, as (identifier octet, element start, contents start, contents stop)."""
    members: list[tuple[int, int, int, int]] = []
    while start < stop:
        if len(members) == most:
            raise _refused(f"there are more than the {most} members we read", "RFC 7030 §6")
        tag, inner, after = read_tlv(data, start, stop)
        members.append((tag, start, inner, after))
        start = after
    return members


def check_der(data: bytes, at: int = 0, end: int | None = None) -> None:
    """Everything in [at, end) is one element and strict DER to its leaves; octet strings are not entered."""
    if end is None:
        end = len(data)
    if end - at > MAX_BYTES:
        raise _refused(f"{end - at} bytes are more than the {MAX_BYTES} we read", "RFC 7030 §6")
    if read_tlv(data, at, end)[2] != end:
        raise _refused("bytes follow the encoding", "X.690 §8.1")
    ends = [end]
    elements = 0
    while ends:
        if at == ends[-1]:
            ends.pop()
            continue
        elements += 1
        if elements > MAX_ELEMENTS:
            raise _refused(f"there are more than the {MAX_ELEMENTS} elements we read", "RFC 7030 §6")
        tag, start, stop = read_tlv(data, at, ends[-1])
        at = stop
        if tag & 0x20:
            if tag < 0x40 and tag not in (SEQUENCE, SET):
                raise _refused("a string is encoded in pieces", "X.690 §10.2")
            if len(ends) > MAX_DEPTH:
                raise _refused(f"the nesting is deeper than {MAX_DEPTH} levels", "RFC 7030 §6")
            ends.append(stop)
            at = start
        elif tag in (SEQUENCE & 0x1F, SET & 0x1F):
            raise _refused("a SEQUENCE or SET is marked primitive", "X.690 §8.9.1")
        elif tag == INTEGER:
            read_integer(data, start, stop)
        elif tag == BOOLEAN:
            read_boolean(data, start, stop)
        elif tag == OID:
            read_oid(data[start:stop])
        elif tag == BIT_STRING:
            _check_bit_string(data, start, stop)
        elif tag == NULL_TAG and start != stop:
            raise _refused("a NULL has contents", "X.690 §8.8.2")


def read_integer(data: bytes, start: int, stop: int) -> int:
    """The value of an INTEGER's contents."""
    if start == stop:
        raise _refused("an INTEGER is empty", "X.690 §8.3.1")
    if stop - start > 1 and (
        (data[start] == 0 and data[start + 1] < 0x80) or (data[start] == 0xFF and data[start + 1] >= 0x80)
    ):
        raise _refused("an INTEGER is not in its shortest form", "X.690 §8.3.2")
    return int.from_bytes(data[start:stop], "big", signed=True)


def read_boolean(data: bytes, start: int, stop: int) -> bool:
    """The value of a BOOLEAN's contents."""
    if stop - start != 1 or data[start] not in (0x00, 0xFF):
        raise _refused("a BOOLEAN is neither 00 nor FF", "X.690 §11.1")
    return data[start] == 0xFF


def read_octets(data: bytes, start: int, stop: int) -> bytes:
    """The octets of a BIT STRING's contents, for those bit strings that hold whole octets (keys, signatures)."""
    if start == stop or data[start] != 0:
        raise _refused("a BIT STRING does not hold whole octets", "X.690 §8.6.2")
    return data[start + 1 : stop]


@lru_cache(maxsize=1024)
def read_oid(contents: bytes) -> str:
    """The dotted form of an OBJECT IDENTIFIER's contents."""
    if not contents or contents[-1] & 0x80 or len(contents) > 64:
        raise _refused("an OBJECT IDENTIFIER is empty, unfinished or longer than 64 bytes", "X.690 §8.19")
    arcs = []
    arc = 0
    fresh = True
    for octet in contents:
        if fresh and octet == 0x80:
            raise _refused("an OBJECT IDENTIFIER has an arc not in its shortest form", "X.690 §8.19.2")
        arc = arc << 7 | octet & 0x7F
        fresh = not octet & 0x80
        if fresh:
            arcs.append(arc)
            arc = 0
    root = min(arcs[0] // 40, 2)
    return ".".join(map(str, [root, arcs[0] - 40 * root, *arcs[1:]]))


def read_string(tag: int, contents: bytes) -> str | None:
    """The text of a character string; None for a tag that is not one. Undecodable text and NUL are refused.

    TeletexString is read as Latin-1, which is what encoders put there (RFC 5280 §4.1.2.4 keeps the type for old names
    only). PrintableString is read as ASCII: devices put ``*``, ``@`` and ``_`` there, and nobody doubts what is meant.
    """
    codec = _CODECS.get(tag)
    if codec is None:
        return None
    try:
        text = contents.decode(codec)
    except UnicodeDecodeError:
        raise _refused("a character string is not in its own character set", "X.690 §8.23") from None
    if tag == BMP_STRING and len(text) * 2 != len(contents):
        raise _refused("a BMPString holds characters outside the basic plane", "X.680 §41.15")
    if "\0" in text:
        # A parser that stops at NUL would read another name (CVE-2013-4314).
        raise _refused("a character string holds a NUL", "RFC 4518 §2.2")
    return text


# --- writing ---------------------------------------------------------------------------------------------------------


def tlv(tag: int, contents: bytes) -> bytes:
    """One element."""
    return header(tag, len(contents)) + contents


@lru_cache(maxsize=1024)
def header(tag: int, length: int) -> bytes:
    """What precedes the contents of an element. Kept: the certificates of a profile are nearly all equally long."""
    if length < 0x80:
        return bytes((tag, length))
    octets = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + length.to_bytes(octets, "big")


def sequence(*members: bytes) -> bytes:
    """SEQUENCE of these elements, in this order."""
    return tlv(SEQUENCE, b"".join(members))


def set_of(members: Iterable[bytes], tag: int = SET) -> bytes:
    """SET OF these elements, in the order of their encodings (X.690 §11.6)."""
    return tlv(tag, b"".join(sorted(members)))


def explicit(number: int, element: bytes) -> bytes:
    """The element under an EXPLICIT context tag."""
    return tlv(0xA0 | number, element)


def implicit(number: int, element: bytes) -> bytes:
    """The element with its own tag replaced by an IMPLICIT context tag."""
    return bytes((0x80 | element[0] & 0x20 | number,)) + element[1:]


def integer(value: int) -> bytes:
    """INTEGER."""
    return tlv(INTEGER, value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, "big", signed=True))


def boolean(value: bool) -> bytes:
    """BOOLEAN."""
    return b"\x01\x01\xff" if value else b"\x01\x01\x00"


def octet_string(octets: bytes) -> bytes:
    """OCTET STRING."""
    return tlv(OCTET_STRING, octets)


def bit_string(octets: bytes) -> bytes:
    """BIT STRING of whole octets."""
    return tlv(BIT_STRING, b"\0" + octets)


def named_bits(bits: Iterable[int]) -> bytes:
    """BIT STRING with these bits set and trailing zero bits dropped (X.690 §11.2.2), as KeyUsage wants it."""
    value = sum(1 << bit for bit in set(bits))
    count = value.bit_length()
    octets = bytearray((count + 7) // 8)
    for bit in range(count):
        if value >> bit & 1:
            octets[bit // 8] |= 0x80 >> bit % 8
    return tlv(BIT_STRING, bytes((-count % 8,)) + octets)


def utf8(text: str) -> bytes:
    """UTF8String."""
    return tlv(UTF8_STRING, text.encode())


def printable(text: str) -> bytes:
    """PrintableString; the text must keep to its character set (X.680 §41.4)."""
    if not is_printable(text):
        raise Broken(f"{text!r} does not fit a PrintableString")
    return tlv(PRINTABLE_STRING, text.encode("ascii"))


def ia5(text: str) -> bytes:
    """IA5String; the text must be ASCII."""
    return tlv(IA5_STRING, text.encode("ascii"))


def is_printable(text: str) -> bool:
    """Whether a PrintableString can hold the text (X.680 §41.4)."""
    return _PRINTABLE.issuperset(text)


def time(at: datetime) -> bytes:
    """Time: UTCTime through 2049, GeneralizedTime from 2050 on (RFC 5280 §4.1.2.5).

    ``9999-12-31T23:59:59Z`` comes out as 99991231235959Z, "no well-defined expiration date".
    """
    offset = at.utcoffset()
    if offset is None or offset or at.microsecond or at.year < 1950:
        raise Broken(f"{at!r} is not an aware UTC time to the second, 1950 or later")
    digits = f"{at.month:02}{at.day:02}{at.hour:02}{at.minute:02}{at.second:02}Z"
    if at.year < 2050:
        return tlv(UTC_TIME, f"{at.year % 100:02}{digits}".encode())
    return tlv(GENERALIZED_TIME, f"{at.year:04}{digits}".encode())


@lru_cache(maxsize=1024)
def oid(name: str) -> bytes:
    """OBJECT IDENTIFIER, by a name of `OIDS` or in dotted form."""
    return tlv(OID, oid_contents(name))


@lru_cache(maxsize=1024)
def oid_contents(name: str) -> bytes:
    """The contents of `oid`: what stands in place of the element under an IMPLICIT tag, and what readers compare."""
    dotted = OIDS.get(name, name)
    if _DOTTED.fullmatch(dotted) is None:
        raise _refused(f"{name!r} is neither a known name nor a dotted object identifier", "X.660")
    first, second, *rest = map(int, dotted.split("."))
    if first > 2 or (first < 2 and second > 39):
        raise _refused(f"{name!r} is not an object identifier", "X.660")
    return b"".join(_arc(arc) for arc in (40 * first + second, *rest))


def oid_name(dotted: str) -> str:
    """The name of an object identifier in `OIDS`, or its dotted form where it has none."""
    return NAMES.get(dotted, dotted)


# --- private ---------------------------------------------------------------------------------------------------------

_DOTTED = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,38})){1,30}")

_CODECS = {
    UTF8_STRING: "utf-8",
    PRINTABLE_STRING: "ascii",
    IA5_STRING: "ascii",
    NUMERIC_STRING: "ascii",
    VISIBLE_STRING: "ascii",
    TELETEX_STRING: "latin-1",
    BMP_STRING: "utf-16-be",
    UNIVERSAL_STRING: "utf-32-be",
}

_PRINTABLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?")


def _refused(detail: str, clause: str) -> Refused:
    return Refused(Code.MALFORMED_REQUEST, detail, clause)


def _check_bit_string(data: bytes, start: int, stop: int) -> None:
    if start == stop or data[start] > 7 or (data[start] and stop - start == 1):
        raise _refused("a BIT STRING counts its unused bits wrongly", "X.690 §8.6.2")
    if data[stop - 1] & ((1 << data[start]) - 1) and stop - start > 1:
        raise _refused("a BIT STRING has unused bits that are not zero", "X.690 §11.2.1")


def _arc(value: int) -> bytes:
    octets = bytearray((value & 0x7F,))
    while value := value >> 7:
        octets.append(value & 0x7F | 0x80)
    return bytes(reversed(octets))
