"""Profiles: what a document may say, and every contradiction with the rule it breaks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from estd.asn1.oids import OIDS
from estd.ca.document import Problems
from estd.ca.profile import Profile, write_profile
from estd.ca.profile_reader import read_profile
from estd.names import EMPTY_NAME, read_name

FULL = {
    "issuer": "devices",
    "label": "plant-device",
    "enroll": ["anchor:maker", "code"],
    "renew": "rekey",
    "treat_as_reenroll": True,
    "keys": ["ec-p256"],
    "subject": "request",
    "subject_attribute": [
        {"type": "CN", "pattern": r"dev-[0-9]+", "required": True},
        {"type": "serialNumber", "string_type": "printable"},
        {"type": "O", "value": "Acme"},
        {"type": "O", "value": "Acme Ltd"},
    ],
    "san": "request",
    "san_rule": {
        "types": ["dns", "other:hardwareModuleName", "other:1.2.3.4"],
        "required": ["dns"],
        "patterns": {"dns": r"[a-z]+\.example\.com"},
        "max": 3,
        "critical": True,
    },
    "key_usage": ["keyAgreement", "digitalSignature"],
    "key_usage_critical": False,
    "extended_key_usage": ["clientAuth", "serverAuth", "1.3.6.1.4.1.45605.1"],
    "extended_key_usage_critical": True,
    "policies": ["1.3.6.1.4.1.40732.1.3"],
    "policies_critical": True,
    "basic_constraints": False,
    "basic_constraints_critical": False,
    "subject_key_id": False,
    "key_id": "sha1-64",
    "aia": False,
    "cdp": False,
    "extension": [{"oid": "masaURL", "critical": False, "value": "160361622e"}],
    "validity": "until 2050-01-01",
    "backdate": "2h",
    "align": "refuse",
    "serial_bytes": 12,
    "max_der_bytes": 600,
    "strict": True,
    "require_binding": True,
    "csrattrs": "list",
    "retry_window": "10min",
}


def read(content: dict[str, object], strict: bool = False) -> tuple[Profile, list[str]]:
    problems = Problems("plant.toml")
    profile = read_profile("device", content, "profile.device", problems, strict)
    return profile, [str(problem) for problem in problems.found]


def complaints(**content: object) -> list[str]:
    return read({"issuer": "devices", **content})[1]


def test_one_key_is_enough() -> None:
    profile, problems = read({"issuer": "devices"})
    assert problems == []
    assert profile.enroll == ("code",)
    assert profile.subject == "credential"
    assert profile.san == "none"
    assert profile.fixed_subject == EMPTY_NAME
    assert profile.key_usage == ("digitalSignature",)
    assert profile.extended_key_usage == (OIDS["clientAuth"],)
    assert profile.validity.duration == timedelta(days=365)
    assert profile.backdate == timedelta(hours=1)
    assert profile.serial_bytes == 20
    assert profile.strict is False


def test_strictness_is_inherited_from_the_ecosystem() -> None:
    assert read({"issuer": "devices"}, strict=True)[0].strict is True
    assert read({"issuer": "devices", "strict": False}, strict=True)[0].strict is False


def test_every_key_survives_being_written() -> None:
    profile, problems = read(FULL)
    assert problems == []
    assert profile.key_usage == ("digitalSignature", "keyAgreement")
    assert profile.san_rule.types == ("dns", f"other:{OIDS['hardwareModuleName']}", "other:1.2.3.4")
    assert profile.extensions[0].oid == OIDS["masaURL"]
    written = write_profile(profile)
    assert written.keys() == FULL.keys()
    again, problems = read(written)
    assert problems == []
    assert again == profile
    assert write_profile(again) == written


def test_defaults_survive_being_written() -> None:
    profile, _ = read({"issuer": "devices"})
    assert read(write_profile(profile)) == (profile, [])


def test_a_fixed_subject_is_composed_in_order() -> None:
    rules = [{"type": "O", "value": "Acme"}, {"type": "CN", "value": "gateway", "string_type": "printable"}]
    profile, problems = read({"issuer": "devices", "subject": "fixed", "subject_attribute": rules})
    assert problems == []
    assert read_name(profile.fixed_subject).text == "CN=gateway,O=Acme"
    assert profile.fixed_subject.count(b"\x13\x07gateway") == 1


def test_a_base_is_overridden_by_what_is_said() -> None:
    profile, problems = read({"base": "ldevid", "issuer": "devices", "enroll": ["anchor:m"], "validity": "10y"})
    assert problems == []
    assert profile.san == "credential"
    assert profile.validity.duration == timedelta(days=3650)
    assert profile.subject_attributes[0].type == OIDS["serialNumber"]


def test_nonRepudiation_has_two_names() -> None:
    profile, problems = read({"issuer": "devices", "key_usage": ["contentCommitment"], "extended_key_usage": []})
    assert problems == []
    assert profile.key_usage == ("nonRepudiation",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"issuer": 3}, "profile.device.issuer: is a number and must be a string"),
        ({"validty": "1y"}, "profile.device.validty: is not a key that belongs here. Did you mean 'validity'?"),
        ({"base": "idevid"}, "'idevid' is not a ready-made profile. Known here: ldevid."),
        ({"keys": []}, "allows no key type"),
        ({"keys": ["rsa-1024"]}, "'rsa-1024' is not known here. Did you mean 'rsa-"),
        ({"key_usage": ["keyCertSign"], "extended_key_usage": []}, "would let a device sign certificates"),
        ({"key_usage": ["digitalSignature", "decipherOnly"]}, "without keyAgreement"),
        ({"key_usage": ["digitalSignature", "keyEncipherment"]}, "not for ec-p256 keys (RFC 5480 §3)"),
        ({"keys": ["rsa-2048"], "key_usage": ["digitalSignature", "keyAgreement"]}, "rsa-2048 keys (RFC 3279 §2.3.1)"),
        ({"keys": ["ed25519"], "key_usage": ["digitalSignature", "keyAgreement"]}, "ed25519 keys (RFC 8410 §5)"),
        ({"keys": ["ml-dsa-44"], "key_usage": ["digitalSignature", "keyAgreement"]}, "ml-dsa-44 keys (RFC 9881 §5)"),
        ({"key_usage": ["nonRepudiation"]}, "clientAuth needs a key usage that serves it"),
        ({"extended_key_usage": ["serverAuth"]}, "san: is none although serverAuth is allowed"),
        ({"extended_key_usage": ["servrAuth"]}, "'servrAuth' is not known here"),
        ({"extended_key_usage": ["clientAuth", "1.3.6.1.5.5.7.3.2"]}, "names '1.3.6.1.5.5.7.3.2' twice"),
        (
            {"extended_key_usage": ["anyExtendedKeyUsage"], "extended_key_usage_critical": True},
            "does not go with anyExtendedKeyUsage",
        ),
        ({"policies": ["1.2.bad"]}, "'1.2.bad' is not known here"),
        ({"subject": "empty"}, "san: is none although the subject is empty"),
        (
            {"subject": "empty", "san": "credential", "subject_attribute": [{"type": "CN"}]},
            "something of an empty subject",
        ),
        ({"subject": "request"}, "lets a device choose any name it likes"),
        ({"subject": "fixed"}, "is fixed, but not every attribute has a value"),
        ({"subject": "fixed", "subject_attribute": [{"type": "C", "value": "CHE"}]}, "makes no valid name"),
        (
            {"subject": "fixed", "subject_attribute": [{"type": "CN", "value": "a@b", "string_type": "printable"}]},
            "does not fit a PrintableString",
        ),
        (
            {"subject": "fixed", "subject_attribute": [{"type": "CN", "value": "é", "string_type": "ia5"}]},
            "does not fit an IA5String",
        ),
        ({"subject_attribute": [{"type": "commonname."}]}, "'commonname.' is not an attribute type"),
        ({"subject_attribute": [{"pattern": "a"}]}, "subject_attribute[1].type: is missing"),
        ({"subject_attribute": [{"type": "CN"}, {"type": "cn"}]}, "has a rule already"),
        ({"subject_attribute": [{"type": "CN", "pattern": "("}]}, "is not a regular expression"),
        (
            {"subject_attribute": [{"type": "CN", "pattern": "a", "value": "b"}]},
            "does not match the rule's own pattern",
        ),
        ({"subject_attribute": [{"type": "CN", "string_type": "bmp"}]}, "'bmp' is not known here"),
        ({"san": "request"}, "Name the kinds it may ask for: san_rule.types"),
        ({"san_rule": {"types": ["dns"]}}, "says something of names that no certificate will have"),
        ({"san": "credential", "san_rule": {"types": ["dnsname"]}}, "'dnsname' is not a kind of name"),
        ({"san": "credential", "san_rule": {"types": ["other:nonsense"]}}, "'other:nonsense' is not a kind of name"),
        ({"san": "credential", "san_rule": {"types": ["dns"], "required": ["uri"]}}, "which types does not allow"),
        ({"san": "credential", "san_rule": {"types": ["dns"], "patterns": {"ip": "x"}}}, "which types does not allow"),
        ({"san": "credential", "san_rule": {"max": 0}}, "0 is out of range"),
        ({"serial_bytes": 8}, "8 is out of range. Use a whole number from 9 to 20."),
        ({"validity": "1h"}, "validity: is over before it begins"),
        ({"validity": "soon"}, "'soon' is not a validity"),
        ({"backdate": "800d", "validity": "10y"}, "backdate: is more than a year"),
        ({"retry_window": "60d"}, "retry_window: is more than 30 days"),
        ({"require_binding": True, "csrattrs": "off"}, "is off although require_binding is on"),
        ({"require_binding": True, "csrattrs": "both"}, "has a template, which cannot ask for a binding"),
        ({"extension": [{"oid": "keyUsage", "value": "0500"}]}, "is an extension that estd writes itself"),
        ({"extension": [{"oid": "nameConstraints", "value": "3000"}]}, "belongs into CA certificates only"),
        ({"extension": [{"oid": "nonsense", "value": "0500"}]}, "'nonsense' is not an object identifier"),
        ({"extension": [{"oid": "1.2.3", "value": "05"}]}, "is not DER in hexadecimal"),
        ({"extension": [{"oid": "1.2.3", "value": "zz"}]}, "is not DER in hexadecimal"),
        (
            {"extension": [{"oid": "1.2.3", "value": "0500"}, {"oid": "1.2.3", "value": "0500"}]},
            "has an extension already",
        ),
    ],
)
def test_what_contradicts_is_said(content: dict[str, object], problem: str) -> None:
    assert any(problem in one for one in complaints(**content)), complaints(**content)


def test_all_problems_come_at_once() -> None:
    assert len(complaints(keys=["x"], key_usage=["keyCertSign"], validity="?", subject="empty", strict="no")) == 7


@pytest.mark.parametrize("key", sorted(FULL))
def test_no_value_of_any_type_is_a_fault(key: str) -> None:
    for value in (3, -1, 2.5, True, "", "x", [], [1], ["x"], [[]], [{}], {}, {"x": 1}, None):
        read({**FULL, key: value})
