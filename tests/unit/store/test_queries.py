"""Each statement has a name, a use and a meaning to the server."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest
from postgres_fixture import Database

import estd.store
from estd.errors import Broken
from estd.store.queries import STATEMENTS, Statement, read_statements, sql_of


def test_a_section_is_a_name_a_comment_and_a_statement() -> None:
    text = "-- The file.\n\n-- name: one\n-- Says\n-- one.\nSELECT\n    1;\n\n-- name: two_b\n-- Two.\nSELECT 2;\n"
    assert read_statements(text) == {
        "one": Statement("one", "Says one.", "SELECT\n    1"),
        "two_b": Statement("two_b", "Two.", "SELECT 2"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "-- name: one\nSELECT 1;\n",
        "-- name: one\n-- One.\nSELECT 1\n",
        "-- name: one\n-- One.\nSELECT 1; SELECT 2;\n",
        "-- name: one\n-- One.\n",
        "-- name: One\n-- One.\nSELECT 1;\n",
        "-- name:\n-- One.\nSELECT 1;\n",
        "-- name: one\n-- One.\nSELECT 1;\n-- name: one\n-- One.\nSELECT 1;\n",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Broken):
        read_statements(text)


def test_every_truncation_is_refused_or_shorter() -> None:
    text = "-- name: one\n-- One.\nSELECT 1;\n-- name: two\n-- Two.\nSELECT 2;"
    for length in range(len(text)):
        try:
            assert set(read_statements(text[:length])) < {"one", "two"}
        except Broken:
            continue


def test_every_statement_is_used() -> None:
    sources = "".join(path.read_text() for path in Path(estd.store.__path__[0]).glob("*.py"))
    assert set(re.findall(r'sql_of\("(\w+)"\)', sources)) == set(STATEMENTS)


async def test_the_server_understands_every_statement(database: Database) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        for name in STATEMENTS:
            await connection.prepare(sql_of(name))
    finally:
        await connection.close()
