"""Ecosystems that cannot be served although the server can: what ``/readyz`` and ``/metrics`` say of them.

One collection for the process, as a worker's counters are (`estd.web.metrics`): who finds something and who tells it know
nothing of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

REGISTRY: Final = CollectorRegistry()
"""The supervisor's own metrics; those of the workers are added up from their files."""

UNLOADED: Final = Gauge(
    "estd_ecosystem_unloaded",
    "Signers that refuse the present version of an ecosystem",
    ["ecosystem"],
    registry=REGISTRY,
)

_by_signer: Final[dict[str, dict[str, str]]] = {}


def note(signer: str, found: Mapping[str, str]) -> None:
    """What that signer refuses now: ecosystem → why, and what to do. It replaces what was noted of it before."""
    _by_signer[signer] = dict(found)
    UNLOADED.clear()
    for labels in _by_signer.values():
        for label in labels:
            UNLOADED.labels(label).inc()


def find() -> dict[str, str]:
    """Ecosystem → why it is not served, or only as it was before, and what to do."""
    return {label: detail for _, found in sorted(_by_signer.items()) for label, detail in sorted(found.items())}
