"""What the values promise by themselves; what stores promise is in tests/contracts/test_store.py."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from msgspec import structs
from postgres_fixture import Database
from store_values import make_code, make_device, make_intent, make_issued, make_new_issuer, make_revocation

from estd.store import contract
from estd.store.contract import KEY_COMPROMISE, Closing, Outcome, RevocationOutcome, Store
from estd.store.postgres import PostgresStore


@pytest.mark.parametrize("kind", [Outcome, Closing, RevocationOutcome])
def test_each_outcome_has_a_word_of_its_own(kind: Any) -> None:
    assert set(kind.__members__) == {one.name for one in kind}
    for one in kind:
        assert kind(one.value) is one


async def test_the_database_knows_each_way_to_close_an_intent_and_no_other(database: Database) -> None:
    (row,) = await database.fetch(
        "SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint"
        " WHERE conrelid = 'intent'::regclass AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%closed%void%'"
    )
    assert set(re.findall(r"'(\w+)'", row["text"])) == {closing.value for closing in Closing}


def test_a_compromised_key_has_the_name_that_rfc_5280_gives_it() -> None:
    assert x509.ReasonFlags(KEY_COMPROMISE) is x509.ReasonFlags.key_compromise


def make_values() -> list[Any]:
    intent = make_intent()
    return [intent, make_issued(intent), make_revocation(1, b"\x01"), make_code(1), make_device(1), make_new_issuer()]


@pytest.mark.parametrize("value", make_values(), ids=lambda value: type(value).__name__)
def test_what_was_handed_over_stays_as_it_was(value: Any) -> None:
    """A store may repeat a call with the very same arguments: nobody may have changed them meanwhile."""
    names = (
        value.__struct_fields__ if hasattr(value, "__struct_fields__") else [f.name for f in dataclasses.fields(value)]
    )
    for name in names:
        with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
            setattr(value, name, None)


def test_values_are_equal_by_what_they_say() -> None:
    """How a store's answer is held against what it was given."""
    intent = make_intent()
    assert structs.replace(intent) == intent
    for name in intent.__struct_fields__:
        assert structs.replace(intent, **{name: "another"}) != intent


def test_the_store_keeps_the_whole_contract_with_its_own_arguments() -> None:
    """A protocol is not checked where a store is made by hand: a method that is missing would be found by a device."""
    promised = {name: one for name, one in vars(Store).items() if inspect.isfunction(one) and not name.startswith("_")}
    assert promised
    for name, method in promised.items():
        kept = getattr(PostgresStore, name)
        assert inspect.iscoroutinefunction(kept), name
        ours, theirs = (list(inspect.signature(one).parameters.values()) for one in (method, kept))
        assert [(one.name, one.kind, one.default) for one in ours] == [
            (one.name, one.kind, one.default) for one in theirs[: len(ours)]
        ], name
        assert all(one.default is not inspect.Parameter.empty for one in theirs[len(ours) :]), name


def test_whoever_reads_the_contract_reads_no_driver() -> None:
    tree = ast.parse(Path(inspect.getfile(contract)).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {one for one in imported if one.partition(".")[0] not in sys.stdlib_module_names} == {
        "msgspec",
        "estd.audit",
    }


def test_every_promise_is_said() -> None:
    for name, method in vars(Store).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            assert method.__doc__, name
