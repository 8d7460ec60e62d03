"""The vocabulary of refusals; the answer that each code has is in unit/est/test_messages.py."""

from __future__ import annotations

import re

import pytest

from estd.errors import Broken, Code, Invalid, Problem, Refused, Unavailable


def test_a_code_stands_for_one_reason_and_looks_like_one_word() -> None:
    # Without a check an enum would take a second name for one value as an alias, and leave it out of every table.
    assert set(Code.__members__) == {code.name for code in Code}
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code.value) for code in Code)
    for code in Code:
        assert Code(code.value) is code


def test_a_refusal_says_its_code_and_its_sentence() -> None:
    refused = Refused(Code.KEY_WEAK, "the modulus has 1024 bits", "RFC 7030 §4.2.1")
    assert str(refused) == "key-weak: the modulus has 1024 bits"
    assert (refused.code, refused.detail, refused.clause) == (
        Code.KEY_WEAK,
        "the modulus has 1024 bits",
        "RFC 7030 §4.2.1",
    )
    assert Refused(Code.KEY_WEAK, "x").clause is None


def test_what_is_away_says_when_to_come_back() -> None:
    away = Unavailable(Code.STORE_UNAVAILABLE, "the database does not answer")
    assert str(away) == "store-unavailable: the database does not answer"
    assert away.retry_after_seconds == 5
    assert Unavailable(Code.RATE_LIMITED, "x", 77).retry_after_seconds == 77


@pytest.mark.parametrize("caught", [Refused, Unavailable, Broken, Invalid])
def test_none_of_the_four_is_caught_as_another(caught: type[Exception]) -> None:
    """A retry is right for one of them alone, and a traceback for another."""
    raised: list[Exception] = [
        Refused(Code.LINT, "x"),
        Unavailable(Code.OVERLOADED, "x"),
        Broken("x"),
        Invalid([Problem("here", "is wrong", "Mend it.")]),
    ]
    assert [type(one) for one in raised if isinstance(one, caught)] == [caught]
    # Nor does what catches the failures of sockets, files and numbers swallow them.
    assert not issubclass(caught, OSError | ValueError | RuntimeError | LookupError | AssertionError)


def test_a_problem_is_where_what_and_what_to_do() -> None:
    problem = Problem("estd.toml: listen.port", "is taken", "Choose another one.")
    assert str(problem) == "estd.toml: listen.port: is taken. Choose another one."
    assert problem == Problem("estd.toml: listen.port", "is taken", "Choose another one.")
    assert len({problem, Problem("estd.toml: listen.port", "is taken", "Choose another one.")}) == 1
    for other in (
        Problem("estd.toml: ops.port", "is taken", "Choose another one."),
        Problem("estd.toml: listen.port", "is none", "Choose another one."),
        Problem("estd.toml: listen.port", "is taken", "Stop the other one."),
        str(problem),
    ):
        assert problem != other


def test_a_file_is_refused_with_all_its_problems() -> None:
    problems = [Problem("a", "is wrong", "Mend it."), Problem("b", "is missing", "Write it.")]
    invalid = Invalid(problems)
    assert invalid.problems == problems
    assert str(invalid) == "a: is wrong. Mend it.\nb: is missing. Write it."
