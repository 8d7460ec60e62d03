"""Holds the tables of intents, certificates and revocations against the journals, with SQL of its own.

`Ledger.check_entries` goes from the journal to the tables, some hundred entries at a time, and compares every column that
both speak of; `Ledger.check_rows` goes from the tables to what was seen of the journals, of which 64 bits for each entry and
128 for each block are kept.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from estd.auditor.certificates import find_fault, read_content, read_tbs
from estd.auditor.ecosystems import Ecosystems
from estd.auditor.findings import Findings, Invariant
from estd.auditor.journal import JournalBlock, KnownBlocks
from estd.auditor.notes import Note, compare_content, compare_note, compare_times, read_note
from estd.auditor.trail import key_of, sorted_array

Connection = asyncpg.Connection


@dataclass(frozen=True, slots=True)
class Times:
    """What the time says of rows."""

    now: datetime
    settled_within: timedelta
    """How long an intent may be without result."""
    reconciled_at: datetime | None = None
    """When the database was reconciled last, if it ever was."""

    @property
    def older_than(self) -> datetime:
        """Intents from before this time have a result or are closed."""
        return self.now - self.settled_within

    @property
    def foreign_older_than(self) -> datetime:
        """The same for those of a journal that is not here: they wait for it before they are given up."""
        return self.older_than - _FOREIGN_JOURNAL_AFTER


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a journal that waits to be checked."""

    where: str
    journal: str
    sequence: int
    time: int
    entry: list[Any]
    note: Note | None


class Ledger:
    """The tables, seen through one connection, and what the journals said."""

    def __init__(
        self,
        connection: Connection,
        findings: Findings,
        ecosystems: Ecosystems,
        times: Times,
        *,
        with_signatures: bool,
        partial: bool,
    ) -> None:
        self._connection = connection
        self._findings = findings
        self._ecosystems = ecosystems
        self._times = times
        self._with_signatures = with_signatures
        self._partial = partial
        self._waiting: list[_Entry] = []
        self._superseded: list[Any] = []
        self.journaled: array[int] = array("Q")
        """The key of every journal entry."""
        self.blocks: dict[str, KnownBlocks] = {}
        """What is kept of each journal."""

    async def check_entries(self, name: str, block: JournalBlock) -> None:
        """Take the entries of a block of that journal; they are checked when enough have gathered."""
        for entry in block.items:
            if not _is_entry(entry):
                self._findings.add(Invariant.UNBROKEN, block.where, "an entry of this block is none")
                continue
            self._findings.counts["journal_entries"] += 1
            self.journaled.append(key_of(entry[0], entry[1]))
            note = read_note(entry[4]) if len(entry) > 4 else None
            self._waiting.append(_Entry(block.where, name, block.sequence, block.time, entry, note))
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
        keys = [one.entry[0] for one in waiting], [one.entry[1] for one in waiting]
        codes = [None if one.note is None else one.note.code_id for one in waiting]
        for one, row in zip(waiting, await self._connection.fetch(_STANDING, *keys, codes), strict=True):
            self._check_entry(one, row)

    async def check_rows(self, connection: Connection, granted: array[int], advance: Callable[[int], None]) -> None:
        """Every intent and every certificate, against what the journals and the audit trail said.

        `granted` are the keys of all certificates that an event says were granted, in order.
        """
        journaled = sorted_array(self.journaled)
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
            if len(self._superseded) >= _BATCH:
                await self._check_superseded()
            if count % _BATCH == 0:
                advance(count)
        await self._check_superseded()
        advance(count)
        for journal, number in elsewhere.items():
            self._report_elsewhere(journal, number)
        for row in await connection.fetch(_TWICE):
            self._findings.add(
                Invariant.ONCE,
                f"intent request_key {row['request_key'].hex()}",
                f"{row['number']} intents hold it, serials {', '.join(serial.hex() for serial in row['serials'])}",
            )
        for row in await connection.fetch(_UNRESOLVED_UNKNOWN):
            where = f"unresolved_intent {row['issuer_id']}/{row['serial'].hex()}"
            self._findings.add(Invariant.SETTLED, where, "there is no such intent", row["serial"])
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

    def _check_entry(self, one: _Entry, row: Any) -> None:
        where, (issuer_id, serial, request_key, tbs) = one.where, one.entry[:4]
        add = self._findings.add
        if row["request_key"] is None:
            add(Invariant.INTENDED, where, "was about to be signed, and the database holds no intent for it", serial)
            if row["der"] is None:
                return
        elif row["request_key"] != request_key:
            add(Invariant.INTENDED, where, "the intent of this serial belongs to another request", serial)
        elif row["tbs_sha256"] != hashlib.sha256(tbs).digest():
            add(Invariant.ONE_CONTENT, where, "the intent of this serial is for another content", serial)
        self._compare(one, row)
        certificate = row["der"]
        if certificate is not None:
            self._check_certificate(where, issuer_id, serial, tbs, certificate)
        elif row["closed"] == "void":
            add(Invariant.SETTLED, where, "its intent is closed as never signed, and the journal has it", serial)
        elif row["closed"] == "superseded":
            add(Invariant.ON_RECORD, where, "its intent says that it was issued, and its certificate is gone", serial)

    def _compare(self, one: _Entry, row: Any) -> None:
        """Every column that the entry speaks of."""
        issuer_id, serial, _, tbs = one.entry[:4]
        content = read_content(tbs)
        if content is None:
            what = "the journaled bytes are not those of a certificate"
            self._findings.add(Invariant.UNBROKEN, one.where, what, serial)
            differences = []
        else:
            differences = list(compare_content(content, serial, row))
        if row["request_key"] is not None:
            if one.note is None:
                self._findings.counts["entries_without_note"] += 1
            else:
                differences += compare_note(one.note, row)
            mark = _MARK.fullmatch(row["journal"])
            marked_at = None
            if mark is not None:
                if mark[1] != one.journal or int(mark[2]) >= one.sequence:
                    what = f"its mark {row['journal']} is not from before its entry in journal {one.journal}"
                    differences.append((Invariant.UNBROKEN, what))
                else:
                    marked_at = self.blocks[one.journal].find_time(int(mark[2]))
            differences += compare_times(row["created_at"], one.time, marked_at)
        for invariant, what in differences:
            where = f"intent {issuer_id}/{serial.hex()}"
            self._findings.add(invariant, where, f"{what} ({one.where})", serial)

    def _check_certificate(self, where: str, issuer_id: int, serial: bytes, tbs: bytes, certificate: bytes) -> None:
        self._findings.counts["certificates_compared"] += 1
        if read_tbs(certificate) != tbs:
            what = "the certificate in the database has another content than the journal"
            self._findings.add(Invariant.ONE_CONTENT, where, what, serial)
            return
        if not self._with_signatures:
            return
        issuer = self._ecosystems.issuers.get(issuer_id)
        try:
            if issuer is None or issuer.certificate is None:
                fault: str | None = "its issuer is not known"
            else:
                fault = find_fault(certificate, serial, issuer.certificate)
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
        held = row["held_code_id"]
        if held is not None and (held != row["code_id"] or row["closed"] == "void"):
            add(Invariant.ONCE, where, f"holds enrollment code {held}, which was not spent for it", serial)
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
            issuer = self._ecosystems.issuers.get(issuer_id)
            if issuer is not None and not row["certificate_ecosystem_id"] == row["ecosystem_id"] == issuer.ecosystem_id:
                add(Invariant.INTENDED, where, "certificate, intent and issuer are not of one ecosystem", serial)
            if row["closed"] == "void":
                add(Invariant.SETTLED, where, "its intent is closed as never signed", serial)
            elif row["closed"] == "superseded":
                self._superseded.append(row)
            if row["is_unresolved"]:
                add(Invariant.SETTLED, where, "is issued, and its intent is still kept as unresolved", serial)
        elif row["closed"] is None:
            older_than = self._times.older_than if name in self.blocks else self._times.foreign_older_than
            if not row["is_unresolved"]:
                # What an event says was granted is missing from the table of certificates, as was told.
                if not _holds(granted, key):
                    what = "is open, and not among the unresolved: nobody will settle it"
                    add(Invariant.SETTLED, where, what, serial)
            elif row["created_at"] < older_than:
                add(Invariant.SETTLED, where, f"has no result since {row['created_at']:%Y-%m-%d %H:%M:%S}Z", serial)
        elif row["is_unresolved"]:
            add(Invariant.SETTLED, where, "is closed, and still kept as unresolved", serial)
        elif row["closed"] == "superseded":
            if not _holds(granted, key):
                add(Invariant.ON_RECORD, where, "says that it was issued, and its certificate is gone", serial)
        else:
            counts[f"intents_{row['closed']}"] += 1

    async def _check_superseded(self) -> None:
        """A certificate gives way to another when its time is over, revoked or not; else its request has two.

        What a reconciliation decided is left alone: it goes by what the journals say, which need not know why.
        """
        rows, self._superseded = self._superseded, []
        if not rows:
            return
        keys = ([row[name] for row in rows] for name in ("issuer_id", "serial", "request_key"))
        for row, found in zip(rows, await self._connection.fetch(_SUCCESSORS, *keys, self._times.now), strict=True):
            self._findings.counts["certificates_superseded"] += 1
            end = self._times.now if found["created_at"] is None else found["created_at"]
            window = self._ecosystems.find_retry_window(row["ecosystem_id"], row["profile"])
            reconciled_at = self._times.reconciled_at
            if reconciled_at is not None and row["created_at"] <= reconciled_at:
                continue
            # A batch repeats a certificate for all of its life, and the server asks for its own once, with a key made for
            # that; otherwise a request has its window and no more.
            is_for_life = row["operation"] in _FOR_LIFE
            is_in_time = found["is_over"] if is_for_life else end - row["created_at"] >= window
            if not is_in_time:
                time = "its life" if is_for_life else str(window)
                successor = "nothing took its place" if found["serial"] is None else f"{found['serial'].hex()} did"
                what = f"its request was taken from it before its time ({time}) was over; {successor}"
                where = f"intent {row['issuer_id']}/{row['serial'].hex()}"
                self._findings.add(Invariant.ONCE, where, what, row["serial"])

    def _check_mark(self, where: str, mark: str, serial: bytes) -> tuple[str, bool | None]:
        """The journal of a mark, and whether it bears the mark out; None when it cannot say."""
        match = _MARK.fullmatch(mark)
        if match is None:
            self._findings.add(Invariant.UNBROKEN, where, f"{mark!r} is no mark of a journal", serial)
            return mark.partition(".")[0], None
        name, sequence, digest = match[1], int(match[2]), int(match[3], 16)
        known = self.blocks.get(name)
        if known is None or sequence < known.before:
            return name, None
        before, digests = known.before, known.digests
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
_FOREIGN_JOURNAL_AFTER: Final = timedelta(minutes=15)
"""How long an intent of a journal that nobody keeps any more waits before it is closed (docs/reliability.md)."""
_STANDING: Final = """
SELECT
    intent.request_key, intent.tbs_sha256, intent.closed, intent.ecosystem_id, intent.ecosystem_version, intent.node_id,
    intent.profile, intent.operation, intent.identity, intent.device, intent.csr_sha256, intent.spki_sha256,
    intent.journal, intent.code_id, intent.held_code_id, intent.created_at, holder.serial AS code_holder,
    certificate.der, certificate.not_before, certificate.not_after
FROM unnest($1::integer[], $2::bytea[], $3::bigint[]) WITH ORDINALITY AS given (issuer_id, serial, code_id, place)
LEFT JOIN intent ON intent.issuer_id = given.issuer_id AND intent.serial = given.serial
LEFT JOIN intent AS holder ON holder.held_code_id = given.code_id
LEFT JOIN certificate ON certificate.issuer_id = given.issuer_id AND certificate.serial = given.serial
ORDER BY place
"""
_FOR_LIFE: Final = frozenset({"batch", "server-certificate"})
_SUCCESSORS: Final = """
SELECT
    successor.serial, successor.created_at,
    certificate.not_after < coalesce(successor.created_at, $4) AS is_over
FROM unnest($1::integer[], $2::bytea[], $3::bytea[]) WITH ORDINALITY AS given (issuer_id, serial, request_key, place)
LEFT JOIN intent AS successor ON successor.request_key = given.request_key AND successor.closed IS NULL
LEFT JOIN certificate ON certificate.issuer_id = given.issuer_id AND certificate.serial = given.serial
ORDER BY place
"""
_ROWS: Final = """
SELECT
    coalesce(intent.issuer_id, certificate.issuer_id) AS issuer_id, coalesce(intent.serial, certificate.serial) AS serial,
    intent.journal, intent.closed, intent.created_at, intent.request_key, intent.ecosystem_id, intent.profile,
    intent.operation, intent.code_id, intent.held_code_id, certificate.serial IS NOT NULL AS is_issued,
    certificate.ecosystem_id AS certificate_ecosystem_id, unresolved_intent.serial IS NOT NULL AS is_unresolved
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
_UNRESOLVED_UNKNOWN: Final = """
SELECT issuer_id, serial FROM unresolved_intent
WHERE NOT EXISTS (
    SELECT FROM intent WHERE intent.issuer_id = unresolved_intent.issuer_id AND intent.serial = unresolved_intent.serial
)
LIMIT 100
"""
