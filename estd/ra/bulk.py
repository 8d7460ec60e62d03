"""The road to a certificate for whole groups: what a registration authority asks for on behalf of devices (RFC 7030 §3.7).

The same road as `estd.ra.enrollment`'s, with the same records on it (intent, journal, certificate with its audit event),
but a group is one task from end to end and its items have none of their own. Promises:

* An answer that holds a certificate is committed; everything that might have been signed is on record as an intent.
* One request under one profile has one certificate, however often and by whichever authority of the ecosystem it is
  sent, for as long as that certificate is valid. Nothing that was begun stops because nobody waits for it any more.
* One bad request is refused alone, and recorded as any refusal is.
* Devices come first: no more than `GROUPS_AT_ONCE` groups of one worker are under way, however many batches there are; a
  signer gets them in slices, between which it serves others; and while devices wait for a group of theirs, each slice
  waits a moment too, but not for ever.

The authority vouches for the names it asks for, and for the link between request and device that RFC 7030 §3.5 is
about, since it saw the device and this server did not. What it asks for has to pass the profile all the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from cryptography import x509

from estd.audit import Event
from estd.errors import Broken, Code, Refused, Unavailable
from estd.names import EMPTY_NAME, device_name, normalise_device, same_name, same_san, write_name, write_san
from estd.ra.admission import Admitted, Purpose
from estd.ra.enrollment import Enrollment
from estd.ra.notes import write_note
from estd.ra.order import write_batch_key
from estd.ra.trail import Trail, log_event
from estd.signer.blocks import journal_of
from estd.signer.client import SignerPool
from estd.signer.frames import PreparedItem, PrepareItem, RefusedItem, SealItem, read_refusal
from estd.store.contract import Closing, Device, Intent, Issuance, Issued, Outcome, Store
from estd.wire.pkcs10 import read_asked_names

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

GROUP_SIZE: Final = 128
GROUPS_AT_ONCE: Final = 2
SLICE_SIZE: Final = 32
"""How many items a signer prepares for a batch before it turns to whoever else is waiting: some six milliseconds."""
_WAYS_TO_GIVE: Final = (0.002, 0.004, 0.008)
"""Pauses of a slice while devices wait. Their sum bounds what a busy server may cost a batch."""
_ROUNDS: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_SETTLE_FROM_ROUND: Final = 5
"""When an intent that another group may still be working on is taken for what a crash left behind."""
_STORE_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a batch: what the authority calls it, and its PKCS #10 (DER, unread; empty when there was none)."""

    name: str
    csr: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request: a certificate (DER), or why there is none."""

    certificate: bytes | None = None
    is_repeated: bool = False
    """Whether this certificate was issued for the same request before."""
    reason: Refused | Unavailable | None = None


@dataclass(slots=True)
class _Item:
    request: Request
    csr_sha256: bytes
    key: bytes
    device: str
    subject: bytes
    san: bytes | None
    answer: Answer | None = None
    is_blocked: bool = False
    """Whether an intent without a result holds the request key."""


class Bulk:
    """Carries out the batches of one worker, beside its `Enrollment`."""

    def __init__(
        self,
        store: Store,
        signers: SignerPool,
        enrollment: Enrollment,
        trail: Trail,
        clock: Callable[[], datetime],
        observe: Callable[[str, float], None],
    ) -> None:
        self._store = store
        self._signers = signers
        self._enrollment = enrollment
        self._trail = trail
        self._clock = clock
        self._observe = observe
        self._lane = asyncio.Semaphore(GROUPS_AT_ONCE)
        self._under_way: set[asyncio.Task[list[Answer]]] = set()

    def send(
        self, admitted: Admitted, requests: Sequence[Request], address: str, request_id: str, *, look_first: bool
    ) -> asyncio.Task[list[Answer]]:
        """Start a group of at most `GROUP_SIZE`; its result has one answer for each request, in order.

        The task never fails, and must not be cancelled: what it began it finishes.

        Args:
            admitted: the registration authority, admitted for `Purpose.BATCH`.
            address: where it is.
            request_id: the batch; groups of one batch share it.
            look_first: ask the store before the signer, which is cheaper where the requests may be repeats.
        """
        if admitted.purpose is not Purpose.BATCH:
            raise Broken("a batch was sent for somebody who was not admitted for one")
        task = asyncio.get_running_loop().create_task(
            _Group(self, admitted, address, request_id).carry_out(requests, look_first)
        )
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def drain(self) -> None:
        """Wait until everything under way has its answers."""
        while self._under_way:
            await asyncio.wait(self._under_way)


class _Group:
    """One group on its way."""

    def __init__(self, bulk: Bulk, admitted: Admitted, address: str, request_id: str) -> None:
        self._bulk = bulk
        self._admitted = admitted
        self._place = admitted.place
        self._address = address
        self._request_id = request_id

    async def carry_out(self, requests: Sequence[Request], look_first: bool) -> list[Answer]:
        """See `Bulk.send`."""
        answers: list[Answer | None] = [None] * len(requests)
        items: list[tuple[int, _Item]] = []
        reason: Refused | Unavailable
        try:
            async with self._bulk._lane:
                for at, request in enumerate(requests):
                    try:
                        items.append((at, await self._read(request)))
                    except Refused as refused:
                        answers[at] = Answer(reason=refused)
                await self._issue([item for _, item in items], look_first)
            reason = Unavailable(Code.SIGNER_UNAVAILABLE, "this could not be finished now; send it again")
        except Unavailable as unavailable:
            reason = unavailable
        except Exception:  # noqa: BLE001 -- whatever it is, the batch goes on, and its requests may be sent again
            _log.exception("a group of a batch failed", extra={"request_id": self._request_id})
            reason = Unavailable(Code.INTERNAL, "estd is at fault; its log has this request id")
        for at, item in items:
            answers[at] = item.answer
        result = [Answer(reason=reason) if answer is None else answer for answer in answers]
        await self._record_refusals(requests, result)
        return result

    # --- reading ---------------------------------------------------------------------------------------------------

    async def _read(self, request: Request) -> _Item:
        if not request.csr:
            raise Refused(Code.MALFORMED_REQUEST, "the line holds no PKCS #10 request in base64", "RFC 8951 §3.1")
        # The signer reads all of it, and refuses what is wrong; here it is about names alone.
        try:
            asked, asked_san = read_asked_names(request.csr)
        except Refused as refused:
            raise Refused(Code.CSR_MALFORMED, refused.detail, refused.clause) from None
        profile = self._place.profile
        if asked != EMPTY_NAME:
            device = device_name(asked)
        elif request.name:
            device = normalise_device(request.name)
        else:
            raise Refused(Code.SUBJECT_REFUSED, "neither the request nor its line says which device it is for")
        row = None
        if "inventory" in (profile.subject, profile.san):
            row = await self._bulk._store.find_device(self._place.ecosystem.ecosystem_id, device)
            if row is None:
                raise Refused(Code.NOT_AUTHORIZED, "this device is not in the ecosystem's inventory")
        subject, san = self._decide_names(asked, asked_san, row)
        csr_sha256 = hashlib.sha256(request.csr).digest()
        key = write_batch_key(self._place.ecosystem.ecosystem_id, profile.name, csr_sha256)
        return _Item(request, csr_sha256, key, device, subject, san)

    def _decide_names(self, subject: bytes, san: bytes | None, row: Device | None) -> tuple[bytes, bytes | None]:
        """Subject and SAN of one certificate: where a profile trusts a credential's names, the authority's word counts."""
        profile = self._place.profile
        if profile.subject == "credential" and subject == EMPTY_NAME:
            raise Refused(Code.SUBJECT_REFUSED, "the request names no subject, and this profile wants one")
        if profile.subject == "inventory":
            assert row is not None
            allowed = write_name(row.subject or "")
            if subject == EMPTY_NAME:
                subject = allowed
            elif not same_name(subject, allowed):
                raise Refused(Code.SUBJECT_REFUSED, "the subject asked for is not the one in the inventory")
        elif profile.subject == "fixed":
            subject = profile.fixed_subject
        elif profile.subject == "empty":
            subject = EMPTY_NAME
        if profile.san in ("none", "inventory"):
            allowed_san = None if row is None or profile.san == "none" else write_san(row.san)
            if san is not None and not same_san(san, allowed_san):
                raise Refused(Code.SAN_REFUSED, f"the subjectAltName asked for is not what its {profile.san} allows")
            san = allowed_san
        return subject, san

    # --- the road --------------------------------------------------------------------------------------------------

    async def _issue(self, items: list[_Item], look: bool) -> None:
        for number, pause in enumerate(_ROUNDS):
            if pause:
                await asyncio.sleep(pause)
            if look:
                await self._look_up(items, settle=number >= _SETTLE_FROM_ROUND)
            free = [item for item in items if item.answer is None and not item.is_blocked]
            if free:
                await self._try_once(free)
            items = [item for item in items if item.answer is None]
            if not items:
                return
            look = True

    async def _look_up(self, items: list[_Item], *, settle: bool) -> None:
        """Find what was issued for these requests before, and what stands in their way."""
        found = await self._bulk._store.find_issuances([item.key for item in items])
        now = self._bulk._clock()
        for item in items:
            issuance = found.get(item.key)
            item.is_blocked = issuance is not None
            if issuance is None:
                continue
            certificate = issuance.certificate
            if certificate is None and settle:
                certificate = await self._bulk._enrollment.settle(issuance.intent)
                item.is_blocked = certificate is not None
            if certificate is None:
                continue
            if x509.load_der_x509_certificate(certificate).not_valid_after_utc < now:
                await self._supersede(issuance)
                item.is_blocked = False
            else:
                item.answer = Answer(certificate, is_repeated=True)
                self._bulk._observe("repeated", 1)

    async def _supersede(self, issuance: Issuance) -> None:
        intent = issuance.intent
        await _insist(lambda: self._bulk._store.close_intent(intent.issuer_id, intent.serial, Closing.SUPERSEDED))

    async def _try_once(self, items: list[_Item]) -> None:
        """One group through signer and store. Whoever has no answer afterwards starts over, or will be found."""
        bulk, loop = self._bulk, asyncio.get_running_loop()
        prepared = await self._prepare(items)
        if not prepared:
            return
        now = bulk._clock()
        intents = [self._write_intent(item, made, journal, now) for item, made, journal in prepared]
        started = loop.time()
        outcomes = await _insist(lambda: bulk._store.reserve_intents(intents))
        bulk._observe("reserve_seconds", loop.time() - started)
        by_signer: dict[str, list[tuple[_Item, PreparedItem, Intent]]] = {}
        unwanted: dict[str, list[SealItem]] = {}
        for (item, made, journal), intent, outcome in zip(prepared, intents, outcomes, strict=True):
            if outcome is Outcome.RESERVED:
                by_signer.setdefault(journal_of(journal), []).append((item, made, intent))
            else:
                unwanted.setdefault(journal_of(journal), []).append(SealItem(made.issuer_id, made.serial))
        for signer in {**by_signer, **unwanted}:
            await self._sign(signer, by_signer.get(signer, []), unwanted.get(signer, []))

    async def _prepare(self, items: list[_Item]) -> list[tuple[_Item, PreparedItem, str]]:
        ecosystem, profile = self._place.ecosystem, self._place.profile.name
        loop, started = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        prepared: list[tuple[_Item, PreparedItem, str]] = []
        for start in range(0, len(items), SLICE_SIZE):
            await self._give_way()
            slice_ = items[start : start + SLICE_SIZE]
            journal, results = await self._bulk._signers.prepare(
                [
                    PrepareItem(
                        item.key,
                        ecosystem.ecosystem_id,
                        ecosystem.version,
                        profile,
                        item.request.csr,
                        item.subject,
                        item.san,
                        self._write_note(item),
                    )
                    for item in slice_
                ]
            )
            for item, result in zip(slice_, results, strict=True):
                if isinstance(result, PreparedItem):
                    prepared.append((item, result, journal))
                    continue
                reason = read_refusal(result)
                if reason.code is not Code.SIGNER_UNAVAILABLE:  # which may not have heard of this version yet
                    item.answer = Answer(reason=reason)
        self._bulk._observe("prepare_seconds", loop.time() - started)
        return prepared

    async def _give_way(self) -> None:
        for pause in _WAYS_TO_GIVE:
            if not self._bulk._enrollment.waiting:
                return
            await asyncio.sleep(pause)

    async def _sign(
        self, signer: str, mine: list[tuple[_Item, PreparedItem, Intent]], unwanted: list[SealItem]
    ) -> None:
        bulk, loop = self._bulk, asyncio.get_running_loop()
        started = loop.time()
        try:
            sealed: Sequence[bytes | RefusedItem] = await bulk._signers.seal(
                signer, [SealItem(made.issuer_id, made.serial) for _, made, _ in mine], unwanted
            )
        except Unavailable:
            return  # signed or not, the intents hold their keys; a later round finds out
        bulk._observe("seal_seconds", loop.time() - started)
        now = bulk._clock()
        done: list[tuple[_Item, bytes, Issued]] = []
        for (item, made, intent), certificate in zip(mine, sealed, strict=True):
            if isinstance(certificate, bytes):
                done.append((item, certificate, self._write_issued(made, intent, certificate, now)))
        if not done:
            return
        started = loop.time()
        await _insist(lambda: bulk._store.record_issued([issued for _, _, issued in done]))
        bulk._observe("record_seconds", loop.time() - started)
        bulk._observe("group_size", len(done))
        for item, certificate, issued in done:
            log_event(issued.event)
            item.answer = Answer(certificate)

    # --- records ---------------------------------------------------------------------------------------------------

    def _write_note(self, item: _Item) -> bytes:
        ecosystem = self._place.ecosystem
        return write_note(
            ecosystem.ecosystem_id, ecosystem.version, ecosystem.node_id, self._place.profile.name, Purpose.BATCH.value,
            self._admitted.credential.identity, item.device, item.csr_sha256, None,
        )  # fmt: skip

    def _write_intent(self, item: _Item, made: PreparedItem, journal: str, now: datetime) -> Intent:
        ecosystem = self._place.ecosystem
        return Intent(
            request_key=item.key,
            issuer_id=made.issuer_id,
            serial=made.serial,
            ecosystem_id=ecosystem.ecosystem_id,
            ecosystem_version=ecosystem.version,
            node_id=ecosystem.node_id,
            profile=self._place.profile.name,
            operation=Purpose.BATCH.value,
            identity=self._admitted.credential.identity,
            device=item.device,
            csr_sha256=item.csr_sha256,
            spki_sha256=made.spki_sha256,
            tbs_sha256=made.tbs_sha256,
            journal=journal,
            code_id=None,
            created_at=now,
        )

    def _write_issued(self, made: PreparedItem, intent: Intent, certificate: bytes, now: datetime) -> Issued:
        extra = {"device": intent.device, "profile": intent.profile, **self._vouched()}
        event = self._write_event(now, "granted", intent.issuer_id, intent.serial.hex(), extra)
        return Issued(made.issuer_id, made.serial, certificate, made.not_before, made.not_after, now, event)

    async def _record_refusals(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        now = self._bulk._clock()
        events = []
        for request, answer in zip(requests, answers, strict=True):
            reason = answer.reason
            if reason is not None:
                outcome = "refused" if isinstance(reason, Refused) else "failed"
                extra = {"profile": self._place.profile.name, "item": request.name[:200], **self._vouched()}
                events.append(self._write_event(now, outcome, None, None, extra, reason))
        await self._bulk._trail.record_all(events)

    def _vouched(self) -> dict[str, str]:
        return {"registration_authority": self._admitted.credential.device}

    def _write_event(
        self,
        now: datetime,
        outcome: str,
        issuer_id: int | None,
        serial: str | None,
        extra: dict[str, str],
        reason: Refused | Unavailable | None = None,
    ) -> Event:
        ecosystem = self._place.ecosystem
        return Event(
            at=now,
            kind="est.batch",
            outcome=outcome,
            ecosystem=ecosystem.label,
            ecosystem_id=ecosystem.ecosystem_id,
            code=None if reason is None else reason.code.value,
            detail="" if reason is None else reason.detail,
            identity=self._admitted.credential.identity,
            address=self._address,
            request_id=self._request_id,
            issuer_id=issuer_id,
            serial=serial,
            extra=extra,
        )


async def _insist(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Repeat a store call whose outcome is unknown; every writing call is safe to repeat (`estd.store.contract`)."""
    for attempt in range(1, _STORE_ATTEMPTS):
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.1 * attempt)
    return await call()
