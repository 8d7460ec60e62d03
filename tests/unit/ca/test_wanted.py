"""What GET csrattrs announces of a profile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from estd.asn1.oids import OIDS
from estd.ca.ecosystem import Ecosystem
from estd.ca.profile import Profile
from estd.ca.wanted import decide_wanted
from estd.wire.csrattrs import WantedExtension, read_csrattrs, write_csrattrs

DIGITAL_SIGNATURE = bytes.fromhex("03020780")
CLIENT_AUTH = bytes.fromhex("300a06082b06010505070302")


@pytest.fixture
def profile(read: Callable[..., Ecosystem], head: str) -> Callable[[str], Profile]:
    return lambda text: read(f'{head}[profile.device]\nissuer = "devices"\n{text}').profiles["device"]


def test_keys_and_usages_are_announced(profile: Callable[[str], Profile]) -> None:
    wanted = decide_wanted(profile('keys = ["ec-p384", "ec-p256"]\n'))
    assert wanted is not None
    assert wanted.key_types == ("ec-p384", "ec-p256")
    assert wanted.extensions == (
        WantedExtension(OIDS["keyUsage"], True, DIGITAL_SIGNATURE),
        WantedExtension(OIDS["extKeyUsage"], False, CLIENT_AUTH),
    )
    assert (wanted.attributes, wanted.subject, wanted.use_template) == ((), None, False)
    assert read_csrattrs(write_csrattrs(wanted)).extensions == wanted.extensions


def test_it_can_be_switched_off(profile: Callable[[str], Profile]) -> None:
    assert decide_wanted(profile('csrattrs = "off"\n')) is None


def test_a_binding_is_asked_for_in_both_ways(profile: Callable[[str], Profile]) -> None:
    # RFC 7030 §4.5.2, RFC 7894 §3
    wanted = decide_wanted(profile("require_binding = true\n"))
    assert wanted is not None
    assert wanted.attributes == (OIDS["challengePassword"], OIDS["estIdentityLinking"])


def test_names_from_the_request_are_asked_for(profile: Callable[[str], Profile]) -> None:
    rules = (
        '[{ type = "serialNumber", required = true }, { type = "O", value = "A", required = true }, { type = "CN" }]'
    )
    wanted = decide_wanted(
        profile(
            f'csrattrs = "both"\nsubject = "request"\nsubject_attribute = {rules}\nsan = "request"\n'
            'san_rule = { types = ["dns"], critical = true }\nkey_usage = []\nextended_key_usage = []\n'
        )
    )
    assert wanted is not None
    assert wanted.use_template
    assert wanted.attributes == (OIDS["serialNumber"], OIDS["organizationName"])
    assert wanted.subject == ((OIDS["serialNumber"], None), (OIDS["organizationName"], "A"))
    assert wanted.extensions == (WantedExtension(OIDS["subjectAltName"], True),)
    read = read_csrattrs(write_csrattrs(wanted))
    assert (read.use_template, read.subject, read.extensions) == (True, wanted.subject, wanted.extensions)


def test_fixed_and_empty_subjects_are_told(profile: Callable[[str], Profile]) -> None:
    fixed = decide_wanted(profile('subject = "fixed"\nsubject_attribute = [{ type = "CN", value = "x" }]\n'))
    assert fixed is not None
    assert fixed.subject == ((OIDS["commonName"], "x"),)
    empty = decide_wanted(profile('subject = "empty"\nsan = "credential"\n'))
    assert empty is not None
    assert empty.subject == ()
