"""Channel bindings in a request: verified when they are there, demanded where the profile says so, never ignored."""

from __future__ import annotations

import base64

import pytest
from factory import NOW, make_csr, make_maker, make_name, make_rules
from msgspec.structs import replace

from estd.ca.profile import Profile
from estd.errors import Code, Refused
from estd.est.operations import check_binding
from estd.wire.exchange import Exchange, Peer
from estd.wire.pkcs10 import CertificationRequest, read_request

BINDING = bytes(range(32))
TEXT = base64.b64encode(BINDING).decode()


class Channel:
    """A channel with one kind of binding."""

    version = "TLSv1.3"

    def __init__(self, kind: str = "tls-exporter") -> None:
        self._kind = kind

    def channel_binding(self, kind: str) -> bytes | None:
        return BINDING if kind == self._kind else None


def exchange(channel: Channel | None) -> Exchange:
    return Exchange("POST", "/", {}, b"", Peer("192.0.2.7", (), channel), "req", NOW)


def profile(text: str = "") -> Profile:
    return make_rules(make_maker(), profile=text).profiles["device"]


def request(**fields: str | None) -> CertificationRequest:
    return replace(read_request(make_csr(make_name("device-1"))), **fields)


def refusal(asked: CertificationRequest, rules: Profile, channel: Channel | None) -> Code:
    with pytest.raises(Refused) as caught:
        check_binding(asked, rules, exchange(channel))
    return caught.value.code


@pytest.mark.parametrize("kind", ["tls-exporter", "tls-unique"])
@pytest.mark.parametrize("field", ["challenge_password", "est_identity_linking"])
def test_the_binding_of_this_channel_is_accepted_in_either_place(kind: str, field: str) -> None:
    check_binding(request(**{field: TEXT}), profile(), exchange(Channel(kind)))
    check_binding(request(**{field: TEXT}), profile("require_binding = true"), exchange(Channel(kind)))


@pytest.mark.parametrize("field", ["challenge_password", "est_identity_linking"])
@pytest.mark.parametrize("text", ["", "secret", TEXT[:-4], base64.b64encode(bytes(32)).decode(), TEXT + " "])
def test_any_other_value_is_refused_whether_or_not_one_is_demanded(field: str, text: str) -> None:
    for rules in (profile(), profile("require_binding = true")):
        assert refusal(request(**{field: text}), rules, Channel()) is Code.BINDING_REFUSED


def test_both_places_have_to_match() -> None:
    check_binding(request(challenge_password=TEXT, est_identity_linking=TEXT), profile(), exchange(Channel()))
    for one, other in ((TEXT, "wrong"), ("wrong", TEXT)):
        asked = request(challenge_password=one, est_identity_linking=other)
        assert refusal(asked, profile(), Channel()) is Code.BINDING_REFUSED


def test_a_binding_that_cannot_be_verified_is_refused() -> None:
    assert refusal(request(challenge_password=TEXT), profile(), None) is Code.BINDING_REFUSED
    assert refusal(request(challenge_password=TEXT), profile(), Channel("none")) is Code.BINDING_REFUSED


def test_a_profile_may_demand_one() -> None:
    check_binding(request(), profile(), exchange(Channel()))
    assert refusal(request(), profile("require_binding = true"), Channel()) is Code.BINDING_REFUSED


@pytest.mark.parametrize("field", ["otp_challenge", "revocation_challenge"])
def test_challenges_that_cannot_be_verified_are_refused(field: str) -> None:
    asked = request(**{field: "x", "challenge_password": TEXT})
    assert refusal(asked, profile(), Channel()) is Code.BINDING_REFUSED
