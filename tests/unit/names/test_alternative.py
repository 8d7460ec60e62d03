"""estd.names.alternative: general names as a set."""

import contextlib

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from estd.asn1 import der
from estd.errors import Code, Refused
from estd.names import MAX_SANS, read_san, same_san, write_general_name, write_name, write_san

TEXTS = [
    "dns:Device.example.com",
    "dns:*.example.com",
    "ip:192.0.2.1",
    "ip:2001:db8::1",
    "uri:urn:dev:ops:32473-X-1",
    "uri:https://User@Example.com/Path?q",
    "email:Line@Example.com",
    "other:1.3.6.1.5.5.7.8.4=#300906032a03040402ff01",
    "dirname:CN=device,O=Acme",
    "rid:1.2.3.4",
]


def test_text_and_bytes_are_one() -> None:
    encoding = write_san(TEXTS)
    names = read_san(encoding)
    assert [name.text for name in names] == TEXTS
    assert write_san([name.text for name in names]) == encoding
    assert b"".join(name.der for name in names) == encoding[-sum(len(name.der) for name in names) :]
    assert [name.kind for name in names] == [text.partition(":")[0] for text in TEXTS]


def test_another_implementation_reads_the_same() -> None:
    theirs = x509.Extension(
        x509.OID_SUBJECT_ALTERNATIVE_NAME,
        False,
        x509.SubjectAlternativeName(
            [
                x509.DNSName("Device.example.com"),
                x509.RFC822Name("Line@Example.com"),
                x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
            ]
        ),
    ).value.public_bytes()
    assert write_san(["dns:Device.example.com", "email:Line@Example.com", "rid:1.2.3.4"]) == theirs


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["dns:A.example", "dns:b.example"], ["dns:B.EXAMPLE", "dns:a.example"]),
        (["dns:a.example", "dns:a.example"], ["dns:a.example"]),
        (["uri:HTTPS://Example.COM/a"], ["uri:https://example.com/a"]),
        (["email:a@Example.COM"], ["email:a@example.com"]),
        (["dirname:CN=A"], ["dirname:CN=a"]),
        (["ip:2001:db8::1"], ["ip:2001:DB8:0:0::1"]),
    ],
)
def test_one_set_of_names(a: list[str], b: list[str]) -> None:
    assert same_san(write_san(a), write_san(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["dns:a.example"], ["dns:b.example"]),
        (["dns:a.example"], ["dns:a.example", "dns:b.example"]),
        (["dns:a.example"], ["uri:a:a.example"]),
        (["uri:https://example.com/a"], ["uri:https://example.com/A"]),
        (["uri:https://example.com/a"], ["uri:https://example.com/%61"]),
        (["uri:https://u@example.com/a"], ["uri:https://U@example.com/a"]),
        (["email:a@example.com"], ["email:A@example.com"]),
        (["ip:192.0.2.1"], ["ip:::ffff:192.0.2.1"]),
        (["other:1.2.3=#0c0161"], ["other:1.2.3=#130161"]),
    ],
)
def test_two_sets_of_names(a: list[str], b: list[str]) -> None:
    assert not same_san(write_san(a), write_san(b))


def test_an_absent_extension_is_a_set_of_its_own() -> None:
    some = write_san(["dns:a.example"])
    assert same_san(None, None)
    assert not same_san(None, some)
    assert not same_san(some, None)


@pytest.mark.parametrize(
    "text",
    [
        "a.example",
        "dns:",
        "dns:a.example.",
        "dns:.example",
        "dns:a..example",
        "dns:-a.example",
        "dns:a b.example",
        "dns:a.*.example",
        "dns:*",
        "dns:" + "a" * 64 + ".example",
        "dns:" + ".".join(["a" * 60] * 5),
        "dns:a\0.example",
        "dns:käse.example",
        "ip:192.0.2",
        "ip:1",
        "ip:fe80::1%eth0",
        "uri:/relative",
        "uri:https:",
        "uri:https://a b/",
        "email:a",
        "email:@example.com",
        "email:a@b@example.com",
        "email:a@example.com.",
        "dirname:nosuch=1",
        "rid:1",
        "other:1.2.3=#zz",
        "other:1.2.3=#0c02",
        "other:1.2.3",
        "x400:a",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        write_general_name(text)
    assert refused.value.code is Code.SAN_REFUSED


@pytest.mark.parametrize(
    "encoding",
    [
        b"",
        b"\x30\x00",
        der.sequence(der.tlv(0x82, b"a.example\0.evil.example")),
        der.sequence(der.tlv(0x82, b"k\xe4se.example")),
        der.sequence(der.tlv(0x87, b"\x0a\0\0")),
        der.sequence(der.tlv(0xA3, b"")),
        der.sequence(der.tlv(0xA5, b"")),
        der.sequence(der.tlv(0x84, b"")),
        der.sequence(der.tlv(0xA4, b"")),
        der.sequence(der.tlv(0xA4, write_name("CN=a") + b"\0")),
        der.sequence(der.tlv(0xA0, der.oid("1.2.3"))),
        der.sequence(der.tlv(0xA0, der.oid("1.2.3") + der.explicit(0, der.NULL) + der.NULL)),
        der.sequence(der.utf8("a.example")),
        der.sequence(der.tlv(0x82, b"a.example")) + b"\0",
        der.sequence(*[der.tlv(0x82, b"a.example")] * (MAX_SANS + 1)),
    ],
)
def test_malformed_extension_values_are_refused(encoding: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_san(encoding)
    assert refused.value.code is Code.SAN_REFUSED


def test_truncations_are_refused() -> None:
    whole = write_san(TEXTS)
    for length in range(len(whole)):
        with pytest.raises(Refused):
            read_san(whole[:length])


def test_none_and_too_many_are_refused_when_written() -> None:
    for texts in ([], ["dns:a.example"] * (MAX_SANS + 1)):
        with pytest.raises(Refused):
            write_san(texts)


@given(st.binary(max_size=60), st.integers(0, 255))
def test_random_bytes_never_crash(data: bytes, tag: int) -> None:
    for encoding in (data, der.sequence(data), der.sequence(der.tlv(tag, data))):
        with contextlib.suppress(Refused):
            for name in read_san(encoding):
                assert write_general_name(name.text) == name.der


@given(st.text(max_size=40), st.sampled_from(["dns", "ip", "uri", "email", "other", "dirname", "rid", ""]))
def test_random_text_never_crashes(value: str, kind: str) -> None:
    with contextlib.suppress(Refused):
        read_san(write_san([f"{kind}:{value}"]))
