"""What a signer does with a request, whatever brought it: prepare, seal, resume. Never twice, never unrecorded.

    prepared (in memory, for a while) → journaled (durable) → signed → answered

* A prepared item is spent by the one `Seal` that names it, by a `Resume` that is told NEVER_SIGNED, or by time. Nothing
  else can be sealed, so no serial is ever signed for two contents.
* All seals of one turn share one journal flush; no signature is made before it returned. If the journal has no room the
  items are refused and forgotten. If it failed (`Broken`) the process must end: only opening it again tells the truth.
* One bad item is refused alone.

The issuance engine is given (`Engine`); this module must not know keys, sockets or clocks.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, Protocol, TypeVar

from estd.errors import Code, Refused, Unavailable
from estd.signer.blocks import Anchor as AnchorRecord
from estd.signer.blocks import Entry, Result
from estd.signer.frames import (
    FRAME_MAX_BYTES,
    Anchor,
    Done,
    Failed,
    Load,
    Prepare,
    Prepared,
    PreparedItem,
    PrepareItem,
    RefusedItem,
    Resume,
    Resumed,
    ResumeItem,
    Seal,
    Sealed,
    SealItem,
    Status,
    StatusReport,
    Verdict,
    refuse_all,
    write_refusal,
)
from estd.signer.journal import Journal

_log = logging.getLogger(__name__)


class Approved(Protocol):
    """A certificate that was checked, built and linted, as the engine hands it over and takes it back once."""

    @property
    def issuer_id(self) -> int:
        """Whose key is to sign."""

    @property
    def serial(self) -> bytes:
        """Content octets of the serial INTEGER."""

    @property
    def tbs(self) -> bytes:
        """The exact to-be-signed bytes."""

    @property
    def tbs_sha256(self) -> bytes:
        """Their hash."""

    @property
    def spki_sha256(self) -> bytes:
        """Hash of the subject's public key."""

    @property
    def not_before(self) -> datetime:
        """Aware UTC, to the second."""

    @property
    def not_after(self) -> datetime:
        """Aware UTC, to the second."""


_Approved = TypeVar("_Approved", bound=Approved)


class Engine(Protocol[_Approved]):
    """What turns a request into a certificate. `at` is monotonic, in seconds."""

    def unlock(self, kek: bytes) -> None:
        """Take the key-encryption key with which issuer keys were sealed."""

    def block(self, keys: frozenset[bytes]) -> None:
        """Refuse these keys, by the SHA-256 of their SubjectPublicKeyInfo."""

    def load(self, load: Load, at: float) -> None:
        """Make one version of an ecosystem ready; the version before stays for requests that are on their way.

        Raises:
            Invalid: its document or a key cannot be read; what was loaded before stays.
        """

    def drop(self, ecosystem_id: int) -> None:
        """Forget an ecosystem and its keys."""

    def expire(self, at: float) -> None:
        """Forget versions that were replaced long enough ago."""

    def versions(self) -> dict[int, list[int]]:
        """Ecosystem → versions that can be prepared for."""

    def read_all(self, items: Sequence[PrepareItem]) -> None:
        """Do ahead, for all of these, what `prepare` can do without knowing the time. Refuses nothing."""

    def prepare(self, item: PrepareItem, now: datetime) -> _Approved:
        """Check a request and build its certificate up to the signature.

        Raises:
            Refused: the profile or the key rules forbid it.
            Unavailable: this version of the ecosystem is not known here, or not any more.
        """

    def seal(self, approved: Sequence[_Approved]) -> list[bytes | Refused | Unavailable]:
        """Sign each, in order; the certificate or why there is none."""

    def is_repeatable(self, issuer_id: int) -> bool | None:
        """Whether this issuer's key makes the same signature again; None while the issuer is not known."""

    def repeat(self, issuer_id: int, tbs: bytes) -> bytes:
        """Sign journaled bytes again, with a key that is repeatable.

        Raises:
            Refused: no rule that is loaded would allow these bytes.
            Unavailable: the issuer or its key is not there now.
        """


@dataclass(slots=True)
class Counters:
    """What the signer did since it started."""

    prepare_batches: int = 0
    prepare_items: int = 0
    prepare_seconds: float = 0.0
    refused_items: int = 0
    seal_batches: int = 0
    seal_items: int = 0
    sign_seconds: float = 0.0
    resume_items: int = 0
    never_signed: int = 0
    unknown: int = 0
    expired: int = 0


class Signer(Generic[_Approved]):
    """Engine and journal of one slot, and what is prepared between them."""

    def __init__(
        self,
        engine: Engine[_Approved],
        journal: Journal,
        prepared_limit: int,
        prepared_seconds: float,
        clock_tolerance_seconds: float,
    ) -> None:
        self.engine = engine
        self.journal = journal
        self.counters = Counters()
        self.draining = False
        self._limit = prepared_limit
        self._seconds = prepared_seconds
        self._clock_tolerance_seconds = clock_tolerance_seconds
        self._prepared: OrderedDict[tuple[int, bytes], tuple[float, bytes, bytes, _Approved]] = OrderedDict()
        """Issuer and serial → (until when, request key, note, what may be sealed), oldest first."""
        self._hindrance = ""
        """What was said last about why nothing can be prepared."""

    @property
    def prepared(self) -> int:
        """How many items wait to be sealed."""
        return len(self._prepared)

    def prepare(self, request: Prepare, now: datetime, at: float) -> Prepared:
        """Check and build; keep what is good for a while. `now` is as exact as the clock, for the serials' sake."""
        started = time.perf_counter()
        self.counters.prepare_batches += 1
        self.counters.prepare_items += len(request.items)
        reason = self._find_hindrance(now, len(request.items))
        if reason is not None:
            self.counters.refused_items += len(request.items)
            return Prepared(request.number, self.journal.mark, refuse_all(request.items, reason))
        self.engine.read_all(request.items[: self._limit - len(self._prepared)])
        items = tuple(self._prepare_one(item, now, at) for item in request.items)
        self.counters.prepare_seconds += time.perf_counter() - started
        return Prepared(request.number, self.journal.mark, items)

    def seal(self, requests: Sequence[Seal], now: datetime) -> list[Sealed]:
        """Journal and sign everything these requests name that is prepared; one answer each.

        Raises:
            Broken: the journal failed; nothing of this was signed, and the process must end.
        """
        spent: list[tuple[bytes, bytes, _Approved]] = []
        answers: list[list[int | RefusedItem]] = []
        for request in requests:
            for item in request.unwanted:
                self._prepared.pop((item.issuer_id, item.serial), None)
            answer: list[int | RefusedItem] = []
            for item in request.items:
                held = self._prepared.pop((item.issuer_id, item.serial), None)
                if held is None:
                    answer.append(_NOT_PREPARED)
                else:
                    answer.append(len(spent))
                    spent.append(held[1:])
            answers.append(answer)
        results = self._sign(spent, now) if spent else []
        self.counters.seal_batches += 1
        self.counters.seal_items += len(spent)
        return [
            Sealed(request.number, _fit([item if isinstance(item, RefusedItem) else results[item] for item in answer]))
            for request, answer in zip(requests, answers, strict=True)
        ]

    def resume(self, request: Resume) -> Resumed:
        """Tell what became of each item, and make sure that it stays true.

        Raises:
            Broken: the journal failed; the process must end.
        """
        covered = self.journal.covers(request.mark)
        self.counters.resume_items += len(request.items)
        return Resumed(request.number, _fit([self._resume_one(item, covered) for item in request.items]))

    def report(self, request: Status, counters: dict[str, int | float], now: datetime) -> StatusReport:
        """The state of this signer, with the counters of whoever serves it."""
        journal = self.journal.counters
        hindrance = self._find_hindrance(now, _GROUP_ITEMS)
        own = {name: getattr(self.counters, name) for name in Counters.__dataclass_fields__}
        return StatusReport(
            number=request.number,
            journal=self.journal.name,
            draining=self.draining,
            ecosystems=self.engine.versions(),
            prepared=len(self._prepared),
            counters={
                **own,
                "journal_blocks": journal.blocks,
                "journal_bytes": journal.written_bytes,
                "journal_flushes": journal.flushes,
                "journal_flush_seconds": journal.flush_seconds,
                **counters,
            },
            hindrance="" if hindrance is None else hindrance.detail,
            newest=tuple(SealItem(issuer_id, serial) for issuer_id, serial in self.journal.newest()),
        )

    def anchor(self, request: Anchor, now: datetime) -> Done | Failed:
        """Keep how far the audit trail has come; flushed with what comes next, or by `keep_house`.

        Raises:
            Broken: the journal failed; the process must end.
        """
        try:
            self.journal.record_anchor(AnchorRecord(request.link_id, request.digest), now)
        except Unavailable as reason:
            return Failed(request.number, reason.detail)
        return Done(request.number)

    def keep_house(self, at: float) -> None:
        """Forget what was prepared too long ago, and versions replaced long enough ago; flush results left over.

        Raises:
            Broken: the journal failed; the process must end.
        """
        self.journal.flush()
        while self._prepared:
            key, held = next(iter(self._prepared.items()))
            if held[0] > at:
                break
            del self._prepared[key]
            self.counters.expired += 1
        self.engine.expire(at)

    # --- private -----------------------------------------------------------------------------------------------------

    def _find_hindrance(self, now: datetime, items: int) -> Unavailable | None:
        """Why nothing at all, or not so much, can be prepared now; found before anything is spent on it."""
        hindrance: Unavailable | None = None
        if self.draining:
            hindrance = Unavailable(Code.SIGNER_UNAVAILABLE, "this signer is stopping")
        elif now.timestamp() + self._clock_tolerance_seconds < self.journal.last_time:
            # Its certificates would begin before the newest one did, and their serials would sort among older ones.
            hindrance = Unavailable(Code.SIGNER_UNAVAILABLE, "the signer's clock went backwards", 60)
        else:
            try:
                self.journal.set_aside((len(self._prepared) + items) * _ENTRY_BYTES)
            except Unavailable as reason:
                hindrance = reason
        said = "" if hindrance is None else hindrance.detail
        if said != self._hindrance:
            self._hindrance = said
            if hindrance is None:
                _log.warning("certificates can be prepared again")
            else:
                _log.error("nothing can be prepared", extra={"why": said, "journal_time": self.journal.last_time})
        return hindrance

    def _prepare_one(self, item: PrepareItem, now: datetime, at: float) -> PreparedItem | RefusedItem:
        if len(self._prepared) >= self._limit:
            self.counters.refused_items += 1
            return _FULL
        try:
            approved = self.engine.prepare(item, now)
        except (Refused, Unavailable) as reason:
            self.counters.refused_items += 1
            return write_refusal(reason)
        except Exception:  # noqa: BLE001 - one request that nobody foresaw must not stop all others
            _log.exception("a request could not be prepared", extra={"request_key": item.request_key.hex()})
            self.counters.refused_items += 1
            return _FAULT
        key = (approved.issuer_id, approved.serial)
        if key in self._prepared:
            _log.error("the engine chose a serial twice", extra={"serial": approved.serial.hex()})
            return _FAULT
        self._prepared[key] = (at + self._seconds, item.request_key, item.note, approved)
        return PreparedItem(
            approved.issuer_id,
            approved.serial,
            approved.tbs_sha256,
            approved.spki_sha256,
            approved.not_before,
            approved.not_after,
        )

    def _sign(self, spent: Sequence[tuple[bytes, bytes, _Approved]], now: datetime) -> list[bytes | RefusedItem]:
        entries = [
            Entry(approved.issuer_id, approved.serial, request_key, approved.tbs, note)
            for request_key, note, approved in spent
        ]
        try:
            self.journal.record_entries(entries, now)
        except Unavailable as reason:
            _log.error("not signed: %s", reason.detail, extra={"items": len(entries)})
            return list(refuse_all(entries, reason))
        started = time.perf_counter()
        try:
            sealed = self.engine.seal([approved for _, _, approved in spent])
        except Exception:  # noqa: BLE001 - all of it is on record; the answer for each is found by Resume
            _log.exception("signing failed", extra={"items": len(entries)})
            return [_FAULT] * len(spent)
        finally:
            self.counters.sign_seconds += time.perf_counter() - started
        self._record_results(sealed, entries, now)
        return [item if isinstance(item, bytes) else write_refusal(item) for item in sealed]

    def _record_results(
        self, sealed: Sequence[bytes | Refused | Unavailable], entries: Sequence[Entry], now: datetime
    ) -> None:
        """Keep what a key would not make a second time."""
        results = [
            Result(entry.issuer_id, entry.serial, item)
            for entry, item in zip(entries, sealed, strict=True)
            if isinstance(item, bytes) and not self.engine.is_repeatable(entry.issuer_id)
        ]
        if not results:
            return
        try:
            self.journal.record_results(results, now)
        except Unavailable as reason:
            # The entries are on record, so nothing is unlogged; only a crash before the answer is stored costs it.
            _log.error("results not journaled: %s", reason.detail, extra={"items": len(results)})

    def _resume_one(self, item: ResumeItem, covered: bool) -> bytes | Verdict | RefusedItem:
        found = self.journal.find(item.issuer_id, item.serial)
        if found is None:
            # Forgotten first, so that whatever is answered now cannot become false.
            self._prepared.pop((item.issuer_id, item.serial), None)
            if covered:
                self.counters.never_signed += 1
                return Verdict.NEVER_SIGNED
            self.counters.unknown += 1
            return Verdict.UNKNOWN
        if hashlib.sha256(found.entry.tbs).digest() != item.tbs_sha256:
            _log.error("an intent and the journal disagree", extra={"serial": item.serial.hex()})
            self.counters.unknown += 1
            return Verdict.UNKNOWN
        if found.certificate is not None:
            return found.certificate
        return self._repeat(item, found.entry.tbs)

    def _repeat(self, item: ResumeItem, tbs: bytes) -> bytes | Verdict | RefusedItem:
        try:
            repeatable = self.engine.is_repeatable(item.issuer_id)
            if repeatable is None:
                return _NOT_LOADED
            if repeatable:
                return self.engine.repeat(item.issuer_id, tbs)
        except Unavailable as reason:
            return write_refusal(reason)
        except Refused as reason:
            # Signed perhaps under rules that are gone, or never meant to be: nothing to hand out, and nothing to deny.
            _log.error("journaled bytes are not signed again", extra={"serial": item.serial.hex(), "why": str(reason)})
        except Exception:  # noqa: BLE001 - a fault in one must not stop all others; it can be asked for again
            _log.exception("journaled bytes could not be signed again", extra={"serial": item.serial.hex()})
            return _FAULT
        self.counters.unknown += 1
        return Verdict.UNKNOWN


_NOT_PREPARED: Final = RefusedItem(Code.SIGNER_UNAVAILABLE, "this is not prepared here, or not any more; resume it")
_NOT_LOADED: Final = RefusedItem(Code.SIGNER_UNAVAILABLE, "the issuer is not loaded; ask again")
_FULL: Final = RefusedItem(Code.OVERLOADED, "too much is prepared and not sealed")
_FAULT: Final = RefusedItem(Code.INTERNAL, "the signer met a fault of its own")
_TOO_LONG: Final = RefusedItem(Code.OVERLOADED, "the answer is too long for one frame; resume it")
_ITEMS_MAX_BYTES: Final = FRAME_MAX_BYTES // 2
_ITEM_OVERHEAD_BYTES: Final = 8
_GROUP_ITEMS: Final = 64
"""What a signer has to find room for to be called able: a large group, so that small ones do not seem to say it is."""
_ENTRY_BYTES: Final = 4096
"""Room that a journal entry finds, generously: to-be-signed bytes, request key and note."""

_Item = TypeVar("_Item")


def _fit(items: list[_Item]) -> tuple[_Item | RefusedItem, ...]:
    """The items that fit one frame; what is too much is there to be resumed."""
    room = _ITEMS_MAX_BYTES
    fitting: list[_Item | RefusedItem] = []
    for item in items:
        room -= len(item) + _ITEM_OVERHEAD_BYTES if isinstance(item, bytes) else 0
        fitting.append(item if room >= 0 or not isinstance(item, bytes) else _TOO_LONG)
    return tuple(fitting)
