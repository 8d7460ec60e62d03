import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7
from odd_certificates import ODD_CERTIFICATES

from estd.device.answers import (
    WrongServer,
    build_chain,
    choose_certificate,
    read_body,
    read_certificates,
    read_refusal,
    read_retry_after,
    serial_text,
    write_pem,
)
from estd.wire.cms import write_certs_only

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def tree(make_authority: Any) -> Any:
    root = make_authority("root")
    issuing = make_authority("issuing", root)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return root, issuing, issuing.issue(key, issuing.subject), key


def test_base64_may_be_wrapped_in_any_way_or_not_at_all() -> None:
    der = bytes(range(200))
    whole = base64.b64encode(der)
    wrapped = b"".join(whole[at : at + 64] + b"\r\n" for at in range(0, len(whole), 64))
    assert read_body(whole) == read_body(wrapped) == read_body(b" \t\n" + whole + b"\n") == der
    assert read_body(b"\x30\x03\x02\x01\x05") == b"\x30\x03\x02\x01\x05"


@pytest.mark.parametrize("body", [b"<html>no</html>", b"AA=A", b"A", "ä".encode()])
def test_what_is_not_base64_is_refused(body: bytes) -> None:
    with pytest.raises(WrongServer):
        read_body(body)


def test_certificates_come_out_of_certs_only(tree: Any) -> None:
    root, issuing, _leaf, _key = tree
    der = pkcs7.serialize_certificates([root.certificate, issuing.certificate], Encoding.DER)
    assert set(read_certificates(base64.b64encode(der))) == {root.certificate, issuing.certificate}


def test_a_truncated_answer_is_refused_at_every_byte(tree: Any) -> None:
    root, _issuing, _leaf, _key = tree
    der = pkcs7.serialize_certificates([root.certificate], Encoding.DER)
    for length in range(len(der)):
        with pytest.raises(WrongServer):
            read_certificates(base64.b64encode(der[:length]))


@pytest.mark.parametrize("what", ["version 2", "version 5"])
def test_an_odd_certificate_comes_from_the_wrong_server(what: str) -> None:
    with pytest.raises(WrongServer, match="cannot be read"):
        read_certificates(write_certs_only((ODD_CERTIFICATES[what](None),)))


def test_the_certificate_must_hold_the_key_that_was_sent(tree: Any) -> None:
    root, issuing, leaf, key = tree
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert choose_certificate([root.certificate, leaf], spki) == leaf
    with pytest.raises(WrongServer, match="key that was sent"):
        choose_certificate([root.certificate, issuing.certificate], spki)


def test_a_chain_leads_from_the_leaf_to_its_root(tree: Any, make_authority: Any) -> None:
    root, issuing, leaf, _key = tree
    # Same names, other keys: names alone must not make a chain.
    other_root = make_authority("root")
    other = make_authority("issuing", other_root)
    pool = [other_root.certificate, other.certificate, root.certificate, issuing.certificate]
    assert build_chain(leaf, pool) == ([issuing.certificate], root.certificate)
    assert build_chain(issuing.certificate, pool) == ([], root.certificate)
    for missing in ([], [issuing.certificate], [root.certificate], [other_root.certificate, other.certificate]):
        with pytest.raises(WrongServer, match="root"):
            build_chain(leaf, missing)


def test_authorities_that_certify_each_other_do_not_keep_us_busy(make_authority: Any) -> None:
    one = make_authority("one")
    two = make_authority("two", one)
    crossed = two.issue(one.key.public_key(), one.subject)
    with pytest.raises(WrongServer):
        build_chain(two.certificate, [crossed, two.certificate])


def test_pem_keeps_the_order(tree: Any) -> None:
    root, issuing, _leaf, _key = tree
    text = write_pem([issuing.certificate, root.certificate])
    assert text.count(b"BEGIN CERTIFICATE") == 2
    assert text.startswith(issuing.certificate.public_bytes(Encoding.PEM))


def test_a_serial_is_its_content_octets(tree: Any) -> None:
    from asn1crypto.x509 import Certificate

    for certificate in (tree[0].certificate, tree[2]):
        parsed = Certificate.load(certificate.public_bytes(Encoding.DER))
        assert serial_text(certificate) == parsed["tbs_certificate"]["serial_number"].contents.hex()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 5),
        ("120", 120),
        (" 7 ", 7),
        ("0", 1),
        ("-3", 5),
        ("soon", 5),
        ("1" * 40, 5),
        ("Tue, 06 May 2031 07:09:09 GMT", 60),
        ("Tue, 06 May 2031 07:00:00 GMT", 1),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: int) -> None:
    assert read_retry_after(value, 5, NOW) == seconds


def test_a_date_without_a_zone_is_no_reason_to_fail() -> None:
    assert read_retry_after("Tue, 06 May 2031 07:09:09", 5, NOW + timedelta(0)) == 5


def test_a_refusal_is_one_printable_line() -> None:
    assert read_refusal(b"no:\r\n  bad \x1b[31mkey\x07\n") == "no: bad \ufffd[31mkey\ufffd"
    assert read_refusal(b"") == ""
    assert len(read_refusal(b"x" * 5000)) == 500
    assert read_refusal(b"\xff") == "\ufffd"
