"""The one road, on a real store and a real signer process: groups, codes, limits, and commits whose answer is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from database_proxy import DatabaseProxy
from factory import NOW, make_csr, make_name
from one_road import EVENT, Road, closings, open_road, record_ecosystem
from postgres_fixture import Database

from estd.ca.ecosystem import load_document, write_document
from estd.ca.validity import Validity
from estd.errors import Code, Refused, Unavailable
from estd.signer.client import SignerPool
from estd.signer.frames import PreparedItem, PrepareItem, RefusedItem, SealItem
from estd.store.contract import EnrollmentCode
from estd.store.queries import sql_of

# testECCP256, whose private value RFC 9500 §2.3 prints.
PUBLISHED_P256 = int("E6CB5BDD80AA45AE9C95E8C15476679FFEC953C16851E711E743939589C64FC1", 16)


# --- the plain road --------------------------------------------------------------------------------------------------


async def test_a_certificate_is_on_record_with_its_event_when_it_is_delivered(road: Road) -> None:
    order = road.order()
    certificate = await road.enrollment.enroll(order)
    assert await road.certificates() == [certificate]
    parsed = x509.load_der_x509_certificate(certificate)
    assert parsed.subject == make_name("device-1")
    issuer = next(row for row in road.record.issuers if row.name == "devices")
    parsed.verify_directly_issued_by(x509.load_der_x509_certificate(issuer.certificate))
    (event,) = [event for event in await road.store.find_events(None, 10) if event.kind == "est.simpleenroll"]
    assert (event.outcome, event.ecosystem, event.identity) == ("granted", "campus", "device-1")
    assert event.serial is not None
    assert int(event.serial, 16) == parsed.serial_number
    assert event.request_id == "req"
    assert (await road.store.find_issuances([order.request_key]))[order.request_key].certificate == certificate


async def test_what_waits_travels_together(road: Road) -> None:
    orders = [road.order(f"device-{number}") for number in range(50)]
    certificates = await asyncio.gather(*(road.enrollment.enroll(order) for order in orders))
    assert len(set(certificates)) == 50
    assert sorted(certificates) == sorted(await road.certificates())
    assert sum(road.groups) == 50
    # The first goes alone because nothing was under way; the others gathered meanwhile.
    assert len(road.groups) <= 3


class _HeldPool(SignerPool):
    """Holds the first group back before it is sealed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self.held = asyncio.Event()
        self.go_on = asyncio.Event()

    async def seal(
        self, journal: str, items: Sequence[SealItem], unwanted: Sequence[SealItem] = ()
    ) -> list[bytes | RefusedItem]:
        if not self.held.is_set():
            self.held.set()
            await self.go_on.wait()
        return await super().seal(journal, items, unwanted)


async def test_a_full_group_does_not_wait_for_the_end_of_the_one_before(
    database: Database, tmp_path: Path, valid_now: None
) -> None:
    async with open_road(database.url, tmp_path, _HeldPool) as road:
        assert isinstance(road.pool, _HeldPool)
        slow = asyncio.create_task(road.enrollment.enroll(road.order("device-0")))
        await road.pool.held.wait()
        few = [asyncio.create_task(road.enrollment.enroll(road.order(f"device-{n}"))) for n in range(1, 48)]
        await asyncio.sleep(0.2)
        assert (road.groups, road.enrollment.waiting) == ([1], 47)
        last = road.order("device-48")
        certificates = await asyncio.gather(*few, road.enrollment.enroll(last))
        assert road.groups == [1, 48]
        assert not slow.done()
        assert sorted(certificates) == sorted(await road.certificates())
        road.pool.go_on.set()
        assert await slow in await road.certificates()


async def test_a_quiet_ecosystem_does_not_wait_for_a_crowd(database: Database, tmp_path: Path, valid_now: None) -> None:
    async with open_road(database.url, tmp_path, _HeldPool) as road:
        assert isinstance(road.pool, _HeldPool)
        neighbour = await record_ecosystem(road.store, "harbour")
        await road.signer.load(neighbour)
        crowd = [asyncio.create_task(road.enrollment.enroll(road.order(f"device-{n}"))) for n in range(20)]
        await road.pool.held.wait()
        crowd += [asyncio.create_task(road.enrollment.enroll(road.order(f"device-{n}"))) for n in range(20, 30)]
        its_own = {"ecosystem_id": neighbour.ecosystem_id, "node_id": neighbour.node_id, "ecosystem": "harbour"}
        certificate = await road.enrollment.enroll(road.order("crane-1", **its_own))
        assert await road.certificates() == [certificate]
        assert not any(task.done() for task in crowd)
        assert road.groups == [20, 1]
        road.pool.go_on.set()
        assert len(set(await asyncio.gather(*crowd))) == 30
        assert road.groups == [20, 1, 10]


async def test_a_refusal_is_not_its_neighbours(road: Road) -> None:
    wrong = make_csr(make_name("device-2"))[:-4] + b"\x00\x00\x00\x00"
    weak = make_csr(make_name("device-3"), ec.generate_private_key(ec.SECP384R1()))
    other_name = road.order("device-4", subject=make_name("device-5").public_bytes(), profile="nothing")
    results = await asyncio.gather(
        road.enrollment.enroll(road.order("device-1")),
        road.enrollment.enroll(road.order("device-2", wrong)),
        road.enrollment.enroll(road.order("device-3", weak)),
        road.enrollment.enroll(other_name),
        return_exceptions=True,
    )
    assert isinstance(results[0], bytes)
    codes = [result.code for result in results[1:] if isinstance(result, Refused | Unavailable)]
    assert codes[:2] == [Code.CSR_SIGNATURE, Code.KEY_REFUSED]
    assert len(codes) == 3
    assert await road.certificates() == [results[0]]
    assert await road.store.find_open_intents(road.now + timedelta(days=1), 10) == []


async def test_a_key_that_everybody_knows_is_refused(road: Road) -> None:
    published = ec.derive_private_key(PUBLISHED_P256, ec.SECP256R1())
    with pytest.raises(Refused) as caught:
        await road.enrollment.enroll(road.order(csr=make_csr(make_name("device-1"), published)))
    assert caught.value.code is Code.KEY_WEAK
    assert await road.certificates() == []


# --- retries and codes -----------------------------------------------------------------------------------------------


async def test_retries_take_no_room_in_the_signer(road: Road) -> None:
    order = road.order()
    first = await road.enrollment.enroll(order)
    for _ in range(5):
        assert set(await asyncio.gather(*(road.enrollment.enroll(order) for _ in range(20)))) == {first}
    await road.enrollment.drain()
    assert [report.prepared for report in await road.pool.status()] == [0]


async def test_a_single_use_code_gives_one_certificate(road: Road) -> None:
    code = EnrollmentCode(0, road.record.ecosystem_id, "device-1", bytes(32), True, None, None, NOW, None)
    (stored,) = await road.store.record_codes([code])
    orders = [road.order(csr=make_csr(make_name("device-1")), code_id=stored.code_id) for _ in range(30)]
    results = await asyncio.gather(*(road.enrollment.enroll(order) for order in orders), return_exceptions=True)
    granted = [result for result in results if isinstance(result, bytes)]
    refused = [result.code for result in results if isinstance(result, Refused)]
    assert len(granted) == 1
    assert refused == [Code.CODE_SPENT] * 29
    assert await road.certificates() == granted


async def test_a_refused_request_does_not_spend_the_code(road: Road) -> None:
    code = EnrollmentCode(0, road.record.ecosystem_id, "device-1", bytes(32), True, None, None, NOW, None)
    (stored,) = await road.store.record_codes([code])
    wrong = make_csr(make_name("device-1"))[:-4] + b"\x00\x00\x00\x00"
    with pytest.raises(Refused):
        await road.enrollment.enroll(road.order(csr=wrong, code_id=stored.code_id))
    assert await road.enrollment.enroll(road.order(code_id=stored.code_id))


# --- no signer, no time, no room -------------------------------------------------------------------------------------


async def test_without_a_signer_nothing_is_reserved(road: Road) -> None:
    await road.signer.kill()
    with pytest.raises(Unavailable) as caught:
        await road.enrollment.enroll(road.order())
    assert caught.value.code is Code.SIGNER_UNAVAILABLE
    assert await road.store.find_open_intents(road.now + timedelta(days=1), 10) == []
    await road.signer.start()
    assert await road.enrollment.enroll(road.order())


async def test_an_issuer_that_has_ended_is_said_to_have_ended(road: Road) -> None:
    """At once: starting over mends nothing, and what the operator has to do stands in the answer and so in the trail."""
    rules = load_document(road.record.document)
    over = {
        name: replace(profile, validity=Validity(None, road.now - timedelta(days=1)))
        for name, profile in rules.profiles.items()
    }
    document = write_document(replace(rules, profiles=over))
    record = await road.store.record_ecosystem("campus", document, [], road.record.version, "test", EVENT)
    await road.signer.load(record)
    with pytest.raises(Unavailable, match="the end that the profile sets") as caught:
        await road.enrollment.enroll(road.order(ecosystem_version=record.version))
    assert caught.value.code is Code.ISSUER_NOT_VALID
    assert caught.value.retry_after_seconds == 600
    assert len(road.groups) == 1


async def test_what_signers_said_last_is_told(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.ra.enrollment._PAUSES", (0.0,))
    with pytest.raises(Unavailable) as caught:
        await road.enrollment.enroll(road.order(ecosystem_version=99))
    assert caught.value.code is Code.SIGNER_UNAVAILABLE
    told = "no signer could finish this request (this version of the ecosystem is not loaded here); send it again"
    assert caught.value.detail == told


async def test_nobody_waits_longer_than_the_deadline(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.ra.enrollment._DEADLINE_SECONDS", 0.05)
    answers = asyncio.Event()
    prepare = road.pool.prepare

    async def prepare_late(items: Sequence[PrepareItem]) -> tuple[str, list[PreparedItem | RefusedItem]]:
        await answers.wait()
        return await prepare(items)

    monkeypatch.setattr(road.pool, "prepare", prepare_late)
    order = road.order()
    with pytest.raises(Unavailable) as slow:
        await road.enrollment.enroll(order)
    assert slow.value.code is Code.OVERLOADED
    # Its group goes on without it, and the same request finds what became of it.
    answers.set()
    await road.enrollment.drain()
    monkeypatch.setattr("estd.ra.enrollment._DEADLINE_SECONDS", 15.0)
    issuance = (await road.store.find_issuances([order.request_key]))[order.request_key]
    assert await road.enrollment.enroll(order) == issuance.certificate


async def test_a_full_queue_is_refused_before_any_cryptography(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.ra.enrollment._WAITING_AT_MOST", 3)
    orders = [road.order(f"device-{number}") for number in range(10)]
    results = await asyncio.gather(*(road.enrollment.enroll(order) for order in orders), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Unavailable)]
    assert refused
    assert {error.code for error in refused} == {Code.OVERLOADED}
    assert all(error.retry_after_seconds > 0 for error in refused)
    assert len(await road.certificates()) == 10 - len(refused)


# --- a store whose answers are lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["reserve_intents", "record_issued"])
@pytest.mark.parametrize("persisted", [False, True], ids=["not persisted", "persisted anyway"])
async def test_a_failed_commit_is_an_unknown_one(
    database: Database, tmp_path: Path, valid_now: None, statement: str, persisted: bool
) -> None:
    sql = sql_of(statement)
    proxy = DatabaseProxy(tmp_path, database.socket)
    await proxy.start()
    try:
        async with open_road(proxy.url(database.name), tmp_path) as road:
            (proxy.cut_after if persisted else proxy.cut_before)(sql)
            orders = [road.order(f"device-{number}") for number in range(3)]
            certificates = await asyncio.gather(*(road.enrollment.enroll(order) for order in orders))
            assert proxy.exhausted
            assert sorted(await road.certificates()) == sorted(certificates)
            assert await closings(database) == {None: 3}
    finally:
        await proxy.stop()
