"""``docs/profiles.md`` lists exactly the keys that the reader knows, and its examples are accepted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from estd.asn1.spki import KEY_TYPES
from estd.ca.certificates import write_pem
from estd.ca.document import Table
from estd.ca.ecosystem import Ecosystem
from estd.ca.ecosystems import READY
from estd.ca.profile import CSRATTRS, KEY_ID_METHODS, RENEWALS, SAN_SOURCES, STRING_TYPES, SUBJECT_SOURCES
from estd.ca.vocabulary import EXTENDED_KEY_USAGES, KEY_USAGES, SAN_KINDS

PAGE = (Path(__file__).parents[3] / "docs" / "profiles.md").read_text(encoding="utf-8")

EVERYTHING = """
format = 1
[ecosystem]
label = "plant"
[[issuer]]
name = "root"
import = { certificate = "" }
[[issuer]]
name = "devices"
name_constraints = {}
[[anchor]]
name = "maker"
[profile.device]
subject_attribute = [{ type = "CN" }]
extension = [{ oid = "1.2.3" }]
"""

SECTIONS = {
    "": "At the top",
    "ecosystem": "`[ecosystem]`",
    "ecosystem.limits": "`[ecosystem.limits]`",
    "issuer": "`[[issuer]]`",
    "issuer.name_constraints": "`name_constraints`",
    "issuer.import": "`import`",
    "anchor": "`[[anchor]]`",
    "profile.device": "`[profile.NAME]`",
    "profile.device.subject_attribute": "`[[profile.NAME.subject_attribute]]`",
    "profile.device.san_rule": "`[profile.NAME.san_rule]`",
    "profile.device.extension": "`[[profile.NAME.extension]]`",
}


def read_sections() -> dict[str, list[str]]:
    """Heading → keys of its table."""
    sections: dict[str, list[str]] = {}
    heading = ""
    for line in PAGE.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif match := re.match(r"\| `([a-z_]+)` \|", line):
            sections.setdefault(heading, []).append(match[1])
    return sections


def test_the_page_lists_exactly_what_the_reader_knows(
    monkeypatch: pytest.MonkeyPatch, complaints: Callable[..., list[str]]
) -> None:
    asked: dict[str, set[str]] = defaultdict(set)
    original = Table._get

    def get(self: Table, key: str, *arguments: object, **options: object) -> object:
        asked[re.sub(r"\[[^]]*\]", "", self.path)].add(key)
        return original(self, key, *arguments, **options)  # type: ignore[arg-type]  # passed through as it came

    monkeypatch.setattr(Table, "_get", get)
    ignore = Table.ignore
    monkeypatch.setattr(
        Table,
        "ignore",
        lambda self, key: (asked[re.sub(r"\[[^]]*\]", "", self.path)].add(key), ignore(self, key))[1],
    )
    complaints(EVERYTHING)
    del asked["profile"]
    sections = read_sections()
    assert {path: sorted(keys) for path, keys in asked.items()} == {
        path: sorted(sections[heading]) for path, heading in SECTIONS.items()
    }


@pytest.mark.parametrize(
    "words",
    [
        *(KEY_TYPES, KEY_ID_METHODS, SUBJECT_SOURCES, SAN_SOURCES, RENEWALS, CSRATTRS, STRING_TYPES, SAN_KINDS, READY),
        *(EXTENDED_KEY_USAGES, [usage for usage in KEY_USAGES if usage != "keyCertSign"]),
    ],
)
def test_every_word_is_on_the_page(words: list[str]) -> None:
    for word in words:
        assert f"`{word}`" in PAGE


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_is_accepted(example: str, read: Callable[..., Ecosystem], hierarchy: Any) -> None:
    files = {"maker-ca.pem": write_pem(hierarchy.root.certificate).encode()}
    assert read(example, files).default_profile is not None
