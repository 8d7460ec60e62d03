"""One small ecosystem in variants, and applying it as tests do."""

from __future__ import annotations

from typing import Any

import pytest

from estd.app.apply import apply_document
from estd.app.plan import Applied
from estd.ca.authority import read_authority
from estd.ca.ecosystem import Ecosystem, read_document
from estd.errors import Invalid
from estd.keys.software import unseal
from estd.store.contract import EcosystemRecord, IssuerRecord
from estd.store.postgres import PostgresStore

KEK = bytes(range(32))
OTHER = bytes(range(1, 33))
DOCUMENT = """
[ecosystem]
label = "{label}"
name = "{name}"
[[issuer]]
name = "root"
generation = {root}
[[issuer]]
name = "devices"
parent = "root"
generation = {devices}
[profile.pump]
label = "{profile_label}"
issuer = "devices"
enroll = ["code"]
"""


def rules(
    label: str = "plant", name: str = "Plant", root: int = 1, devices: int = 1, profile_label: str = ""
) -> Ecosystem:
    text = DOCUMENT.format(
        label=label, name=name, root=root, devices=devices, profile_label=profile_label or f"{label}-pumps"
    )
    return read_document(text, "test.toml", lambda path: path.encode())


async def apply(store: PostgresStore, rules: Ecosystem, kek: bytes = KEK, **options: Any) -> Applied:
    return await apply_document(store, kek, rules, "tester", **options)


async def find(store: PostgresStore) -> dict[str, EcosystemRecord]:
    return {record.label: record for record in await store.find_ecosystems()}


async def find_problems(store: PostgresStore, rules: Ecosystem, kek: bytes = KEK, **options: Any) -> list[str]:
    """Why it is refused; and nothing has changed then."""
    before = await find(store)
    with pytest.raises(Invalid) as caught:
        await apply(store, rules, kek, **options)
    assert await find(store) == before
    return [str(problem) for problem in caught.value.problems]


def opens(issuer: IssuerRecord, kek: bytes) -> bool:
    assert issuer.sealed_key is not None
    try:
        return bool(unseal(issuer.sealed_key, kek, read_authority(issuer.certificate).spki))
    except Invalid:
        return False
