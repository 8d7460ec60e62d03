"""Rules into force: what is refused, what is left as it was then, and under which key new issuers' keys are sealed."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

import pytest
from store_values import make_event, make_intent, make_issued

from estd.app.apply import Applied, apply_document, check_key, replace_own_issuer
from estd.app.identity import LABEL, ensure_ecosystem
from estd.ca.authority import read_authority
from estd.ca.ecosystem import Ecosystem, load_document, read_document
from estd.errors import Invalid
from estd.keys.software import unseal
from estd.store.contract import EcosystemRecord, IssuerRecord
from estd.store.postgres import PostgresStore

KEK = bytes(range(32))
OTHER = bytes(range(1, 33))
DOCUMENT = """
[ecosystem]
label = "{label}"
name = "{name}"
[[issuer]]
name = "root"
generation = {root}
[[issuer]]
name = "devices"
parent = "root"
generation = {devices}
[profile.pump]
label = "{profile_label}"
issuer = "devices"
enroll = ["code"]
"""


def rules(
    label: str = "plant", name: str = "Plant", root: int = 1, devices: int = 1, profile_label: str = ""
) -> Ecosystem:
    text = DOCUMENT.format(
        label=label, name=name, root=root, devices=devices, profile_label=profile_label or f"{label}-pumps"
    )
    return read_document(text, "test.toml", lambda path: path.encode())


@pytest.fixture
async def own(store: PostgresStore) -> PostgresStore:
    """A store that holds the server's own ecosystem, sealed under `KEK`."""
    await ensure_ecosystem(store, KEK)
    return store


async def apply(store: PostgresStore, rules: Ecosystem, kek: bytes = KEK, **options: Any) -> Applied:
    return await apply_document(store, kek, rules, "tester", **options)


async def find(store: PostgresStore) -> dict[str, EcosystemRecord]:
    return {record.label: record for record in await store.find_ecosystems()}


async def find_problems(store: PostgresStore, rules: Ecosystem, kek: bytes = KEK, **options: Any) -> list[str]:
    """Why it is refused; and nothing has changed then."""
    before = await find(store)
    with pytest.raises(Invalid) as caught:
        await apply(store, rules, kek, **options)
    assert await find(store) == before
    return [str(problem) for problem in caught.value.problems]


def opens(issuer: IssuerRecord, kek: bytes) -> bool:
    assert issuer.sealed_key is not None
    try:
        return bool(unseal(issuer.sealed_key, kek, read_authority(issuer.certificate).spki))
    except Invalid:
        return False


async def test_the_first_key_is_whatever_the_operator_has(store: PostgresStore) -> None:
    applied = await apply(store, rules(), OTHER)
    assert (applied.label, applied.version, applied.changed) == ("plant", 1, True)
    assert all(opens(issuer, OTHER) for issuer in (await find(store))["plant"].issuers)


@pytest.mark.parametrize("options", [{}, {"dry_run": True}])
async def test_another_key_encryption_key_than_the_servers_is_refused(
    own: PostgresStore, options: dict[str, bool]
) -> None:
    """A new ecosystem, a new version and a version that changes nothing alike: that key would not open what is there."""
    await apply(own, rules())
    for wanted in (rules("aaa"), rules(name="Harbour Plant"), rules()):
        (problem,) = await find_problems(own, wanted, OTHER, **options)
        assert problem.startswith("the key-encryption key: is not the one that the issuer keys in this database are")
        assert "Name that one in the settings ([keys])" in problem
        assert "estd apply --new-key" in problem
    assert (await apply(own, rules("aaa"), **options)).changed


async def test_the_servers_own_key_decides_where_there_are_two(own: PostgresStore) -> None:
    await apply(own, rules("aaa"), OTHER, new_key=True)
    await find_problems(own, rules("bbb"), OTHER)
    assert (await apply(own, rules("bbb"))).version == 1
    # And the one that went astray comes back with new keys.
    assert (await apply(own, rules("aaa", root=2, devices=2))).version == 2
    root, devices = (await find(own))["aaa"].issuers[-2:]
    assert opens(root, KEK)
    assert opens(devices, KEK)


async def test_a_database_of_which_nothing_opens_is_told_before_a_start(own: PostgresStore) -> None:
    await apply(own, rules("aaa"), OTHER, new_key=True)
    records = await own.find_ecosystems()
    check_key(KEK, records)
    check_key(OTHER, records)  # one is enough to serve it
    check_key(bytes(32), [])
    with pytest.raises(Invalid, match="is not the one"):
        check_key(bytes(32), records)
    # What former issuers have does not help.
    await replace_own_issuer(own, OTHER, "tester")
    with pytest.raises(Invalid, match="is not the one"):
        check_key(KEK, await own.find_ecosystems())


async def test_a_new_key_takes_the_place_of_one_that_is_lost(own: PostgresStore) -> None:
    await apply(own, rules())
    told = await find_problems(own, rules(), OTHER, new_key=True)
    assert [problem.split(":")[0] for problem in told] == ["issuer 'root'", "issuer 'devices'"]
    (problem,) = await find_problems(own, rules(root=2), OTHER, new_key=True)
    assert "issuer 'devices': would keep a key" in problem
    assert "Raise its generation" in problem
    await replace_own_issuer(own, OTHER, "tester")
    assert (await apply(own, rules(root=2, devices=2), OTHER, new_key=True)).version == 2
    found = await find(own)
    for label, number in (("plant", 2), (LABEL, 1)):
        assert all(opens(issuer, OTHER) for issuer in found[label].issuers[number:])
        assert not any(opens(issuer, OTHER) for issuer in found[label].issuers[:number])
    before, after = (read_authority(issuer.certificate).subject for issuer in found[LABEL].issuers)
    assert before != after
    # From now on it is the key, and the one before it is another.
    await replace_own_issuer(own, OTHER, "tester")
    assert (await find(own))[LABEL] == found[LABEL]
    assert (await apply(own, rules("aaa"), OTHER)).version == 1
    await find_problems(own, rules("bbb"))


async def test_the_labels_of_an_ecosystem_that_this_version_cannot_read_stay_its_own(own: PostgresStore) -> None:
    newer = {
        "format": 99,
        "ecosystem": {"label": "newer"},
        "profile": {"pump": {"label": "newer-pumps", "what": "nobody knows yet"}},
    }
    await own.record_ecosystem("newer", newer, [], 0, "a newer version", make_event())
    assert (await apply(own, rules())).version == 1
    (problem,) = await find_problems(own, rules("aaa", profile_label="newer-pumps"))
    assert "leads to the ecosystem 'newer'" in problem


def spoil(document: Mapping[str, Any], how: str) -> dict[str, Any]:
    """A document as another version of estd may have written it."""
    spoilt = copy.deepcopy(dict(document))
    match how:
        case "a pattern":  # which an earlier version took
            rule = {"type": "CN", "required": True, "pattern": "(?!root)[a-z0-9-]+", "string_type": "any"}
            spoilt["profile"]["pump"]["subject_attribute"] = [rule]
        case "the format":
            spoilt["format"] = 99
        case "another profile":
            spoilt["profile"]["valve"] = {"what": "nobody knows yet"}
        case "the issuers":
            spoilt["issuer"][0]["what"] = "nobody knows yet"
    return spoilt


async def store_spoilt(store: PostgresStore, how: str) -> EcosystemRecord:
    """An ecosystem in force in a version that cannot be read."""
    await apply(store, rules())
    good = (await find(store))["plant"]
    document = spoil(good.document, how)
    with pytest.raises(Invalid):
        load_document(document)
    return await store.record_ecosystem("plant", document, [], good.version, "another version", make_event())


@pytest.mark.parametrize("how", ["a pattern", "the format", "another profile"])
async def test_what_this_version_cannot_read_is_replaced_and_its_issuers_stay(own: PostgresStore, how: str) -> None:
    before = await store_spoilt(own, how)
    tried = await apply(own, rules(), dry_run=True)
    assert (await find(own))["plant"] == before
    applied = await apply(own, rules())
    assert (applied.version, applied.changed, applied.changes) == (3, True, tried.changes)
    assert applied.changes == [
        "the version in force cannot be read here, so all rules are shown as new",
        "issuer 'root' stays as it is",
        "issuer 'devices' stays as it is",
        "profile 'pump'",
    ]
    assert applied.warnings[0].startswith("version 2, in force so far, cannot be read here (stored document: ")
    after = (await find(own))["plant"]
    assert after.issuers == before.issuers
    assert load_document(after.document) == rules()
    assert await apply(own, rules()) == Applied("plant", 3, [], changed=False)


@pytest.mark.parametrize("how", ["a pattern", "the format"])
async def test_over_what_cannot_be_read_issuers_are_made_as_over_anything_else(own: PostgresStore, how: str) -> None:
    before = await store_spoilt(own, how)
    applied = await apply(own, rules(devices=2))
    assert "issuer 'root' stays as it is" in applied.changes
    assert any(line.startswith("issuer 'devices' gets a new certificate and key") for line in applied.changes)
    after = (await find(own))["plant"]
    assert after.issuers[:2] == before.issuers
    assert [issuer.name for issuer in after.issuers[2:]] == ["devices"]
    # With another key-encryption key none may stay, here as well.
    (problem,) = await find_problems(own, rules(devices=3), OTHER, new_key=True)
    assert "issuer 'root': would keep a key" in problem


async def test_issuers_of_which_it_cannot_be_told_whether_they_stay_are_left_alone(own: PostgresStore) -> None:
    await store_spoilt(own, "the issuers")
    for wanted in (rules(), rules(root=2, devices=2)):
        (problem,) = await find_problems(own, wanted)
        assert "the issuers in force cannot be read here" in problem
        assert "Apply it with the version of estd that wrote the rules in force" in problem


async def test_where_there_is_no_issuer_none_can_be_lost(own: PostgresStore) -> None:
    newer = {"format": 99, "ecosystem": {"label": "plant"}, "profile": {"old": {}}}
    record = await own.record_ecosystem("plant", newer, [], 0, "a newer version", make_event())
    intent = make_intent(ecosystem_id=record.ecosystem_id, profile="old")
    await own.reserve_intents([intent])
    await own.record_issued([make_issued(intent)])
    applied = await apply(own, rules())
    assert (applied.version, len((await find(own))["plant"].issuers)) == (2, 2)
    assert any("profile 'old' is gone, and 1 certificate of it is in use" in one for one in applied.warnings)


async def test_labels_of_others_are_refused(own: PostgresStore) -> None:
    await apply(own, rules())
    told = await find_problems(own, rules("plant-pumps", profile_label="plant"))
    assert [problem.split(":")[0] for problem in told] == ["ecosystem.label", "profile.pump.label"]
    await find_problems(own, rules(LABEL))
    await find_problems(own, rules("aaa"), internal=True)


async def test_two_who_apply_at_once_come_one_after_the_other(own: PostgresStore) -> None:
    applied = await asyncio.gather(apply(own, rules(name="North")), apply(own, rules(name="South")))
    assert sorted(one.version for one in applied) == [1, 2]
    assert len((await find(own))["plant"].issuers) == 2


async def test_what_is_in_force_already_is_no_change(own: PostgresStore) -> None:
    await apply(own, rules())
    assert await apply(own, rules()) == Applied("plant", 1, [], changed=False)
