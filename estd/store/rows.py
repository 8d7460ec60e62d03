"""Between the store's values and the columns of its statements.

``write_`` turns values into the arguments of a statement of ``queries.sql``, in its order; ``read_`` turns a row back.
On the hot path a batch becomes one array of rows, which costs both ends less than an array for each column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

import msgspec

from estd.audit import Event
from estd.store.contract import (
    Device,
    EcosystemRecord,
    EnrollmentCode,
    Intent,
    Issuance,
    Issued,
    IssuerRecord,
    NewIssuer,
    Node,
    Revocation,
    StoredCertificate,
)

Columns = list[Any]


class Row(Protocol):
    """A row as a driver gives it."""

    def __getitem__(self, name: str, /) -> Any:
        """The value of a column."""


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_FAST_ENCODER = msgspec.json.Encoder()
_INTENT = attrgetter(
    "request_key", "issuer_id", "serial", "ecosystem_id", "ecosystem_version", "node_id", "profile", "operation",
    "identity", "device", "csr_sha256", "spki_sha256", "tbs_sha256", "journal", "code_id",
)  # fmt: skip
_HOLDER = attrgetter("request_key", "issuer_id", "serial", "code_id")
_EVENT = attrgetter(
    "at", "kind", "outcome", "ecosystem", "ecosystem_id", "code", "detail", "identity", "address", "request_id",
    "issuer_id", "serial",
)  # fmt: skip
_EVENT_OF_ISSUED = attrgetter(
    "kind", "outcome", "ecosystem", "code", "detail", "identity", "address", "request_id", "serial",
)  # fmt: skip
_CODE = attrgetter("ecosystem_id", "device", "secret_sha256", "single_use", "profile", "expires_at", "created_at")
_CODE_KEY = attrgetter("ecosystem_id", "device", "secret_sha256")


def write_intents(intents: Sequence[Intent]) -> Columns:
    """For ``reserve_intents``: rows of the type intent_row."""
    return [[(*_INTENT(intent), intent.created_at.timestamp()) for intent in intents]]


def write_holders(intents: Sequence[Intent]) -> Columns:
    """For ``find_holders``."""
    return list(zip(*map(_HOLDER, intents), strict=True))


def write_issued(issued: Sequence[Issued]) -> Columns:
    """For ``record_issued`` and ``record_issued_late``: rows of the type issued_row."""
    return [[_write_issued(one, one.event) for one in issued]]


def write_events(events: Sequence[Event]) -> Columns:
    """For ``record_events``."""
    columns: Columns = list(zip(*map(_EVENT, events), strict=True))
    columns.append([write_json(event.extra) if event.extra else None for event in events])
    return columns


def write_event(event: Event) -> Columns:
    """One event, for a statement that records it beside something else; always such as can be stored."""
    event = printable(event)
    return [*_EVENT(event), write_json(event.extra) if event.extra else None]


def write_revocation(revocation: Revocation) -> Columns:
    """For ``record_revocation``, before its event."""
    return [revocation.issuer_id, revocation.serial, revocation.reason, revocation.revoked_at]


def write_codes(codes: Sequence[EnrollmentCode]) -> Columns:
    """For ``record_codes``."""
    return list(zip(*map(_CODE, codes), strict=True))


def write_code_keys(codes: Sequence[EnrollmentCode]) -> Columns:
    """For ``find_recorded_codes``."""
    return list(zip(*map(_CODE_KEY, codes), strict=True))


def write_devices(devices: Sequence[Device]) -> Columns:
    """For ``record_devices``; of several rows for one device the last counts."""
    last = {(device.ecosystem_id, device.device): device for device in devices}.values()
    rows = [(device.ecosystem_id, device.device, device.subject, json.dumps(device.san)) for device in last]
    return list(zip(*rows, strict=True))


def write_json(value: Mapping[str, Any]) -> str:
    """As PostgreSQL's jsonb takes it."""
    return _ENCODER.encode(value)


def read_intent(row: Row) -> Intent:
    """An intent out of a row with its columns."""
    return Intent(
        request_key=row["request_key"],
        issuer_id=row["issuer_id"],
        serial=row["serial"],
        ecosystem_id=row["ecosystem_id"],
        ecosystem_version=row["ecosystem_version"],
        node_id=row["node_id"],
        profile=row["profile"],
        operation=row["operation"],
        identity=row["identity"],
        device=row["device"],
        csr_sha256=row["csr_sha256"],
        spki_sha256=row["spki_sha256"],
        tbs_sha256=row["tbs_sha256"],
        journal=row["journal"],
        code_id=row["code_id"],
        created_at=row["created_at"],
    )


def read_issuance(row: Row) -> Issuance:
    """An open intent with what became of it."""
    return Issuance(read_intent(row), None, row["der"], row["issued_at"], row["reason"])


def read_certificate(row: Row) -> StoredCertificate:
    """A stored certificate."""
    return StoredCertificate(
        issuer_id=row["issuer_id"],
        serial=row["serial"],
        ecosystem_id=row["ecosystem_id"],
        profile=row["profile"],
        device=row["device"],
        identity=row["identity"],
        certificate=row["der"],
        not_before=row["not_before"],
        not_after=row["not_after"],
        issued_at=row["issued_at"],
        revoked_at=row["revoked_at"],
    )


def read_revocation(row: Row) -> Revocation:
    """A revocation."""
    return Revocation(row["issuer_id"], row["serial"], row["reason"], row["revoked_at"])


def read_ecosystems(rows: Sequence[Row]) -> list[EcosystemRecord]:
    """Ecosystems out of rows that repeat each for each of its issuers."""
    issuers: dict[int, list[IssuerRecord]] = {}
    for row in rows:
        found = issuers.setdefault(row["ecosystem_id"], [])
        if row["issuer_id"] is not None:
            found.append(
                IssuerRecord(
                    issuer_id=row["issuer_id"],
                    ecosystem_id=row["ecosystem_id"],
                    name=row["name"],
                    parent_id=row["parent_id"],
                    certificate=row["certificate"],
                    sealed_key=row["sealed_key"],
                    created_at=row["created_at"],
                )
            )
    return [
        EcosystemRecord(
            ecosystem_id=row["ecosystem_id"],
            node_id=row["node_id"],
            label=row["label"],
            version=row["version"],
            document=json.loads(row["document"]),
            applied_at=row["applied_at"],
            applied_by=row["applied_by"],
            issuers=tuple(issuers[row["ecosystem_id"]]),
        )
        for row in {row["ecosystem_id"]: row for row in rows}.values()
    ]


def read_node(row: Row) -> Node:
    """A place in the tree."""
    return Node(row["node_id"], row["parent_id"], row["kind"], row["name"])


def read_code(row: Row) -> EnrollmentCode:
    """An enrollment code."""
    return EnrollmentCode(
        code_id=row["code_id"],
        ecosystem_id=row["ecosystem_id"],
        device=row["device"],
        secret_sha256=row["secret_sha256"],
        single_use=row["single_use"],
        profile=row["profile"],
        expires_at=row["expires_at"],
        created_at=row["created_at"],
        spent_at=row["spent_at"],
    )


def read_device(row: Row) -> Device:
    """An inventory row."""
    return Device(row["ecosystem_id"], row["device"], row["subject"], tuple(row["san"]))


def read_event(row: Row) -> Event:
    """An audit event."""
    return Event(
        at=row["at"],
        kind=row["kind"],
        outcome=row["outcome"],
        ecosystem=row["ecosystem"],
        ecosystem_id=row["ecosystem_id"],
        code=row["code"],
        detail=row["detail"],
        identity=row["identity"],
        address=row["address"],
        request_id=row["request_id"],
        issuer_id=row["issuer_id"],
        serial=row["serial"],
        extra={} if row["extra"] is None else json.loads(row["extra"]),
    )


def repeats(
    present: EcosystemRecord, document: Mapping[str, Any], new_issuers: Sequence[NewIssuer], applied_by: str
) -> bool:
    """Whether applying these is what made the present version."""
    issuers = {(issuer.name, issuer.certificate) for issuer in present.issuers}
    return (
        present.document == json.loads(write_json(document))
        and present.applied_by == applied_by
        and all((issuer.name, issuer.certificate) in issuers for issuer in new_issuers)
    )


def printable(event: Event) -> Event:
    """The event without the characters PostgreSQL cannot store: NUL and lone surrogates."""
    changed = {name: _printable(getattr(event, name)) for name in event.__struct_fields__}
    return msgspec.structs.replace(event, **changed)


def _write_issued(issued: Issued, event: Event) -> tuple[Any, ...]:
    # Times as seconds since 1970, exact for whole seconds: half of what asyncpg needs for the same as datetimes.
    return (
        issued.issuer_id, issued.serial, issued.certificate, issued.not_before.timestamp(), issued.not_after.timestamp(),
        issued.issued_at.timestamp(), event.at.timestamp(), *_EVENT_OF_ISSUED(event),
        _write_extra(event.extra) if event.extra else None,
    )  # fmt: skip


def _write_extra(extra: Mapping[str, Any]) -> str:
    """`write_json`, in a quarter of the time wherever the text is text."""
    try:
        return _FAST_ENCODER.encode(extra).decode()
    except ValueError:
        return write_json(extra)  # with its lone surrogates escaped, for the server to refuse


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_printable(name): _printable(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(member) for member in value]
    return value
