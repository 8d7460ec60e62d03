"""Ecosystem documents: read, written, loaded again; what has to fit together."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from estd.ca.ecosystem import (
    Ecosystem,
    Limits,
    load_document,
    load_issuers,
    peek_labels,
    peek_profiles,
    read_document,
    write_document,
)
from estd.errors import Invalid

FULL = """
format = 1

[ecosystem]
label = "plant"
name = "The plant"
organization = "Acme"
default_profile = "device"
wrap = "never"
strict = true

[ecosystem.limits]
requests_per_second = 500
requests_per_second_per_source = 10
in_flight = 200

[[issuer]]
name = "root"
key = "ec-p384"
validity = "30y"

[[issuer]]
name = "devices"
parent = "root"
name_constraints = { permitted = ["dns:plant.example.com"], excluded = ["ip:10.0.0.0/8"] }

[[anchor]]
name = "maker"
certificates = ["maker.pem"]
ignore_expiry = true

[profile.device]
issuer = "devices"
enroll = ["anchor:maker", "issued:service"]
label = "plant-device"
validity = "90d"

[profile.service]
issuer = "devices"
san = "request"
san_rule = { types = ["dns"] }
extended_key_usage = ["serverAuth"]
"""


@pytest.fixture(scope="module")
def maker(hierarchy: Any) -> dict[str, bytes]:
    from estd.ca.certificates import write_pem

    return {"maker.pem": write_pem(hierarchy.root.certificate).encode()}


def test_a_whole_document(read: Callable[..., Ecosystem], maker: dict[str, bytes], hierarchy: Any) -> None:
    ecosystem = read(FULL, maker)
    assert (ecosystem.label, ecosystem.name, ecosystem.default_profile) == ("plant", "The plant", "device")
    assert ecosystem.limits == Limits(500, 10, 200)
    assert ecosystem.anchors[0].certificates == (hierarchy.root.certificate,)
    assert ecosystem.anchors[0].ignore_expiry is True
    assert ecosystem.profiles["device"].strict is True
    assert ecosystem.get_issuer("devices").parent == "root"


def test_what_is_stored_stands_on_its_own(read: Callable[..., Ecosystem], maker: dict[str, bytes]) -> None:
    ecosystem = read(FULL, maker)
    document = write_document(ecosystem)
    through_json = json.loads(json.dumps(document))
    assert through_json == document
    assert load_document(through_json) == ecosystem
    assert write_document(load_document(through_json)) == document
    assert load_issuers(through_json) == ecosystem.issuers


def test_spelling_makes_no_difference(read: Callable[..., Ecosystem], minimal: str) -> None:
    one, two = read(minimal), read(minimal + 'validity = "365d"\nkey_usage = ["digitalSignature"]\n')
    assert one == two
    assert json.dumps(write_document(one)) == json.dumps(write_document(two))


def test_a_byte_order_mark_is_no_part_of_the_document(read: Callable[..., Ecosystem], minimal: str) -> None:
    assert read("\ufeff" + minimal) == read(minimal)


def test_what_was_stored_before_names_had_to_print_is_still_read(read: Callable[..., Ecosystem], minimal: str) -> None:
    document = write_document(read(minimal))
    document["ecosystem"]["name"] = "a\x1bx"
    assert load_document(document).name == "a\x1bx"


def test_one_problem_is_told_once(complaints: Callable[..., list[str]]) -> None:
    for label in ('label = ""\n', "", "label = 3\n"):
        assert len([one for one in complaints(f"[ecosystem]\n{label}") if "ecosystem.label" in one]) == 1


def test_one_profile_is_the_default(read: Callable[..., Ecosystem], minimal: str) -> None:
    assert read(minimal).default_profile == "device"
    assert read(minimal + '[profile.other]\nissuer = "devices"\n').default_profile is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "ecosystem.label: is missing"),
        ("[ecosystem", "plant.toml: is not TOML"),
        ('format = 2\n[ecosystem]\nlabel = "x"\n', "format: 2 is out of range"),
        ('[ecosystem]\nlabel = "x"\n[issuers]\n', "issuers: is not a key that belongs here. Did you mean 'issuer'?"),
        ('[ecosystem]\nlabel = "x"\nsite = "y"\n', "ecosystem.site: is not a key that belongs here"),
        ('[ecosystem]\nlabel = "cacerts"\n', "'cacerts' is the name of an EST operation"),
        ('[ecosystem]\nlabel = "Plant"\n', "'Plant' is not a label"),
        ('[ecosystem]\nlabel = ""\n', "plant.toml: ecosystem.label: is empty. Use up to 63 small letters"),
        ('[ecosystem]\nlabel = "x"\n[profile.a]\nlabel = ""\n', "profile.a.label: '' is not a label"),
        ('[ecosystem]\nlabel = "x"\nname = "a\\u0000x"\n', "ecosystem.name: holds a NUL"),
        ('[ecosystem]\nlabel = "x"\nname = "a\\u001b[2Jx"\n', "ecosystem.name: 'a\\x1b[2Jx' holds a control"),
        ('[ecosystem]\nlabel = "x"\nname = "a\\u202ex"\n', "ecosystem.name: 'a\\u202ex' holds a control"),
        ('[ecosystem]\nlabel = "x"\n[profile.a]\nenroll = ["a\\u0000"]\n', "profile.a.enroll: holds a NUL"),
        (f"x = {'[' * 3000}{']' * 3000}", "plant.toml: has lists or tables nested too deeply to be read"),
        (f'[ecosystem]\nlabel = "{"x" * 64}"\n', "is not a label"),
        ('[ecosystem]\nlabel = "x"\nwrap = "maybe"\n', "ecosystem.wrap: 'maybe' is not known here"),
        ('[ecosystem]\nlabel = "x"\n[ecosystem.limits]\nin_flight = 0\n', "limits.in_flight: 0 is out of range"),
        ('[ecosystem]\nlabel = "x"\n[ecosystem.limits]\nrate = 1\n', "limits.rate: is not a key that belongs here"),
        ('[ecosystem]\nlabel = "x"\n', "profile: is missing. Add at least one [profile.NAME]"),
        ('[ecosystem]\nlabel = "x"\ndefault_profile = "y"\n', "default_profile: 'y' is not a profile"),
        ('[ecosystem]\nlabel = "x"\n[profile]\ny = 3\n', "profile.y: is a number and must be a table"),
    ],
)
def test_what_is_wrong_with_the_document(text: str, problem: str, complaints: Callable[..., list[str]]) -> None:
    assert any(problem in one for one in complaints(text)), complaints(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[profile.a]\nissuer = "devces"\n', "profile.a.issuer: 'devces' is not an issuer. Did you mean 'devices'?"),
        (
            '[profile.a]\nissuer = "devices"\nvalidity = "11y"\n',
            "profile.a.validity: is longer than that of its issuer",
        ),
        ('[profile.a]\nissuer = "devices"\nvalidity = "infinite"\n', "is longer than that of its issuer"),
        ('[profile.a]\nissuer = "devices"\nenroll = ["anchor:x"]\n', "'anchor:x' is no way to enroll here"),
        ('[profile.a]\nissuer = "devices"\nenroll = ["codes"]\n', "Did you mean 'code'?"),
        ('[profile.a]\nissuer = "devices"\nlabel = "plant"\n', "profile.a.label: 'plant' is taken"),
        ('[profile.a]\nissuer = "devices"\nlabel = "skg"\n', "'skg' is the name of an EST operation"),
        ('[profile."A b"]\nissuer = "devices"\n', "profile.A b: is not a name"),
        ('[profile.a]\nissuer = "devices"\nbase = "ldevid"\n', "requires serialNumber, which no code brings"),
        (
            '[profile.a]\nissuer = "devices"\nsan = "credential"\nsan_rule = { required = ["dns"] }\n',
            "asks for names that no code brings",
        ),
        ('[[anchor]]\nname = "m"\n', "anchor[m].certificates: is missing"),
        ('[[anchor]]\nname = "M"\ncertificates = ["x"]\n', "'M' is not a name"),
        ('[[anchor]]\nname = "m"\ncertificates = ["x"]\n', "'x' cannot be read (No such file or directory)"),
        ('[[anchor]]\nname = "m"\nallow = ["a"]\n', "allow: is not a key that belongs here"),
    ],
)
def test_what_does_not_fit_together(text: str, problem: str, head: str, complaints: Callable[..., list[str]]) -> None:
    assert any(problem in one for one in complaints(head + text)), complaints(head + text)


def test_one_anchor_cannot_be_two(complaints: Callable[..., list[str]], head: str, maker: dict[str, bytes]) -> None:
    anchors = "".join(f'[[anchor]]\nname = "{name}"\ncertificates = ["maker.pem"]\n' for name in ("a", "b"))
    found = complaints(head + anchors + '[profile.a]\nissuer = "devices"\n', maker)
    assert any("anchor[b].certificates: holds a certificate of another anchor" in one for one in found), found


def test_a_leaf_may_follow_its_issuers_end(read: Callable[..., Ecosystem], minimal: str) -> None:
    assert read(minimal + 'validity = "infinite"\nalign = "issuer"\n').profiles["device"].align == "issuer"


def test_everything_wrong_comes_at_once(complaints: Callable[..., list[str]]) -> None:
    text = (
        '[ecosystem]\nlabel = "cacerts"\n[[issuer]]\nname = "a"\nkey = "x"\n[profile.p]\nissuer = "b"\nkeys = ["y"]\n'
    )
    where = {one.split(": ")[1] for one in complaints(text)}
    assert {"ecosystem.label", "issuer[a].key", "profile.p.issuer", "profile.p.keys"} <= where


def test_labels_are_found_in_what_cannot_be_read(read: Callable[..., Ecosystem], minimal: str) -> None:
    document = write_document(read(minimal))
    document["profile"]["device"]["label"] = "gates"
    assert peek_labels(document) == {document["ecosystem"]["label"], "gates"}
    assert peek_labels({**document, "format": 99, "profile": {"a": {"label": 7}, "b": None}}) == {"plant"}
    for strange in ({}, {"ecosystem": None, "profile": ["label"]}, {"ecosystem": {"label": ["plant"]}}):
        assert peek_labels(strange) == set()


def test_issuers_and_names_are_read_where_the_rest_cannot_be(read: Callable[..., Ecosystem], minimal: str) -> None:
    rules = read(minimal)
    document = {**write_document(rules), "format": 99, "profile": {"a": 7, "b": {"what": 1}}, "what": None}
    assert load_issuers(document) == rules.issuers
    assert peek_profiles(document) == {"a", "b"}
    assert peek_profiles({"profile": [7]}) == set()
    for strange in ({}, {"issuer": 7}, {"issuer": [7]}, {"issuer": [{**document["issuer"][0], "what": 1}]}):
        with pytest.raises(Invalid, match="stored document: issuer"):
            load_issuers(strange)


def test_a_stored_document_that_was_tampered_with_is_refused(read: Callable[..., Ecosystem], minimal: str) -> None:
    document = write_document(read(minimal))
    document["profile"]["device"]["key_usage"] = ["keyCertSign"]
    with pytest.raises(Invalid, match="stored document: "):
        load_document(document)


_LEAVES = some.one_of(
    some.none(), some.booleans(), some.integers(-2, 300), some.text("ab:.-", max_size=4), some.just(1.5)
)
_VALUES = some.recursive(
    _LEAVES,
    lambda inner: some.one_of(
        some.lists(inner, max_size=3), some.dictionaries(some.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=some.data())
def test_no_document_is_a_fault(data: some.DataObject) -> None:
    document = tomllib.loads(FULL.replace('certificates = ["maker.pem"]', "certificates = []"))
    tables = [
        document,
        document["ecosystem"],
        document["issuer"][0],
        document["anchor"][0],
        document["profile"]["device"],
    ]
    for _ in range(data.draw(some.integers(1, 3))):
        table = data.draw(some.sampled_from(tables))
        table[data.draw(some.sampled_from(sorted(table)))] = data.draw(_VALUES)
    try:
        accepted = load_document(document)
    except Invalid:
        return
    # Some of what is drawn happens to make sense; then it is a document like any other.
    assert load_document(write_document(accepted)) == accepted


@settings(max_examples=50, deadline=None)
@given(text=some.text(max_size=60))
def test_no_text_is_a_fault(text: str) -> None:
    with pytest.raises(Invalid):
        read_document(text, "x", lambda name: b"")


@pytest.mark.parametrize(
    ("ways", "problem"),
    [
        ('["issued:authority"]', None),
        ('["issued:device"]', "are no certificates of registration authorities. Give that profile"),
        ('["issued:authorities"]', "is no source of registration authorities here. Did you mean 'issued:authority'?"),
        ('["anchor:nobody"]', "is no source of registration authorities here"),
        ('["code"]', "is no source of registration authorities here"),
    ],
)
def test_who_may_be_a_registration_authority(
    ways: str, problem: str | None, read: Callable[..., Ecosystem], complaints: Callable[..., list[str]], minimal: str
) -> None:
    authority = '[profile.authority]\nissuer = "devices"\nextended_key_usage = ["clientAuth", "cmcRA"]\n'
    text = minimal + f"registration_authorities = {ways}\n" + authority
    if problem is None:
        ecosystem = read(text)
        assert ecosystem.profiles["device"].registration_authorities == ("issued:authority",)
        assert ecosystem.profiles["authority"].registration_authorities == ()
        assert load_document(write_document(ecosystem)) == ecosystem
    else:
        assert any(problem in complaint for complaint in complaints(text))


def test_a_registration_authority_makes_none_of_its_kind(complaints: Callable[..., list[str]], minimal: str) -> None:
    more = 'extended_key_usage = ["clientAuth", "cmcRA"]\nregistration_authorities = ["issued:device"]\n'
    assert any("make others of its kind" in complaint for complaint in complaints(minimal + more))
