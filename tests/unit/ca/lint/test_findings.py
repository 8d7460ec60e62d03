"""The register of findings: complete, and each with its clause."""

from __future__ import annotations

import inspect
import re

import pytest

from estd.ca.lint import extensions, issuing, keys, linter, names, walk
from estd.ca.lint.findings import FINDINGS, Finding


@pytest.mark.parametrize("code", FINDINGS)
def test_every_finding_names_its_clause(code: str) -> None:
    clause = Finding(code).clause
    if code.startswith("estd."):
        assert clause is None
    else:
        assert clause is not None
        assert re.fullmatch(r"(RFC [0-9]{4}|X\.690) §[0-9A]+(\.[0-9]+)*", clause)
    assert str(Finding(code)) == f"{code}: {FINDINGS[code]}"


def test_every_code_that_is_reported_is_described() -> None:
    source = "".join(inspect.getsource(module) for module in (extensions, issuing, keys, linter, names, walk))
    reported = set(re.findall(r'"((?:rfc[0-9]+|x690|estd)\.[a-z0-9_.]+)"', source))
    assert reported == FINDINGS.keys()
