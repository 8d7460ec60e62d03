"""From request to certificate: the approval that one signature spends, and what comes out for any profile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as some

from estd.ca.authority import read_authority
from estd.ca.document import Problems
from estd.ca.issuer import RANDOM_BYTES, Approved, Issuer, decide_serial, issue_authority
from estd.ca.lint.linter import Linter
from estd.ca.profile import Profile
from estd.ca.profile_reader import read_profile
from estd.ca.vocabulary import NOT_FOR_KEY, key_family
from estd.errors import Broken, Code, Refused, Unavailable
from estd.keys.software import SoftwareKey, generate
from estd.names import EMPTY_NAME, write_name, write_san
from estd.wire.pkcs10 import VerifiedRequest

SUBJECT = write_name("CN=device-1,O=Acme")


@pytest.fixture(scope="module")
def verified(device_key: SoftwareKey, make_request: Callable[..., VerifiedRequest]) -> VerifiedRequest:
    return make_request(device_key)


@pytest.fixture
def prepare(hierarchy: Any, verified: VerifiedRequest, now: datetime, randomness: bytes) -> Callable[..., Approved]:
    def prepare(issuer: Issuer | None = None, **changes: Any) -> Approved:
        arguments = {
            "profile_name": "device",
            "verified": verified,
            "subject": SUBJECT,
            "san": None,
            "now": now,
            "randomness": randomness,
        }
        return (issuer or hierarchy.issuer()).prepare(**{**arguments, **changes})

    return prepare


def chain(certificate: bytes, issuer: bytes) -> x509.Certificate:
    parsed = x509.load_der_x509_certificate(certificate)
    parsed.verify_directly_issued_by(x509.load_der_x509_certificate(issuer))
    return parsed


# --- the road --------------------------------------------------------------------------------------------------------


def test_a_request_becomes_a_certificate(
    hierarchy: Any, prepare: Callable[..., Approved], verified: VerifiedRequest, now: datetime
) -> None:
    issuer = hierarchy.issuer()
    approved = prepare(issuer)
    certificate = chain(issuer.seal(approved), hierarchy.devices.certificate)
    assert certificate.tbs_certificate_bytes == approved.tbs
    assert certificate.subject.public_bytes() == SUBJECT
    assert certificate.serial_number == int.from_bytes(approved.serial, "big")
    assert certificate.not_valid_before_utc == approved.not_before == now - timedelta(hours=1)
    assert certificate.not_valid_after_utc == approved.not_after
    assert (approved.issuer_id, approved.profile) == (7, "device")
    assert approved.spki_sha256 == verified.request.spki_sha256
    assert len(approved.tbs_sha256) == 32


def test_the_same_again_gives_the_same_bytes(hierarchy: Any, prepare: Callable[..., Approved]) -> None:
    issuer = hierarchy.issuer()
    one, two = prepare(issuer), prepare(issuer)
    assert one.tbs == two.tbs
    assert issuer.seal(one) == issuer.seal(two)


def test_many_are_sealed_in_order(hierarchy: Any, prepare: Callable[..., Approved]) -> None:
    issuer = hierarchy.issuer()
    approved = [prepare(issuer, randomness=bytes([index] * RANDOM_BYTES)) for index in range(5)]
    sealed = issuer.seal_many(approved)
    assert [chain(one, hierarchy.devices.certificate).serial_number for one in sealed] == [
        int.from_bytes(one.serial, "big") for one in approved
    ]


# --- the approval ----------------------------------------------------------------------------------------------------


def test_an_approval_is_spent_once(hierarchy: Any, prepare: Callable[..., Approved]) -> None:
    issuer = hierarchy.issuer()
    approved = prepare(issuer)
    assert repr(approved).endswith("ready)")
    issuer.seal(approved)
    assert repr(approved).endswith("spent)")
    with pytest.raises(Broken, match="spent twice"):
        issuer.seal(approved)


def test_an_approval_in_a_batch_twice_signs_nothing(hierarchy: Any, prepare: Callable[..., Approved]) -> None:
    issuer = hierarchy.issuer()
    approved = prepare(issuer)
    with pytest.raises(Broken, match="spent twice"):
        issuer.seal_many([approved, approved])


def test_another_issuer_refuses_it(hierarchy: Any, prepare: Callable[..., Approved]) -> None:
    approved = prepare()
    with pytest.raises(Broken, match="another issuer"):
        hierarchy.issuer().seal(approved)


def test_nobody_else_makes_one(hierarchy: Any, now: datetime) -> None:
    with pytest.raises(Broken, match="without preparing"):
        Approved(object(), hierarchy.issuer(), "device", b"\x01", now, now, bytes(32), b"\x30\x00")


def test_an_issuer_has_its_own_key(hierarchy: Any) -> None:
    with pytest.raises(Broken, match="not that of its certificate"):
        Issuer(1, hierarchy.devices, hierarchy.root_key, [])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"subject": EMPTY_NAME}, Code.SUBJECT_REFUSED),
        ({"san": write_san(["dns:a"])}, Code.SAN_REFUSED),
        ({"is_blocked": lambda digest: True}, Code.KEY_WEAK),
        ({"subject": write_name("CN=" + "a" * 64).replace(b"a" * 64, b"a" * 63 + b"\xff")}, Code.LINT),
    ],
)
def test_what_is_not_allowed_is_refused(changes: dict[str, Any], code: Code, prepare: Callable[..., Approved]) -> None:
    with pytest.raises(Refused) as refusal:
        prepare(**changes)
    assert refusal.value.code is code


def test_a_key_of_another_type_is_refused(
    make_hierarchy: Callable[..., Any], minimal: str, prepare: Callable[..., Approved]
) -> None:
    issuer = make_hierarchy(minimal + 'keys = ["ec-p384"]\n').issuer()
    with pytest.raises(Refused) as refusal:
        prepare(issuer)
    assert refusal.value.code is Code.KEY_REFUSED


def test_a_request_to_become_an_authority_is_refused(
    device_key: SoftwareKey, make_request: Callable[..., VerifiedRequest], prepare: Callable[..., Approved]
) -> None:
    with pytest.raises(Refused) as refusal:
        prepare(verified=make_request(device_key, EMPTY_NAME, [(x509.BasicConstraints(True, None), True)]))
    assert refusal.value.code is Code.EXTENSION_REFUSED


def test_what_lint_finds_is_told_with_its_clause(
    make_hierarchy: Callable[..., Any], minimal: str, prepare: Callable[..., Approved]
) -> None:
    issuer = make_hierarchy(minimal + 'san = "credential"\n').issuer()
    with pytest.raises(Refused, match=r"rfc5280\.4\.2\.1\.6\.dns_name_malformed") as refusal:
        prepare(issuer, san=write_san(["dns:under_score.example.com"]))
    assert (refusal.value.code, refusal.value.clause) == (Code.LINT, "RFC 5280 §4.2.1.6")


@pytest.mark.parametrize("years", [-1, 11])
def test_an_issuer_out_of_its_time_is_unavailable(years: int, prepare: Callable[..., Approved], now: datetime) -> None:
    with pytest.raises(Unavailable):
        prepare(now=now + timedelta(days=365 * years))


def test_the_last_certificates_end_with_their_issuer(
    hierarchy: Any, prepare: Callable[..., Approved], now: datetime
) -> None:
    assert prepare(now=now + timedelta(days=3600)).not_after == hierarchy.devices.ends


# --- again, after a crash --------------------------------------------------------------------------------------------


def test_journaled_bytes_give_the_same_certificate(hierarchy: Any, prepare: Callable[..., Approved]) -> None:
    issuer = hierarchy.issuer()
    approved = prepare(issuer)
    certificate = issuer.seal(approved)
    assert hierarchy.issuer().repeat(approved.tbs) == certificate


def test_bytes_that_are_not_its_own_are_not_repeated(hierarchy: Any, prepare: Callable[..., Approved]) -> None:
    root = x509.load_der_x509_certificate(hierarchy.root.certificate).tbs_certificate_bytes
    for tbs in (
        b"",
        b"\x30\x00",
        root,
        prepare().tbs + b"\0",
        prepare().tbs.replace(b"plant devices", b"plant devicez"),
    ):
        with pytest.raises(Refused) as refusal:
            hierarchy.issuer().repeat(tbs)
        assert refusal.value.code is Code.LINT


def test_a_key_that_is_not_deterministic_repeats_nothing(
    make_hierarchy: Callable[..., Any], minimal: str, prepare: Callable[..., Approved]
) -> None:
    issuer = make_hierarchy(minimal, devices_type="ml-dsa-44").issuer()
    approved = prepare(issuer)
    issuer.seal(approved)
    with pytest.raises(Broken, match="signed twice"):
        issuer.repeat(approved.tbs)


def test_dates_are_to_the_second_and_serials_to_a_fraction_of_it(
    hierarchy: Any, prepare: Callable[..., Approved], now: datetime
) -> None:
    issuer = hierarchy.issuer()
    moments = [now + timedelta(milliseconds=100 * tenth) for tenth in range(11)]
    approved = [prepare(issuer, now=moment) for moment in moments]
    assert [one.not_before for one in approved] == [now - timedelta(hours=1)] * 10 + [
        now - timedelta(hours=1) + timedelta(seconds=1)
    ]
    serials = [one.serial for one in approved]
    assert serials == sorted(set(serials))
    for one in approved:
        certificate = chain(issuer.seal(one), hierarchy.devices.certificate)
        assert certificate.not_valid_before_utc == one.not_before


# --- serial numbers --------------------------------------------------------------------------------------------------


def test_a_serial_number_has_its_time_and_its_randomness(now: datetime, randomness: bytes) -> None:
    serial = decide_serial(now, randomness, 20)
    seconds = (now - datetime(2020, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    assert serial == b"\x01" + (256 * seconds).to_bytes(5, "big") + randomness[:14]
    assert decide_serial(now + timedelta(milliseconds=4), randomness, 20) > serial
    assert decide_serial(now + timedelta(milliseconds=3), randomness, 20) == serial


@pytest.mark.parametrize("size", range(9, 21))
def test_a_serial_number_is_positive_with_64_random_bits_at_least(size: int, now: datetime, randomness: bytes) -> None:
    serial = decide_serial(now, randomness, size)
    assert len(serial) == size
    assert serial[0] == 1
    random_octets = size - 1 if size < 14 else size - 6
    assert random_octets >= 8
    assert serial.endswith(randomness[:random_octets])


def test_a_serial_number_of_another_size_is_a_fault(now: datetime, randomness: bytes) -> None:
    for size, octets in ((8, randomness), (21, randomness), (20, randomness[:18])):
        with pytest.raises(Broken):
            decide_serial(now, octets, size)
    assert decide_serial(datetime(1990, 1, 1, tzinfo=UTC), randomness, 20).startswith(b"\x01\0\0\0\0\0")


# --- CA certificates -------------------------------------------------------------------------------------------------


def test_a_root_and_an_issuer_below_it(hierarchy: Any, now: datetime) -> None:
    root = chain(hierarchy.root.certificate, hierarchy.root.certificate)
    devices = chain(hierarchy.devices.certificate, hierarchy.root.certificate)
    constraints = devices.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (True, 0, True)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length is None
    # KeyUsage keyCertSign and cRLSign alone, in the fewest bits: 03 02 01 06.
    assert bytes.fromhex("03020106") in devices.tbs_certificate_bytes
    key_id = devices.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert key_id == hierarchy.root.key_id
    assert devices.not_valid_after_utc == now + timedelta(days=3650, hours=-1, seconds=-1)


def test_name_constraints_and_urls_of_the_parent(
    make_hierarchy: Callable[..., Any], minimal: str, now: datetime, randomness: bytes
) -> None:
    text = minimal.replace(
        'parent = "root"\n', 'parent = "root"\nname_constraints = { permitted = ["dns:example.com"] }\n', 1
    )
    hierarchy = make_hierarchy(text)
    parent = read_authority(hierarchy.root.certificate, "http://a/root.crl", None, "http://a/root.cer")
    key = generate("ed25519")
    certificate = issue_authority(
        hierarchy.ecosystem.get_issuer("devices"), key, parent, hierarchy.root_key, now, randomness
    )
    extensions = chain(certificate, hierarchy.root.certificate).extensions
    constraints = extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical is True
    assert constraints.value.permitted_subtrees == [x509.DNSName("example.com")]
    assert extensions.get_extension_for_class(x509.CRLDistributionPoints)
    assert len(extensions.get_extension_for_class(x509.AuthorityInformationAccess).value) == 1


def test_a_parent_and_its_key_belong_together(hierarchy: Any, now: datetime, randomness: bytes) -> None:
    spec, key = hierarchy.ecosystem.get_issuer("devices"), generate("ec-p256")
    for parent, parent_key in ((hierarchy.root, None), (None, key), (hierarchy.root, key)):
        with pytest.raises(Broken):
            issue_authority(spec, key, parent, parent_key, now, randomness)


def test_an_issuer_outside_of_what_its_parent_may_name_is_not_made(
    make_hierarchy: Callable[..., Any], minimal: str
) -> None:
    text = minimal.replace(
        'name = "root"\n', 'name = "root"\nname_constraints = { permitted = ["dirname:O=Acme"] }\n', 1
    )
    with pytest.raises(Refused, match="name_outside"):
        make_hierarchy(text)


# --- any profile -----------------------------------------------------------------------------------------------------

KEYS = {name: generate(name) for name in ("ec-p256", "ec-p384", "rsa-2048", "ed25519")}
NAMES = [
    "dns:a.example.com",
    "dns:*.example.com",
    "ip:10.0.0.1",
    "ip:2001:db8::1",
    "uri:urn:dev:1",
    "email:a@b.example",
]
PURPOSES = ["clientAuth", "codeSigning", "1.3.6.1.4.1.45605.1"]


@some.composite
def profiles(draw: some.DrawFn) -> tuple[str, dict[str, Any]]:
    key_type = draw(some.sampled_from(sorted(KEYS)))
    unfit = NOT_FOR_KEY[key_family(key_type)][1]
    usages = draw(some.sets(some.sampled_from(sorted({"nonRepudiation", "keyAgreement", "keyEncipherment"} - unfit))))
    subject = draw(some.sampled_from(["credential", "empty"]))
    flag = some.booleans()
    return key_type, {
        "issuer": "devices",
        "keys": [key_type],
        "subject": subject,
        "san": "credential" if subject == "empty" else draw(some.sampled_from(["credential", "none"])),
        "san_rule": {"critical": draw(flag)} if subject == "empty" else {},
        "key_usage": ["digitalSignature", *sorted(usages)],
        "key_usage_critical": draw(flag),
        "extended_key_usage": draw(some.lists(some.sampled_from(PURPOSES), unique=True)),
        "extended_key_usage_critical": draw(flag),
        "policies": draw(some.lists(some.sampled_from(["1.2.3.4", "2.999.1"]), unique=True)),
        "policies_critical": draw(flag),
        "basic_constraints": draw(flag),
        "basic_constraints_critical": draw(flag),
        "subject_key_id": draw(flag),
        "key_id": draw(some.sampled_from(["sha256-160", "sha1-160", "sha1-64"])),
        "aia": draw(flag),
        "cdp": draw(flag),
        "validity": f"{draw(some.integers(7_200, 300_000_000))}s",
        "backdate": f"{draw(some.integers(0, 7_000))}s",
        "align": draw(some.sampled_from(["clamp", "issuer"])),
        "serial_bytes": draw(some.integers(9, 20)),
    }


@settings(max_examples=120, deadline=None)
@given(
    drawn=profiles(), names=some.sets(some.sampled_from(NAMES), min_size=1), seed=some.binary(min_size=19, max_size=19)
)
def test_any_profile_gives_certificates_that_stand(
    drawn: tuple[str, dict[str, Any]],
    names: set[str],
    seed: bytes,
    hierarchy: Any,
    make_request: Callable[..., VerifiedRequest],
    now: datetime,
) -> None:
    key_type, content = drawn
    problems = Problems("x")
    profile: Profile = read_profile("p", content, "p", problems, False)
    assert not problems.found
    issuer = Issuer(1, hierarchy.devices, hierarchy.devices_key, [profile])
    subject = EMPTY_NAME if profile.subject == "empty" else SUBJECT
    san = None if profile.san == "none" else write_san(sorted(names))
    if key_type not in _REQUESTS:
        _REQUESTS[key_type] = make_request(KEYS[key_type])
    verified = _REQUESTS[key_type]
    approved = issuer.prepare("p", verified, subject, san, now, seed)
    certificate = chain(issuer.seal(approved), hierarchy.devices.certificate)
    assert Linter(hierarchy.devices.certificate, profile).lint(certificate.tbs_certificate_bytes) == []
    found = {extension.oid.dotted_string: extension for extension in certificate.extensions}
    assert ("2.5.29.19" in found) is profile.basic_constraints
    assert ("2.5.29.37" in found) is bool(profile.extended_key_usage)
    assert ("2.5.29.14" in found) is profile.subject_key_id
    assert ("2.5.29.31" in found) is profile.cdp
    assert found["2.5.29.15"].critical is profile.key_usage_critical
    if san is not None:
        assert found["2.5.29.17"].critical is (subject == EMPTY_NAME or profile.san_rule.critical)
        assert found["2.5.29.17"].value.public_bytes() == san
    assert certificate.serial_number.bit_length() == 8 * profile.serial_bytes - 7
    if profile.align == "clamp":
        length = certificate.not_valid_after_utc - certificate.not_valid_before_utc + timedelta(seconds=1)
        assert length == profile.validity.duration
    else:
        assert certificate.not_valid_after_utc == hierarchy.devices.ends


_REQUESTS: dict[str, VerifiedRequest] = {}
