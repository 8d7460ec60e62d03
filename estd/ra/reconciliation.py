"""A database at an older state than the signers' journals: everything that was signed is brought back on record.

The journals say what was about to be signed and for whom (`estd.ra.notes`); an intent is committed before its entry is
journaled, so an entry without an intent proves that the database was set back, or is another one. Each lost intent is
written again and then settled as any other that has no result: the same bytes are signed again. Promises:

* Serials, contents and request keys stay what they were, so a device that asks again gets what it got before.
* The newest lost request of a key holds the key again. Older ones, and one whose key was given to another certificate
  meanwhile, are recorded beside it: known, revocable, and closed as *orphan*.
* What cannot be signed again (another key than then, a rule that is gone) ends as an orphan without certificate.
* One that makes trouble keeps none of the others from being restored; it is reported.
* Repeating it, or being killed in the middle and repeating it, leads to the same.
* Nothing is written when the journals are not whole, are older than the database, or are another system's. Where some of
  this system's journals are not here, the others' certificates are restored, and those are named.

Journals are read twice rather than kept in memory: what is kept is one small row for each lost request.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509

from estd.asn1 import der
from estd.asn1.certificate import Fields, read_fields
from estd.audit import Event
from estd.errors import Invalid, Problem, Refused, Unavailable
from estd.ra.enrollment import Enrollment
from estd.ra.notes import read_note
from estd.signer.blocks import Block, Entry, Kind, Mark, read_anchor, read_entries, read_mark, write_mark
from estd.signer.blocks import read_note as read_segment
from estd.signer.segments import check_journal, read_journal
from estd.store.contract import Closing, EcosystemRecord, Intent, Outcome, Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Lost:
    """One entry without intent."""

    entry: Entry
    at: datetime
    mark: str


@dataclass(slots=True)
class Report:
    """What a reconciliation found and did."""

    entries: int = 0
    """Journal entries that were looked at."""
    missing: int = 0
    restored: list[str] = field(default_factory=list)
    """Serials, in hexadecimal, that are on record again with their certificate."""
    orphans: list[str] = field(default_factory=list)
    """Serials whose certificate could not be made again; they count as issued."""
    doubles: list[str] = field(default_factory=list)
    """Serials among `restored` that do not hold their request key, because a newer certificate does."""
    failed: list[str] = field(default_factory=list)
    """What could not even be recorded, and why."""
    open: list[str] = field(default_factory=list)
    """Serials of intents that were begun otherwise and could not be settled now; a server that runs tries again."""
    absent: list[str] = field(default_factory=list)
    """Journals that the database's newest certificates name, and that are not here: nobody knows what they held since."""
    lost_events: tuple[int, int] | None = None
    """Links of the audit trail that are lost: after the first, up to the second."""
    newest: dict[bytes, bytes] = field(default_factory=dict)
    """Request key → serial of its newest lost entry."""

    def write(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "entries": self.entries,
            "missing": self.missing,
            "restored": self.restored,
            "orphans": self.orphans,
            "doubles": self.doubles,
            "failed": self.failed,
            "open": self.open,
            "journals_absent": self.absent,
            "audit_links_lost": None if self.lost_events is None else list(self.lost_events),
        }

    def describe(self) -> list[tuple[str, str]]:
        """Ready for a person."""
        lost = "" if self.lost_events is None else f"links {self.lost_events[0] + 1} to {self.lost_events[1]}"
        return [
            ("journal entries", str(self.entries)),
            ("missing in the database", str(self.missing)),
            ("restored", str(len(self.restored)) if self.restored else ""),
            ("older than what holds their request", str(len(self.doubles)) if self.doubles else ""),
            ("orphans", "\n".join(self.orphans)),
            ("not restored", "\n".join(self.failed)),
            ("still open, left to the server", "\n".join(self.open)),
            ("journals that are not here", "\n".join(self.absent)),
            ("audit trail lost", lost),
            ("revocations", "not in the journals: repeat those made since then" if self.missing else ""),
        ]


class Reconciliation:
    """One reconciliation: `survey`, then `restore`, then `record`."""

    def __init__(
        self,
        store: Store,
        enrollment: Enrollment | None,
        journals: Sequence[Path],
        clock: Callable[[], datetime],
        advance: Callable[[str, int], None],
        *,
        partial: bool = False,
    ) -> None:
        """`partial`: other journals of this system are elsewhere or lost for good; none of its own need be known."""
        self._store = store
        self._enrollment = enrollment
        self._journals = journals
        self._clock = clock
        self._advance = advance
        self._partial = partial
        self._issuers: dict[int, tuple[EcosystemRecord, bytes, bytes]] = {}
        """Issuer → its ecosystem, its subject (DER), its subject key identifier."""

    async def survey(self) -> Report:
        """What is missing. Changes nothing.

        Raises:
            Invalid: nothing must be restored from these journals into this database.
            Unavailable: the database does not answer.
        """
        report = Report()
        await self._read_issuers()
        report.absent = await self._check_journals()
        foreign = Counter[int]()
        anchors: dict[int, bytes] = {}
        for blocks in _in_groups(self._blocks()):
            lost = await self._find_lost(blocks, report)
            for one in lost:
                if self._find_issuer(one.entry) is None:
                    foreign[one.entry.issuer_id] += 1
                    continue
                report.missing += 1
                report.newest[one.entry.request_key] = one.entry.serial
            for _, block in blocks:
                if (anchor := read_anchor(block)) is not None:
                    anchors[anchor.link_id] = anchor.digest
            self._advance("journal entries", report.entries)
        if foreign and sum(foreign.values()) == report.entries:
            what = "holds nothing of what these journals signed, and none of their issuers"
            remedy = (
                "Are database and journals of one system? Was the database restored before its ecosystems were applied?"
            )
            raise Invalid([Problem("the database", what, remedy)])
        for issuer_id, number in sorted(foreign.items()):
            report.failed.append(
                f"{number} certificates of issuer {issuer_id}: the database has no such issuer, or another one by that "
                "number. Restore a backup that has it"
            )
        report.lost_events = await self._find_lost_links(anchors)
        return report

    async def restore(self, report: Report) -> Report:
        """Bring back what the survey found missing.

        Raises:
            Unavailable: the database or a signer does not answer; what was done stands, and repeating goes on with it.
        """
        await self._read_issuers()
        for blocks in _in_groups(self._blocks()):
            for one in await self._find_lost(blocks, Report()):
                try:
                    await self._restore_one(one, report)
                except Unavailable:
                    raise  # nor would the next one be
                except Exception as fault:  # noqa: BLE001 - whatever it is, the others are to be restored
                    serial = one.entry.serial.hex()
                    _log.exception("a certificate cannot be restored", extra={"serial": serial, "mark": one.mark})
                    report.failed.append(f"{serial}: {fault}. Keep database and journals, and report it")
                self._advance("restored", len(report.restored))
        assert self._enrollment is not None
        # What another node began may be among them, and is nothing that this database would have to be refused for.
        begun = await self._store.find_open_intents(self._clock() - _SETTLE_AFTER, _SETTLE_AT_ONCE)
        report.open = [intent.serial.hex() for intent in await self._enrollment.settle_all(begun)]
        return report

    async def record(self, report: Report, user: str) -> None:
        """An audit event that says what was done, if anything was."""
        if not report.restored and not report.orphans and report.lost_events is None:
            return
        extra: dict[str, Any] = {
            "by": user,
            "restored": len(report.restored),
            "orphans": len(report.orphans),
            "doubles": len(report.doubles),
        }
        if report.lost_events is not None:
            extra |= {"links_after": report.lost_events[0], "links_until": report.lost_events[1]}
        await self._store.record_events(
            [Event(self._clock(), "audit.reconcile", "granted", identity=user, extra=extra)]
        )

    # --- looking -----------------------------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[tuple[str, Block]]:
        """Every block of every journal, with the journal's name."""
        for directory in self._journals:
            for slot in find_slots(directory):
                name = ""
                for block in read_journal(directory, slot):
                    if block.kind is Kind.SEGMENT:
                        name = read_segment(block).journal
                    yield name, block

    async def _read_issuers(self) -> None:
        for record in await self._store.find_ecosystems():
            for issuer in record.issuers:
                certificate = x509.load_der_x509_certificate(issuer.certificate)
                key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
                self._issuers[issuer.issuer_id] = (record, read_fields(issuer.certificate).subject, key_id)

    async def _check_journals(self) -> list[str]:
        """Whether the journals are whole, and hold everything that the database says they held; those it names beside."""
        marks = [mark for text in await self._store.find_newest_marks(_MARKS) if (mark := read_mark(text)) is not None]
        known: set[str] = set()
        for directory in self._journals:
            slots = find_slots(directory)
            if not slots:
                raise Invalid(
                    [Problem(str(directory), "holds no journal", "Name the directory of the signers' journals.")]
                )
            for slot in slots:
                audit = await asyncio.to_thread(check_journal, directory, slot)
                known.add(audit.journal)
                newest = max((mark.sequence for mark in marks if mark.journal == audit.journal), default=0)
                if newest > audit.last:
                    what = (
                        f"is older than the database: it ends with block {audit.last}, and had reached block {newest} "
                        "when the database's newest certificates were begun"
                    )
                    remedy = "Never restore a journal from a backup. Put the newest files back (docs/reliability.md)."
                    raise Invalid([Problem(f"journal {audit.journal} in {directory}", what, remedy)])
                own = [write_mark(mark) for mark in marks if mark.journal == audit.journal]
                if own:
                    await asyncio.to_thread(check_journal, directory, slot, own)
        named = {mark.journal for mark in marks}
        if named and not known & named and not self._partial:
            what = (
                "are not those of this database: none of its newest certificates was begun with one of them, but with "
                f"{', '.join(sorted(named))}"
            )
            remedy = (
                "Name the journals of this system; those of all its nodes, if it has several. Where those are lost for "
                "good and these are of this system too, say --partial."
            )
            raise Invalid([Problem("the journals", what, remedy)])
        return sorted(named - known)

    async def _find_lost(self, blocks: Sequence[tuple[str, Block]], report: Report) -> list[_Lost]:
        """The entries in these blocks that have no intent, oldest first."""
        found: dict[tuple[int, bytes], _Lost] = {}
        for name, block in blocks:
            # As the entry's own intent would have had it: how far the journal had come just before.
            mark = write_mark(Mark(name, block.sequence - 1, block.previous[:8]))
            for entry in read_entries(block):
                report.entries += 1
                found[entry.issuer_id, entry.serial] = _Lost(entry, block.at, mark)
        return [found[key] for key in await self._store.find_unintended(list(found))] if found else []

    def _find_issuer(self, entry: Entry) -> EcosystemRecord | None:
        """The ecosystem of the issuer that these bytes name; None where the database has another one by that number."""
        issuer = self._issuers.get(entry.issuer_id)
        if issuer is None:
            return None
        record, subject, key_id = issuer
        fields = _read_tbs(entry.tbs)
        return record if fields is not None and fields.issuer == subject and key_id in entry.tbs else None

    async def _find_lost_links(self, anchors: Mapping[int, bytes]) -> tuple[int, int] | None:
        """Which links of the audit trail the journals know and the database does not, nor an earlier reconciliation."""
        lost: list[int] = []
        ids = sorted(anchors)
        for at in range(0, len(ids), _GROUP):
            some = ids[at : at + _GROUP]
            found = await self._store.find_links(some)
            lost += [link_id for link_id in some if found.get(link_id) != anchors[link_id]]
        if lost:
            told = await self._store.find_lost_links()
            lost = [link_id for link_id in lost if not any(low < link_id <= high for low, high in told)]
        return (lost[0] - 1, lost[-1]) if lost else None

    # --- restoring ---------------------------------------------------------------------------------------------------

    async def _restore_one(self, lost: _Lost, report: Report) -> None:
        record = self._find_issuer(lost.entry)
        if record is None:
            return  # the survey told
        serial = lost.entry.serial.hex()
        intent = _write_intent(lost, record)
        assert self._enrollment is not None
        if not await self._reserve(intent, report):
            report.doubles.append(serial)
        certificate = await self._enrollment.settle(intent)
        (report.orphans if certificate is None else report.restored).append(serial)

    async def _reserve(self, intent: Intent, report: Report) -> bool:
        """Write the intent again; whether it holds its request key."""
        assert self._enrollment is not None
        if report.newest.get(intent.request_key) == intent.serial:
            holder = (await self._store.find_issuances([intent.request_key])).get(intent.request_key)
            if holder is not None and holder.intent.created_at < intent.created_at:
                # What the database remembers was followed by this one, once its time was over.
                if holder.certificate is None:
                    await self._enrollment.settle(holder.intent)
                await self._store.close_intent(holder.intent.issuer_id, holder.intent.serial, Closing.SUPERSEDED)
            for attempt in (intent, msgspec.structs.replace(intent, code_id=None)):
                (outcome,) = await self._store.reserve_intents([attempt])
                if outcome is Outcome.RESERVED:
                    return True
                if outcome is Outcome.EXISTS:
                    break
        await self._store.restore_intents([intent], Closing.ORPHAN)
        return False


def find_slots(directory: Path) -> list[int]:
    """The slots whose journals a directory holds.

    Raises:
        Invalid: it cannot be read.
    """
    try:
        matches = [re.fullmatch(r"journal-([0-9]{1,4})\.head", path.name) for path in directory.iterdir()]
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        remedy = "Name the directory of the signers' journals, and be their user."
        raise Invalid([Problem(str(directory), what, remedy)]) from None
    return sorted(int(match[1]) for match in matches if match)


# --- private -------------------------------------------------------------------------------------------------------


def _write_intent(lost: _Lost, record: EcosystemRecord) -> Intent:
    entry = lost.entry
    fields = _read_tbs(entry.tbs)
    assert fields is not None
    note = read_note(entry.note)
    return Intent(
        request_key=entry.request_key,
        issuer_id=entry.issuer_id,
        serial=entry.serial,
        # The ecosystem is the issuer's, whatever a note says.
        ecosystem_id=record.ecosystem_id,
        ecosystem_version=record.version if note is None else note.ecosystem_version,
        node_id=record.node_id,
        profile="" if note is None else note.profile,
        operation="unknown" if note is None else note.operation,
        identity="" if note is None else note.identity,
        device="" if note is None else note.device,
        csr_sha256=b"" if note is None else note.csr_sha256,
        spki_sha256=hashlib.sha256(fields.spki).digest(),
        tbs_sha256=hashlib.sha256(entry.tbs).digest(),
        journal=lost.mark,
        code_id=None if note is None else note.code_id,
        created_at=lost.at,
    )


def _read_tbs(tbs: bytes) -> Fields | None:
    """The fields of what is to be a certificate; None where it is not."""
    try:
        return read_fields(der.sequence(tbs))
    except Refused:
        return None


def _in_groups(blocks: Iterator[tuple[str, Block]]) -> Iterator[list[tuple[str, Block]]]:
    while group := list(islice(blocks, _GROUP)):
        yield group


_GROUP: Final = 100
_MARKS: Final = 100
_SETTLE_AFTER: Final = timedelta(seconds=60)
_SETTLE_AT_ONCE: Final = 10_000
