"""estd.est.messages: what clients really send is read, what they really accept is written."""

import base64
import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estd.asn1 import der
from estd.errors import Code, Refused, Unavailable
from estd.est.messages import (
    STATUS,
    TOLERANCES,
    read_enroll_body,
    write_binding,
    write_cacerts,
    write_certificate,
    write_csrattrs,
    write_refusal,
)
from estd.wire.cms import read_certs_only

CSR = der.sequence(der.octet_string(bytes(range(256)) + b"+"))
BASE64 = base64.b64encode(CSR)
LINES = base64.encodebytes(CSR)
PKCS10 = "application/pkcs10"


def pem(label: str = "CERTIFICATE REQUEST", newline: bytes = b"\n") -> bytes:
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    return newline.join([begin, *LINES.split(), end, b""])


@pytest.mark.parametrize(
    ("content_type", "body", "tolerances"),
    [
        (PKCS10, BASE64, ()),
        ("Application/PKCS10", BASE64, ()),
        (PKCS10, LINES, ()),
        (PKCS10, LINES.replace(b"\n", b"\r\n"), ()),
        (PKCS10, b" \t\r\n" + LINES.replace(b"\n", b" \t\n") + b"\r\n\r\n", ()),
        (f"{PKCS10}; charset=utf-8", BASE64, ("content-type-parameters",)),
        (f"{PKCS10};", BASE64, ()),
        (None, BASE64, ("content-type-missing",)),
        ("", BASE64, ("content-type-missing",)),
        (PKCS10, CSR, ("raw-der",)),
        (PKCS10, pem(), ("pem-armour",)),
        (PKCS10, pem(newline=b"\r\n"), ("pem-armour",)),
        (PKCS10, b"\n" + pem("NEW CERTIFICATE REQUEST") + b"\n", ("pem-armour",)),
        (None, pem(), ("content-type-missing", "pem-armour")),
    ],
)
def test_enroll_bodies_in_every_form_met(content_type: str | None, body: bytes, tolerances: tuple[str, ...]) -> None:
    assert read_enroll_body(content_type, body) == (CSR, tolerances)
    assert set(tolerances) <= set(TOLERANCES)
    if not tolerances:
        assert read_enroll_body(content_type, body, strict=True) == (CSR, ())
        return
    with pytest.raises(Refused) as refused:
        read_enroll_body(content_type, body, strict=True)
    assert refused.value.code is Code.NOT_STRICT
    for tolerance in tolerances:
        assert TOLERANCES[tolerance] in refused.value.detail


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-pkcs10",
        "application/pkcs7-mime",
        "text/plain",
        "application/pkcs10, text/plain",
        "multipart/mixed",
    ],
)
def test_other_media_types_are_refused(content_type: str) -> None:
    with pytest.raises(Refused) as refused:
        read_enroll_body(content_type, BASE64)
    assert refused.value.code is Code.MEDIA_TYPE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n",
        b"0",
        BASE64[:-1],
        BASE64 + b"A",
        BASE64 + b"====",
        base64.b64encode(CSR[:255]) + b"====",
        BASE64 + BASE64,
        b"=" + BASE64,
        BASE64.replace(b"/", b"_"),
        BASE64 + b"\0",
        b'{"csr": ""}',
        pem() + pem(),
        pem("CERTIFICATE"),
        pem()[:-30],
        pem("CERTIFICATE REQUEST").replace(b"MII", b"-II"),
        b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
    ],
)
def test_bodies_that_hold_no_request(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_enroll_body(PKCS10, body)
    assert refused.value.code is Code.MALFORMED_REQUEST


@given(st.binary(max_size=100))
def test_random_bodies_never_crash(body: bytes) -> None:
    for form in (body, b"0\x82" + body, b"-----BEGIN CERTIFICATE REQUEST-----\n" + body):
        with contextlib.suppress(Refused):
            assert isinstance(read_enroll_body(None, form)[0], bytes)


def test_truncated_armour_is_refused() -> None:
    whole = pem().rstrip()
    for length in range(len(whole)):
        with pytest.raises(Refused):
            read_enroll_body(PKCS10, whole[:length])


@pytest.mark.parametrize(
    "body",
    [
        b" " * 65_536,
        b"A" * 65_535,
        b"-----BEGIN CERTIFICATE REQUEST-----\n" * 1_820,
        b"-----BEGIN CERTIFICATE REQUEST-----\n" + b"A\n" * 32_000,
    ],
)
def test_a_full_body_of_nonsense_costs_little(body: bytes) -> None:
    begun = time.process_time()
    with contextlib.suppress(Refused):
        read_enroll_body(PKCS10, body)
    assert time.process_time() - begun < 0.02


ROOT, OTHER = der.sequence(der.octet_string(b"r" * 300)), der.sequence(der.octet_string(b"o" * 100))


@pytest.mark.parametrize(
    ("user_agent", "wrap", "wrapped"),
    [
        ("", "auto", False),
        ("libest 3.2.0", "auto", True),
        ("strongSwan", "auto", False),
        ("not libest", "auto", False),
        ("libest 3.2.0", "never", False),
        ("curl", "always", True),
    ],
)
def test_cacerts(user_agent: str, wrap: str, wrapped: bool) -> None:
    reply = write_cacerts([ROOT, OTHER], user_agent, wrap)
    assert reply.status == 200
    # Bouncy Castle before 1.69 takes nothing but the bare type (RFC 7030 §4.1.3).
    assert reply.content_type == "application/pkcs7-mime"
    assert reply.headers == (("Content-Transfer-Encoding", "base64"),)
    assert read_certs_only(base64.b64decode(reply.body)) == [OTHER, ROOT]
    if wrapped:
        assert reply.body.endswith(b"\n")
        assert {len(line) for line in reply.body.split(b"\n")[:-2]} == {64}
        assert b"\r" not in reply.body
        assert write_cacerts([ROOT, OTHER], "", "never").body == reply.body.replace(b"\n", b"")
    else:
        assert not set(reply.body) & set(b" \t\r\n")


def test_a_certificate_comes_alone_and_unwrapped() -> None:
    reply = write_certificate(ROOT)
    assert reply.status == 200
    assert reply.content_type == "application/pkcs7-mime; smime-type=certs-only"
    assert reply.headers == (("Content-Transfer-Encoding", "base64"),)
    assert b"\n" not in reply.body
    assert read_certs_only(base64.b64decode(reply.body)) == [ROOT]


def test_csrattrs() -> None:
    reply = write_csrattrs(der.sequence(der.oid("challengePassword")))
    assert reply.status == 200
    assert reply.content_type == "application/csrattrs"
    assert reply.headers == (("Content-Transfer-Encoding", "base64"),)
    assert base64.b64decode(reply.body) == der.sequence(der.oid("challengePassword"))
    for nothing in (None, b"\x30\x00"):
        assert write_csrattrs(nothing).status == 204
        assert write_csrattrs(nothing).body == b""
        assert write_csrattrs(nothing).content_type is None


def test_a_binding_is_base64() -> None:
    assert write_binding(bytes(32)) == "A" * 43 + "="


def test_every_code_has_its_status() -> None:
    assert set(STATUS) == set(Code)


@pytest.mark.parametrize("code", Code)
def test_every_refusal_is_answered_as_clients_can_bear(code: Code) -> None:
    secret = "never told"
    for error in (Refused(code, secret), Unavailable(code, secret, 7)):
        reply = write_refusal(error, "0123abcd")
        headers = dict(reply.headers)
        assert len(headers) == len(reply.headers)
        assert reply.status == STATUS[code]
        assert headers["X-Request-Id"] == "0123abcd"
        assert ("Allow" in headers) == (reply.status == 405)
        assert ("Retry-After" in headers) == (reply.status in (429, 503))
        assert ("WWW-Authenticate" in headers) == (reply.status == 401)
        if reply.status == 401:
            assert headers["WWW-Authenticate"].startswith("Basic realm=")
            assert (reply.body, reply.content_type) == (b"", None)
            continue
        assert reply.content_type == "text/plain; charset=utf-8"
        assert reply.body.decode().startswith(f"{code.value}: ")
        assert reply.body.decode().endswith("(request 0123abcd)\n")
        assert (secret in reply.body.decode()) == (reply.status != 500)


def test_retry_after_is_a_whole_number_of_seconds() -> None:
    for given_seconds, least in ((7, 7), (0, 1), (-3, 1)):
        reply = write_refusal(Unavailable(Code.OVERLOADED, "busy", given_seconds), "r")
        assert least <= int(dict(reply.headers)["Retry-After"]) <= least + 2  # jitter
    assert int(dict(write_refusal(Refused(Code.RATE_LIMITED, "too often"), "r").headers)["Retry-After"]) > 0


def test_405_names_the_methods() -> None:
    reply = write_refusal(Refused(Code.METHOD_NOT_ALLOWED, "POST it"), "r", allow="POST")
    assert dict(reply.headers)["Allow"] == "POST"


def test_what_a_device_sent_is_quoted_in_one_printable_line() -> None:
    reply = write_refusal(Refused(Code.SUBJECT_REFUSED, "CN\r\nSet-Cookie: \x1b[2J\u202e" + "x" * 2000), "r")
    text = reply.body.decode()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert len(text) < 600
