"""What is known of ecosystems that cannot be served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from estd.app import troubles


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for signer in ("signer-0", "signer-1"):
        troubles.note(signer, {})


def counted() -> list[str]:
    text = generate_latest(troubles.REGISTRY).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_each_signer_has_its_own_and_the_newest_counts() -> None:
    assert troubles.find() == {}
    troubles.note("signer-0", {"plant": "version 3: why", "aaa": "version 1: why"})
    troubles.note("signer-1", {"plant": "version 4: why"})
    assert troubles.find() == {"plant": "version 4: why", "aaa": "version 1: why"}
    assert counted() == [
        'estd_ecosystem_unloaded{ecosystem="plant"} 2.0',
        'estd_ecosystem_unloaded{ecosystem="aaa"} 1.0',
    ]
    troubles.note("signer-0", {})
    assert troubles.find() == {"plant": "version 4: why"}
    assert counted() == ['estd_ecosystem_unloaded{ecosystem="plant"} 1.0']
    troubles.note("signer-1", {})
    assert counted() == []
