"""Subjects and alternative names against the rules of a profile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from estd.asn1 import der
from estd.ca.ecosystem import Ecosystem
from estd.ca.namerules import check_san, check_subject
from estd.ca.profile import Profile
from estd.errors import Code, Refused
from estd.names import EMPTY_NAME, write_name, write_san

RULES = """
subject = "credential"
subject_attribute = [
    { type = "CN", required = true, pattern = 'dev-[0-9]{1,4}' },
    { type = "O", value = "Acme" },
    { type = "O", value = "Acme Ltd" },
    { type = "serialNumber", string_type = "printable" },
]
"""
SAN_RULES = """
san = "credential"
[profile.device.san_rule]
types = ["dns", "uri", "ip", "other:hardwareModuleName"]
required = ["dns"]
max = 3
patterns = { dns = '[a-z]+\\.example\\.com', uri = 'urn:.*', "other:hardwareModuleName" = '1\\.2\\.3:(00|ff)+' }
"""


@pytest.fixture
def profile(read: Callable[..., Ecosystem], head: str) -> Callable[[str], Profile]:
    return lambda text: read(f'{head}[profile.device]\nissuer = "devices"\nenroll = []\n{text}').profiles["device"]


@pytest.mark.parametrize("subject", ["CN=dev-1", "CN=dev-1,O=Acme", "O=Acme Ltd,CN=dev-1", "CN=dev-1+serialNumber=7"])
def test_subjects_inside_the_rules(subject: str, profile: Callable[[str], Profile]) -> None:
    check_subject(profile(RULES), write_name(subject))


@pytest.mark.parametrize(
    ("subject", "problem"),
    [
        ("", "the subject needs CN"),
        ("O=Acme", "the subject needs CN"),
        ("CN=dev-12345", "CN 'dev-12345' is not of the form"),
        ("CN=xdev-1", "is not of the form"),
        ("CN=dev-1\\0A", "is not of the form"),
        ("CN=dev-1,CN=admin", "CN 'admin' is not of the form"),
        ("CN=dev-1+CN=admin", "CN 'admin' is not of the form"),
        ("CN=dev-1,O=Acmee", "O must be 'Acme' or 'Acme Ltd'"),
        ("CN=dev-1,OU=x", "does not allow OU in the subject"),
        ("CN=#0403616263", "is not a character string"),
    ],
)
def test_subjects_outside_the_rules(subject: str, problem: str, profile: Callable[[str], Profile]) -> None:
    with pytest.raises(Refused, match=problem) as refusal:
        check_subject(profile(RULES), write_name(subject))
    assert refusal.value.code is Code.SUBJECT_REFUSED


def test_a_string_type_is_insisted_on(profile: Callable[[str], Profile]) -> None:
    def subject(value: bytes) -> bytes:
        pairs = (der.sequence(der.oid("commonName"), der.utf8("dev-1")), der.sequence(der.oid("serialNumber"), value))
        return der.sequence(*(der.set_of([pair]) for pair in pairs))

    check_subject(profile(RULES), subject(der.printable("7")))
    with pytest.raises(Refused, match="serialNumber must be encoded as printable"):
        check_subject(profile(RULES), subject(der.utf8("7")))


def test_an_empty_subject_is_empty(profile: Callable[[str], Profile]) -> None:
    empty = profile('subject = "empty"\nsan = "credential"\n')
    check_subject(empty, EMPTY_NAME)
    with pytest.raises(Refused):
        check_subject(empty, write_name("CN=x"))


def test_a_fixed_subject_is_fixed_however_it_is_written(profile: Callable[[str], Profile]) -> None:
    fixed = profile('subject = "fixed"\nsubject_attribute = [{ type = "CN", value = "gateway" }]\n')
    check_subject(fixed, fixed.fixed_subject)
    with pytest.raises(Refused, match="this is another"):
        check_subject(fixed, write_name("CN=gateway2"))
    with pytest.raises(Refused, match="this is another"):
        check_subject(fixed, EMPTY_NAME)


def test_without_rules_the_source_is_trusted(profile: Callable[[str], Profile]) -> None:
    check_subject(profile(""), write_name("CN=anything,OU=else"))


HARDWARE = "other:1.3.6.1.5.5.7.8.4=#" + der.sequence(der.oid("1.2.3"), der.octet_string(b"\x00\xff")).hex()


@pytest.mark.parametrize(
    "names", [["dns:a.example.com"], ["uri:urn:x", "dns:a.example.com", HARDWARE], ["dns:a.example.com", "ip:10.0.0.1"]]
)
def test_names_inside_the_rules(names: list[str], profile: Callable[[str], Profile]) -> None:
    check_san(profile(SAN_RULES), EMPTY_NAME, write_san(names))


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["uri:urn:x"], "needs a name of kind dns"),
        (["dns:a.example.org"], "is not of the form"),
        (["dns:a.example.com", "dns:b.example.org"], "'dns:b.example.org' is not of the form"),
        (["dns:a.example.com", "uri:http://x"], "is not of the form"),
        (["dns:a.example.com", "email:a@example.com"], "of kind email is not allowed"),
        (["dns:a.example.com", "other:1.2.3.4=#0500"], "of kind other:1.2.3.4 is not allowed"),
        (["dns:a.example.com", "ip:10.0.0.1", "ip:10.0.0.2", "ip:10.0.0.3"], "4 alternative names are more than the 3"),
        (["dns:a.example.com", HARDWARE.replace("00ff", "00fe")], "is not of the form"),
        (["dns:a.example.com", "other:1.3.6.1.5.5.7.8.4=#0500"], "is a type and a serial number"),
    ],
)
def test_names_outside_the_rules(names: list[str], problem: str, profile: Callable[[str], Profile]) -> None:
    with pytest.raises(Refused, match=problem) as refusal:
        check_san(profile(SAN_RULES), EMPTY_NAME, write_san(names))
    assert refusal.value.code is Code.SAN_REFUSED


def test_required_names_must_be_there(profile: Callable[[str], Profile]) -> None:
    with pytest.raises(Refused, match="needs dns"):
        check_san(profile(SAN_RULES), write_name("CN=x"), None)


def test_no_names_where_the_profile_has_none(profile: Callable[[str], Profile]) -> None:
    check_san(profile(""), write_name("CN=x"), None)
    with pytest.raises(Refused, match="without a subjectAltName"):
        check_san(profile(""), write_name("CN=x"), write_san(["dns:a"]))


def test_nobody_is_nameless(profile: Callable[[str], Profile]) -> None:
    # RFC 5280 §4.2.1.6
    with pytest.raises(Refused, match="needs a subject or a subjectAltName"):
        check_san(profile('subject = "empty"\nsan = "credential"\n'), EMPTY_NAME, None)


def test_a_name_made_for_a_pattern_with_many_ways_stops_nobody(profile: Callable[[str], Profile]) -> None:
    # Tried one way after the other these would take longer than anybody waits.
    subject = profile('subject_attribute = [{ type = "CN", pattern = "^(a+)+$" }]\n')
    check_subject(subject, write_name("CN=" + "a" * 64))
    with pytest.raises(Refused, match="is not of the form"):
        check_subject(subject, write_name("CN=" + "a" * 63 + "-"))
    names = profile('san = "credential"\nsan_rule = { patterns = { uri = "x:(a|aa)*" } }\n')
    check_san(names, EMPTY_NAME, write_san([f"uri:x:{'a' * 1000}"]))
    with pytest.raises(Refused, match="is not of the form"):
        check_san(names, EMPTY_NAME, write_san([f"uri:x:{'a' * 1000}-"]))


def test_a_value_too_long_for_a_pattern_is_not_matched(profile: Callable[[str], Profile]) -> None:
    long = profile('subject_attribute = [{ type = "description", pattern = "a*" }]\n')
    check_subject(long, write_name("description=" + "a" * 1024))
    with pytest.raises(Refused):
        check_subject(long, write_name("description=" + "a" * 1025))
