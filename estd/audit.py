"""Audit events: one for every decision, refusals included.

An event says who asked for what in which ecosystem, what was decided and why. It never holds a secret, a private key, a
CSR or a password. The same value goes to the store and, as one JSON line, to the log, so that neither can say more than
the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One decision.

    `kind` is what was asked (``est.simpleenroll``, ``ecosystem.apply``, ``certificate.revoke`` …), `outcome` is
    ``granted``, ``refused``, ``failed`` or ``pending``, `code` the `estd.errors.Code` value of a refusal.
    """

    at: datetime
    kind: str
    outcome: str
    ecosystem: str | None = None
    """The label asked for, whether or not it exists."""
    ecosystem_id: int | None = None
    code: str | None = None
    detail: str = ""
    identity: str = ""
    address: str = ""
    request_id: str = ""
    issuer_id: int | None = None
    serial: str | None = None
    """Lower-case hexadecimal."""
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)


def write_event(event: Event) -> dict[str, Any]:
    """The event as JSON-ready fields, empty ones left out; nothing in `extra` takes the place of what was decided."""
    fields: dict[str, Any] = {
        "at": event.at.isoformat(),
        "kind": event.kind,
        "outcome": event.outcome,
        "ecosystem": event.ecosystem,
        "code": event.code,
        "detail": event.detail,
        "identity": event.identity,
        "address": event.address,
        "request_id": event.request_id,
        "issuer_id": event.issuer_id,
        "serial": event.serial,
    }
    fields |= {name: value for name, value in event.extra.items() if name not in fields}
    return {name: value for name, value in fields.items() if value not in (None, "")}
