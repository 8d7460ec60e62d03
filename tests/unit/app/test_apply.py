"""Rules into force: whose labels are whose, and what two who apply at once come to."""

from __future__ import annotations

import asyncio

from applying import apply, find, find_problems, rules
from store_values import make_event

from estd.app.identity import LABEL
from estd.app.plan import Applied
from estd.store.postgres import PostgresStore


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
