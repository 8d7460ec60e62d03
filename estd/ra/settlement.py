"""What is not the plain road: what became of an intent that has no result, and who finds an answer that exists already.

Signers and workers die, answers are lost, and devices ask again; then the journals and the store are asked instead of a
new certificate being made. Promises:

* An intent without result is closed only when its journal proves that it was never signed (*void*), or when nobody can tell
  any more (*orphan*). Otherwise the journaled bytes are signed again and recorded, the same as the first time.
* A certificate that is found holds its request for the profile's retry window, and is superseded after it, not forgotten;
  one that a single-use enrollment code was spent for holds it for ever.
* A certificate that was revoked is no answer.
* Nothing is assumed of a store or a signer that does not answer: it is asked again, and then it is an `Unavailable`.
* The trouble that one intent makes is its own: of many (`Settlement.settle_all`) the others are settled all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

from estd.errors import Code, Refused, Unavailable
from estd.ra.order import Order
from estd.ra.records import write_settled
from estd.signer.client import SignerPool
from estd.signer.frames import ResumeItem, Verdict
from estd.store.contract import KEY_COMPROMISE, Closing, Intent, Issuance, Store

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

_STORE_ATTEMPTS: Final = 3
_FOREIGN_JOURNAL_AFTER: Final = timedelta(minutes=15)
"""How long an intent of a journal that nobody here keeps waits for its own node to settle it."""
_PENDING_POLLS: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
_RESUME_PAUSES: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 2.4)
_SETTLED_AT_ONCE: Final = 16
"""So that those which wait for a signer or for a commit do not have all others wait."""


class StartOver(Exception):
    """The request holds nothing and may be prepared again; `why` is what a signer said, if one did."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


class Settlement:
    """Settles the intents and finds the answers of one worker."""

    def __init__(
        self, store: Store, signers: SignerPool, clock: Callable[[], datetime], observe: Callable[[str, float], None]
    ) -> None:
        self._store = store
        self._signers = signers
        self._clock = clock
        self._observe = observe

    async def settle(self, intent: Intent) -> bytes | None:
        """Find out what became of an intent that has no result, and record it.

        Returns the certificate if it was signed; None when the intent is closed and its request key is free.

        Raises:
            Unavailable: its signer or the store cannot be asked now.
        """
        return await self._settle(intent, _RESUME_PAUSES)

    async def settle_all(self, intents: Sequence[Intent]) -> list[Intent]:
        """Settle each of them that can be settled now; those that are left, which the next round may try again.

        Whatever one of them fails with is logged, and is its own trouble. Nobody waits for these, so a signer that does not
        answer is not waited for; but nothing is given up as an *orphan* in haste.
        """
        turns = asyncio.Semaphore(_SETTLED_AT_ONCE)
        reasons: list[str] = []

        async def settle_one(intent: Intent) -> bool:
            async with turns:
                try:
                    await self._settle(intent, _RESUME_PAUSES if self._is_forlorn(intent) else ())
                except Unavailable as reason:
                    reasons.append(reason.detail)
                    return False
                except Exception:  # noqa: BLE001 - whatever it is, the others are not to wait for somebody who mends it
                    _log.exception(
                        "an open intent cannot be settled",
                        extra={
                            "serial": intent.serial.hex(),
                            "issuer_id": intent.issuer_id,
                            "device": intent.device,
                            "remedy": "The others go on. Run estd audit verify, keep database and journals, and report it.",
                        },
                    )
                    return False
                return True

        settled = await asyncio.gather(*(settle_one(intent) for intent in intents))
        if reasons:
            _log.warning("open intents are left for later", extra={"count": len(reasons), "detail": reasons[0]})
        return [intent for intent, is_settled in zip(intents, settled, strict=True) if not is_settled]

    async def _settle(self, intent: Intent, pauses: Sequence[float]) -> bytes | None:
        try:
            answer = await self._resume(intent, pauses)
        except Unavailable:
            if not self._is_forlorn(intent):
                raise
            answer = Verdict.UNKNOWN  # its node is gone, and its journal with it
        if isinstance(answer, bytes):
            issued = [write_settled(intent, answer, max(intent.created_at, self._clock()))]
            await insist(lambda: self._store.record_issued(issued))
            return answer
        closing = Closing.VOID if answer is Verdict.NEVER_SIGNED else Closing.ORPHAN
        await self._store.close_intent(intent.issuer_id, intent.serial, closing)
        _log.warning(
            "intent closed",
            extra={"closing": closing.value, "serial": intent.serial.hex(), "device": intent.device},
        )
        return None

    async def settle_or_start_over(self, intent: Intent) -> bytes:
        """The certificate of an intent that has no result.

        Raises:
            StartOver: it was never signed, or nobody can tell; the intent is closed.
            Unavailable: its signer or the store cannot be asked now.
        """
        certificate = await self.settle(intent)
        if certificate is None:
            raise StartOver
        return certificate

    async def answer_again(self, order: Order, asked_at: datetime) -> bytes:
        """The certificate for an order whose request key another intent holds: a retry, or the same request twice at once.

        Args:
            order: what was asked for.
            asked_at: when, by the server's clock.

        Raises:
            StartOver: nothing holds the key any more, or what held it was too old to be repeated.
            Refused: REQUEST_REVOKED; CODE_SPENT when its single-use code was spent for a certificate that is too old.
            Unavailable: the signer or the store cannot be asked now.
        """
        issuance: Issuance | None = None
        for pause in _PENDING_POLLS:
            issuance = (await self._store.find_issuances([order.request_key])).get(order.request_key)
            if issuance is None:
                raise StartOver
            if issuance.certificate is not None:
                return await self._repeat(order, issuance, asked_at)
            await asyncio.sleep(pause)
        assert issuance is not None
        certificate = await self.settle_or_start_over(issuance.intent)
        if issuance.revoked_for is not None:
            raise request_revoked()
        return certificate

    async def _repeat(self, order: Order, issuance: Issuance, asked_at: datetime) -> bytes:
        assert issuance.certificate is not None
        assert issuance.issued_at is not None
        # Both have to say that it is too old: a clock that is set forward meanwhile must not cost a retry its certificate.
        is_retry = min(asked_at, self._clock()) - issuance.issued_at <= order.retry_window
        if issuance.revoked_for is not None and (is_retry or issuance.revoked_for == KEY_COMPROMISE):
            raise request_revoked()
        if is_retry:
            self._observe("repeated", 1)
            return issuance.certificate
        if order.code_id is not None:
            raise code_spent()
        intent = issuance.intent
        await insist(lambda: self._store.close_intent(intent.issuer_id, intent.serial, Closing.SUPERSEDED))
        raise StartOver

    def _is_forlorn(self, intent: Intent) -> bool:
        """Whether nobody here keeps its journal, and whoever does has had the time to settle it.

        A journal that another node keeps, or that left with a signer, cannot be asked from here; and until the intent is
        closed, the device whose request key it holds gets no certificate.
        """
        is_old = self._clock() - intent.created_at >= _FOREIGN_JOURNAL_AFTER
        return is_old and not self._signers.knows(intent.journal)

    async def _resume(self, intent: Intent, pauses: Sequence[float]) -> bytes | Verdict:
        item = ResumeItem(intent.issuer_id, intent.serial, intent.tbs_sha256)
        for pause in (*pauses, None):
            try:
                return (await self._signers.resume(intent.journal, [item]))[0]
            except Unavailable:
                if pause is None:
                    raise
            # A signer that died is back within a second or two, with its journal.
            await asyncio.sleep(pause)
        raise AssertionError("the last pause is None")


def request_revoked() -> Refused:
    """Why a request whose certificate was revoked gets neither that one nor another."""
    return Refused(
        Code.REQUEST_REVOKED,
        "the certificate of this request was revoked; a new one needs a new key and a new request",
        "RFC 7030 §4.2.3",
    )


def code_spent() -> Refused:
    """Why a single-use enrollment code gets no certificate any more."""
    return Refused(Code.CODE_SPENT, "this enrollment code was used for a certificate already", "RFC 7030 §3.2.3")


async def insist(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Repeat a store call whose outcome is unknown; every writing call is safe to repeat (`estd.store.contract`).

    Raises:
        Unavailable: its outcome is unknown still.
    """
    for attempt in range(1, _STORE_ATTEMPTS):
        try:
            return await call()
        except Unavailable:
            _log.warning("the store did not answer", extra={"attempt": attempt})
            await asyncio.sleep(0.1 * attempt)
    return await call()
