"""Where labels lead, what a worker keeps of an ecosystem, and that no two ecosystems ever meet in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from factory import NOW, Party, make_maker, make_record, make_rules

from estd.errors import Code, Refused, Unavailable
from estd.ra.directory import INTERNAL_LABEL, Directory
from estd.store.contract import EcosystemRecord, Revocation


@pytest.fixture(scope="module")
def makers() -> dict[str, Party]:
    return {label: make_maker(f"Maker of {label}") for label in ("campus", "south")}


@pytest.fixture(scope="module")
def records(makers: dict[str, Party]) -> dict[str, EcosystemRecord]:
    return {
        label: make_record(make_rules(maker, label), number) for number, (label, maker) in enumerate(makers.items(), 1)
    }


@pytest.fixture
def directory(records: dict[str, EcosystemRecord]) -> Directory:
    return Directory(records.values(), [], "campus")


def refusal(directory: Directory, label: str | None) -> Refused:
    with pytest.raises(Refused) as caught:
        directory.find_place(label)
    assert caught.value.code is Code.LABEL_UNKNOWN
    return caught.value


def test_a_label_leads_to_its_ecosystem_and_profile(directory: Directory) -> None:
    found = {label: directory.find_place(label) for label in directory.labels}
    assert {label: (place.ecosystem.label, place.profile.name) for label, place in found.items()} == {
        "campus": ("campus", "device"),
        "campus-gateways": ("campus", "gateway"),
        "south": ("south", "device"),
        "south-gateways": ("south", "gateway"),
    }
    assert found["campus"].ecosystem is found["campus-gateways"].ecosystem
    assert found["campus"].ecosystem.ecosystem_id == 1


@pytest.mark.parametrize(
    "label", ["", "Campus", "CAMPUS", "campus ", " campus", "camp", "campus-", "device", "1", "None"]
)
def test_what_is_nearly_a_label_is_none(directory: Directory, label: str) -> None:
    refusal(directory, label)


def test_no_label_means_what_the_operator_says_or_nothing(records: dict[str, EcosystemRecord]) -> None:
    for default, leads in (("south", "south"), ("campus-gateways", "campus")):
        directory = Directory(records.values(), [], default)
        assert directory.find_place(None) is directory.find_place(default)
        assert directory.find_place(None).ecosystem.label == leads
    for default in (None, "", "nowhere", INTERNAL_LABEL, "Campus"):
        assert "LABEL" in refusal(Directory(records.values(), [], default), None).detail


def test_an_empty_server_leads_nowhere() -> None:
    directory = Directory([], [], "campus")
    assert directory.labels == ()
    assert directory.ecosystems == {}
    for label in (None, "campus", INTERNAL_LABEL):
        refusal(directory, label)


def test_nothing_leads_to_the_servers_own_ecosystem(makers: dict[str, Party]) -> None:
    """Neither its own label nor one of its profiles'; its issuers are known all the same."""
    own = make_record(make_rules(makers["campus"], INTERNAL_LABEL), 7)
    directory = Directory([own], [], INTERNAL_LABEL)
    assert directory.labels == ()
    for label in (None, INTERNAL_LABEL, f"{INTERNAL_LABEL}-gateways"):
        refusal(directory, label)
    assert set(directory.ecosystems) == {7}


def test_an_ecosystem_without_a_default_profile_is_reached_by_its_profiles_alone(makers: dict[str, Party]) -> None:
    rules = replace(make_rules(makers["campus"]), default_profile=None)
    directory = Directory([make_record(rules)], [], "campus")
    assert directory.labels == ("campus-gateways",)
    refusal(directory, "campus")
    refusal(directory, None)


def test_a_label_that_two_ecosystems_claim_leads_nowhere(
    makers: dict[str, Party], records: dict[str, EcosystemRecord], caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever came last would otherwise judge the other's devices."""
    rules = make_rules(makers["south"], "south")
    for stolen in ("campus-gateways", "campus"):
        gateway = replace(rules.profiles["gateway"], label=stolen)
        thief = make_record(replace(rules, profiles={**rules.profiles, "gateway": gateway}), 2)
        for order in ([records["campus"], thief], [thief, records["campus"]]):
            directory = Directory(order, [], "campus")
            refusal(directory, stolen)
            assert directory.find_place("south").ecosystem.label == "south"
            assert stolen in [record.__dict__.get("label") for record in caplog.records]
            caplog.clear()


def test_ecosystems_share_neither_anchors_nor_issuers(directory: Directory, makers: dict[str, Party]) -> None:
    north, south = (directory.find_place(label).ecosystem for label in ("campus", "south"))
    assert set(north.anchor_names) == {x509.load_der_x509_certificate(makers["campus"].der)}
    assert set(south.anchor_names) == {x509.load_der_x509_certificate(makers["south"].der)}
    assert north.anchor_names[x509.load_der_x509_certificate(makers["campus"].der)].name == "maker"
    assert not {issuer.record.issuer_id for issuer in north.issuers} & {
        issuer.record.issuer_id for issuer in south.issuers
    }
    assert not set(north.cacerts) & set(south.cacerts)
    assert north.policy is not None
    assert north.policy is not south.policy


def test_an_ecosystem_without_makers_has_no_policy(makers: dict[str, Party]) -> None:
    rules = make_rules(makers["campus"])
    device = replace(rules.profiles["device"], enroll=("code",))
    rules = replace(rules, anchors=(), profiles={**rules.profiles, "device": device})
    live = Directory([make_record(rules)], [], None).find_place("campus").ecosystem
    assert live.policy is None
    assert live.anchor_names == {}


def test_cacerts_begin_with_the_root_and_hold_no_retired_issuer(records: dict[str, EcosystemRecord]) -> None:
    record = records["campus"]
    root, devices = record.issuers
    live = Directory([record], [], None).find_place("campus").ecosystem
    assert live.cacerts == (root.certificate, devices.certificate)
    # A newer issuer of the same name takes the place of the older one, which is still known for its certificates.
    newer = replace(devices, issuer_id=devices.issuer_id + 50, certificate=records["south"].issuers[1].certificate)
    gone = replace(devices, issuer_id=devices.issuer_id + 60, name="no longer in the rules")
    live = Directory([replace(record, issuers=(root, devices, newer, gone))], [], None).find_place("campus").ecosystem
    assert live.cacerts == (root.certificate, newer.certificate)
    assert [issuer.record for issuer in live.issuers] == [root, devices, newer, gone]


def test_an_issuers_subject_is_as_its_certificates_name_it(records: dict[str, EcosystemRecord]) -> None:
    live = Directory([records["campus"]], [], None).find_place("campus").ecosystem
    root, devices = live.issuers
    assert devices.subject == devices.certificate.subject.public_bytes()
    assert devices.certificate.issuer.public_bytes() == root.subject
    assert devices.certificate == x509.load_der_x509_certificate(devices.record.certificate)


NEWER = {"format": 99, "ecosystem": {"label": "campus"}, "profile": {"gateway": {"label": "campus-gateways", "new": 1}}}


def damage(record: EcosystemRecord, how: str) -> EcosystemRecord:
    """The record's next version, which cannot be read."""
    if how == "certificate":
        return replace(record, version=2, issuers=(replace(record.issuers[0], certificate=b"0\x00"),))
    return replace(record, version=2, document=NEWER if how == "newer" else {"format": 1, "ecosystem": 7})


def errors(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, int | None]]:
    """Ecosystem, version and kept version of each line about one that cannot be read."""
    facts = [one.__dict__ for one in caplog.records if one.message == "an ecosystem cannot be read"]
    assert all(one["remedy"] and one["detail"] for one in facts)
    return [(one["ecosystem"], one["version"], one["kept_version"]) for one in facts]


@pytest.mark.parametrize("how", ["newer", "certificate", "garbage"])
def test_an_ecosystem_that_cannot_be_read_stays_as_it_was_and_nobody_else_does(
    records: dict[str, EcosystemRecord], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    before = Directory(records.values(), [], "campus")
    bad, south = damage(records["campus"], how), replace(records["south"], version=2)
    revocation = Revocation(100, b"\x01", "keyCompromise", NOW)
    after = Directory([bad, south], [revocation], "campus", before=before)
    assert after.find_place("campus") == before.find_place("campus")
    assert after.find_place(None).ecosystem.version == 1
    assert after.find_place("south").ecosystem.version == 2
    assert after.revoked == {(100, b"\x01")}
    assert errors(caplog) == [("campus", 2, 1)]
    # Said once for each version; and it comes back when it can be read.
    again = Directory([bad, south], [revocation], "campus", before=after)
    again = Directory([replace(bad, version=3), south], [revocation], "campus", before=again)
    assert errors(caplog) == [("campus", 2, 1), ("campus", 3, 1)]
    mended = Directory([replace(records["campus"], version=4), south], [revocation], "campus", before=again)
    assert mended.find_place("campus").ecosystem.version == 4
    assert mended.unread == {}


def test_an_ecosystem_of_which_nothing_was_ever_read_is_told_to_come_back(
    records: dict[str, EcosystemRecord], caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that has just started: a label that exists is not denied for good."""
    directory = Directory([damage(records["campus"], "newer"), records["south"]], [], "campus")
    for label in ("campus", "campus-gateways", None):
        with pytest.raises(Unavailable) as caught:
            directory.find_place(label)
        assert caught.value.code is Code.STORE_UNAVAILABLE
        assert caught.value.retry_after_seconds > 0
    assert directory.labels == ("south", "south-gateways")
    assert errors(caplog) == [("campus", 2, None)]
    refusal(directory, "campus-")


def test_a_label_of_one_that_cannot_be_read_does_not_lead_to_another(
    makers: dict[str, Party], records: dict[str, EcosystemRecord]
) -> None:
    rules = make_rules(makers["south"], "south")
    gateway = replace(rules.profiles["gateway"], label="campus-gateways")
    thief = make_record(replace(rules, profiles={**rules.profiles, "gateway": gateway}), 2)
    directory = Directory([damage(records["campus"], "newer"), thief], [], None)
    with pytest.raises(Unavailable):
        directory.find_place("campus-gateways")
    assert directory.find_place("south").ecosystem.label == "south"


def test_the_servers_own_ecosystem_leads_nowhere_even_if_it_cannot_be_read(makers: dict[str, Party]) -> None:
    own = make_record(make_rules(makers["campus"], INTERNAL_LABEL), 7)
    directory = Directory([replace(own, document={})], [], INTERNAL_LABEL)
    for label in (None, INTERNAL_LABEL):
        refusal(directory, label)
    assert directory.unread == {7: 1}


def test_revocations_are_by_issuer_and_serial(records: dict[str, EcosystemRecord]) -> None:
    directory = Directory(records.values(), [Revocation(100, b"\x01", "keyCompromise", NOW)], None)
    assert (100, b"\x01") in directory.revoked
    assert (200, b"\x01") not in directory.revoked
    assert (100, b"\x01\x00") not in directory.revoked


def test_a_compromised_key_is_known_in_its_own_ecosystem_alone(records: dict[str, EcosystemRecord]) -> None:
    compromised = [(1, b"a" * 32), (1, b"b" * 32), (2, b"c" * 32), (99, b"d" * 32)]
    directory = Directory(records.values(), [], None, compromised)
    campus, south = (directory.find_place(label).ecosystem for label in ("campus", "south"))
    for key in (b"a" * 32, b"b" * 32):
        with pytest.raises(Refused) as caught:
            campus.check_key(key)
        assert caught.value.code is Code.KEY_REVOKED
        south.check_key(key)
    campus.check_key(b"c" * 32)
    with pytest.raises(Refused):
        south.check_key(b"c" * 32)
