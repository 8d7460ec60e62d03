"""Several documents at once: all of them or none, with everything that is wrong with any of them told at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from store_values import make_intent, make_issued

from estd.app.apply import apply_documents
from estd.app.identity import LABEL
from estd.app.plan import Applied
from estd.app.submitted import Submitted, read_submitted
from estd.errors import Invalid
from estd.store.contract import EcosystemRecord
from estd.store.postgres import PostgresStore

KEK = bytes(range(32))
DOCUMENT = """
[ecosystem]
label = "{label}"
[[issuer]]
name = "root"
{issuer}
[profile.pump]
issuer = "root"
enroll = ["code"]
{profile}
"""


class Desk:
    """A directory of documents and a store that they are applied to."""

    def __init__(self, directory: Path, store: PostgresStore) -> None:
        self.directory = directory
        self.store = store

    def write(self, label: str, profile: str = "", issuer: str = "", file: str = "") -> Path:
        path = self.directory / (file or f"{label}.toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(DOCUMENT.format(label=label, profile=profile, issuer=issuer))
        return path

    def read(self, *paths: Path) -> list[Submitted]:
        return read_submitted(paths)

    async def apply(self, *paths: Path, **options: Any) -> list[Applied]:
        return await apply_documents(self.store, KEK, self.read(*paths), "tester", **options)

    async def find(self) -> dict[str, EcosystemRecord]:
        return {record.label: record for record in await self.store.find_ecosystems()}

    async def problems(self, *paths: Path) -> list[str]:
        """Why these are refused, in a dry run as well; nothing has changed then."""
        before, told = await self.find(), []
        for dry_run in (True, False):
            with pytest.raises(Invalid) as caught:
                await self.apply(*paths, dry_run=dry_run)
            told.append([str(problem) for problem in caught.value.problems])
        assert told[0] == told[1]
        assert await self.find() == before
        return told[0]


@pytest.fixture
def desk(store: PostgresStore, tmp_path: Path) -> Desk:
    return Desk(tmp_path, store)


async def test_all_are_applied_together(desk: Desk) -> None:
    paths = desk.write("north"), desk.write("south")
    assert [(one.label, one.version) for one in await desk.apply(*paths, dry_run=True)] == [("north", 1), ("south", 1)]
    assert await desk.find() == {}
    await desk.apply(*paths)
    desk.write("north", 'validity = "30d"')
    applied = await desk.apply(*paths)
    assert [(one.label, one.version, one.changed) for one in applied] == [("north", 2, True), ("south", 1, False)]
    assert {label: record.version for label, record in (await desk.find()).items()} == {"north": 2, "south": 1}
    assert len(await desk.store.find_events(None, 10)) == 3


async def test_a_label_of_another_file_is_taken(desk: Desk) -> None:
    told = await desk.problems(desk.write("xa", 'label = "xb"'), desk.write("xb"))
    assert told == [
        "xa.toml: profile.pump.label: 'xb' leads to the ecosystem 'xb' of xb.toml. Choose another label.",
        "xb.toml: ecosystem.label: 'xb' leads to the ecosystem 'xa' of xa.toml. Choose another label.",
    ]


async def test_one_that_cannot_be_made_keeps_the_others_away(desk: Desk) -> None:
    (told,) = await desk.problems(desk.write("z20"), desk.write("z13", issuer='validity = "until 2026-01-01"'))
    assert told.startswith("z13.toml: issuer[root].validity: ends on 2026-01-01 00:00 UTC, which has passed. Write an")


async def test_all_that_is_wrong_with_any_file_is_told_at_once(desk: Desk) -> None:
    await desk.apply(desk.write("plant", 'label = "plant-pumps"'))
    told = await desk.problems(
        desk.write("one", 'label = "plant-pumps"'),
        desk.write("two", 'label = "plant"\nvalidty = "1d"'),
        desk.write("three", f'label = "{LABEL}"'),
        desk.write(LABEL, file="own.toml"),
        desk.write("four", 'validity = "until 2020-01-01"'),
        desk.write("five", issuer="= no TOML"),
        desk.directory / "six.toml",
    )
    assert sorted(problem.partition(". ")[0] for problem in told) == sorted(
        [
            "one.toml: profile.pump.label: 'plant-pumps' leads to the ecosystem 'plant'",
            "two.toml: profile.pump.validty: is not a key that belongs here",
            "two.toml: profile.pump.label: 'plant' leads to the ecosystem 'plant'",
            f"three.toml: profile.pump.label: {LABEL!r} belongs to the server itself",
            f"own.toml: ecosystem.label: {LABEL!r} belongs to the server itself",
            "four.toml: profile.pump.validity: allows no certificate: the end that the profile sets, "
            "2020-01-01 00:00 UTC, has passed",
            "five.toml: is not TOML: Invalid statement (at line 6, column 1)",
            f"{desk.directory / 'six.toml'}: cannot be read (No such file or directory)",
        ]
    )


async def test_an_ecosystem_is_in_one_of_the_files(desk: Desk) -> None:
    paths = (
        desk.write("plant", 'label = "pumps"', file="a/p.toml"),
        desk.write("plant", 'label = "pumps"', file="b/p.toml"),
    )
    told = await desk.problems(*paths)
    assert told == [
        f"{one}: ecosystem.label: 'plant' is the ecosystem of {other} too. Apply one of them."
        for one, other in (paths, paths[::-1])
    ]
    assert len(await desk.problems(paths[0], paths[0])) == 1


async def test_labels_may_change_hands_in_one_go(desk: Desk) -> None:
    north, south = desk.write("north", 'label = "pumps"'), desk.write("south")
    await desk.apply(north, south)
    desk.write("north")
    desk.write("south", 'label = "pumps"')
    (told,) = await desk.problems(south)
    assert "leads to the ecosystem 'north'" in told
    assert [one.version for one in await desk.apply(north, south)] == [2, 2]


async def test_two_who_claim_one_label_at_once_do_not_both_get_it(desk: Desk) -> None:
    async def apply(path: Path) -> str:
        try:
            await desk.apply(path)
        except Invalid as invalid:
            return str(invalid)
        return ""

    for number in range(3):
        label = f"sb{number}"
        paths = desk.write(f"plant-{number}", f'label = "{label}"'), desk.write(label)
        told = [one for one in await asyncio.gather(*map(apply, paths)) if one]
        assert len(told) == 1
        assert f"{label!r} leads to the ecosystem" in told[0]
    assert len(await desk.find()) == 3


async def test_a_profile_that_goes_with_certificates_in_use_is_told_of(desk: Desk) -> None:
    path = desk.write("plant")
    await desk.apply(path)
    record = (await desk.find())["plant"]
    for _ in range(3):
        intent = make_intent(issuer_id=record.issuers[0].issuer_id, ecosystem_id=record.ecosystem_id, profile="pump")
        await desk.store.reserve_intents([intent])
        await desk.store.record_issued([make_issued(intent)])
    path.write_text(path.read_text().replace("[profile.pump]", "[profile.device]"))
    for dry_run in (True, False):
        (applied,) = await desk.apply(path, dry_run=dry_run)
        assert applied.warnings == (
            "profile 'pump' is gone, and 3 certificates of it are in use: renewing is refused from now on (not-authorized). "
            "Keep the profile until they have ended, or enroll those devices anew.",
        )
    # A profile nobody has a certificate of goes in silence, and so does what went before.
    path.write_text(path.read_text().replace("[profile.device]", "[profile.valve]"))
    assert [one.warnings for one in await desk.apply(path) + await desk.apply(path)] == [(), ()]


async def test_what_was_right_once_is_told_of_and_stays(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = datetime.now(UTC) + timedelta(days=400)
    path = desk.write("plant", f'validity = "until {ends:%Y-%m-%d}"')
    await desk.apply(path)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return ends + timedelta(days=1)

    monkeypatch.setattr("estd.app.apply.datetime", Later)
    (applied,) = await desk.apply(path)
    assert (applied.version, applied.changed) == (1, False)
    (warning,) = applied.warnings
    assert warning.startswith("plant.toml: profile.pump.validity: allows no certificate: the end that the profile sets")
    # With any other change it has to be mended.
    desk.write("plant", f'validity = "until {ends:%Y-%m-%d}"\nkeys = ["ec-p384"]')
    assert await desk.problems(path) == [warning]


async def test_a_parent_that_has_expired_signs_no_issuer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk.write("plant", 'validity = "1d"', issuer='validity = "30d"')
    await desk.apply(path)
    below = '[[issuer]]\nname = "sub"\nparent = "root"\nvalidity = "1d"'
    path.write_text(path.read_text().replace("[profile.pump]\n", f"{below}\n[profile.pump]\n"))

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) + timedelta(days=60)

    monkeypatch.setattr("estd.app.apply.datetime", Later)
    told = [problem.partition(" on ")[0] for problem in await desk.problems(path)]
    assert told == [
        "plant.toml: issuer[sub].parent: 'root' cannot sign it: the issuer expired",
        "plant.toml: issuer[root]: expired",
    ]
