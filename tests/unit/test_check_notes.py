"""tests/check_notes.py: what it finds in trees that are out of step, and that it finds nothing in one that is not."""

from __future__ import annotations

from pathlib import Path

import check_notes
import pytest

NOTE = """# RFC 7030: EST

| clause | duty | where | test |
| --- | --- | --- | --- |
| §4.2 | MUST: authenticate | `estd.ra.admission.Admission.admit` | `unit/ra/test_admission.py::test_a_stranger[x-1]` |
| §4.2.2 | MUST: the same names | `estd.ra.naming.TABLE` | not yet: renewal |
| §3.2.1 | MUST (client): look again | none | client's duty |
| §6 | a hint | none | none |
"""
OTHERS = """# Others

| clause | what we take from it |
| --- | --- |
| RFC 9110 §8.4 | no Content-Encoding |
| RFC 5280 appendix A.1, RFC 6125 | bounds and names |
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which everything fits."""
    for path, text in {
        "estd/__init__.py": '"""estd."""\n\n__version__ = "1"\n__all__ = ["ra"]\n',
        "estd/__main__.py": "import estd\n",
        "estd/ra/__init__.py": '"""Who may."""\n\nfrom estd.ra import admission\n',
        "estd/ra/admission.py": '"""RFC 7030 §4.2, §6."""\n\n\nclass Admission:\n    async def admit(self) -> None:\n'
        "        # Refused by RFC 9110 §8.4 and RFC 5280\n        # appendix A.1; see RFC 6125.\n        pass\n",
        "estd/ra/naming.py": "TABLE: dict[str, int] = {}  # RFC 7030 §4.2.2.1\n",
        "rfc-notes/rfc7030.md": NOTE,
        "rfc-notes/others.md": OTHERS,
        "tests/unit/ra/test_admission.py": "async def test_a_stranger() -> None: ...\n",
        "tests/unit/ra/test_naming.py": "class TestNames:\n    def test_one(self) -> None: ...\n",
    }.items():
        write(tmp_path, path, text)
    return tmp_path


def write(tree: Path, path: str, text: str) -> None:
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_text(text, encoding="utf-8")


def find(tree: Path) -> list[str]:
    return [str(finding) for finding in check_notes.check(tree)]


def test_a_tree_that_fits(tree: Path) -> None:
    assert find(tree) == []


def test_a_clause_without_a_row(tree: Path) -> None:
    write(tree, "estd/ra/naming.py", "TABLE = 1\n\n# RFC 7030 §4.2.2 and\n# RFC 7030 §4.3\n# RFC 4514 §2\n")
    assert find(tree) == [
        "estd/ra/naming.py:4: RFC 7030 §4.3 is in no note, add its row to rfc-notes/rfc7030.md",
        "estd/ra/naming.py:5: RFC 4514 §2 is in no note, add its row to rfc-notes/others.md",
    ]


def test_a_row_covers_what_is_below_it_and_not_what_looks_like_it(tree: Path) -> None:
    write(tree, "estd/ra/naming.py", "TABLE = 1  # RFC 7030 §4.2.3.1\n# RFC 7030 §4.20\n# RFC 7030 §4\n")
    assert [line.split(" is ")[0] for line in find(tree)] == [
        "estd/ra/naming.py:2: RFC 7030 §4.20",
        "estd/ra/naming.py:3: RFC 7030 §4",
    ]


def test_a_clause_inside_the_name_of_a_lint_rule(tree: Path) -> None:
    write(tree, "estd/ra/naming.py", 'TABLE = {"rfc5280.a.1.too_long": 1, "rfc5280.4.2.1.6.san_empty": 2}\n')
    assert find(tree) == ["estd/ra/naming.py:1: RFC 5280 §4.2.1.6 is in no note, add its row to rfc-notes/others.md"]


@pytest.mark.parametrize(
    "text",
    [
        "# RFC7030 says",
        "# rfc 7030 says",
        "# RFC-7030",
        "# RFC 7030, §4.2",
        "# RFC 7030 section 4.2",
        "# RFC 7030 Section 4.2",
        "# RFC 7030§4.2",
        "# RFC 7030 sec. 4.2",
        "# RFC 7030 (§4.2)",
        "# Section 4.2 of RFC 7030",
        "# RFC 7030 §4.2-4.5",
        "# RFC 7030 §4.2.x",
        '"""See rfc7030."""',
    ],
)
def test_a_citation_in_another_spelling(tree: Path, text: str) -> None:
    write(tree, "estd/ra/naming.py", f"TABLE = 1\n{text}\n")
    (line,) = find(tree)
    assert line.startswith("estd/ra/naming.py:2: the citation “")
    assert line.endswith("write it as RFC 7030 §4.2.3 (or RFC 5280 appendix A.1)")


@pytest.mark.parametrize(
    "text",
    [
        "from pyasn1_alt_modules import rfc5280",
        "TABLE = rfc5280.id_ce",
        'TABLE = "rfc822Name"',
        "# RFC 7030 §4.2. The next sentence",
        "# RFC 7030 §4.2, §6, and RFC 7030's own words",
        "# (RFC 7030) (§4.2 is elsewhere)",
    ],
)
def test_what_is_no_misspelled_citation(tree: Path, text: str) -> None:
    write(tree, "estd/ra/naming.py", f"TABLE = 1\n{text}\n")
    assert find(tree) == []


def test_a_row_of_others_that_nobody_cites(tree: Path) -> None:
    write(tree, "rfc-notes/others.md", OTHERS + "| RFC 9110 §9 | methods |\n")
    assert find(tree) == ["rfc-notes/others.md:7: RFC 9110 §9 is cited nowhere in estd/, take its row out"]


def test_tests_that_are_not_there(tree: Path) -> None:
    bad = "| §6 | MUST: x | none | `unit/ra/test_gone.py::test_x`, `unit/ra/test_naming.py::TestNames::test_two` |\n"
    write(tree, "rfc-notes/rfc7030.md", NOTE + bad + "\nSee `unit/ra/test_naming.py::TestNames::test_one`.\n")
    assert find(tree) == [
        "rfc-notes/rfc7030.md:9: tests/unit/ra/test_gone.py does not exist, name a file below tests/",
        "rfc-notes/rfc7030.md:9: tests/unit/ra/test_naming.py has no TestNames::test_two, "
        "name the test that took its place",
    ]


@pytest.mark.parametrize("excuse", ["none", "", "not yet", "not yet: "])
def test_a_must_without_a_test(tree: Path, excuse: str) -> None:
    write(tree, "rfc-notes/rfc7030.md", NOTE + f"| §6 | MUST NOT: x | none | {excuse} |\n")
    assert find(tree) == [
        "rfc-notes/rfc7030.md:9: a MUST without a test, name one, or say “not yet: why” or “client's duty”"
    ]


def test_names_of_ours_that_are_not_there(tree: Path) -> None:
    row = "| §6 | x | `estd.ra.admission.Admission.refuse`, `estd.ra.gone`, `estd.ra` | none |\n"
    write(tree, "rfc-notes/rfc7030.md", NOTE + row)
    assert find(tree) == [
        "rfc-notes/rfc7030.md:9: estd.ra.admission.Admission.refuse does not exist, name what took its place",
        "rfc-notes/rfc7030.md:9: estd.ra.gone does not exist, name what took its place",
    ]


def test_a_note_that_does_not_say_what_it_is(tree: Path) -> None:
    write(tree, "rfc-notes/rfc7030.md", NOTE.replace("RFC 7030", "RFC 7031", 1) + "| nothing | x | none | none |\n")
    assert "rfc-notes/rfc7030.md:1: the first line does not say which RFC this is, begin with “# RFC 7030: …”" in find(
        tree
    )


def test_a_row_without_a_clause(tree: Path) -> None:
    write(tree, "rfc-notes/rfc7030.md", NOTE + "| nothing | x | none | none |\n")
    assert find(tree) == ["rfc-notes/rfc7030.md:9: the row begins with no clause, begin it with § and the clause"]


def test_a_module_without_its_mirror(tree: Path) -> None:
    write(tree, "estd/ra/codes.py", "")
    write(tree, "estd/ra/__init__.py", "def work() -> None: ...\n")
    write(tree, "tests/unit/ra/test_codes.py", "# no test yet\n")
    assert find(tree) == [
        "estd/ra/__init__.py:1: has neither tests/unit/ra/test_ra.py nor tests/integration/ra/test_ra.py, write one",
        "estd/ra/codes.py:1: has neither tests/unit/ra/test_codes.py nor tests/integration/ra/test_codes.py, write one",
    ]


def test_a_mirror_below_integration_is_one(tree: Path) -> None:
    write(tree, "estd/ra/codes.py", "")
    write(tree, "tests/integration/ra/test_codes.py", "# no test yet\n")
    assert [line.partition(",")[0] for line in find(tree)] == [
        "estd/ra/codes.py:1: has neither tests/unit/ra/test_codes.py nor tests/integration/ra/test_codes.py"
    ]
    write(tree, "tests/integration/test_codes.py", "def test_it() -> None: ...\n")
    assert len(find(tree)) == 1, "in another directory than the module's own"
    write(tree, "tests/integration/ra/test_codes.py", "def test_it() -> None: ...\n")
    assert find(tree) == []
