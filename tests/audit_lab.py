"""A journal and a database that are written as a server writes them, for audits that find something in them or nothing."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import structs
from postgres_fixture import NOW, Database
from store_values import make_intent, make_issued

from estd.asn1 import der
from estd.auditor.auditing import Scope, audit_url
from estd.auditor.findings import Findings
from estd.ra.notes import write_note
from estd.signer.blocks import Entry
from estd.signer.journal import Journal
from estd.store.contract import Intent, Issued, Outcome
from estd.store.postgres import PostgresStore

STARTS, ENDS = datetime(2030, 1, 1, tzinfo=UTC), datetime(2055, 1, 1, tzinfo=UTC)
KEY = der.sequence(der.sequence(), der.bit_string(b"key"))


def make_tbs(serial: bytes, subject: bytes = b"") -> bytes:
    validity = der.sequence(b"\x17\x0d300101000000Z", b"\x18\x0f20550101000000Z")
    number = bytes([2, len(serial)]) + serial
    return der.sequence(
        b"\xa0\x03\x02\x01\x02", number, der.sequence(), der.sequence(), validity, der.sequence(subject), KEY
    )


class System:
    """A journal and a database that are written as a server writes them, and sometimes not."""

    def __init__(self, store: PostgresStore, journal: Journal) -> None:
        self.store = store
        self.journal = journal

    def intend(self, number: int, **fields: Any) -> tuple[Intent, Entry]:
        serial = number.to_bytes(4, "big")
        tbs = make_tbs(serial)
        made: dict[str, Any] = {
            "serial": serial,
            "tbs_sha256": hashlib.sha256(tbs).digest(),
            "spki_sha256": hashlib.sha256(KEY).digest(),
            "journal": self.journal.mark,
            "created_at": NOW - timedelta(minutes=10),
        }
        intent = make_intent(**made | fields)
        note = write_note(
            intent.ecosystem_id, intent.ecosystem_version, intent.node_id, intent.profile, intent.operation,
            intent.identity, intent.device, intent.csr_sha256, intent.code_id,
        )  # fmt: skip
        return intent, Entry(intent.issuer_id, serial, intent.request_key, tbs, note)

    def result(self, intent: Intent, entry: Entry) -> Issued:
        certificate = der.sequence(entry.tbs, der.sequence(), der.bit_string(b"signature"))
        issued = make_issued(intent, certificate=certificate, not_before=STARTS, not_after=ENDS)
        extra = {"device": intent.device, "profile": intent.profile}
        return structs.replace(issued, event=structs.replace(issued.event, extra=extra))

    async def issue(self, number: int, **fields: Any) -> tuple[Intent, Entry]:
        intent, entry = self.intend(number, **fields)
        assert await self.store.reserve_intents([intent]) == [Outcome.RESERVED]
        self.journal.record_entries([entry], NOW)
        await self.store.record_issued([self.result(intent, entry)])
        return intent, entry


async def audit(database: Database, directory: Path, *, partial: bool = False, now: datetime = NOW) -> Findings:
    scope = Scope([directory], with_signatures=False, partial=partial)
    return await audit_url(database.url, scope, now, lambda _what, _count: None)


async def change(database: Database, *statements: str) -> None:
    """As whoever owns the database can, past the triggers that refuse it."""
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        for statement in statements:
            await connection.execute(statement)


def told(findings: Findings) -> set[tuple[str, str | None]]:
    return {(breach.invariant.value, breach.serial) for breach in findings.breaches}
