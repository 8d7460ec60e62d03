"""Values for a store to keep. Each call makes new ones; what matters to a test it names."""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from estd.audit import Event
from estd.store.contract import Device, EnrollmentCode, Intent, Issued, NewIssuer, Revocation

T0 = datetime(2029, 6, 1, 12, 0, 0, tzinfo=UTC)
"""Before the time of every store in the tests."""

_numbers = itertools.count(1)


def make_intent(**fields: Any) -> Intent:
    """An intent like no other."""
    number = next(_numbers)
    made: dict[str, Any] = {
        "request_key": digest("request", number),
        "issuer_id": 1,
        "serial": b"\x40" + digest("serial", number)[:18],
        "ecosystem_id": 1,
        "ecosystem_version": 3,
        "node_id": 1,
        "profile": "sensor",
        "operation": "simpleenroll",
        "identity": f"code:sensor-{number}",
        "device": f"sensor-{number}",
        "csr_sha256": digest("csr", number),
        "spki_sha256": digest("spki", number),
        "tbs_sha256": digest("tbs", number),
        "journal": "signer-0",
        "code_id": None,
        "created_at": T0,
    }
    return Intent(**made | fields)


def make_issued(intent: Intent, **fields: Any) -> Issued:
    """The result of an intent."""
    made: dict[str, Any] = {
        "issuer_id": intent.issuer_id,
        "serial": intent.serial,
        "certificate": b"\x30\x82" + digest("certificate", intent.serial) * 20,
        "not_before": T0,
        "not_after": T0 + timedelta(days=3650),
        "issued_at": T0 + timedelta(seconds=1),
        "event": make_event(
            kind="est.simpleenroll",
            ecosystem_id=intent.ecosystem_id,
            identity=intent.identity,
            issuer_id=intent.issuer_id,
            serial=intent.serial.hex(),
        ),
    }
    return Issued(**made | fields)


def make_event(**fields: Any) -> Event:
    """An audit event with everything in it."""
    made: dict[str, Any] = {
        "at": T0 + timedelta(seconds=1),
        "kind": "est.cacerts",
        "outcome": "granted",
        "ecosystem": "campus",
        "ecosystem_id": 1,
        "code": None,
        "detail": "",
        "identity": "code:sensor-1",
        "address": "192.0.2.17",
        "request_id": f"r-{next(_numbers)}",
        "issuer_id": None,
        "serial": None,
        "extra": {"key": "P-256"},
    }
    return Event(**made | fields)


def make_revocation(issuer_id: int, serial: bytes, **fields: Any) -> Revocation:
    """A revocation."""
    made: dict[str, Any] = {"reason": "keyCompromise", "revoked_at": T0 + timedelta(days=1)}
    return Revocation(issuer_id, serial, **made | fields)


def make_new_issuer(name: str = "issuing", parent: str | None = None, **fields: Any) -> NewIssuer:
    """A CA certificate like no other, with a sealed key."""
    made: dict[str, Any] = {"certificate": digest("issuer", next(_numbers)), "sealed_key": b"sealed"}
    return NewIssuer(name, parent, **made | fields)


def make_code(ecosystem_id: int, **fields: Any) -> EnrollmentCode:
    """A single-use enrollment code like no other."""
    number = next(_numbers)
    made: dict[str, Any] = {
        "code_id": 0,
        "ecosystem_id": ecosystem_id,
        "device": f"sensor-{number}",
        "secret_sha256": digest("secret", number),
        "single_use": True,
        "profile": None,
        "expires_at": T0 + timedelta(days=30),
        "created_at": T0,
        "spent_at": None,
    }
    return EnrollmentCode(**made | fields)


def make_device(ecosystem_id: int, **fields: Any) -> Device:
    """An inventory row."""
    made: dict[str, Any] = {"device": f"sensor-{next(_numbers)}", "subject": "CN=sensor", "san": ("dns:a.example",)}
    return Device(ecosystem_id, **made | fields)


def digest(kind: str, value: object) -> bytes:
    """32 bytes that stand for something."""
    return hashlib.sha256(f"{kind} {value!r}".encode()).digest()
