"""Do the code, the notes on the RFCs and the tests still speak of the same things? Run by ``make check``.

The code cites a clause as ``RFC 7030 §4.2.3``; ``rfc-notes/rfc7030.md`` has a row for that clause, saying what the duty
is, where it is obeyed and which test proves it. This script follows those names in every direction:

* a clause cited in ``estd/`` has a row in ``rfc-notes/`` (its own or an enclosing clause's);
* a citation is spelled in the one way that this script, and a person with grep, can find;
* a row of ``others.md`` is cited somewhere, a name of ours in a row exists, and so does every test named;
* a row whose duty says MUST names a test, or says ``not yet: why`` or ``client's duty``;
* every module has a test file of its own: its mirror below ``tests/unit/`` or ``tests/integration/``.

Each finding is one line, ``FILE:LINE: what, remedy``; the exit status is 1 if there is any. Reads text alone, imports
nothing of estd, and takes well under two seconds.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that does not fit: where, what, and what to do about it."""

    path: str
    line: int
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}, {self.remedy}"


@dataclass(frozen=True, slots=True)
class Citation:
    """An RFC, or a clause of one, as a text names it. `clause` is ``4.2.3``, ``A.1``, or empty for the RFC as a whole."""

    rfc: int
    clause: str
    line: int

    def __str__(self) -> str:
        if not self.clause:
            return f"RFC {self.rfc}"
        return f"RFC {self.rfc} {'§' if self.clause[0].isdigit() else 'appendix '}{self.clause}"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table in a note."""

    line: int
    citations: tuple[Citation, ...]
    duty: str
    tests: str | None
    """What stands in the column ``test``; None where the table has no such column."""


def check(root: Path) -> list[Finding]:
    """Everything that does not fit in the tree at `root`."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((root / "estd").rglob("*.py"))}
    notes = {path: path.read_text(encoding="utf-8") for path in sorted((root / "rfc-notes").glob("*.md"))}
    tests = _Tests(root / "tests")
    names = _Names(root, sources)
    findings = [
        *_check_clauses(root, sources, notes),
        *_check_modules(root, sources, tests),
    ]
    for path, text in notes.items():
        findings += _check_note(path.relative_to(root).as_posix(), path.name, text, tests, names)
    return sorted(findings)


def main() -> int:
    """Print what was found; the exit status."""
    root = Path(__file__).resolve().parent.parent
    findings = check(root)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


# --- citations ---------------------------------------------------------------------------------------------------------

# Where a line ends inside a citation, the next one may begin with a comment's sign.
_GAP: Final = r"(?: |\s*\n\s*(?:#:? *)?)"
_CLAUSE: Final = r"(?:§\d+(?:\.\d+)*|appendix [A-Z](?:\.\d+)*)"
_CITED: Final = re.compile(rf"\bRFC{_GAP}(\d{{3,5}})\b(?:{_GAP}({_CLAUSE}(?:(?:,|,? and|,? or){_GAP}{_CLAUSE})*))?")
_ANY_MENTION: Final = re.compile(r"(?<![\w.])rfc[\s_#-]*\d{3,5}(?!\w)", re.IGNORECASE)
_WRONG_TAIL: Final = re.compile(r",? ?(?:§|sections?\b|sec\.|s\.\d|clause\b|appendix\b|chapter\b|\(§)", re.IGNORECASE)
# The lint's findings carry their clause in their name: rfc5280.4.2.1.6.san_empty.
_RULE: Final = re.compile(r"\brfc(\d{3,5})\.((?:[a-z]\.)?\d+(?:\.\d+)*)\.[a-z]")
_OF_RFC: Final = re.compile(r"(?:section|sec\.|§|clause|appendix)\s*[\dA-Z][\d.]* (?:of|in)\s+\Z", re.IGNORECASE)
_SPELLING: Final = "write it as RFC 7030 §4.2.3 (or RFC 5280 appendix A.1)"


def read_citations(text: str) -> Iterator[Citation]:
    """Every citation in the one spelling; ``RFC 7030 §4.1, §4.2`` is two. Names of the lint's rules are citations too."""
    lines = _line_starts(text)
    for match in _CITED.finditer(text):
        line = bisect_right(lines, match.start())
        if match[2] is None:
            yield Citation(int(match[1]), "", line)
            continue
        for clause in re.findall(_CLAUSE, match[2]):
            yield Citation(int(match[1]), clause.removeprefix("§").removeprefix("appendix "), line)
    for match in _RULE.finditer(text):
        yield Citation(int(match[1]), match[2].upper(), bisect_right(lines, match.start()))


def read_misspelled(text: str) -> Iterator[tuple[int, str]]:
    """Lines and texts of mentions that `read_citations` cannot follow. Names of modules and attributes are no mentions."""
    prose: list[tuple[int, int]] | None = None
    good = {match.start(): match for match in _CITED.finditer(text)}
    lines = _line_starts(text)
    for mention in _ANY_MENTION.finditer(text):
        match = good.get(mention.start())
        if _RULE.match(text, mention.start()):
            continue
        if match is not None and match[2] is not None:
            tail = text[match.end() : match.end() + 2]
            if not re.match(r"\.[A-Za-z\d]|-\d|–\d", tail):
                continue
        elif match is not None:
            wrong = _WRONG_TAIL.match(text, match.end())
            before = text[max(0, mention.start() - 40) : mention.start()]
            if wrong is None and not _OF_RFC.search(before):
                continue
        if prose is None:
            prose = list(_prose_spans(text, lines))
        if any(start <= mention.start() < stop for start, stop in prose):
            line = bisect_right(lines, mention.start())
            yield line, " ".join(text[mention.start() : mention.end() + 14].split("\n")[0].split())


def _prose_spans(text: str, lines: list[int]) -> Iterator[tuple[int, int]]:
    """Where comments and strings stand; everything else is names."""
    kinds = {tokenize.COMMENT, tokenize.STRING}
    if hasattr(tokenize, "FSTRING_MIDDLE"):
        kinds.add(tokenize.FSTRING_MIDDLE)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            (first, column), (last, end) = token.start, token.end
            yield lines[first - 1] + column, lines[last - 1] + end


def _line_starts(text: str) -> list[int]:
    starts = [0]
    starts.extend(match.end() for match in re.finditer("\n", text))
    return starts


def _check_clauses(root: Path, sources: Mapping[Path, str], notes: Mapping[Path, str]) -> Iterator[Finding]:
    noted = {path.name: list(_read_rows(text)) for path, text in notes.items()}
    known: dict[int, set[str]] = {}
    for name, rows in noted.items():
        number = re.fullmatch(r"rfc(\d+)\.md", name)
        if number is not None:
            known.setdefault(int(number[1]), set()).add("")
        for row in rows:
            for citation in row.citations:
                if name == "others.md" or (number is not None and citation.rfc == int(number[1])):
                    known.setdefault(citation.rfc, set()).add(citation.clause)
    cited: set[tuple[int, str]] = set()
    for path, text in sources.items():
        where = path.relative_to(root).as_posix()
        for citation in read_citations(text):
            cited.add((citation.rfc, citation.clause))
            if not _is_noted(citation, known.get(citation.rfc, set())):
                file = f"rfc-notes/rfc{citation.rfc}.md"
                target = file if (root / file).exists() else "rfc-notes/others.md"
                yield Finding(where, citation.line, f"{citation} is in no note", f"add its row to {target}")
        for line, found in read_misspelled(text):
            yield Finding(where, line, f"the citation “{found}” cannot be followed", _SPELLING)
    for row in noted.get("others.md", []):
        for citation in row.citations:
            if (citation.rfc, citation.clause) not in cited:
                yield Finding(
                    "rfc-notes/others.md", row.line, f"{citation} is cited nowhere in estd/", "take its row out"
                )


def _is_noted(citation: Citation, clauses: set[str]) -> bool:
    clause = citation.clause
    while clause:
        if clause in clauses:
            return True
        clause = clause.rpartition(".")[0]
    return not citation.clause and bool(clauses)


# --- notes -------------------------------------------------------------------------------------------------------------

_TEST: Final = re.compile(r"`([\w/.-]+\.py)::([\w:]+)(?:\[[^`]*\])?`")
_OURS: Final = re.compile(r"`(estd(?:\.\w+)+)(?:\(\))?`")
_EXCUSE: Final = re.compile(r"\bnot yet: \w|\bclient's duty\b")


def _read_rows(text: str) -> Iterator[Row]:
    """The rows of every table; a table's first row names its columns, and the first column is the clause."""
    heading: list[str] | None = None
    rfc = _title_rfc(text)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            heading = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if heading is None:
            heading = [cell.lower() for cell in cells]
            continue
        if set(line) <= set("|-: "):
            continue
        named = dict(zip(heading, cells, strict=False))
        first = cells[0]
        citations = tuple(Citation(one.rfc, one.clause, number) for one in read_citations(first))
        if not citations and rfc is not None:
            citations = tuple(
                Citation(rfc, clause.removeprefix("§").removeprefix("appendix "), number)
                for clause in re.findall(_CLAUSE, first)
            )
        yield Row(number, citations, named.get("duty", ""), named.get("test"))


def _title_rfc(text: str) -> int | None:
    match = re.match(r"# RFC (\d+)", text)
    return None if match is None else int(match[1])


def _check_note(where: str, name: str, text: str, tests: _Tests, names: _Names) -> Iterator[Finding]:
    number = re.fullmatch(r"rfc(\d+)\.md", name)
    if number is not None and _title_rfc(text) != int(number[1]):
        yield Finding(where, 1, "the first line does not say which RFC this is", f"begin with “# RFC {number[1]}: …”")
    for row in _read_rows(text):
        if number is not None and not row.citations:
            yield Finding(where, row.line, "the row begins with no clause", "begin it with § and the clause")
        if row.tests is None or not re.search(r"\bMUST\b", row.duty):
            continue
        if not _TEST.search(row.tests) and not _EXCUSE.search(row.tests):
            yield Finding(
                where, row.line, "a MUST without a test", "name one, or say “not yet: why” or “client's duty”"
            )
    for line_number, line in enumerate(text.splitlines(), 1):
        for match in _TEST.finditer(line):
            problem = tests.find_problem(match[1], match[2])
            if problem is not None:
                yield Finding(where, line_number, *problem)
        for match in _OURS.finditer(line):
            if not names.exists(match[1]):
                yield Finding(where, line_number, f"{match[1]} does not exist", "name what took its place")


class _Tests:
    """Which test functions each file below ``tests/`` defines; files are read when asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, set[str] | None] = {}

    def find_problem(self, path: str, name: str) -> tuple[str, str] | None:
        """What is wrong with that reference, and the remedy."""
        names = self._read(path)
        if names is None:
            return f"tests/{path} does not exist", "name a file below tests/"
        if name not in names:
            return f"tests/{path} has no {name}", "name the test that took its place"
        return None

    def exists(self, path: str) -> bool:
        """Whether there is such a file with at least one test."""
        return bool(self._read(path))

    def _read(self, path: str) -> set[str] | None:
        if path not in self._names:
            file = self._root / path
            self._names[path] = _read_test_names(file.read_text(encoding="utf-8")) if file.is_file() else None
        return self._names[path]


def _read_test_names(text: str) -> set[str]:
    names: set[str] = set()
    inside = ""
    for match in re.finditer(r"^(class (?P<c>\w+)|( +)?(?:async )?def (?P<f>test_\w+))", text, re.MULTILINE):
        if match["c"]:
            inside = match["c"]
        elif match[3] is None:
            names.add(match["f"])
        elif inside:
            names.add(f"{inside}::{match['f']}")
    return names


class _Names:
    """Which names of ours exist: packages, modules, and what modules and classes define."""

    def __init__(self, root: Path, sources: Mapping[Path, str]) -> None:
        self._sources: dict[str, str] = {}
        for path, text in sources.items():
            parts = path.relative_to(root).with_suffix("").parts
            self._sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = text

    def exists(self, dotted: str) -> bool:
        """Whether `dotted` is a module, or names something in one."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            text = self._sources.get(".".join(parts[:length]))
            if text is not None:
                return all(_defines(text, name) for name in parts[length:])
        return False


def _defines(text: str, name: str) -> bool:
    pattern = rf"^\s*(?:(?:async )?def|class) {name}\b|^\s*(?:self\.)?{name}(?::[^=\n]+)?(?: =|$)"
    return re.search(pattern, text, re.MULTILINE) is not None


# --- the mirror --------------------------------------------------------------------------------------------------------

_MIRRORS: Final = ("unit", "integration")


def _check_modules(root: Path, sources: Mapping[Path, str], tests: _Tests) -> Iterator[Finding]:
    for path, text in sources.items():
        module = path.relative_to(root).as_posix()
        if path.name == "__main__.py" or (path.name == "__init__.py" and not _has_code(text)):
            continue
        parent = path.relative_to(root / "estd").parent
        stem = path.parent.name if path.name == "__init__.py" else path.stem
        mirrors = [(Path(kind) / parent / f"test_{stem}.py").as_posix() for kind in _MIRRORS]
        if not any(tests.exists(mirror) for mirror in mirrors):
            what = f"has neither {' nor '.join(f'tests/{mirror}' for mirror in mirrors)}"
            yield Finding(module, 1, what, "write one")


def _has_code(text: str) -> bool:
    """Whether a package's own file does more than gather names."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Assign) and all(
            isinstance(one, ast.Name) and one.id.startswith("__") for one in node.targets
        ):
            continue  # __all__, __version__
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
