"""Holds the tables of intents, certificates and revocations against the journals, with SQL of its own.

`Ledger.check_entries` goes from the journal to the tables, some hundred entries at a time; `Ledger.check_rows` goes from the
tables to what was seen of the journals, of which 64 bits for each entry and each block are kept.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from estd.auditor.certificates import find_fault, read_tbs
from estd.auditor.findings import Findings, Invariant
from estd.auditor.journal import JournalBlock
from estd.auditor.trail import key_of

Connection = asyncpg.Connection


class Ledger:
    """The tables, seen through one connection, and what the journals said."""

    def __init__(
        self, connection: Connection, findings: Findings, older_than: datetime, *, with_signatures: bool, partial: bool
    ) -> None:
        self._connection = connection
        self._findings = findings
        self._older_than = older_than
        self._with_signatures = with_signatures
        self._partial = partial
        self._issuers: dict[int, x509.Certificate] = {}
        self._waiting: list[tuple[str, list[Any]]] = []
        self._results: dict[tuple[int, bytes], bytes] = {}
        self.journaled: array[int] = array("Q")
        """The key of every journal entry."""
        self.granted: array[int] = array("Q")
        """The key of every certificate that an audit event says was granted."""
        self.blocks: dict[str, tuple[int, array[int]]] = {}
        """Journal → sequence before its oldest block, and the beginning of every block's hash from that one on."""

    async def read_issuers(self) -> None:
        """Learn the issuers' certificates."""
        for row in await self._connection.fetch("SELECT issuer_id, certificate FROM issuer"):
            try:
                self._issuers[row["issuer_id"]] = x509.load_der_x509_certificate(row["certificate"])
            except ValueError:
                what = "its certificate cannot be read"
                self._findings.add(Invariant.ON_RECORD, f"issuer {row['issuer_id']}", what)

    async def check_entries(self, block: JournalBlock) -> None:
        """Take the entries of a block; they are checked when enough have gathered."""
        for entry in block.items:
            if not _is_entry(entry):
                self._findings.add(Invariant.UNBROKEN, block.where, "an entry of this block is none")
                continue
            self._findings.counts["journal_entries"] += 1
            self.journaled.append(key_of(entry[0], entry[1]))
            self._waiting.append((block.where, entry))
        if len(self._waiting) >= _BATCH:
            await self.flush()

    async def check_results(self, block: JournalBlock) -> None:
        """Certificates that the journal itself holds, against the tables."""
        await self.flush()
        for issuer_id, serial, certificate in block.items:
            self._findings.counts["journal_results"] += 1
            stored = await self._connection.fetchval(
                "SELECT der FROM certificate WHERE issuer_id = $1 AND serial = $2", issuer_id, serial
            )
            if stored is not None and stored != certificate:
                what = "the certificate is another one in the database than in the journal"
                self._findings.add(Invariant.ON_RECORD, block.where, what, serial)

    async def flush(self) -> None:
        """Check the entries that have gathered."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        keys = [entry[0] for _, entry in waiting], [entry[1] for _, entry in waiting]
        for (where, entry), row in zip(waiting, await self._connection.fetch(_STANDING, *keys), strict=True):
            self._check_entry(where, entry, row)

    async def check_rows(self, connection: Connection, advance: Callable[[int], None]) -> None:
        """Every intent and every certificate, against what the journals and the audit trail said."""
        journaled, granted = sorted_array(self.journaled), sorted_array(self.granted)
        before = None
        for key in journaled:
            if key == before:
                self._findings.add(Invariant.ONE_CONTENT, "journal", f"a serial has two entries (key {key:016x})")
            before = key
        elsewhere: Counter[str] = Counter()
        count = 0
        async for row in connection.cursor(_ROWS, prefetch=_BATCH):
            count += 1
            self._check_row(row, journaled, granted, elsewhere)
            if count % _BATCH == 0:
                advance(count)
        advance(count)
        for journal, number in elsewhere.items():
            self._report_elsewhere(journal, number)
        for row in await connection.fetch(_TWICE):
            self._findings.add(
                Invariant.ONCE,
                f"intent request_key {row['request_key'].hex()}",
                f"{row['number']} intents hold it, serials {', '.join(serial.hex() for serial in row['serials'])}",
            )
        for row in await connection.fetch(_REVOKED_UNKNOWN):
            self._findings.notices.append(
                f"serial {row['serial'].hex()} of issuer {row['issuer_id']} is revoked and was never intended"
            )

    async def check_received(self, received: Sequence[tuple[str, bytes]]) -> None:
        """Certificates that clients got: each is in the table, to the byte."""
        own = {bytes(row[0]) for row in await self._connection.fetch("SELECT certificate FROM issuer")}
        given = [(where, der) for where, der in received if der not in own]
        serials = [_read_serial(der) for _, der in given]
        issuers = [row[0] for row in await self._connection.fetch("SELECT issuer_id FROM issuer")]
        rows = await self._connection.fetch(
            "SELECT der FROM certificate WHERE issuer_id = ANY($1::integer[]) AND serial = ANY($2::bytea[])",
            issuers,
            serials,
        )
        stored = {bytes(row["der"]) for row in rows}
        for (where, der), serial in zip(given, serials, strict=True):
            self._findings.counts["received"] += 1
            if der not in stored:
                what = "a client holds this certificate, and the database does not"
                self._findings.add(Invariant.ON_RECORD, where, what, serial)

    # --- private -----------------------------------------------------------------------------------------------------

    def _check_entry(self, where: str, entry: list[Any], row: Any) -> None:
        issuer_id, serial, request_key, tbs = entry[:4]
        add = self._findings.add
        if row["request_key"] is None:
            add(Invariant.INTENDED, where, "was about to be signed, and the database holds no intent for it", serial)
            if row["der"] is None:
                return
        elif row["request_key"] != request_key:
            add(Invariant.INTENDED, where, "the intent of this serial belongs to another request", serial)
        elif row["tbs_sha256"] != hashlib.sha256(tbs).digest():
            add(Invariant.ONE_CONTENT, where, "the intent of this serial is for another content", serial)
        certificate = row["der"]
        if certificate is not None:
            self._check_certificate(where, issuer_id, serial, tbs, certificate)
        elif row["closed"] == "void":
            add(Invariant.SETTLED, where, "its intent is closed as never signed, and the journal has it", serial)
        elif row["closed"] == "superseded":
            add(Invariant.ON_RECORD, where, "its intent says that it was issued, and its certificate is gone", serial)

    def _check_certificate(self, where: str, issuer_id: int, serial: bytes, tbs: bytes, certificate: bytes) -> None:
        self._findings.counts["certificates_compared"] += 1
        if read_tbs(certificate) != tbs:
            what = "the certificate in the database has another content than the journal"
            self._findings.add(Invariant.ONE_CONTENT, where, what, serial)
            return
        if not self._with_signatures:
            return
        issuer = self._issuers.get(issuer_id)
        try:
            fault = "its issuer is not known" if issuer is None else find_fault(certificate, serial, issuer)
        except UnsupportedAlgorithm:
            self._findings.counts["signatures_not_verified"] += 1
            return
        if fault is not None:
            self._findings.add(Invariant.ON_RECORD, f"certificate {issuer_id}/{serial.hex()}", fault, serial)

    def _check_row(self, row: Any, journaled: array[int], granted: array[int], elsewhere: Counter[str]) -> None:
        issuer_id, serial, is_issued = row["issuer_id"], row["serial"], row["is_issued"]
        where = f"{'certificate' if is_issued else 'intent'} {issuer_id}/{serial.hex()}"
        add, counts = self._findings.add, self._findings.counts
        counts["certificates" if is_issued else "intents_without_result"] += 1
        if row["journal"] is None:
            add(Invariant.INTENDED, where, "has no intent", serial)
            return
        name, is_borne_out = self._check_mark(where, row["journal"], serial)
        key = key_of(issuer_id, serial)
        if is_issued:
            if name not in self.blocks:
                elsewhere[name] += 1
            elif not _holds(journaled, key):
                # A mark from before the oldest segment says nothing about an entry: it may be in the archive too.
                if is_borne_out is None and self._partial:
                    counts["older_than_the_journal"] += 1
                else:
                    add(Invariant.ON_RECORD, where, f"journal {name} has no entry for it", serial)
            if not _holds(granted, key):
                add(Invariant.UNBROKEN, where, "no audit event says that it was granted", serial)
            if row["closed"] == "void":
                add(Invariant.SETTLED, where, "its intent is closed as never signed", serial)
            if row["is_unresolved"]:
                add(Invariant.SETTLED, where, "is issued, and its intent is still kept as unresolved", serial)
        elif row["closed"] is None:
            if not row["is_unresolved"]:
                add(Invariant.SETTLED, where, "is open, and not among the unresolved: nobody will settle it", serial)
            elif row["created_at"] < self._older_than:
                add(Invariant.SETTLED, where, f"has no result since {row['created_at']:%Y-%m-%d %H:%M:%S}Z", serial)
        elif row["is_unresolved"]:
            add(Invariant.SETTLED, where, "is closed, and still kept as unresolved", serial)
        elif row["closed"] == "superseded":
            add(Invariant.ON_RECORD, where, "says that it was issued, and its certificate is gone", serial)
        else:
            counts[f"intents_{row['closed']}"] += 1

    def _check_mark(self, where: str, mark: str, serial: bytes) -> tuple[str, bool | None]:
        """The journal of a mark, and whether it bears the mark out; None when it cannot say."""
        match = _MARK.fullmatch(mark)
        if match is None:
            self._findings.add(Invariant.UNBROKEN, where, f"{mark!r} is no mark of a journal", serial)
            return mark.partition(".")[0], None
        name, sequence, digest = match[1], int(match[2]), int(match[3], 16)
        known = self.blocks.get(name)
        if known is None or sequence < known[0]:
            return name, None
        before, digests = known
        if sequence - before >= len(digests):
            what = f"journal {name} had reached block {sequence} then, and now ends with {before + len(digests) - 1}"
            self._findings.add(Invariant.UNBROKEN, where, what, serial)
            return name, False
        if digests[sequence - before] != digest:
            what = f"block {sequence} of journal {name} was another one when this was begun"
            self._findings.add(Invariant.UNBROKEN, where, what, serial)
            return name, False
        return name, True

    def _report_elsewhere(self, journal: str, number: int) -> None:
        what = f"{number} certificates are of it, and it is not here: nothing bears them out"
        if self._partial:
            self._findings.notices.append(f"journal {journal}: {what}")
        else:
            self._findings.add(Invariant.ON_RECORD, f"journal {journal}", what)


def sorted_array(values: array[int]) -> array[int]:
    """The same numbers in order."""
    return array("Q", sorted(values))


def _holds(values: array[int], key: int) -> bool:
    at = bisect_left(values, key)
    return at < len(values) and values[at] == key


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) in (4, 5)
        and isinstance(entry[0], int)
        and 0 <= entry[0] < 1 << 31
        and all(isinstance(part, bytes) for part in entry[1:])
    )


def _read_serial(certificate: bytes) -> bytes:
    number = x509.load_der_x509_certificate(certificate).serial_number
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


_BATCH: Final = 500
_MARK: Final = re.compile(r"([0-9]{1,4}-[0-9a-f]{16})\.([0-9]{1,18})\.([0-9a-f]{16})")
_STANDING: Final = """
SELECT intent.request_key, intent.tbs_sha256, intent.closed, certificate.der
FROM unnest($1::integer[], $2::bytea[]) WITH ORDINALITY AS given (issuer_id, serial, place)
LEFT JOIN intent ON intent.issuer_id = given.issuer_id AND intent.serial = given.serial
LEFT JOIN certificate ON certificate.issuer_id = given.issuer_id AND certificate.serial = given.serial
ORDER BY place
"""
_ROWS: Final = """
SELECT
    coalesce(intent.issuer_id, certificate.issuer_id) AS issuer_id, coalesce(intent.serial, certificate.serial) AS serial,
    intent.journal, intent.closed, intent.created_at, certificate.serial IS NOT NULL AS is_issued,
    unresolved_intent.serial IS NOT NULL AS is_unresolved
FROM intent
FULL JOIN certificate ON certificate.issuer_id = intent.issuer_id AND certificate.serial = intent.serial
LEFT JOIN unresolved_intent
    ON unresolved_intent.issuer_id = intent.issuer_id AND unresolved_intent.serial = intent.serial
"""
_TWICE: Final = """
SELECT request_key, count(*) AS number, array_agg(serial) AS serials
FROM intent WHERE closed IS NULL GROUP BY request_key HAVING count(*) > 1
"""
_REVOKED_UNKNOWN: Final = """
SELECT issuer_id, serial FROM revocation
WHERE NOT EXISTS (SELECT FROM intent WHERE intent.issuer_id = revocation.issuer_id AND intent.serial = revocation.serial)
LIMIT 100
"""
