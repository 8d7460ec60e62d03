"""When issuers end, for ``/metrics``: whoever watches has to hear of it while there is time to replace them.

One collection for the process, beside `estd.app.troubles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cryptography import x509
from prometheus_client import Gauge

from estd.app import troubles
from estd.store.contract import EcosystemRecord

NOT_AFTER: Final = Gauge(
    "estd_issuer_not_after_seconds",
    "When the certificate of an issuer in use ends, in seconds since 1970",
    ["ecosystem", "issuer"],
    registry=troubles.REGISTRY,
)

_ends: Final[dict[int, float]] = {}
"""Issuer → when it ends, so that each certificate is read once."""


def note(records: Iterable[EcosystemRecord]) -> None:
    """These are the ecosystems now; of each issuer that its document names the newest certificate counts."""
    NOT_AFTER.clear()
    for record in records:
        tables = record.document.get("issuer")
        named = (
            {table.get("name") for table in tables if isinstance(table, Mapping)} if isinstance(tables, list) else ()
        )
        for name, issuer in {issuer.name: issuer for issuer in record.issuers}.items():
            if name not in named:
                continue
            if issuer.issuer_id not in _ends:
                try:
                    parsed = x509.load_der_x509_certificate(issuer.certificate)
                except ValueError:
                    continue  # a damaged row, which the signers refuse and tell of
                _ends[issuer.issuer_id] = parsed.not_valid_after_utc.timestamp()
            NOT_AFTER.labels(record.label, name).set(_ends[issuer.issuer_id])
