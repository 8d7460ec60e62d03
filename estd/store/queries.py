"""The statements of ``queries.sql``, each by its name.

``queries.sql`` is the one place where SQL stands, migrations apart; this module reads it and knows nothing of a driver.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

from estd.errors import Broken


class Statement(NamedTuple):
    """One statement and what it is for."""

    name: str
    description: str
    sql: str


def read_statements(text: str) -> dict[str, Statement]:
    """The statements of a text in which ``-- name:`` starts each, a comment describes it, and a semicolon ends it."""
    statements: dict[str, Statement] = {}
    for section in re.split(r"^-- name:", text, flags=re.MULTILINE)[1:]:
        name, _, rest = section.partition("\n")
        name = name.strip()
        lines = rest.splitlines()
        described = 0
        while described < len(lines) and lines[described].startswith("--"):
            described += 1
        description = " ".join(line.removeprefix("--").strip() for line in lines[:described])
        sql = "\n".join(lines[described:]).strip()
        if not re.fullmatch(r"[a-z][a-z_]*", name) or name in statements:
            raise Broken(f"queries.sql: the name {name!r} is malformed or given twice")
        if not description or not sql.endswith(";") or sql.count(";") != 1:
            raise Broken(f"queries.sql: {name} needs a description and exactly one statement")
        statements[name] = Statement(name, description, sql.removesuffix(";"))
    return statements


STATEMENTS: Mapping[str, Statement] = MappingProxyType(
    read_statements(resources.files("estd.store").joinpath("queries.sql").read_text(encoding="utf-8"))
)


def sql_of(name: str) -> str:
    """The text of one statement."""
    return STATEMENTS[name].sql
