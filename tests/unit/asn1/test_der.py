"""estd.asn1.der: one encoding for each value, and nothing else read."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from asn1crypto import core as judge
from hypothesis import given
from hypothesis import strategies as st

from estd.asn1 import der
from estd.errors import Broken, Code, Refused

SAMPLE = der.sequence(
    der.integer(300),
    der.boolean(True),
    der.oid("rsaEncryption"),
    der.NULL,
    der.set_of([der.utf8("b"), der.utf8("a")]),
    der.bit_string(b"\x01\x02"),
    der.octet_string(b"x" * 300),
    der.explicit(0, der.ia5("t")),
)


def test_check_der_accepts_a_whole_encoding_and_no_part_of_it() -> None:
    der.check_der(SAMPLE)
    for length in range(len(SAMPLE)):
        with pytest.raises(Refused) as refused:
            der.check_der(SAMPLE[:length])
        assert refused.value.code is Code.MALFORMED_REQUEST
    with pytest.raises(Refused, match="follow"):
        der.check_der(SAMPLE + b"\0")


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        ("3080 0000", "indefinite"),
        ("3081 00", "shortest"),
        ("3081 7f" + "00" * 127, "shortest"),
        ("3082 0080" + "00" * 128, "shortest"),
        ("3084 00000000", "indefinite or beyond"),
        ("30ff", "indefinite or beyond"),
        ("1f8100", "identifier octet"),
        ("0000", "identifier octet"),
        ("2403 040100", "in pieces"),
        ("1000", "marked primitive"),
        ("1100", "marked primitive"),
        ("0200", "INTEGER is empty"),
        ("0202 007f", "INTEGER is not in its shortest"),
        ("0202 ff80", "INTEGER is not in its shortest"),
        ("0101 01", "BOOLEAN"),
        ("0102 0000", "BOOLEAN"),
        ("0600", "OBJECT IDENTIFIER"),
        ("0602 2a80", "OBJECT IDENTIFIER"),
        ("0603 2a8001", "OBJECT IDENTIFIER"),
        ("0300", "BIT STRING"),
        ("0301 01", "BIT STRING"),
        ("0302 08ff", "BIT STRING"),
        ("0302 01ff", "unused bits that are not zero"),
        ("0501 00", "NULL"),
        ("3003 0201", "past the end"),
    ],
)
def test_check_der_refuses_what_is_not_der(encoding: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        der.check_der(bytes.fromhex(encoding))


def test_depth_and_size_are_bounded() -> None:
    nested = b""
    for _ in range(der.MAX_DEPTH):
        nested = der.sequence(nested)
    der.check_der(nested)
    with pytest.raises(Refused, match="deeper"):
        der.check_der(der.sequence(nested))
    with pytest.raises(Refused, match="more than"):
        der.check_der(der.octet_string(bytes(der.MAX_BYTES)))
    der.check_der(der.sequence(*[der.NULL] * (der.MAX_ELEMENTS - 1)))
    with pytest.raises(Refused, match="elements"):
        der.check_der(der.sequence(*[der.NULL] * der.MAX_ELEMENTS))
    members = der.NULL * 256
    assert len(der.read_members(members, 0, len(members))) == 256
    with pytest.raises(Refused, match="members"):
        der.read_members(members + der.NULL, 0, len(members) + 2)
    with pytest.raises(Refused, match="more than"):
        der.read_whole(der.octet_string(bytes(der.MAX_BYTES)), der.OCTET_STRING)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_and_never_crash(data: bytes) -> None:
    try:
        der.check_der(data)
    except Refused:
        return
    assert der.read_tlv(data, 0, len(data))[2] == len(data)


@given(st.integers(0, len(SAMPLE) * 8 - 1))
def test_bit_flips_never_crash(bit: int) -> None:
    flipped = bytearray(SAMPLE)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(Refused):
        der.check_der(bytes(flipped))


def test_members_and_tagged_elements() -> None:
    start, stop = der.read_whole(SAMPLE, der.SEQUENCE)
    tags = [tag for tag, _, _, _ in der.read_members(SAMPLE, start, stop)]
    assert tags == [0x02, 0x01, 0x06, 0x05, 0x31, 0x03, 0x04, 0xA0]
    with pytest.raises(Refused, match="0x02 stands where 0x30 belongs"):
        der.read_tagged(SAMPLE, start, stop, der.SEQUENCE)
    with pytest.raises(Refused, match="1 bytes follow"):
        der.read_whole(SAMPLE + b"\0", der.SEQUENCE)


@given(st.integers(-(1 << 200), 1 << 200))
def test_integers_agree_with_another_encoder(value: int) -> None:
    encoding = der.integer(value)
    assert encoding == judge.Integer(value).dump()
    _, start, stop = der.read_tlv(encoding, 0, len(encoding))
    assert der.read_integer(encoding, start, stop) == value


@given(
    st.integers(0, 2),
    st.integers(0, 39),
    st.lists(st.integers(0, 1 << 64), max_size=6),
)
def test_object_identifiers_agree_with_another_encoder(first: int, second: int, rest: list[int]) -> None:
    dotted = ".".join(map(str, [first, second, *rest]))
    encoding = der.oid(dotted)
    assert encoding == judge.ObjectIdentifier(dotted).dump()
    assert der.read_oid(encoding[2:]) == dotted


def test_object_identifiers_have_names() -> None:
    assert der.oid("2.999") == bytes.fromhex("06028837")
    assert der.oid("commonName") == bytes.fromhex("0603550403")
    assert der.oid_contents("commonName") == bytes.fromhex("550403")
    assert der.oid_name("2.5.4.3") == "commonName"
    assert der.oid_name("1.2.3") == "1.2.3"
    for text in ("", "1", "3.1", "1.40", "1.2.", "1.02", "1.-2", "１.2", "commonname", "1." + "9" * 60):
        with pytest.raises(Refused):
            der.oid(text)


@given(st.sets(st.integers(0, 20)))
def test_named_bits_drop_trailing_zeros(bits: set[int]) -> None:
    encoding = der.named_bits(bits)
    der.check_der(encoding)
    value = tuple(int(bit in bits) for bit in range(max(bits, default=-1) + 1))
    assert encoding == judge.BitString(value).dump() if bits else encoding == b"\x03\x01\x00"


def test_key_usage_as_everyone_writes_it() -> None:
    assert der.named_bits([0, 2]).hex() == "030205a0"
    assert der.named_bits([5, 6]).hex() == "03020106"
    assert der.named_bits([8]).hex() == "0303070080"


def test_set_of_is_sorted_and_tags_replace_one_another() -> None:
    assert der.set_of([b"\x02\x01\x02", b"\x02\x01\x01"]) == bytes.fromhex("3106020101020102")
    assert der.implicit(1, der.sequence(der.NULL)) == bytes.fromhex("a1020500")
    assert der.implicit(2, der.ia5("a")) == bytes.fromhex("820161")
    assert der.explicit(3, der.boolean(False)) == bytes.fromhex("a303010100")


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65535, 65536])
def test_lengths_agree_with_another_encoder(size: int) -> None:
    assert der.octet_string(bytes(size)) == judge.OctetString(bytes(size)).dump()


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(1950, 1, 1, tzinfo=UTC), b"\x17\x0d500101000000Z"),
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d491231235959Z"),
        (datetime(2050, 1, 1, tzinfo=UTC), b"\x18\x0f20500101000000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x18\x0f99991231235959Z"),
    ],
)
def test_time_changes_form_in_2050(at: datetime, expected: bytes) -> None:
    assert der.time(at) == expected


@pytest.mark.parametrize(
    "at",
    [
        datetime(2030, 1, 1),  # noqa: DTZ001 - a naive time is the case under test
        datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        datetime(2030, 1, 1, microsecond=1, tzinfo=UTC),
        datetime(1949, 12, 31, tzinfo=UTC),
    ],
)
def test_a_time_that_is_not_utc_to_the_second_is_our_fault(at: datetime) -> None:
    with pytest.raises(Broken):
        der.time(at)


def test_strings() -> None:
    assert der.read_string(der.UTF8_STRING, "Käse".encode()) == "Käse"
    assert der.read_string(der.BMP_STRING, "Käse".encode("utf-16-be")) == "Käse"
    assert der.read_string(der.UNIVERSAL_STRING, "Käse😀".encode("utf-32-be")) == "Käse😀"
    assert der.read_string(der.TELETEX_STRING, "Käse".encode("latin-1")) == "Käse"
    assert der.read_string(der.PRINTABLE_STRING, b"a_b*@") == "a_b*@"
    assert der.read_string(der.OCTET_STRING, b"a") is None
    assert der.utf8("ä").hex() == "0c02c3a4"
    assert der.printable("A-1").hex() == "1303412d31"
    with pytest.raises(Broken):
        der.printable("a_b")


@pytest.mark.parametrize(
    ("tag", "contents"),
    [
        (der.UTF8_STRING, b"a\0b"),
        (der.BMP_STRING, b"\0a\0\0"),
        (der.UTF8_STRING, b"\xff"),
        (der.UTF8_STRING, b"\xc0\x80"),
        (der.UTF8_STRING, b"\xed\xa0\x80"),
        (der.PRINTABLE_STRING, b"\xe4"),
        (der.IA5_STRING, b"\x80"),
        (der.BMP_STRING, b"a"),
        (der.BMP_STRING, b"\xd8\x00"),
        (der.BMP_STRING, "😀".encode("utf-16-be")),
        (der.UNIVERSAL_STRING, b"\0\0\xd8\0"),
        (der.UNIVERSAL_STRING, b"\0\x11\0\0"),
    ],
)
def test_undecodable_strings_and_nul_are_refused(tag: int, contents: bytes) -> None:
    with pytest.raises(Refused):
        der.read_string(tag, contents)


def test_octets_of_a_bit_string() -> None:
    assert der.read_octets(b"\x03\x03\x00ab", 2, 5) == b"ab"
    for contents in (b"", b"\x01\x02"):
        with pytest.raises(Refused):
            der.read_octets(contents, 0, len(contents))
