"""The road to a certificate for whole groups: what a registration authority asks for on behalf of devices (RFC 7030 §3.7).

The same road as `estd.ra.enrollment`'s, with the same records on it (intent, journal, certificate with its audit event),
but a group is one task from end to end and its items have none of their own. Promises:

* An answer that holds a certificate is committed; everything that might have been signed is on record as an intent.
* One request under one profile has one certificate, however often and by whichever authority of the ecosystem it is
  sent, for as long as that certificate is valid; if it was revoked, that is refused for so long. Nothing that was begun
  stops because nobody waits for it any more.
* One bad request is refused alone, and recorded as any refusal is.
* Devices come first: no more than `GROUPS_AT_ONCE` groups of one worker are under way, however many batches there are; a
  signer gets them in slices, between which it serves others; and while devices wait for a group of theirs, each slice
  waits a moment too, but not for ever.

What exactly is to be issued for one request, if anything, is decided in `estd.ra.vouching`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from estd.audit import Event
from estd.errors import Broken, Code, Refused, Unavailable
from estd.ra.admission import Admitted, Purpose
from estd.ra.enrollment import Enrollment
from estd.ra.order import Order
from estd.ra.records import write_intent, write_issued, write_item, write_seals
from estd.ra.settlement import insist, request_revoked
from estd.ra.trail import Trail, log_events
from estd.ra.vouching import Request, decide_order
from estd.signer.blocks import journal_of
from estd.signer.client import SignerPool
from estd.signer.frames import PreparedItem, RefusedItem, read_refusal
from estd.store.contract import KEY_COMPROMISE, Closing, Intent, Issuance, Issued, Outcome, Store

_log = logging.getLogger(__name__)

GROUP_SIZE: Final = 256
GROUPS_AT_ONCE: Final = 2
SLICE_SIZE: Final = 128
"""How many items a signer prepares for a batch before it turns to whoever else is waiting: some nine milliseconds."""
_WAYS_TO_GIVE: Final = (0.002, 0.004, 0.008)
"""Pauses of a slice while devices wait. Their sum bounds what a busy server may cost a batch."""
_ROUNDS: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_SETTLE_FROM_ROUND: Final = 5
"""When an intent that another group may still be working on is taken for what a crash left behind."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request: a certificate (DER), or why there is none."""

    certificate: bytes | None = None
    is_repeated: bool = False
    """Whether this certificate was issued for the same request before."""
    reason: Refused | Unavailable | None = None


@dataclass(slots=True)
class _Item:
    at: int
    """Which of the group's requests this is."""
    order: Order
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
        items: list[_Item] = []
        reason: Refused | Unavailable
        try:
            async with self._bulk._lane:
                for at, request in enumerate(requests):
                    try:
                        order = await decide_order(
                            self._bulk._store, self._admitted, request, self._address, self._request_id
                        )
                    except Refused as refused:
                        answers[at] = Answer(reason=refused)
                    else:
                        items.append(_Item(at, order))
                await self._issue(items, look_first)
            reason = Unavailable(Code.SIGNER_UNAVAILABLE, "this could not be finished now; send it again")
        except Unavailable as unavailable:
            reason = unavailable
        except Exception:  # noqa: BLE001 -- whatever it is, the batch goes on, and its requests may be sent again
            _log.exception("a group of a batch failed", extra={"request_id": self._request_id})
            reason = Unavailable(Code.INTERNAL, "estd is at fault; its log has this request id")
        for item in items:
            answers[item.at] = item.answer
        result = [Answer(reason=reason) if answer is None else answer for answer in answers]
        await self._record_refusals(requests, result)
        return result

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
        found = await self._bulk._store.find_issuances([item.order.request_key for item in items])
        now = self._bulk._clock()
        for item in items:
            issuance = found.get(item.order.request_key)
            item.is_blocked = issuance is not None
            if issuance is None:
                continue
            certificate = issuance.certificate
            if certificate is None and settle:
                certificate = await self._bulk._enrollment.settle(issuance.intent)
                item.is_blocked = certificate is not None
            if certificate is None:
                continue
            is_over = x509.load_der_x509_certificate(certificate).not_valid_after_utc < now
            if issuance.revoked_for is not None and (not is_over or issuance.revoked_for == KEY_COMPROMISE):
                item.answer = Answer(reason=request_revoked())
            elif is_over:
                await self._supersede(issuance)
                item.is_blocked = False
            else:
                item.answer = Answer(certificate, is_repeated=True)
                self._bulk._observe("repeated", 1)

    async def _supersede(self, issuance: Issuance) -> None:
        intent = issuance.intent
        await insist(lambda: self._bulk._store.close_intent(intent.issuer_id, intent.serial, Closing.SUPERSEDED))

    async def _try_once(self, items: list[_Item]) -> None:
        """One group through signer and store. Whoever has no answer afterwards starts over, or will be found."""
        bulk, loop = self._bulk, asyncio.get_running_loop()
        prepared = await self._prepare(items)
        if not prepared:
            return
        now = bulk._clock()
        intents = [write_intent(item.order, made, journal, now) for item, made, journal in prepared]
        started = loop.time()
        try:
            outcomes = await insist(lambda: bulk._store.reserve_intents(intents))
        except Unavailable:
            await self._forget(prepared)
            raise
        bulk._observe("reserve_seconds", loop.time() - started)
        by_signer: dict[str, list[tuple[_Item, PreparedItem, Intent]]] = {}
        unwanted: dict[str, list[PreparedItem]] = {}
        for (item, made, journal), intent, outcome in zip(prepared, intents, outcomes, strict=True):
            if outcome is Outcome.RESERVED:
                by_signer.setdefault(journal_of(journal), []).append((item, made, intent))
            else:
                unwanted.setdefault(journal_of(journal), []).append(made)
        for signer in {**by_signer, **unwanted}:
            await self._sign(signer, by_signer.get(signer, []), unwanted.get(signer, []))

    async def _prepare(self, items: list[_Item]) -> list[tuple[_Item, PreparedItem, str]]:
        loop, started = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        prepared: list[tuple[_Item, PreparedItem, str]] = []
        journal: str | None = None  # the signer of the first slice gets all of them, so that one flush seals the group
        for start in range(0, len(items), SLICE_SIZE):
            await self._give_way()
            slice_ = items[start : start + SLICE_SIZE]
            try:
                journal, results = await self._bulk._signers.prepare(
                    [write_item(item.order) for item in slice_], journal
                )
            except Unavailable:
                await self._forget(prepared)
                raise
            for item, result in zip(slice_, results, strict=True):
                if isinstance(result, PreparedItem):
                    prepared.append((item, result, journal))
                    continue
                reason = read_refusal(result)
                if reason.code is not Code.SIGNER_UNAVAILABLE:  # which may not have heard of this version yet
                    item.answer = Answer(reason=reason)
        self._bulk._observe("prepare_seconds", loop.time() - started)
        return prepared

    async def _forget(self, prepared: Sequence[tuple[_Item, PreparedItem, str]]) -> None:
        """Give their room in the signers back, for what others ask meanwhile."""
        by_signer: dict[str, list[PreparedItem]] = {}
        for _, made, journal in prepared:
            by_signer.setdefault(journal_of(journal), []).append(made)
        for signer, unwanted in by_signer.items():
            try:
                await self._bulk._signers.seal(signer, [], write_seals(unwanted))
            except Unavailable:
                pass  # it died, and they with it

    async def _give_way(self) -> None:
        for pause in _WAYS_TO_GIVE:
            if not self._bulk._enrollment.waiting:
                return
            await asyncio.sleep(pause)

    async def _sign(
        self, signer: str, mine: list[tuple[_Item, PreparedItem, Intent]], unwanted: list[PreparedItem]
    ) -> None:
        bulk, loop = self._bulk, asyncio.get_running_loop()
        started = loop.time()
        try:
            sealed: Sequence[bytes | RefusedItem] = await bulk._signers.seal(
                signer, write_seals([made for _, made, _ in mine]), write_seals(unwanted)
            )
        except Unavailable:
            return  # signed or not, the intents hold their keys; a later round finds out
        bulk._observe("seal_seconds", loop.time() - started)
        now, authority = bulk._clock(), self._admitted.credential.device
        done: list[tuple[_Item, bytes, Issued]] = []
        for (item, made, intent), certificate in zip(mine, sealed, strict=True):
            if isinstance(certificate, bytes):
                done.append((item, certificate, write_issued(item.order, intent, made, certificate, now, authority)))
        if not done:
            return
        started = loop.time()
        await insist(lambda: bulk._store.record_issued([issued for _, _, issued in done]))
        bulk._observe("record_seconds", loop.time() - started)
        bulk._observe("group_size", len(done))
        log_events(issued.event for _, _, issued in done)
        for item, certificate, _ in done:
            item.answer = Answer(certificate)

    # --- refusals --------------------------------------------------------------------------------------------------

    async def _record_refusals(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        now = self._bulk._clock()
        ecosystem, profile, credential = self._place.ecosystem, self._place.profile, self._admitted.credential
        await self._bulk._trail.record_all(
            [
                Event(
                    at=now,
                    kind="est.batch",
                    outcome="refused" if isinstance(answer.reason, Refused) else "failed",
                    ecosystem=ecosystem.label,
                    ecosystem_id=ecosystem.ecosystem_id,
                    code=answer.reason.code.value,
                    detail=answer.reason.detail,
                    identity=credential.identity,
                    address=self._address,
                    request_id=self._request_id,
                    extra={
                        "profile": profile.name,
                        "item": request.name[:200],
                        "registration_authority": credential.device,
                    },
                )
                for request, answer in zip(requests, answers, strict=True)
                if answer.reason is not None
            ]
        )
