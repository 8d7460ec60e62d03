"""What is not the plain road, on a real store and a real signer process: retries, and what dies on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from one_road import EVENT, Road, SignerProcess, closings, open_road, reserve_and_die
from postgres_fixture import Database

from estd.asn1 import der
from estd.errors import Code, Refused, Unavailable
from estd.ra import settlement
from estd.ra.enrollment import Enrollment
from estd.ra.order import Order
from estd.ra.settlement import Settlement, StartOver, insist
from estd.signer.client import SignerPool
from estd.signer.frames import RefusedItem, ResumeItem, SealItem, Verdict
from estd.store.contract import Closing, EnrollmentCode, Intent, Revocation

# --- retries ---------------------------------------------------------------------------------------------------------


async def test_the_same_request_gets_the_same_bytes_within_the_window(road: Road) -> None:
    order = road.order()
    first = await road.enrollment.enroll(order)
    road.now += timedelta(hours=1)
    assert await road.enrollment.enroll(order) == first
    assert road.observed["repeated"] == 1
    road.now += timedelta(seconds=1)
    second = await road.enrollment.enroll(order)
    assert second != first
    assert sorted(await road.certificates()) == sorted([first, second])
    assert await road.enrollment.enroll(order) == second


async def test_a_spent_code_gets_its_certificate_again_within_the_window_and_nothing_after_it(
    road: Road, database: Database
) -> None:
    order = await with_code(road)
    first = await road.enrollment.enroll(order)
    road.now += timedelta(hours=1)
    assert await road.enrollment.enroll(order) == first
    road.now += timedelta(seconds=1)
    for _ in range(2):
        assert await refusal(road, order) is Code.CODE_SPENT
        road.now += timedelta(days=400)
    assert await road.certificates() == [first]
    assert await closings(database) == {None: 1}


async def test_a_spent_code_is_taken_again_where_nobody_can_have_a_certificate(road: Road, database: Database) -> None:
    for number, closing in enumerate((Closing.VOID, Closing.ORPHAN)):
        order = await with_code(road, f"device-{number}")
        intent = await reserve_and_die(road, order)
        await road.store.close_intent(intent.issuer_id, intent.serial, closing)
        certificate = await road.enrollment.enroll(order)
        road.now += timedelta(hours=2)
        assert await refusal(road, order) is Code.CODE_SPENT
        assert certificate in await road.certificates()
    assert await closings(database) == {None: 2, "void": 1, "orphan": 1}


async def test_a_code_for_any_number_of_certificates_gets_a_new_one_after_the_window(road: Road) -> None:
    order = road.order()  # spends none
    first = await road.enrollment.enroll(order)
    road.now += timedelta(hours=2)
    assert await road.enrollment.enroll(order) != first


@pytest.mark.parametrize("reason", ["keyCompromise", "superseded"])
async def test_a_revoked_certificate_is_no_answer_to_a_retry(road: Road, reason: str) -> None:
    order = road.order()
    first = await road.enrollment.enroll(order)
    await revoke(road, first, reason)
    assert await refusal(road, order) is Code.REQUEST_REVOKED
    assert await road.certificates() == [first]
    road.now += timedelta(hours=2)
    if reason == "keyCompromise":
        assert await refusal(road, order) is Code.REQUEST_REVOKED
        assert await road.certificates() == [first]
    else:
        assert await road.enrollment.enroll(order) != first


@pytest.mark.parametrize("reason", ["keyCompromise", "superseded"])
async def test_a_code_whose_certificate_was_revoked_gets_no_other(road: Road, reason: str) -> None:
    order = await with_code(road)
    first = await road.enrollment.enroll(order)
    await revoke(road, first, reason)
    codes = [await refusal(road, order)]
    road.now += timedelta(hours=2)
    codes.append(await refusal(road, order))
    assert codes[0] is Code.REQUEST_REVOKED
    assert codes[1] is (Code.REQUEST_REVOKED if reason == "keyCompromise" else Code.CODE_SPENT)
    assert await road.certificates() == [first]


async def test_what_was_revoked_before_it_was_settled_is_on_record_and_not_delivered(road: Road) -> None:
    order = road.order()
    intent = await reserve_and_die(road, order)
    (signed,) = await road.pool.seal(intent.journal, [SealItem(intent.issuer_id, intent.serial)])
    assert isinstance(signed, bytes)
    await revoke(road, signed, "keyCompromise")
    assert await refusal(road, order) is Code.REQUEST_REVOKED
    assert await road.certificates() == [signed]


async def with_code(road: Road, name: str = "device-1") -> Order:
    """An order that spends a code for one certificate."""
    code = EnrollmentCode(0, road.record.ecosystem_id, name, bytes(32), True, None, None, road.now, None)
    (stored,) = await road.store.record_codes([code])
    return road.order(name, code_id=stored.code_id)


async def revoke(road: Road, certificate: bytes, reason: str) -> None:
    parsed = x509.load_der_x509_certificate(certificate)
    serial = der.integer(parsed.serial_number)[2:]
    (issuer,) = [
        issuer.issuer_id
        for issuer in road.record.issuers
        if x509.load_der_x509_certificate(issuer.certificate).subject == parsed.issuer
    ]
    assert await road.store.record_revocation(Revocation(issuer, serial, reason, road.now), EVENT)


async def refusal(road: Road, order: Order) -> Code:
    with pytest.raises(Refused) as caught:
        await road.enrollment.enroll(order)
    return caught.value.code


@pytest.mark.parametrize(("before", "meanwhile"), [(0, 3653), (3653, -3653)], ids=["goes wrong", "comes right"])
async def test_a_clock_that_is_turned_under_a_retry_costs_it_nothing(
    road: Road, monkeypatch: pytest.MonkeyPatch, before: int, meanwhile: int
) -> None:
    order = road.order()
    first = await road.enrollment.enroll(order)
    prepare = road.pool.prepare

    async def turn(items: Any, beside: str | None = None) -> Any:
        road.now += timedelta(days=meanwhile)
        return await prepare(items, beside)

    road.now += timedelta(days=before)
    monkeypatch.setattr(road.pool, "prepare", turn)
    assert await road.enrollment.enroll(order) == first
    assert await road.certificates() == [first]


@pytest.mark.parametrize("step", ["prepare", "seal"])
async def test_a_clock_that_is_set_back_under_a_request_costs_its_retry_nothing(
    road: Road, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    started, call = road.now, getattr(road.pool, step)

    async def turn(*arguments: Any) -> Any:
        answer = await call(*arguments)
        road.now = started - timedelta(days=3653)
        return answer

    order = road.order()
    with monkeypatch.context() as patch:
        patch.setattr(road.pool, step, turn)
        first = await road.enrollment.enroll(order)
    road.now = started
    assert await road.enrollment.enroll(order) == first
    (stored,) = await road.store.find_certificates(None, None, 10)
    assert stored.issued_at >= started


async def test_the_same_request_many_times_at_once_is_one_certificate(road: Road) -> None:
    order = road.order()
    answers = await asyncio.gather(*(road.enrollment.enroll(order) for _ in range(20)))
    assert len(set(answers)) == 1
    assert await road.certificates() == [answers[0]]


async def test_two_workers_with_one_request_give_one_certificate(road: Road) -> None:
    other = Enrollment(road.store, road.pool, lambda: road.now, lambda _what, _value: None)
    order = road.order()
    answers = await asyncio.gather(*(worker.enroll(order) for worker in (road.enrollment, other) for _ in range(5)))
    assert len(set(answers)) == 1
    await other.drain()


async def test_a_request_that_nobody_holds_starts_over(road: Road) -> None:
    with pytest.raises(StartOver):
        await settlement_of(road).answer_again(road.order(), road.now)


def settlement_of(road: Road) -> Settlement:
    return Settlement(road.store, road.pool, lambda: road.now, lambda _what, _value: None)


# --- deaths ----------------------------------------------------------------------------------------------------------


class DyingPool(SignerPool):
    """Kills the signer once, before or after it sealed, and starts it again a moment later."""

    kill_before = False
    kill_after = False
    signer: SignerProcess

    async def seal(
        self, journal: str, items: Sequence[SealItem], unwanted: Sequence[SealItem] = ()
    ) -> list[bytes | RefusedItem]:
        if self.kill_before:
            self.kill_before = False
            await self._die()
        answer = await super().seal(journal, items, unwanted)
        if self.kill_after:
            self.kill_after = False
            await self._die()
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the answer was lost with the signer")
        return answer

    async def _die(self) -> None:
        await self.signer.kill()
        await self.signer.start()


@pytest.fixture
async def mortal(database: Database, tmp_path: Path, valid_now: None) -> AsyncIterator[Road]:
    async with open_road(database.url, tmp_path, DyingPool) as road:
        assert isinstance(road.pool, DyingPool)
        road.pool.signer = road.signer
        yield road


async def test_a_signer_that_dies_before_it_signed_leaves_a_void_intent(mortal: Road, database: Database) -> None:
    assert isinstance(mortal.pool, DyingPool)
    mortal.pool.kill_before = True
    orders = [mortal.order(f"device-{number}") for number in range(5)]
    certificates = await asyncio.gather(*(mortal.enrollment.enroll(order) for order in orders))
    assert sorted(await mortal.certificates()) == sorted(certificates)
    assert len(set(certificates)) == 5
    counted = await closings(database)
    assert counted[None] == 5
    assert counted["void"] >= 1
    assert set(counted) == {None, "void"}


async def test_a_signer_that_dies_after_it_signed_gives_the_same_certificate(mortal: Road, database: Database) -> None:
    assert isinstance(mortal.pool, DyingPool)
    mortal.pool.kill_after = True
    orders = [mortal.order(f"device-{number}") for number in range(5)]
    certificates = await asyncio.gather(*(mortal.enrollment.enroll(order) for order in orders))
    assert sorted(await mortal.certificates()) == sorted(certificates)
    assert await closings(database) == {None: 5}


async def test_a_worker_that_died_between_intent_and_result_is_settled_by_the_retry(road: Road) -> None:
    order = road.order()
    intent = await reserve_and_die(road, order)
    certificate = await road.enrollment.enroll(order)
    assert await road.certificates() == [certificate]
    parsed = x509.load_der_x509_certificate(certificate)
    assert parsed.serial_number != int.from_bytes(intent.serial, "big")  # it was never signed


async def test_a_worker_that_died_after_the_signature_is_settled_with_those_bytes(road: Road) -> None:
    order = road.order()
    intent = await reserve_and_die(road, order)
    (signed,) = await road.pool.seal(intent.journal, [SealItem(intent.issuer_id, intent.serial)])
    assert await road.certificates() == []
    assert await road.enrollment.enroll(order) == signed
    assert await road.certificates() == [signed]


async def test_the_supervisor_settles_what_nobody_asks_for_again(road: Road) -> None:
    unsigned = await reserve_and_die(road, road.order("device-1"))
    signed = await reserve_and_die(road, road.order("device-2"))
    (certificate,) = await road.pool.seal(signed.journal, [SealItem(signed.issuer_id, signed.serial)])
    found = await road.store.find_open_intents(road.now + timedelta(minutes=1), 10)
    assert {intent.serial for intent in found} == {unsigned.serial, signed.serial}
    assert [await road.enrollment.settle(intent) for intent in (unsigned, signed)] == [None, certificate]
    assert await road.store.find_open_intents(road.now + timedelta(minutes=1), 10) == []


async def test_an_intent_whose_certificate_nobody_has_starts_over(road: Road) -> None:
    intent = await reserve_and_die(road, road.order())
    with pytest.raises(StartOver):
        await settlement_of(road).settle_or_start_over(intent)
    assert await road.store.find_open_intents(road.now + timedelta(minutes=1), 10) == []


async def test_an_intent_of_a_journal_that_is_gone_is_an_orphan_in_the_end(
    road: Road, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = await reserve_and_die(road, road.order())
    asked: list[tuple[str, Sequence[ResumeItem]]] = []
    pauses: list[float] = []

    async def resume(mark: str, items: Sequence[ResumeItem]) -> list[bytes | Verdict]:
        asked.append((mark, items))
        raise Unavailable(Code.SIGNER_UNAVAILABLE, "no signer keeps this journal")

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(road.pool, "resume", resume)
    monkeypatch.setattr(road.pool, "knows", lambda _mark: False)
    monkeypatch.setattr(settlement, "asyncio", SimpleNamespace(sleep=sleep))
    road.now = intent.created_at + timedelta(minutes=15, seconds=-1)
    with pytest.raises(Unavailable):
        await road.enrollment.settle(intent)
    assert asked == [(intent.journal, [ResumeItem(intent.issuer_id, intent.serial, intent.tbs_sha256)])] * 7
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.4]
    assert await closings(database) == {None: 1}
    road.now += timedelta(seconds=1)
    assert await road.enrollment.settle(intent) is None
    assert await closings(database) == {"orphan": 1}


# --- many of them ----------------------------------------------------------------------------------------------------


async def leave_to(road: Road, database: Database, node: str, intent: Intent) -> Intent:
    """The intent as another node would have begun it, in a journal of its own."""
    async with database.session() as connection:
        await connection.execute(
            "UPDATE intent SET journal = $1 WHERE serial = $2",
            f"{node}.{intent.journal.partition('.')[2]}",
            intent.serial,
        )
    found = await road.store.find_open_intents(road.now + timedelta(hours=1), 10)
    (changed,) = [one for one in found if one.serial == intent.serial]
    assert not road.pool.knows(changed.journal)
    return changed


async def record_another(database: Database, intent: Intent, der: bytes) -> None:
    """Something on record where the intent's own certificate belongs."""
    async with database.session() as connection:
        await connection.execute(
            "INSERT INTO certificate (issuer_id, serial, ecosystem_id, der, not_before, not_after, issued_at)"
            " VALUES ($1, $2, $3, $4, $5, $5, $5)",
            intent.issuer_id,
            intent.serial,
            intent.ecosystem_id,
            der,
            intent.created_at,
        )


async def test_the_trouble_of_one_intent_is_its_own(
    road: Road, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    foreign, broken, unsigned, signed = [await reserve_and_die(road, road.order(f"device-{n}")) for n in range(4)]
    foreign = await leave_to(road, database, "0badcafe", foreign)
    for intent in (broken, signed):
        (certificate,) = await road.pool.seal(intent.journal, [SealItem(intent.issuer_id, intent.serial)])
        assert isinstance(certificate, bytes)
    await record_another(database, broken, b"something else")
    caplog.clear()
    assert await road.enrollment.settle_all([foreign, broken, unsigned, signed]) == [foreign, broken]
    assert sorted(await road.certificates()) == sorted([certificate, b"something else"])
    assert await closings(database) == {None: 3, "void": 1}
    told = {record.message: vars(record) for record in caplog.records}
    assert told["an open intent cannot be settled"]["serial"] == broken.serial.hex()
    assert told["an open intent cannot be settled"]["exc_info"] is not None
    assert "estd audit verify" in told["an open intent cannot be settled"]["remedy"]
    assert told["open intents are left for later"]["count"] == 1

    road.now = foreign.created_at + timedelta(minutes=15)
    assert await road.enrollment.settle_all([foreign, broken]) == [broken]
    assert await closings(database) == {None: 2, "void": 1, "orphan": 1}


async def test_nobody_is_waited_for_but_before_an_intent_is_given_up(
    road: Road, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = await leave_to(road, database, "0badcafe", await reserve_and_die(road, road.order()))
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(settlement, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    assert await road.enrollment.settle_all([foreign] * 100) == [foreign] * 100
    assert pauses == []
    road.now = foreign.created_at + timedelta(minutes=15)
    assert await road.enrollment.settle_all([foreign]) == []
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.4]


# --- a store whose answers are lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "pauses"), [(0, []), (1, [0.1]), (2, [0.1, 0.2])])
async def test_a_store_is_asked_again(monkeypatch: pytest.MonkeyPatch, failures: int, pauses: list[float]) -> None:
    call, slept = make_store(monkeypatch, failures)
    assert await insist(call) == "done"
    assert slept == pauses


async def test_a_store_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    call, slept = make_store(monkeypatch, 3)
    with pytest.raises(Unavailable):
        await insist(call)
    assert slept == [0.1, 0.2]


def make_store(monkeypatch: pytest.MonkeyPatch, failures: int) -> tuple[Callable[[], Awaitable[str]], list[float]]:
    """A call that fails so many times, and the pauses that are made meanwhile."""
    slept: list[float] = []
    left = failures

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def call() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unavailable(Code.STORE_UNAVAILABLE, "the connection broke")
        return "done"

    monkeypatch.setattr(settlement, "asyncio", SimpleNamespace(sleep=sleep))
    return call, slept
