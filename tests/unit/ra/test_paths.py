"""Every path that is believed, and every one that is not: what a client shows, and what it is told.

What becomes of a path on a connection that is kept, and of certificates of our own, is in test_admission.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from factory import (
    CLIENT_AUTH,
    NOW,
    SERVER_AUTH,
    Party,
    make_certificate,
    make_device,
    make_key,
    make_maker,
    make_name,
    make_peer,
    make_record,
    make_rules,
)
from odd_certificates import ODD_CERTIFICATES, make_odd

from estd.asn1 import der
from estd.ca.ecosystem import Anchor
from estd.errors import Code, Refused
from estd.ra import paths
from estd.ra.directory import Directory, LiveEcosystem
from estd.ra.paths import Path, check_window, read_leaf, validate_path, write_own_path

UNTRUSTED = "no path from this client certificate to a trust anchor of this ecosystem"
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.1"), b"\x05\x00")
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def make_ecosystem(*makers: Party, ignore_expiry: bool = False) -> LiveEcosystem:
    """One that trusts these, each by an anchor of its own: ``maker``, ``maker-2`` and so on."""
    names = ["maker", *(f"maker-{number}" for number in range(2, len(makers) + 1))]
    anchors = tuple(
        Anchor(name, (maker.der,), ignore_expiry=ignore_expiry) for name, maker in zip(names, makers, strict=True)
    )
    return live(anchors, makers[0])


def live(anchors: tuple[Anchor, ...], maker: Party) -> LiveEcosystem:
    record = make_record(replace(make_rules(maker), anchors=anchors))
    return Directory([record], [], None).ecosystems[1]


def find_path(ecosystem: LiveEcosystem, *shown: Party | bytes, now: datetime = NOW) -> Path:
    """As admission does for a new connection; `shown` is leaf first, as TLS has it."""
    peer = make_peer(*(one.der if isinstance(one, Party) else one for one in shown))
    path = validate_path(ecosystem, read_leaf(peer), peer, now)
    check_window(path, now)
    return path


def refusal(ecosystem: LiveEcosystem, *shown: Party | bytes, now: datetime = NOW) -> Refused:
    with pytest.raises(Refused) as caught:
        find_path(ecosystem, *shown, now=now)
    return caught.value


def assert_untrusted(ecosystem: LiveEcosystem, *shown: Party | bytes, now: datetime = NOW) -> None:
    """One answer for all of them: a stranger is not told how near it came."""
    refused = refusal(ecosystem, *shown, now=now)
    assert (refused.code, refused.detail, refused.clause) == (Code.CERTIFICATE_UNTRUSTED, UNTRUSTED, "RFC 5280 §6.1")


def make_ladder(maker: Party, rungs: int, **options: Any) -> list[Party]:
    """CAs below the maker, each certified by the one before."""
    ladder = [maker]
    for number in range(rungs):
        ladder.append(make_maker(f"CA {number}", ladder[-1], **options))
    return ladder[1:]


@pytest.fixture(scope="module")
def maker() -> Party:
    return make_maker()


@pytest.fixture(scope="module")
def ecosystem(maker: Party) -> LiveEcosystem:
    return make_ecosystem(maker)


# --- the leaf ----------------------------------------------------------------------------------------------------------


def test_what_a_leaf_says_is_read_octet_by_octet(maker: Party) -> None:
    names = [x509.DNSName("pump-7.example"), x509.UniformResourceIdentifier("urn:pump:7")]
    device = make_device(maker, "pump-7", san=names, serial=0x80FF)
    leaf = read_leaf(make_peer(device.der, b"whatever comes along"))
    read = device.certificate
    assert leaf.der == device.der
    assert leaf.certificate == read
    assert leaf.serial == b"\x00\x80\xff"
    assert leaf.issuer == maker.certificate.subject.public_bytes()
    assert leaf.subject == make_name("pump-7").public_bytes()
    assert leaf.san == x509.SubjectAlternativeName(names).public_bytes()
    key = device.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert leaf.spki_sha256 == sha256(key).digest()
    assert (leaf.starts, leaf.ends) == (read.not_valid_before_utc, read.not_valid_after_utc)
    assert read_leaf(make_peer(make_device(maker).der)).san is None


@pytest.mark.parametrize("octets", [b"", b"\x30\x03\x02\x01\x01", b"-----BEGIN CERTIFICATE-----", b"\x30\x80"])
def test_what_is_no_certificate_is_refused(octets: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_leaf(make_peer(octets))
    told = (caught.value.code, caught.value.detail, caught.value.clause)
    assert told == (Code.CERTIFICATE_UNFIT, "the client certificate cannot be read", "RFC 5280 §4.1")


def test_octets_behind_a_certificate_are_refused(maker: Party) -> None:
    with pytest.raises(Refused) as caught:
        read_leaf(make_peer(make_device(maker).der + b"\x00"))
    assert caught.value.code is Code.CERTIFICATE_UNFIT


@pytest.mark.parametrize("what", ODD_CERTIFICATES)
def test_an_odd_certificate_is_refused_whoever_signed_it(maker: Party, what: str) -> None:
    for issuer in (None, maker):
        with pytest.raises(Refused) as caught:
            read_leaf(make_peer(ODD_CERTIFICATES[what](issuer)))
        told = (caught.value.code, caught.value.detail)
        assert told == (Code.CERTIFICATE_UNFIT, "the client certificate cannot be read")


def usage(*bits: str) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in bits for name in names})


@pytest.mark.parametrize(
    ("extensions", "detail", "clause"),
    [
        ([usage("key_encipherment")], "its key usage does not allow digitalSignature", "RFC 5280 §4.2.1.3"),
        ([usage("key_agreement")], "its key usage does not allow digitalSignature", "RFC 5280 §4.2.1.3"),
        ([usage("content_commitment")], "its key usage does not allow digitalSignature", "RFC 5280 §4.2.1.3"),
        ([usage("digital_signature")], None, None),
        ([usage("digital_signature", "key_encipherment")], None, None),
        ([x509.ExtendedKeyUsage([SERVER_AUTH])], "its extended key usage lacks clientAuth", "RFC 5280 §4.2.1.12"),
        (
            [usage("digital_signature"), x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING, SERVER_AUTH])],
            "its extended key usage lacks clientAuth",
            "RFC 5280 §4.2.1.12",
        ),
        (
            [usage("key_agreement"), x509.ExtendedKeyUsage([CLIENT_AUTH])],
            "its key usage does not allow digitalSignature",
            "RFC 5280 §4.2.1.3",
        ),
        ([x509.ExtendedKeyUsage([SERVER_AUTH, CLIENT_AUTH])], None, None),
        ([x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])], None, None),
    ],
)
@pytest.mark.parametrize("critical", [True, False])
def test_what_a_key_is_for(
    maker: Party,
    ecosystem: LiveEcosystem,
    extensions: list[x509.ExtensionType],
    detail: str | None,
    clause: str | None,
    critical: bool,
) -> None:
    device = make_device(maker, extensions=[(extension, critical) for extension in extensions])
    if detail is None:
        assert find_path(ecosystem, device).anchor == "maker"
        return
    refused = refusal(ecosystem, device)
    assert (refused.code, refused.detail, refused.clause) == (Code.CERTIFICATE_UNFIT, detail, clause)
    # Whoever signed it: the leaf is asked before its path.
    stranger = make_device(None, extensions=[(extension, critical) for extension in extensions])
    assert refusal(ecosystem, stranger).code is Code.CERTIFICATE_UNFIT


def test_a_ca_is_no_device(maker: Party, ecosystem: LiveEcosystem) -> None:
    """Neither one below the maker, nor the maker itself, nor a key that could also sign."""
    for authority in (make_maker("Line 4", maker), maker, make_maker("Line 4", maker, digital_signature=True)):
        refused = refusal(ecosystem, authority)
        assert (refused.code, refused.detail, refused.clause) == (
            Code.CERTIFICATE_UNFIT,
            "a CA certificate cannot act as a device",
            "RFC 5280 §4.2.1.9",
        )


# --- a path ------------------------------------------------------------------------------------------------------------


def test_a_device_of_a_maker_has_a_path(maker: Party, ecosystem: LiveEcosystem) -> None:
    device = make_device(maker, ends=NOW + DAY)
    path = find_path(ecosystem, device)
    assert path.leaf.der == device.der
    assert (path.anchor, path.issuer, path.ignore_expiry) == ("maker", None, False)


def test_a_path_through_an_intermediate_is_found(maker: Party, ecosystem: LiveEcosystem) -> None:
    middle = make_maker("Line 4", maker)
    device = make_device(middle)
    assert find_path(ecosystem, device, middle).anchor == "maker"
    assert_untrusted(ecosystem, device)


def test_the_order_of_what_comes_along_means_nothing(maker: Party, ecosystem: LiveEcosystem) -> None:
    ladder = make_ladder(maker, 3)
    device = make_device(ladder[-1])
    along = [*ladder, make_maker("Unasked")]
    for order in itertools.permutations(along):
        assert find_path(ecosystem, device, *order).anchor == "maker"
    for missing in ladder:
        assert_untrusted(ecosystem, device, *(one for one in along if one is not missing))


def test_an_anchor_that_comes_along_changes_nothing(maker: Party, ecosystem: LiveEcosystem) -> None:
    middle = make_maker("Line 4", maker)
    device = make_device(middle)
    for along in ([middle, maker], [maker, middle], [maker, maker, middle, middle], [middle, maker, device]):
        assert find_path(ecosystem, device, *along).anchor == "maker"
    assert find_path(ecosystem, make_device(maker), maker).anchor == "maker"


def test_an_intermediate_can_be_the_anchor(maker: Party) -> None:
    """Then its own issuer is nobody: neither what stands above it nor beside it is believed."""
    middle = make_maker("Line 4", maker)
    ecosystem = make_ecosystem(middle)
    assert find_path(ecosystem, make_device(middle)).anchor == "maker"
    assert find_path(ecosystem, make_device(middle), middle, maker).anchor == "maker"
    assert_untrusted(ecosystem, make_device(maker), maker)
    beside = make_maker("Line 5", maker)
    assert_untrusted(ecosystem, make_device(beside), beside, maker)


def test_strangers_are_refused(ecosystem: LiveEcosystem) -> None:
    namesake = make_maker()  # same subject, another key
    for stranger in (make_device(None), make_device(make_maker("Other")), make_device(namesake)):
        assert_untrusted(ecosystem, stranger)
    assert_untrusted(ecosystem, make_device(namesake), namesake)


def test_a_self_signed_certificate_that_brings_its_own_root_is_refused(ecosystem: LiveEcosystem) -> None:
    other = make_maker("Other")
    assert_untrusted(ecosystem, make_device(other), other)


def test_the_makers_certificate_along_does_not_vouch_for_a_stranger(maker: Party, ecosystem: LiveEcosystem) -> None:
    """As material it is good for what it signed, and the device's words about who signed it count for nothing."""
    forged = make_device(Party(maker.certificate, make_key()))
    assert_untrusted(ecosystem, forged, maker)
    middle = make_maker("Line 4", maker)
    forged = make_device(Party(middle.certificate, make_key()))
    assert_untrusted(ecosystem, forged, middle, maker)


def test_an_ecosystem_without_anchors_believes_nobody(maker: Party, ecosystem: LiveEcosystem) -> None:
    assert_untrusted(replace(ecosystem, policy=None, anchor_names={}), make_device(maker), maker)


def test_each_ecosystem_has_its_own_makers(maker: Party, ecosystem: LiveEcosystem) -> None:
    """At the very same moment, and in either order: what is kept of one verification is no use to another."""
    other_maker = make_maker("Other")
    other = make_ecosystem(other_maker)
    ours, theirs = make_device(maker), make_device(other_maker)
    for _ in range(2):
        assert find_path(ecosystem, ours).anchor == "maker"
        assert_untrusted(other, ours)
        assert find_path(other, theirs).anchor == "maker"
        assert_untrusted(ecosystem, theirs)
        # Nor does it help to show the neighbour's certificates as well.
        assert_untrusted(ecosystem, theirs, ours, maker)


def test_a_changed_octet_breaks_a_signature(maker: Party, ecosystem: LiveEcosystem) -> None:
    middle = make_maker("Line 4", maker)
    device = make_device(middle)
    for whose in (device, middle):
        octets = bytearray(whose.der)
        octets[-5] ^= 1
        shown = [bytes(octets) if one is whose else one.der for one in (device, middle)]
        assert_untrusted(ecosystem, *shown)
    renamed = device.der.replace(b"device-1", b"device-2")
    assert renamed != device.der
    assert_untrusted(ecosystem, renamed, middle)


def test_what_comes_along_and_is_no_certificate_is_refused(maker: Party, ecosystem: LiveEcosystem) -> None:
    refused = refusal(ecosystem, make_device(maker), b"\x30\x03\x02\x01\x01")
    assert (refused.code, refused.detail, refused.clause) == (
        Code.CERTIFICATE_UNFIT,
        "a certificate that came along with the client's cannot be read",
        "RFC 5280 §4.1",
    )


@pytest.mark.parametrize("what", ODD_CERTIFICATES)
def test_an_odd_certificate_that_comes_along_is_no_fault(maker: Party, ecosystem: LiveEcosystem, what: str) -> None:
    middle = make_maker("Line 4", maker)
    leaf = make_device(middle)
    refused = refusal(ecosystem, leaf, ODD_CERTIFICATES[what](maker))
    assert refused.code is (Code.CERTIFICATE_UNFIT if what.startswith("version") else Code.CERTIFICATE_UNTRUSTED)
    named_alike = make_odd(maker, name=middle.certificate.subject.public_bytes())
    assert_untrusted(ecosystem, leaf, named_alike)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(der.sequence(der.tlv(der.SET, b"")), id="empty RDN"),
        pytest.param(
            der.sequence(der.tlv(der.SET, der.sequence(der.oid("commonName"), der.tlv(der.UTF8_STRING, b"\xff")))),
            id="no UTF-8",
        ),
    ],
)
def test_a_name_that_cannot_be_read_and_comes_along_is_no_obstacle(maker: Party, name: bytes) -> None:
    """Neither where the path is valid now, nor where the time has to be found at which it was."""
    odd = make_odd(maker, name=name)
    ecosystem = make_ecosystem(maker, ignore_expiry=True)
    for ends in (NOW + DAY, NOW - HOUR):
        middle = make_maker("Line 4", maker, starts=NOW - 9 * HOUR, ends=ends)
        device = make_device(middle, starts=NOW - 8 * HOUR)
        for along in ([odd, middle], [middle, odd]):
            assert find_path(ecosystem, device, *along).anchor == "maker"
    assert_untrusted(ecosystem, make_device(make_maker("Other")), odd)


# --- what a CA on the path must say ------------------------------------------------------------------------------------


def test_a_device_is_no_step_of_a_path(maker: Party, ecosystem: LiveEcosystem) -> None:
    """Whoever has one device's key would otherwise be a maker."""
    device = make_device(maker, "pump-7")
    assert_untrusted(ecosystem, make_device(device, "pump-8"), device)
    signing = make_device(maker, "pump-7", extensions=[(usage("digital_signature", "key_cert_sign"), True)])
    assert_untrusted(ecosystem, make_device(signing, "pump-8"), signing)


def test_a_certificate_without_basic_constraints_is_no_step_of_a_path(maker: Party, ecosystem: LiveEcosystem) -> None:
    bare = sign_bare(maker, "Line 4", [(usage("key_cert_sign"), True)])
    assert_untrusted(ecosystem, make_device(bare), bare)


def test_a_ca_whose_key_must_not_sign_certificates_is_no_step_of_a_path(maker: Party, ecosystem: LiveEcosystem) -> None:
    middle = make_maker("Line 5", maker, key_cert_sign=False)
    assert_untrusted(ecosystem, make_device(middle), middle)
    silent = sign_bare(maker, "Line 6", [(x509.BasicConstraints(ca=True, path_length=None), True)])
    assert find_path(ecosystem, make_device(silent), silent).anchor == "maker"


def sign_bare(issuer: Party, name: str, extensions: Sequence[tuple[x509.ExtensionType, bool]]) -> Party:
    """A certificate with these extensions and no other."""
    key = make_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(make_name(name))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Party(builder.sign(issuer.key, SHA256()), key)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_no_path_is_longer_than_its_anchor_allows(length: int) -> None:
    maker = make_maker(path_length=length)
    ecosystem = make_ecosystem(maker)
    ladder = make_ladder(maker, length + 1)
    for rungs in range(length + 1):
        assert find_path(ecosystem, make_device([maker, *ladder][rungs]), *ladder[:rungs]).anchor == "maker"
    assert_untrusted(ecosystem, make_device(ladder[-1]), *ladder)


def test_no_path_is_longer_than_an_intermediate_allows(maker: Party, ecosystem: LiveEcosystem) -> None:
    first = make_maker("CA 0", maker, path_length=0)
    assert find_path(ecosystem, make_device(first), first).anchor == "maker"
    # What is below it cannot allow itself more.
    second = make_maker("CA 1", first, path_length=9)
    assert_untrusted(ecosystem, make_device(second), second, first)
    # A CA that was certified anew, under its own name, is one more all the same.
    anew = make_maker("CA 0", first)
    assert_untrusted(ecosystem, make_device(anew), anew, first)


def test_five_intermediates_are_enough(maker: Party, ecosystem: LiveEcosystem) -> None:
    ladder = make_ladder(maker, 6)
    assert find_path(ecosystem, make_device(ladder[4]), *ladder).anchor == "maker"
    assert_untrusted(ecosystem, make_device(ladder[5]), *ladder)


@pytest.mark.parametrize(
    "extension",
    [
        UNKNOWN,
        x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None),
        x509.InhibitAnyPolicy(0),
        x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.3.6.1.4.1.32473.2"), None)]),
    ],
    ids=lambda extension: type(extension).__name__,
)
def test_a_critical_extension_that_is_not_understood_ends_a_path_wherever_it_stands(
    maker: Party, ecosystem: LiveEcosystem, extension: x509.ExtensionType
) -> None:
    critical, other = [(extension, True)], [(extension, False)]
    assert_untrusted(ecosystem, make_device(maker, extensions=critical))
    assert find_path(ecosystem, make_device(maker, extensions=other)).anchor == "maker"
    for extensions in (critical, other):
        middle = make_maker("Line 4", maker, extensions=extensions)
        anchor = make_maker("Anchor", extensions=extensions)
        if extensions is critical:
            assert_untrusted(ecosystem, make_device(middle), middle)
            assert_untrusted(make_ecosystem(anchor), make_device(anchor))
        else:
            assert find_path(ecosystem, make_device(middle), middle).anchor == "maker"
            assert find_path(make_ecosystem(anchor), make_device(anchor)).anchor == "maker"


# --- name constraints --------------------------------------------------------------------------------------------------

DNS, MAIL, URI = x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier


def network(text: str) -> x509.IPAddress:
    return x509.IPAddress(ip_network(text))


def host(text: str) -> x509.IPAddress:
    return x509.IPAddress(ip_address(text))


@pytest.mark.parametrize(
    ("subtree", "inside", "outside"),
    [
        (DNS("plant.example"), DNS("pump-7.plant.example"), DNS("pump-7.example")),
        (DNS("plant.example"), DNS("plant.example"), DNS("notplant.example")),
        (network("10.0.0.0/8"), host("10.1.2.3"), host("11.1.2.3")),
        (network("2001:db8::/32"), host("2001:db8::7"), host("2001:db9::7")),
        (MAIL("plant.example"), MAIL("pump-7@plant.example"), MAIL("pump-7@example")),
    ],
    ids=str,
)
@pytest.mark.parametrize("at_anchor", [True, False])
def test_no_name_leaves_the_namespace_of_a_ca_above_it(
    subtree: x509.GeneralName, inside: x509.GeneralName, outside: x509.GeneralName, at_anchor: bool
) -> None:
    for constraints, good, bad in (
        (x509.NameConstraints([subtree], None), inside, outside),
        (x509.NameConstraints(None, [subtree]), outside, inside),
    ):
        constrained: dict[str, Any] = {"extensions": [(constraints, True)]}
        maker = make_maker(**constrained if at_anchor else {})
        first = make_maker("CA 0", maker, **{} if at_anchor else constrained)
        second = make_maker("CA 1", first)
        ecosystem = make_ecosystem(maker)
        for issuer, along in ((first, [first]), (second, [second, first])):
            assert find_path(ecosystem, make_device(issuer, san=[good]), *along).anchor == "maker"
            assert_untrusted(ecosystem, make_device(issuer, san=[bad]), *along)
            assert_untrusted(ecosystem, make_device(issuer, san=[good, bad]), *along)
            # A name of another kind, or none, is not constrained.
            assert find_path(ecosystem, make_device(issuer, san=[URI("urn:pump:7")]), *along).anchor == "maker"
            assert find_path(ecosystem, make_device(issuer), *along).anchor == "maker"


@pytest.mark.parametrize("permitted", [True, False])
def test_a_namespace_that_is_not_judged_ends_a_path(maker: Party, ecosystem: LiveEcosystem, permitted: bool) -> None:
    """RFC 5280 §4.2.1.10: either it is processed or the certificate is refused. Subjects are not held against subtrees."""
    subtrees = [x509.DirectoryName(make_name("device-1"))]
    constraints = x509.NameConstraints(subtrees if permitted else None, None if permitted else subtrees)
    middle = make_maker("Line 4", maker, extensions=[(constraints, True)])
    for name in ("device-1", "device-2"):
        assert_untrusted(ecosystem, make_device(middle, name), middle)
    of_uris = x509.NameConstraints([URI("plant.example")], None)
    middle = make_maker("Line 5", maker, extensions=[(of_uris, True)])
    assert_untrusted(ecosystem, make_device(middle, san=[URI("https://plant.example/7")]), middle)


def test_an_address_in_a_subject_is_not_held_against_subtrees(maker: Party, ecosystem: LiveEcosystem) -> None:
    """A divergence (rfc-notes/divergences.md): what is constrained is the alternative name."""
    constraints = x509.NameConstraints([MAIL("plant.example")], None)
    middle = make_maker("Line 4", maker, extensions=[(constraints, True)])
    key = make_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.EMAIL_ADDRESS, "pump-7@example")])
    device = Party(make_certificate(subject, key, middle), key)
    assert find_path(ecosystem, device, middle).anchor == "maker"


# --- keys and signatures -----------------------------------------------------------------------------------------------


def sign(maker: Party, key: Any) -> bytes:
    """A device's certificate for that key, with nothing in it that need not be there."""
    return (
        x509.CertificateBuilder()
        .subject_name(make_name("device-1"))
        .issuer_name(maker.certificate.subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(maker.key, SHA256())
        .public_bytes(Encoding.DER)
    )


def test_an_ed25519_birth_certificate_is_as_good_as_any(maker: Party, ecosystem: LiveEcosystem) -> None:
    assert find_path(ecosystem, sign(maker, ed25519.Ed25519PrivateKey.generate())).anchor == "maker"


def test_an_intermediate_with_an_ed25519_key_is_no_step_of_a_path(maker: Party, ecosystem: LiveEcosystem) -> None:
    key: Any = ed25519.Ed25519PrivateKey.generate()
    middle = make_certificate(make_name("Line 4"), key, maker, ca=True)
    device = (
        x509.CertificateBuilder()
        .subject_name(make_name("device-1"))
        .issuer_name(middle.subject)
        .public_key(make_key().public_key())
        .serial_number(5)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(key, None)
    )
    shown = [one.public_bytes(Encoding.DER) for one in (device, middle)]
    assert_untrusted(ecosystem, *shown)


@pytest.mark.parametrize("bits", [1024, 2048])
def test_a_makers_rsa_key_has_2048_bits_at_least(bits: int) -> None:
    key: Any = rsa.generate_private_key(65537, bits)
    maker = Party(make_certificate(make_name("Maker"), key, None, ca=True), key)
    ecosystem = make_ecosystem(maker)
    if bits < 2048:
        assert_untrusted(ecosystem, make_device(maker))
    else:
        assert find_path(ecosystem, make_device(maker)).anchor == "maker"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_maker_may_have_any_nist_curve(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    maker = Party(make_certificate(make_name("Maker"), key, None, ca=True), key)
    assert find_path(make_ecosystem(maker), sign(maker, make_key())).anchor == "maker"


# --- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts", "ends", "code"),
    [
        (NOW + SECOND, NOW + DAY, Code.CERTIFICATE_NOT_YET_VALID),
        (NOW, NOW + DAY, None),
        (NOW - DAY, NOW, None),
        (NOW, NOW, None),
        (NOW - DAY, NOW - SECOND, Code.CERTIFICATE_EXPIRED),
    ],
)
def test_both_ends_of_a_birth_certificate_belong_to_it(
    maker: Party, ecosystem: LiveEcosystem, starts: datetime, ends: datetime, code: Code | None
) -> None:
    device = make_device(maker, starts=starts, ends=ends)
    if code is None:
        assert find_path(ecosystem, device).anchor == "maker"
    else:
        assert refusal(ecosystem, device).code is code


def test_a_window_is_what_all_of_a_path_has_in_common() -> None:
    maker = make_maker(starts=NOW - 9 * DAY, ends=NOW + 5 * DAY)
    first = make_maker("CA 0", maker, starts=NOW - 2 * DAY, ends=NOW + 9 * DAY)
    second = make_maker("CA 1", first, starts=NOW - 5 * DAY, ends=NOW + 4 * DAY)
    device = make_device(second, starts=NOW - 3 * DAY, ends=NOW + 8 * DAY)
    ecosystem = make_ecosystem(maker)
    path = find_path(ecosystem, device, second, first)
    assert (path.starts, path.ends) == (NOW - 2 * DAY, NOW + 4 * DAY)
    assert (path.leaf.starts, path.leaf.ends) == (NOW - 3 * DAY, NOW + 8 * DAY)
    # Wherever in its life it is first shown, it is the same path.
    for now in (NOW - 3 * DAY, NOW - 2 * DAY, NOW + 4 * DAY, NOW + 7 * DAY, NOW + 100 * DAY):
        peer = make_peer(device.der, second.der, first.der)
        again = validate_path(ecosystem, read_leaf(peer), peer, now)
        assert (again.starts, again.ends, again.anchor) == (path.starts, path.ends, "maker")
    # What merely came along takes nothing away.
    short = make_maker("Unasked", maker, starts=NOW, ends=NOW)
    assert find_path(ecosystem, device, short, second, first).ends == path.ends


def test_a_refusal_for_time_says_what_it_is_by_both_clocks(maker: Party, ecosystem: LiveEcosystem) -> None:
    middle = make_maker("Line 4", maker, starts=NOW + HOUR, ends=NOW + 2 * HOUR)
    device = make_device(middle, starts=NOW - HOUR, ends=NOW + 3 * HOUR)
    own = make_device(maker, starts=NOW + HOUR, ends=NOW + 2 * HOUR)
    early, late = "2031-05-06T08:08:09Z", "2031-05-06T09:08:09Z"
    for shown, whose in (
        ([device, middle], "a CA certificate above the client certificate"),
        ([own], "the client certificate"),
    ):
        told = refusal(ecosystem, *shown)
        assert (told.code, told.clause) == (Code.CERTIFICATE_NOT_YET_VALID, "RFC 5280 §6.1.3")
        assert told.detail == f"{whose} is not valid before {early}; here it is 2031-05-06T07:08:09Z"
        told = refusal(ecosystem, *shown, now=NOW + 2 * HOUR + SECOND)
        assert (told.code, told.clause) == (Code.CERTIFICATE_EXPIRED, "RFC 5280 §6.1.3")
        assert told.detail == f"{whose} expired at {late}; here it is 2031-05-06T09:08:10Z"


def test_a_stranger_is_untrusted_at_any_time(ecosystem: LiveEcosystem) -> None:
    """It is never told that time is what it lacks."""
    for options in ({"ends": NOW - HOUR}, {"starts": NOW + HOUR}):
        assert_untrusted(ecosystem, make_device(make_maker(), **options))
        assert_untrusted(ecosystem, make_device(None, **options))
        forger = make_maker(**options)
        assert_untrusted(ecosystem, make_device(forger), forger)


def test_an_expired_birth_certificate_counts_where_its_maker_is_excused(maker: Party) -> None:
    ecosystem = make_ecosystem(maker, ignore_expiry=True)
    path = find_path(ecosystem, make_device(maker, ends=NOW - DAY, starts=NOW - DAY))
    assert (path.anchor, path.ignore_expiry) == ("maker", True)
    early = make_device(maker, starts=NOW + DAY)
    assert refusal(ecosystem, early).code is Code.CERTIFICATE_NOT_YET_VALID


EXPIRED = {"starts": NOW - 900 * DAY, "ends": NOW - DAY}


@pytest.mark.parametrize("ignore_expiry", [True, False])
def test_the_setting_excuses_the_end_of_the_whole_path(ignore_expiry: bool) -> None:
    """IEEE 802.1AR has leaves that never end; what ends is the maker's CA above them."""
    maker = make_maker(**EXPIRED)
    ecosystem = make_ecosystem(maker, ignore_expiry=ignore_expiry)
    middle = make_maker("Line 4", maker, starts=NOW - 800 * DAY, ends=NOW - 300 * DAY)
    born = NOW - 400 * DAY
    for shown in (
        [make_device(maker, starts=born)],
        [make_device(maker, starts=NOW - 1000 * DAY)],  # its CA certificate was renewed
        [make_device(maker, starts=born, ends=NOW - 200 * DAY)],
        [make_device(middle, starts=born), middle],
        [make_device(middle, starts=NOW - 1000 * DAY), middle],
        [make_device(middle, starts=born), make_maker("Unasked"), middle],
    ):
        if ignore_expiry:
            assert find_path(ecosystem, *shown).anchor == "maker"
        else:
            assert refusal(ecosystem, *shown).code is Code.CERTIFICATE_EXPIRED


def test_an_intermediate_that_has_ended_is_excused_like_its_root(maker: Party) -> None:
    ecosystem = make_ecosystem(maker, ignore_expiry=True)
    middle = make_maker("Line 4", maker, starts=NOW - 9 * HOUR, ends=NOW - HOUR)
    assert find_path(ecosystem, make_device(middle, starts=NOW - 8 * HOUR), middle).anchor == "maker"


def test_what_was_never_valid_together_is_no_path() -> None:
    maker = make_maker(**EXPIRED)
    ecosystem = make_ecosystem(maker, ignore_expiry=True)
    assert_untrusted(ecosystem, make_device(maker, starts=NOW - HOUR))
    middle = make_maker("Line 4", maker, starts=NOW - HOUR)
    assert_untrusted(ecosystem, make_device(middle, starts=NOW - 10 * DAY), middle)
    ancient = make_odd(maker, starts=datetime(1950, 1, 1, tzinfo=UTC), ends=datetime(1950, 1, 2, tzinfo=UTC))
    assert_untrusted(ecosystem, ancient)
    ends_before_it_starts = make_odd(maker, starts=NOW - 10 * DAY, ends=NOW - 20 * DAY)
    assert_untrusted(ecosystem, ends_before_it_starts)
    forged = make_device(make_maker(**EXPIRED), starts=NOW - 400 * DAY)
    assert_untrusted(ecosystem, forged)


def test_the_beginning_of_a_path_is_never_excused(maker: Party) -> None:
    ecosystem = make_ecosystem(maker, ignore_expiry=True)
    middle = make_maker("Line 4", maker, starts=NOW + DAY)
    refused = refusal(ecosystem, make_device(middle, starts=NOW - HOUR), middle)
    assert refused.code is Code.CERTIFICATE_NOT_YET_VALID


def test_an_excuse_is_that_of_the_anchor_the_path_ends_at() -> None:
    excused, strict = make_maker("Excused"), make_maker("Strict")
    anchors = (
        Anchor("maker", (excused.der,), ignore_expiry=True),
        Anchor("strict", (strict.der,), ignore_expiry=False),
    )
    ecosystem = live(anchors, excused)
    old = {"starts": NOW - DAY, "ends": NOW - HOUR}
    assert find_path(ecosystem, make_device(excused, **old)).anchor == "maker"
    assert refusal(ecosystem, make_device(strict, **old)).code is Code.CERTIFICATE_EXPIRED
    assert refusal(ecosystem, make_device(strict, **old), excused, strict).code is Code.CERTIFICATE_EXPIRED


@pytest.mark.parametrize("shift", [timedelta(), MINUTE, -MINUTE])
def test_a_path_once_found_is_judged_at_any_time(maker: Party, ecosystem: LiveEcosystem, shift: timedelta) -> None:
    """What a kept connection asks again and again, without any signature."""
    path = find_path(ecosystem, make_device(maker, starts=NOW, ends=NOW))
    if shift < timedelta():
        with pytest.raises(Refused) as caught:
            check_window(path, NOW + shift)
        assert caught.value.code is Code.CERTIFICATE_NOT_YET_VALID
    elif shift > timedelta():
        with pytest.raises(Refused) as caught:
            check_window(path, NOW + shift)
        assert caught.value.code is Code.CERTIFICATE_EXPIRED
    else:
        check_window(path, NOW)


# --- several ways ------------------------------------------------------------------------------------------------------


def test_makers_of_one_name_are_told_apart_by_their_keys() -> None:
    makers = [make_maker("Maker") for _ in range(3)]
    ecosystem = make_ecosystem(*makers)
    for maker, name in zip(makers, ("maker", "maker-2", "maker-3"), strict=True):
        assert find_path(ecosystem, make_device(maker)).anchor == name
        middle = make_maker("Line 4", maker)
        assert find_path(ecosystem, make_device(middle), *makers, middle).anchor == name
    assert_untrusted(ecosystem, make_device(make_maker("Maker")))


def make_generations(*windows: tuple[timedelta, timedelta]) -> list[Party]:
    """A maker's CA, certified anew for the same key and name."""
    key = make_key()
    return [
        Party(make_certificate(make_name("Maker"), key, None, ca=True, starts=NOW + start, ends=NOW + end), key)
        for start, end in windows
    ]


def test_a_makers_renewed_certificate_stands_beside_the_old_one() -> None:
    old, new = make_generations((-900 * DAY, -10 * DAY), (-20 * DAY, 900 * DAY))
    ecosystem = make_ecosystem(old, new)
    assert find_path(ecosystem, make_device(old, starts=NOW - 800 * DAY)).anchor == "maker-2"
    assert refusal(make_ecosystem(old), make_device(new, starts=NOW - 800 * DAY)).code is Code.CERTIFICATE_EXPIRED
    # That the client has the new one makes it no anchor.
    assert refusal(make_ecosystem(old), make_device(new, starts=NOW - 800 * DAY), new).code is Code.CERTIFICATE_EXPIRED


def test_of_two_intermediates_with_one_key_the_one_that_does_is_taken(maker: Party, ecosystem: LiveEcosystem) -> None:
    key = make_key()

    def certify(issuer: Party, **options: Any) -> Party:
        return Party(make_certificate(make_name("Line 4"), key, issuer, ca=True, **options), key)

    good = certify(maker)
    for bad in (
        certify(maker, starts=NOW - 2 * DAY, ends=NOW - DAY),
        certify(maker, starts=NOW + DAY),
        certify(maker, key_cert_sign=False),
        certify(maker, extensions=[(UNKNOWN, True)]),
        certify(make_maker("Other")),
    ):
        for along in ([good, bad], [bad, good]):
            path = find_path(ecosystem, make_device(good, starts=NOW - 3 * DAY), *along)
            assert (path.anchor, path.starts) == ("maker", NOW - DAY)


def cross_certify(name: str, key: ec.EllipticCurvePrivateKey, issuer: Party) -> Party:
    return Party(make_certificate(make_name(name), key, issuer, ca=True), key)


def test_between_two_generations_an_excuse_is_found_whichever_comes_first() -> None:
    """One has ended, the next has not begun: the end can be excused, the beginning cannot."""
    old, new = make_generations((-900 * DAY, -10 * DAY), (DAY, 900 * DAY))
    device = make_device(old, starts=NOW - 800 * DAY)
    for makers in ((old, new), (new, old)):
        path = find_path(make_ecosystem(*makers, ignore_expiry=True), device)
        assert path.ends == NOW - 10 * DAY
        assert refusal(make_ecosystem(*makers), device).code is Code.CERTIFICATE_EXPIRED
    assert refusal(make_ecosystem(new), device).code is Code.CERTIFICATE_NOT_YET_VALID


def test_of_several_generations_the_nearest_counts() -> None:
    """Not whichever a process happens to look at first: workers would tell a device different things."""
    ended = make_generations(*((-900 * DAY, -days * DAY) for days in (40, 10, 30, 20)))
    device = make_device(ended[0], starts=NOW - 800 * DAY)
    coming = make_generations(*((days * DAY, 900 * DAY) for days in (40, 10, 30, 20)))
    early = make_device(coming[0], starts=NOW - DAY)
    for order in itertools.permutations(range(4)):
        late = refusal(make_ecosystem(*(ended[number] for number in order)), device)
        assert late.detail.startswith(
            f"a CA certificate above the client certificate expired at {NOW - 10 * DAY:%Y-%m-%d}"
        )
        soon = refusal(make_ecosystem(*(coming[number] for number in order)), early)
        assert f"is not valid before {NOW + 10 * DAY:%Y-%m-%d}" in soon.detail


def test_a_generation_that_never_met_the_device_hides_no_other() -> None:
    """The device has ended before that one begins, so nothing of its window is a time at which to look."""
    old, new = make_generations((-900 * DAY, -300 * DAY), (10 * DAY, 900 * DAY))
    device = make_device(old, starts=NOW - 800 * DAY, ends=NOW - 200 * DAY)
    for makers in ((old, new), (new, old)):
        assert find_path(make_ecosystem(*makers, ignore_expiry=True), device).ends == NOW - 300 * DAY


def test_a_ring_of_authorities_leads_nowhere_and_is_no_obstacle(maker: Party, ecosystem: LiveEcosystem) -> None:
    one, other = make_maker("One"), make_maker("Other")
    ring = [cross_certify("One", one.key, other), cross_certify("Other", other.key, one)]
    for leaf in (make_device(one), make_device(other)):
        assert_untrusted(ecosystem, leaf, *ring)
        assert_untrusted(ecosystem, leaf, *ring, one, other, maker)
    way_out = cross_certify("Other", other.key, maker)
    for order in itertools.permutations([*ring, way_out, one]):
        assert find_path(ecosystem, make_device(one), *order).anchor == "maker"


def test_a_certificate_that_certifies_itself_is_no_obstacle(maker: Party, ecosystem: LiveEcosystem) -> None:
    middle = make_maker("Line 4")
    below_maker = cross_certify("Line 4", middle.key, maker)
    for along in ([middle, below_maker], [below_maker, middle]):
        assert find_path(ecosystem, make_device(middle), *along).anchor == "maker"
    assert_untrusted(ecosystem, make_device(middle), middle, middle)


# --- what it costs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was looked at: a whole path, or a signature in search of one."""
    found: list[str] = []

    def note(name: str, what: str) -> None:
        original: Callable[..., Any] = getattr(paths, name)
        monkeypatch.setattr(paths, name, lambda *given: found.append(what) or original(*given))

    note("_verify", "path")
    note("_is_signed", "signature")
    return found


def test_a_device_of_a_maker_costs_one_look(maker: Party, ecosystem: LiveEcosystem, looks: list[str]) -> None:
    middle = make_maker("Line 4", maker)
    find_path(ecosystem, make_device(middle), middle)
    assert looks == ["path"]
    looks.clear()
    refusal(ecosystem, make_device(middle, ends=NOW - HOUR), middle)
    assert looks == ["path"]


def test_a_strangers_chain_costs_little(ecosystem: LiveEcosystem, looks: list[str]) -> None:
    """Names and dates are the stranger's to choose: of the very name of a maker, and some not valid yet."""
    forger = make_maker()
    ladder = [make_maker("Maker", forger, starts=NOW + hour * HOUR) for hour in range(-9, 9)]
    assert_untrusted(ecosystem, make_device(forger), *ladder)
    assert looks.count("path") == 1
    assert looks.count("signature") <= 12


def test_the_name_of_a_maker_that_has_ended_costs_no_second_look(looks: list[str]) -> None:
    """Only who has its signature is looked at for another time."""
    old = make_maker(**EXPIRED)
    ecosystem = make_ecosystem(old)
    assert_untrusted(ecosystem, make_device(make_maker(), starts=NOW - 400 * DAY))
    assert looks == ["path", "signature"]
    looks.clear()
    assert refusal(ecosystem, make_device(old, starts=NOW - 400 * DAY)).code is Code.CERTIFICATE_EXPIRED
    assert looks == ["path", "signature", "path"]


def test_a_maze_with_good_signatures_costs_little(maker: Party, ecosystem: LiveEcosystem, looks: list[str]) -> None:
    """One key under one name, certified many times by itself: every step is a step to every other."""
    key = make_key()
    gate = Party(make_certificate(make_name("Maze"), key, None, ca=True), key)
    maze = [Party(make_certificate(make_name("Maze"), key, gate, ca=True), key) for _ in range(30)]
    assert_untrusted(ecosystem, make_device(gate), *maze)
    assert looks.count("path") == 1
    assert looks.count("signature") <= 12


def test_what_is_kept_of_one_moment_is_kept_within_bounds(maker: Party, ecosystem: LiveEcosystem) -> None:
    device = make_device(maker, starts=NOW - DAY, ends=NOW + DAY)
    for second in range(300):
        assert find_path(ecosystem, device, now=NOW + second * SECOND).anchor == "maker"
    assert paths._make_verifier.cache_info().currsize <= 64
    before = paths._make_verifier.cache_info().misses
    for _ in range(5):
        find_path(ecosystem, make_device(maker), now=NOW + 299 * SECOND)
    assert paths._make_verifier.cache_info().misses == before


# --- our own -----------------------------------------------------------------------------------------------------------


def test_a_path_of_ours_is_the_leaf_and_is_never_excused(ecosystem: LiveEcosystem) -> None:
    """It was found on record; its issuer's end is not its own."""
    leaf = read_leaf(make_peer(make_device(make_maker(), ends=NOW).der))
    issuer = ecosystem.issuers[-1]
    path = write_own_path(leaf, issuer)
    assert (path.leaf, path.issuer, path.anchor) == (leaf, issuer, None)
    assert (path.starts, path.ends, path.ignore_expiry) == (leaf.starts, leaf.ends, False)
    check_window(path, NOW)
    with pytest.raises(Refused) as caught:
        check_window(path, NOW + SECOND)
    assert caught.value.code is Code.CERTIFICATE_EXPIRED
    assert caught.value.detail.startswith("the client certificate expired at")
