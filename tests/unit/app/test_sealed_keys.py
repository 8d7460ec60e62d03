"""Under which key-encryption key issuers' keys are sealed, and how another takes its place."""

from __future__ import annotations

import pytest
from applying import KEK, OTHER, apply, find, find_problems, opens, rules

from estd.app.apply import replace_own_issuer
from estd.app.identity import LABEL
from estd.app.sealed_keys import check_key
from estd.ca.authority import read_authority
from estd.errors import Invalid
from estd.store.postgres import PostgresStore


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
