"""Tables of a document: values of the right type, or a problem that says where, what and what to do."""

from __future__ import annotations

from datetime import timedelta

import pytest

from estd.ca.document import Problems, Table, read_duration, suggest, write_duration
from estd.errors import Invalid


def table(**content: object) -> Table:
    return Table(content, "profile.x", Problems("plant.toml"))


def found(inner: Table) -> list[str]:
    return [str(problem) for problem in inner.problems.found]


def test_values_come_out_as_they_are() -> None:
    inner = table(
        text="a", flag=True, number=3, texts=["a", "b"], length="1d12h", table={"x": "y"}, tables=[{"n": "q"}]
    )
    assert inner.text("text") == "a"
    assert inner.optional_text("text") == "a"
    assert inner.flag("flag", False) is True
    assert inner.number("number", 1, 0, 9) == 3
    assert inner.texts("texts") == ("a", "b")
    assert inner.duration("length", "1h") == timedelta(hours=36)
    assert inner.table("table").text("x") == "y"
    assert [one.path for one in inner.tables("tables", "n")] == ["profile.x.tables[q]"]
    inner.finish()
    inner.problems.check()


def test_absent_values_are_the_defaults() -> None:
    inner = table()
    assert inner.text("text", "d") == "d"
    assert inner.optional_text("text") is None
    assert inner.flag("flag", True) is True
    assert inner.number("number", 1, 0, 9) == 1
    assert inner.optional_number("number", 0, 9) is None
    assert inner.texts("texts", ("d",)) == ("d",)
    assert inner.duration("length", "1h") == timedelta(hours=1)
    assert inner.pattern("pattern") is None
    assert inner.table("table").content == {}
    assert inner.tables("tables") == []
    assert not inner.problems.found


@pytest.mark.parametrize(
    ("content", "ask", "problem"),
    [
        ({}, lambda one: one.text("key"), "plant.toml: profile.x.key: is missing"),
        ({"key": 3}, lambda one: one.text("key"), "is a number and must be a string"),
        ({"key": "reky"}, lambda one: one.text("key", "rekey", ("rekey", "never")), "Did you mean 'rekey'?"),
        ({"key": "zz"}, lambda one: one.text("key", "rekey", ("rekey", "never")), "Known here: rekey, never."),
        ({"key": "yes"}, lambda one: one.flag("key", False), "is a string and must be true or false"),
        ({"key": True}, lambda one: one.number("key", 1, 0, 9), "is true or false and must be a whole number"),
        ({"key": 10}, lambda one: one.number("key", 1, 0, 9), "10 is out of range. Use a whole number from 0 to 9."),
        ({"key": "a"}, lambda one: one.texts("key"), "is a string and must be a list of strings"),
        ({"key": ["a", 1]}, lambda one: one.texts("key"), "holds 1, which is not a string"),
        ({"key": ["a", "a"]}, lambda one: one.texts("key"), "names 'a' twice"),
        ({"key": ["b"]}, lambda one: one.texts("key", (), ("bb", "c")), "'b' is not known here"),
        ({"key": "90m"}, lambda one: one.duration("key", "1h"), "'90m' is not a length of time"),
        ({"key": "("}, lambda one: one.pattern("key"), "is not a regular expression"),
        ({"key": r"(a)\1"}, lambda one: one.pattern("key"), "there are no backreferences, no look-around"),
        ({"key": "a" * 501}, lambda one: one.pattern("key"), "is too long for a pattern"),
        ({"key": 1}, lambda one: one.table("key"), "must be a table, written as [profile.x.key]"),
        ({"key": {}}, lambda one: one.tables("key"), "must be a list of tables, each written as [[profile.x.key]]"),
        ({"key": ["a"]}, lambda one: one.tables("key"), "holds something that is not a table"),
        ({"Key": 1}, lambda one: (one.flag("key", False), one.finish()), "Did you mean 'key'?"),
    ],
)
def test_what_is_wrong_is_said(content, ask, problem: str) -> None:
    inner = table(**content)
    ask(inner)
    assert len(found(inner)) == 1
    assert problem in found(inner)[0]
    with pytest.raises(Invalid):
        inner.problems.check()


def test_every_problem_is_kept_and_none_twice() -> None:
    problems = Problems("plant.toml")
    problems.add("a", "is wrong", "Mend it.")
    problems.add("a", "is wrong", "Mend it.")
    problems.add("", "is odd", "Look.")
    assert [str(problem) for problem in problems.found] == [
        "plant.toml: a: is wrong. Mend it.",
        "plant.toml: is odd. Look.",
    ]


def test_keys_of_the_operators_choosing_are_taken() -> None:
    inner = table(one={"x": 1}, two={})
    assert [(name, one.path) for name, one in inner.take_tables()] == [
        ("one", "profile.x.one"),
        ("two", "profile.x.two"),
    ]
    inner.finish()
    assert not inner.problems.found


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("90s", 90), ("5min", 300), ("1h", 3600), ("2d", 172_800), ("1w", 604_800), ("1y", 31_536_000)],
)
def test_a_length_of_time_survives_being_written(text: str, seconds: int) -> None:
    length = read_duration(text)
    assert length == timedelta(seconds=seconds)
    assert read_duration(write_duration(length)) == length


@pytest.mark.parametrize("text", ["", "90", "d", "1 d", "-1d", "1.5d", "1m", "1D", "999999999y", "1d\n"])
def test_what_is_no_length_of_time(text: str) -> None:
    assert read_duration(text) is None


def test_suggestions_ignore_case_and_do_not_flood() -> None:
    assert suggest("SERVERAUTH", ["serverAuth", "clientAuth"]) == "Did you mean 'serverAuth'?"
    assert suggest("x", []) == "Remove it."
    assert suggest("zzzz", [f"name-{index}" for index in range(30)]).endswith("and others; see docs/profiles.md.")
