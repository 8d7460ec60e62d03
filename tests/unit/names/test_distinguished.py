"""estd.names.distinguished: RFC 5280 §7.1 comparison and RFC 4514 text."""

import contextlib

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from estd.asn1 import der
from estd.errors import Code, Refused
from estd.names import EMPTY_NAME, MAX_NAME_BYTES, Name, read_name, same_name, write_attribute, write_name, write_rdns


def name_of(*rdns: list[tuple[str, bytes]]) -> bytes:
    return der.sequence(*[der.set_of([der.sequence(der.oid(kind), value) for kind, value in rdn]) for rdn in rdns])


def cn(value: bytes) -> bytes:
    return name_of([("commonName", value)])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (der.utf8("Device 1"), der.printable("Device 1")),
        (der.utf8("Device 1"), der.printable("DEVICE 1")),
        (der.utf8("Device 1"), der.utf8("  device   1 ")),
        (der.utf8("Device 1"), der.tlv(der.BMP_STRING, "DEVICE 1".encode("utf-16-be"))),
        (der.utf8("Device 1"), der.tlv(der.UNIVERSAL_STRING, "device 1".encode("utf-32-be"))),
        (der.utf8("KÄSE"), der.tlv(der.TELETEX_STRING, "käse".encode("latin-1"))),
        (der.utf8("Straße"), der.utf8("STRASSE")),
        (der.utf8("ﬁeld"), der.utf8("FIELD")),
        (der.utf8("e\u0301"), der.utf8("É")),
        (der.utf8("a\u00adb\u200bc"), der.utf8("abc")),
        (der.utf8("a\tb\u00a0c\u3000d"), der.utf8("a b c d")),
        (der.utf8("a\x01b"), der.utf8("ab")),
    ],
)
def test_one_name_in_two_spellings(a: bytes, b: bytes) -> None:
    assert same_name(cn(a), cn(b))
    assert read_name(cn(a)) == read_name(cn(b))
    assert hash(read_name(cn(a))) == hash(read_name(cn(b)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (cn(der.utf8("a b")), cn(der.utf8("ab"))),
        (cn(der.utf8("a")), cn(der.utf8("b"))),
        (cn(der.utf8("a")), name_of([("organizationName", der.utf8("a"))])),
        (cn(der.utf8("a")), EMPTY_NAME),
        (cn(der.utf8("a")), name_of([("commonName", der.utf8("a"))], [("commonName", der.utf8("a"))])),
        (
            name_of([("organizationName", der.utf8("o"))], [("commonName", der.utf8("c"))]),
            name_of([("commonName", der.utf8("c"))], [("organizationName", der.utf8("o"))]),
        ),
        (
            name_of([("organizationName", der.utf8("o")), ("commonName", der.utf8("c"))]),
            name_of([("organizationName", der.utf8("o"))], [("commonName", der.utf8("c"))]),
        ),
        (cn(der.octet_string(b"a")), cn(der.utf8("a"))),
        (cn(der.octet_string(b"a")), cn(der.octet_string(b"A"))),
    ],
)
def test_two_names(a: bytes, b: bytes) -> None:
    assert not same_name(a, b)
    assert same_name(a, a)


def test_order_inside_an_rdn_does_not_count() -> None:
    parts = [der.sequence(der.oid("commonName"), der.utf8("a")), der.sequence(der.oid("serialNumber"), der.utf8("B"))]
    one = der.sequence(der.tlv(der.SET, parts[0] + parts[1]))
    other = der.sequence(der.tlv(der.SET, parts[1] + parts[0]))
    assert one != other
    assert same_name(one, other)


@pytest.mark.parametrize(
    "value",
    [
        der.utf8("good.example\0evil.example"),
        der.tlv(der.UTF8_STRING, b"\xff"),
        der.tlv(der.BMP_STRING, b"\0a\0\0"),
        der.tlv(der.PRINTABLE_STRING, b"\xe4"),
        der.utf8("a\ufffdb"),
        der.utf8("a\ue000b"),
        der.utf8("a\ufdd0b"),
        der.tlv(der.INTEGER, b"\0\x01"),
        der.tlv(0x24, b""),
    ],
)
def test_names_that_could_be_read_in_two_ways_are_refused(value: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_name(cn(value))
    assert refused.value.code is Code.SUBJECT_REFUSED


@pytest.mark.parametrize(
    "encoding",
    [
        b"",
        b"\x31\x00",
        b"\x30\x02\x31\x00",
        b"\x30\x02\x30\x00",
        b"\x30\x04\x31\x02\x30\x00",
        EMPTY_NAME + b"\0",
        der.sequence(der.tlv(der.SET, der.sequence(der.oid("commonName"), der.utf8("a"), der.utf8("b")))),
        der.sequence(der.tlv(der.SET, der.sequence(der.utf8("a"), der.oid("commonName")))),
        cn(der.utf8("a" * MAX_NAME_BYTES)),
        der.sequence(*[der.tlv(der.SET, der.sequence(der.oid("2.5.4.3"), der.utf8("")))] * 65),
    ],
)
def test_malformed_names_are_refused(encoding: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_name(encoding)
    assert refused.value.code is Code.SUBJECT_REFUSED


def test_truncations_and_trailing_bytes_are_refused() -> None:
    whole = write_name("CN=device+serialNumber=1,O=Acme,C=DE")
    read_name(whole)
    for length in range(len(whole)):
        with pytest.raises(Refused):
            read_name(whole[:length])
    with pytest.raises(Refused):
        read_name(whole + b"\0")


@given(st.binary(max_size=100))
def test_random_bytes_never_crash(data: bytes) -> None:
    for encoding in (data, der.sequence(data), der.sequence(der.tlv(der.SET, data)), cn(data)):
        with contextlib.suppress(Refused):
            assert isinstance(read_name(encoding).text, str)


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("", ""),
        ("CN=device", "CN=device"),
        ("cn=device, o=Acme\\, Inc. ,c=DE", "CN=device,O=Acme\\, Inc.,C=DE"),
        ("CN=a+serialNumber=1", "CN=a+serialNumber=1"),
        ("serialnumber=SN-1,DC=example,DC=com", "serialNumber=SN-1,DC=example,DC=com"),
        ("CN=\\ lead and trail\\ ", "CN=\\ lead and trail\\ "),
        ("CN=\\#hash", "CN=\\#hash"),
        ("CN=a\\0ab", "CN=a\\0ab"),
        ("CN=Lu\\c4\\8di\\C4\\87", "CN=Lučić"),
        ("CN=a\\\\5c", "CN=a\\\\5c"),
        ("CN=a\\5c", "CN=a\\\\"),
        ("1.2.3.4=x", "1.2.3.4=x"),
        ("1.2.3.4=#0c0178", "1.2.3.4=x"),
        ("CN=#0403616263", "CN=#0403616263"),
        ("CN=a=b", "CN=a=b"),
        ("CN=\u202egnp", "CN=\\e2\\80\\aegnp"),
        ("matterNodeId=0123456789ABCDEF", "matterNodeId=0123456789ABCDEF"),
    ],
)
def test_rfc4514_text(text: str, again: str) -> None:
    encoding = write_name(text)
    assert read_name(encoding).text == again
    assert write_name(again) == encoding


@pytest.mark.parametrize(
    "text",
    [
        "CN",
        "CN=",
        "=a",
        "CN=a,",
        "CN=a,,O=b",
        "CN=a;O=b",
        'CN="a"',
        "CN=a\\",
        "CN=a\\zz",
        "CN=\\ff",
        "CN=a\0",
        "CN=\\00",
        "CN=#zz",
        "CN=#0c",
        "CN=#0c0178f",
        "SN=1",
        "nosuch=1",
        "9.1=a",
        "C=DEU",
        "serialNumber=a_b",
        "DC=käse",
        "CN=" + "a" * 65,
        "CN=\ud800",
        "O=" + "a" * 5000,
        ",".join(["O=" + "a" * 60] * 70),
    ],
)
def test_text_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        write_name(text)
    assert refused.value.code is Code.SUBJECT_REFUSED


def test_text_agrees_with_another_implementation() -> None:
    text = "serialNumber=SN-1+CN=dev\\+1,OU=Line \\#4,O=Acme\\, Inc.,C=DE"
    theirs = x509.Name.from_rfc4514_string(text, {"serialNumber": x509.NameOID.SERIAL_NUMBER})
    assert write_name(text) == theirs.public_bytes()
    assert read_name(theirs.public_bytes()) == read_name(write_name(text))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), min_size=1, max_size=8), max_size=4))
def test_any_text_survives_the_round_trip(values: list[str]) -> None:
    with contextlib.suppress(Refused):
        name = read_name(write_rdns([("commonName", value) for value in values]))
        assert [value for rdn in name.rdns for _, value in rdn] == values
        assert write_name(name.text) == name.der
        assert name.text.isprintable()


@given(st.text(max_size=30))
def test_comparison_is_stable(value: str) -> None:
    """What is prepared once is the same when prepared again, so that equality is an equivalence."""
    with contextlib.suppress(Refused, UnicodeEncodeError):
        prepared = read_name(cn(der.utf8(value))).key[0][0][1]
        assert read_name(cn(der.utf8(prepared))).key[0][0][1] == prepared


def test_string_types_follow_the_attribute() -> None:
    assert write_attribute("C", "DE") == der.sequence(der.oid("countryName"), der.printable("DE"))
    assert write_attribute("serialNumber", "A1") == der.sequence(der.oid("serialNumber"), der.printable("A1"))
    assert write_attribute("DC", "com") == der.sequence(der.oid("domainComponent"), der.ia5("com"))
    assert write_attribute("CN", "a") == der.sequence(der.oid("commonName"), der.utf8("a"))
    assert write_rdns([("C", "DE"), ("CN", "a,b")]) == write_name("CN=a\\,b,C=DE")


def test_find_takes_the_innermost() -> None:
    name = read_name(write_rdns([("CN", "outer"), ("OU", "x"), ("CN", "inner")]))
    assert name.find("commonName") == "inner"
    assert name.find("serialNumber") is None
    assert isinstance(name, Name)
