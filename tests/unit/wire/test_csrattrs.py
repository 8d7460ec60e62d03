"""estd.wire.csrattrs: the examples of RFC 9908, and both forms written and read again."""

import base64
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode
from pyasn1_alt_modules import rfc7030, rfc9908

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.asn1.spki import KEY_TYPES
from estd.errors import Refused
from estd.names import write_attribute
from estd.wire.csrattrs import SIGNATURE_ALGORITHMS, Wanted, WantedExtension, read_csrattrs, write_csrattrs

VECTORS = Path(__file__).parents[2] / "vectors" / "csrattrs"
CHALLENGE = OIDS["challengePassword"]
# RFC 8994 §6.2.2: an otherName AcpNodeName.
ACP_NAME = der.sequence(
    der.tlv(
        0xA0,
        der.oid("acpNodeName") + der.explicit(0, der.ia5("rfc8994+fd739fc23c3440112233445500000000+@acp.example.com")),
    )
)

EXAMPLES = {
    "5.1": Wanted(extensions=(WantedExtension(OIDS["subjectAltName"], True, ACP_NAME),)),
    "5.2": Wanted(
        key_types=("ec-p384",),
        attributes=(CHALLENGE, "1.3.6.1.1.1.1.22"),
        signature_algorithms=(OIDS["ecdsaWithSHA384"],),
    ),
    "5.4": Wanted(
        key_types=("rsa-4096",),
        attributes=(CHALLENGE,),
        signature_algorithms=(OIDS["sha256WithRSAEncryption"],),
    ),
    "5.5": Wanted(
        key_types=("ec-p384",),
        attributes=(CHALLENGE, OIDS["serialNumber"]),
        signature_algorithms=(OIDS["ecdsaWithSHA384"],),
    ),
    "5.6": Wanted(
        key_types=("ec-p521",),
        attributes=(CHALLENGE, "1.2.840.113549.1.9.20", "0.9.2342.19200300.100.1.5", OIDS["serialNumber"]),
        signature_algorithms=(OIDS["ecdsaWithSHA512"],),
    ),
}

TEMPLATE = Wanted(
    key_types=("ec-p256",),
    extensions=(
        WantedExtension(OIDS["subjectAltName"], False, bytes.fromhex("30148210 7777772e6d795365727665722e636f6d 8700")),
        WantedExtension(OIDS["keyUsage"], True, der.named_bits([0, 4])),
        WantedExtension(OIDS["extKeyUsage"]),
    ),
    subject=(
        (OIDS["commonName"], None),
        (OIDS["organizationalUnitName"], "myDept"),
        (OIDS["organizationalUnitName"], "myGroup"),
    ),
    use_template=True,
)


@pytest.mark.parametrize("section", EXAMPLES)
def test_examples_of_rfc_9908(section: str) -> None:
    data = base64.b64decode((VECTORS / f"rfc9908-{section}.b64").read_bytes())
    assert read_csrattrs(data) == EXAMPLES[section]
    assert write_csrattrs(EXAMPLES[section]) == data


def test_every_vector_is_used() -> None:
    assert {path.name for path in VECTORS.glob("*.b64")} == {f"rfc9908-{section}.b64" for section in EXAMPLES}


def test_the_template_of_rfc_9908_section_3_4() -> None:
    data = write_csrattrs(TEMPLATE)
    assert read_csrattrs(data) == TEMPLATE
    attributes, rest = decode(data, asn1Spec=rfc7030.CsrAttrs())
    assert not rest
    attribute = attributes[-1]["attribute"]
    assert str(attribute["attrType"]) == OIDS["certificationRequestInfoTemplate"]
    template, rest = decode(attribute["attrValues"][0], asn1Spec=rfc9908.CertificationRequestInfoTemplate())
    assert not rest
    assert int(template["version"]) == 0
    rdns = template["subject"]["rdnSequence"]
    assert [str(rdn[0]["type"]) for rdn in rdns] == [kind for kind, _ in TEMPLATE.subject or ()]
    assert not rdns[0][0]["value"].isValue
    assert bytes(rdns[1][0]["value"]) == der.utf8("myDept")
    assert str(template["subjectPKInfo"]["algorithm"]["algorithm"]) == OIDS["ecPublicKey"]
    assert not template["subjectPKInfo"]["subjectPublicKey"].isValue
    (wanted,) = template["attributes"]
    assert str(wanted["type"]) == OIDS["extensionReqTemplate"]


def test_a_template_whose_values_are_all_given_uses_the_plain_extension_request() -> None:
    wanted = Wanted(extensions=TEMPLATE.extensions[:2], use_template=True)
    data = write_csrattrs(wanted)
    assert der.oid("extensionReqTemplate") not in data
    assert data.count(der.oid("extensionRequest")) == 2
    assert read_csrattrs(data) == wanted
    partial = write_csrattrs(TEMPLATE)
    assert partial.count(der.oid("extensionReqTemplate")) == 1
    assert partial.count(der.oid("extensionRequest")) == 1


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_each_key_type_in_both_forms(kind: str) -> None:
    listed = Wanted(key_types=(kind,), signature_algorithms=(SIGNATURE_ALGORITHMS[kind],))
    assert read_csrattrs(write_csrattrs(listed)).key_types == (kind,)
    template = Wanted(key_types=(kind,), use_template=True)
    assert read_csrattrs(write_csrattrs(template)) == template
    decode(write_csrattrs(template), asn1Spec=rfc7030.CsrAttrs())


def test_several_key_types_share_an_attribute_and_the_template_names_the_first() -> None:
    wanted = Wanted(key_types=("ec-p384", "rsa-3072", "ec-p256", "rsa-2048", "ed25519"))
    data = write_csrattrs(wanted)
    assert set(read_csrattrs(data).key_types) == set(wanted.key_types)
    assert data.count(der.oid("ecPublicKey")) == data.count(der.oid("rsaEncryption")) == 1
    both = write_csrattrs(Wanted(key_types=("ec-p384", "ec-p256"), use_template=True))
    assert read_csrattrs(both).key_types == ("ec-p384",)


@pytest.mark.parametrize("name", ["challengePassword", "otpChallenge", "revocationChallenge", "estIdentityLinking"])
def test_a_challenge_leaves_no_room_for_a_template(name: str) -> None:
    wanted = Wanted(key_types=("ec-p256",), attributes=(OIDS[name],), use_template=True)
    data = write_csrattrs(wanted)
    assert der.oid("certificationRequestInfoTemplate") not in data
    assert read_csrattrs(data).attributes == (OIDS[name],)


def test_nothing_wanted_is_the_empty_sequence() -> None:
    assert write_csrattrs(Wanted()) == b"\x30\x00"
    assert read_csrattrs(b"\x30\x00") == Wanted()


def test_what_other_servers_send() -> None:
    unknown = der.sequence(
        der.oid("1.2.3"),
        der.oid("ecPublicKey"),
        der.sequence(der.oid("1.2.4"), der.set_of([der.NULL])),
        der.sequence(der.oid("ecPublicKey"), der.set_of([der.oid("1.3.132.0.10")])),
        der.sequence(der.oid("extensionRequest"), der.set_of([der.oid("subjectAltName")])),
    )
    assert read_csrattrs(unknown) == Wanted(
        key_types=("ec-p256", "ec-p384", "ec-p521"),
        attributes=("1.2.3",),
        extensions=(WantedExtension(OIDS["subjectAltName"]),),
    )
    assert read_csrattrs(der.sequence(der.oid("rsaEncryption"))).key_types == ("rsa-2048", "rsa-3072", "rsa-4096")


def test_an_empty_extension_value_is_the_clients_to_fill_in() -> None:
    wanted = Wanted(extensions=(WantedExtension(OIDS["subjectAltName"]),))
    data = write_csrattrs(wanted)
    assert data.endswith(b"\x04\x00")
    assert read_csrattrs(data) == wanted


def in_template(*fields: bytes) -> bytes:
    return der.sequence(der.sequence(der.oid("certificationRequestInfoTemplate"), der.set_of([der.sequence(*fields)])))


def extensions(kind: str, *members: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.set_of([der.sequence(*members)]))


SAN_WANTED = der.sequence(der.oid("subjectAltName"), der.octet_string(b"\x30\x00"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x31\x00",
        b"\x30\x00\x00",
        der.sequence(der.NULL),
        der.sequence(der.sequence(der.oid("1.2.3"))),
        der.sequence(der.sequence(der.oid("1.2.3"), der.set_of([]), der.NULL)),
        der.sequence(extensions("extensionRequest", SAN_WANTED, SAN_WANTED)),
        der.sequence(extensions("extensionRequest", SAN_WANTED), extensions("extensionRequest", SAN_WANTED)),
        der.sequence(extensions("extensionRequest", der.sequence(der.oid("1.2"), der.NULL))),
        der.sequence(extensions("extensionRequest", der.sequence(der.oid("1.2"), b"\x04\x00", der.NULL))),
        der.sequence(der.sequence(der.oid("extensionRequest"), der.set_of([der.NULL]))),
        in_template(),
        in_template(der.integer(1), b"\xa1\x00"),
        in_template(der.integer(0), der.NULL),
        in_template(der.integer(0), der.sequence(der.NULL)),
        in_template(
            der.integer(0),
            der.set_of(
                [extensions("extensionRequest", SAN_WANTED), extensions("extensionReqTemplate", SAN_WANTED)], 0xA1
            ),
        ),
    ],
)
def test_what_cannot_be_csr_attributes_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        read_csrattrs(data)


def test_truncated_at_each_byte() -> None:
    for wanted in (TEMPLATE, EXAMPLES["5.1"]):
        whole = write_csrattrs(wanted)
        for length in range(len(whole)):
            with pytest.raises(Refused):
                read_csrattrs(whole[:length])


WHOLE = write_csrattrs(TEMPLATE)


@given(st.integers(0, len(WHOLE) * 8 - 1))
def test_bit_flips_never_crash(bit: int) -> None:
    flipped = bytearray(WHOLE)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(Refused):
        read_csrattrs(bytes(flipped))


@given(st.binary(max_size=80))
def test_random_bytes_never_crash(data: bytes) -> None:
    for encoding in (
        data,
        der.sequence(data),
        in_template(der.integer(0), data),
        in_template(der.integer(0), der.tlv(0xA0, data)),
    ):
        with contextlib.suppress(Refused):
            read_csrattrs(encoding)


def test_subject_values_are_written_in_the_string_type_of_their_attribute() -> None:
    data = write_csrattrs(Wanted(subject=((OIDS["countryName"], "DE"),), use_template=True))
    assert write_attribute("C", "DE") in data
