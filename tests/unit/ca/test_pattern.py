"""Regular expressions of operators, and what devices may send against them."""

from __future__ import annotations

import pytest

from estd.ca.pattern import Pattern


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dev-[0-9]{1,4}", "dev-1234"),
        ("^dev-[0-9]+$", "dev-1"),
        ("a|ab", "ab"),
        (r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){0,8}", "pump-7.plant.example"),
        (r"(?P<kind>[A-Z]{2})\d{6}", "AB123456"),
        ("(?i)pump-é", "PUMP-É"),
        (r"\pL+ \pL+", "Zoë Müller"),
        (".{1,64}", "é" * 64),
        ("", ""),
        ("a*", "a" * 1024),
    ],
)
def test_what_matches(text: str, value: str) -> None:
    assert Pattern(text).matches(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dev-[0-9]{1,4}", "dev-12345"),
        ("dev", "xdev"),
        ("dev", "dev\n"),
        ("^dev$", "dev\n"),
        ("a|ab", "abc"),
        (".", "\n"),
        (r"\d", "٣"),
        (r"\w", "é"),
        (".*", "\ud800"),
        ("a*", "a" * 1025),
    ],
)
def test_what_does_not(text: str, value: str) -> None:
    assert not Pattern(text).matches(value)


@pytest.mark.parametrize("text", ["^(a+)+$", "(a|aa)+", "(a*)*", "(.*a){40}", "(a?){40}a{40}"])
def test_a_pattern_with_many_ways_has_an_answer(text: str) -> None:
    # That it comes at all is what is asked; tried one after the other the ways take longer than the universe is old.
    assert not Pattern(text).matches("a" * 1000 + "-")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(", "missing"),
        (r"(a)\1", r"\\1"),
        ("(?=a)b", r"\(\?="),
        ("(?<!a)b", r"\(\?<"),
        ("a++", r"\+\+"),
        (r"a\Z", r"\\Z"),
        ("a{1001}", "repetition"),
        ("a{,3}", r"write \{0,3\}"),
        (r"\pL{1,64}", "too large"),
        ("((a{100}){100}){100}", "repetition|too large"),
        ("\ud800", "UTF-8"),
        ("a" * 501, "more than 500 characters"),
    ],
)
def test_what_cannot_be_matched_so_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Pattern(text)


def test_patterns_are_values() -> None:
    assert Pattern("a") == Pattern("a")
    assert Pattern("a") != Pattern("b")
    assert Pattern("a") != "a"
    assert len({Pattern("a"), Pattern("a")}) == 1
    assert repr(Pattern("a")) == "Pattern('a')"
    assert Pattern("a+").text == "a+"
