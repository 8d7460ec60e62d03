"""Rules of one ecosystem that this version cannot read: commands say so, and tell of all the others."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from factory import make_maker, make_record, make_rules
from postgres_fixture import Database
from store_values import make_event

from estd.app.apply import apply_document
from estd.ca.ecosystem import read_document
from estd.cli.ecosystem import ecosystem
from estd.cli.issuer import issuer
from estd.cli.profile import profile
from estd.cli.rules import get_rules, read_rules
from estd.errors import Invalid
from estd.store.postgres import PostgresStore

DOCUMENT = """
[ecosystem]
label = "{label}"
[[issuer]]
name = "root"
[profile.pump]
issuer = "root"
enroll = ["code"]
"""


def spoil(document: Mapping[str, Any], *, issuers: bool = False) -> dict[str, Any]:
    spoilt = copy.deepcopy(dict(document))
    rule = {"type": "CN", "required": True, "pattern": "(?!root)[a-z0-9-]+", "string_type": "any"}
    spoilt["profile"]["pump"]["subject_attribute"] = [rule]
    if issuers:
        spoilt["issuer"][0]["what"] = "nobody knows yet"
    return spoilt


async def fill(url: str) -> None:
    """Four ecosystems; b has an old pattern, c issuers of a newer version, d nothing that is known here."""
    store = await PostgresStore.connect(url)
    try:
        for label in "abc":
            rules = read_document(DOCUMENT.format(label=label), "test.toml", lambda path: path.encode())
            await apply_document(store, bytes(32), rules, "tester")
        for record in await store.find_ecosystems():
            if record.label != "a":
                document = spoil(record.document, issuers=record.label == "c")
                await store.record_ecosystem(record.label, document, [], 1, "another version", make_event())
        await store.record_ecosystem("d", {"format": 99}, [], 0, "a newer version", make_event())
    finally:
        await store.close()


class Site:
    """The settings of a server whose database is filled."""

    def __init__(self, database: Database, directory: Path) -> None:
        asyncio.run(fill(database.url))
        self._settings = directory / "estd.toml"
        text = f'data_directory = "{directory}/data"\n[database]\nurl = "{database.url}"\n'
        self._settings.write_text(text, encoding="utf-8")

    def run(self, command: click.Command, *arguments: str) -> Result:
        return CliRunner().invoke(command, [*arguments, "--config", str(self._settings)], standalone_mode=False)

    def list(self, command: click.Command, *arguments: str) -> list[dict[str, Any]]:
        """The rows, which are there whatever cannot be read; of that a note tells."""
        done = self.run(command, "list", "--json", *arguments)
        assert done.exit_code == 0, done.output
        for label in "bcd":
            assert f"note: the rules of ecosystem '{label}' cannot be read: " in done.stderr
        assert "ecosystem 'a'" not in done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def refusal(self, command: click.Command, *arguments: str) -> str:
        done = self.run(command, *arguments)
        assert isinstance(done.exception, Invalid)
        return str(done.exception)


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Site:
    return Site(database, tmp_path)


def test_what_can_be_read_is_in_force() -> None:
    rules = make_rules(make_maker())
    found = read_rules(make_record(rules))
    assert (found.rules, found.state, found.told, found.why) == (rules, "in force", "in force", "")
    assert get_rules(make_record(rules)) == rules


def test_what_cannot_be_read_says_why() -> None:
    record = replace(make_record(make_rules(make_maker())), document={"format": 99})
    found = read_rules(record)
    assert (found.rules, found.state) == (None, "cannot be read")
    assert found.told == "cannot be read: format 99 is out of range"
    with pytest.raises(Invalid, match="format 99 is out of range") as caught:
        get_rules(record)
    (problem,) = caught.value.problems
    assert problem.where == f"ecosystem {record.label!r}"
    assert "apply it again" in problem.remedy


def test_the_other_ecosystems_are_listed(site: Site) -> None:
    rows = site.list(ecosystem)
    assert [(row["label"], row["version"], row["state"]) for row in rows] == [
        ("a", 1, "in force"),
        ("b", 2, "cannot be read"),
        ("c", 2, "cannot be read"),
        ("d", 1, "cannot be read"),
    ]
    assert [row["profiles"] for row in rows] == [["pump"], ["pump"], ["pump"], []]
    assert rows[0]["why"] is None
    assert "profile.pump.subject_attribute[CN].pattern" in rows[1]["why"]
    assert "regular" in rows[1]["why"]
    table = site.run(ecosystem, "list").stdout
    assert "cannot be read: format 99 is out of range" in table
    for options in ([], ["--json"]):
        assert "cannot read: version 2, profile.pump" in site.refusal(ecosystem, "show", "b", *options)


def test_the_other_profiles_are_listed(site: Site) -> None:
    rows = [(row["ecosystem"], row["profile"], row["state"]) for row in site.list(profile)]
    assert rows == [
        ("a", "pump", "in force"),
        ("b", "pump", "cannot be read"),
        ("c", "pump", "cannot be read"),
        ("d", None, "cannot be read"),
    ]
    assert "(unknown)" in site.run(profile, "list").stdout
    assert "cannot read" in site.refusal(profile, "show", "pump", "--ecosystem", "b")


def test_issuers_are_listed_by_their_certificates(site: Site) -> None:
    rows = [(row["ecosystem"], row["name"], row["rules"]["state"]) for row in site.list(issuer)]
    assert rows == [("a", "root", "in force"), ("b", "root", "cannot be read"), ("c", "root", "cannot be read")]
    assert "rules cannot be read: profile.pump" in site.run(issuer, "list", "--ecosystem", "b").stdout
    # Which are in force is known of b; of c it is not, and nobody is handed a CA to trust by mistake.
    assert "BEGIN CERTIFICATE" in site.run(issuer, "export", "--ecosystem", "b").stdout
    assert "cannot read" in site.refusal(issuer, "export", "--ecosystem", "c")
    assert "BEGIN CERTIFICATE" in site.run(issuer, "export", "--ecosystem", "c", "--name", "root").stdout
