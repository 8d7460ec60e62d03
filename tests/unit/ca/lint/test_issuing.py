"""The issuing certificate as the linter reads it, against how issuing reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from estd.ca.constraints import NameConstraints
from estd.ca.lint.issuing import read_issuing_certificate
from estd.ca.lint.walk import Malformed


def test_two_readers_agree(hierarchy: Any) -> None:
    for authority in (hierarchy.root, hierarchy.devices):
        issuing = read_issuing_certificate(authority.certificate)
        assert issuing.subject == authority.subject
        assert issuing.key_id == authority.key_id
        assert (issuing.starts, issuing.ends) == (authority.starts, authority.ends)
        assert issuing.path_length == authority.path_length
        assert issuing.key.signs_with == {authority.algorithm.identifier}
        assert issuing.name_constraints is None


def test_name_constraints_are_read(make_hierarchy: Callable[..., Any], minimal: str) -> None:
    text = minimal.replace('name = "root"\n', 'name = "root"\nname_constraints = { permitted = ["dns:a"] }\n', 1)
    issuing = read_issuing_certificate(make_hierarchy(text).root.certificate)
    assert issuing.name_constraints == NameConstraints(("dns:a",), ())


def test_what_is_cut_short_is_malformed(hierarchy: Any) -> None:
    for cut in range(0, len(hierarchy.root.certificate), 7):
        with pytest.raises(Malformed):
            read_issuing_certificate(hierarchy.root.certificate[:cut])
