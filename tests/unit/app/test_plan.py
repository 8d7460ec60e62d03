"""Rules over rules that this version cannot read: what stays, what is made anew and what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from applying import OTHER, apply, find, find_problems, rules
from store_values import make_event, make_intent, make_issued

from estd.app.plan import Applied
from estd.ca.ecosystem import load_document
from estd.errors import Invalid
from estd.store.contract import EcosystemRecord
from estd.store.postgres import PostgresStore


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
