"""What is restored when rows are gone that a journal knows; a whole database that is set back is in tests/integration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from one_road import forget, open_road, reserve_and_die
from postgres_fixture import NOW, Database

from estd.errors import Broken, Code, Invalid, Unavailable
from estd.ra.reconciliation import Reconciliation, Report
from estd.store.contract import EnrollmentCode


@pytest.fixture
async def road(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    # A real signer goes by the real clock.
    monkeypatch.setattr("factory.NOW", datetime.now(NOW.tzinfo).replace(microsecond=0))
    async with open_road(database.url, tmp_path) as road:
        road.journals = tmp_path / "journal"
        yield road


def work(road: Any) -> Reconciliation:
    return Reconciliation(road.store, road.enrollment, [road.journals], lambda: road.now, lambda _what, _count: None)


async def reconcile(road: Any) -> Report:
    report = await work(road).survey()
    report = await work(road).restore(report)
    await work(road).record(report, "ada")
    return report


async def test_nothing_is_missing_and_nothing_is_written(road: Any) -> None:
    await road.enrollment.enroll(road.order())
    before = await road.store.find_newest_link()
    report = await reconcile(road)
    assert (report.entries, report.missing, report.restored) == (1, 0, [])
    assert await road.store.find_newest_link() == before


async def test_what_is_gone_comes_back_as_it_was(road: Any, database: Database) -> None:
    code = EnrollmentCode(0, road.record.ecosystem_id, "device-1", bytes(32), True, None, None, NOW, None)
    (stored,) = await road.store.record_codes([code])
    order = road.order(code_id=stored.code_id)
    certificate = await road.enrollment.enroll(order)
    intent = (await road.store.find_issuances([order.request_key]))[order.request_key].intent
    await forget(database, certificate)
    report = await reconcile(road)
    assert report.restored == [intent.serial.hex()]
    restored = (await road.store.find_issuances([order.request_key]))[order.request_key]
    assert restored.certificate == certificate
    for name in intent.__struct_fields__:
        if name not in ("journal", "created_at"):  # the mark is the block's own, the time is the journal's
            assert getattr(restored.intent, name) == getattr(intent, name)
    assert restored.intent.journal.split(".")[0] == intent.journal.split(".")[0]
    (spent,) = await road.store.find_codes(road.record.ecosystem_id, "device-1")
    assert spent.spent_at is not None
    assert await road.enrollment.enroll(order) == certificate
    assert (await reconcile(road)).missing == 0


async def test_the_newest_of_one_request_holds_it_again(road: Any, database: Database) -> None:
    order = road.order()
    first = await road.enrollment.enroll(order)
    road.now += timedelta(hours=2)
    second = await road.enrollment.enroll(order)
    await forget(database, first, second)
    report = await reconcile(road)
    assert (len(report.restored), len(report.doubles)) == (2, 1)
    assert await road.enrollment.enroll(order) == second
    assert sorted(await road.certificates()) == sorted([first, second])


async def test_what_the_database_remembers_gives_way_to_what_came_after(road: Any, database: Database) -> None:
    road.now -= timedelta(hours=3)
    order = road.order()
    first = await road.enrollment.enroll(order)
    road.now += timedelta(hours=3)
    second = await road.enrollment.enroll(order)
    await forget(database, second)
    async with database.session() as connection:  # as it was before the second took its place
        await connection.execute("UPDATE intent SET closed = NULL")
    report = await reconcile(road)
    assert (len(report.restored), report.doubles) == (1, [])
    assert await road.enrollment.enroll(order) == second
    assert sorted(await road.certificates()) == sorted([first, second])


async def test_a_request_that_was_answered_anew_meanwhile_keeps_its_answer(road: Any, database: Database) -> None:
    order = road.order()
    lost = await road.enrollment.enroll(order)
    await forget(database, lost)
    road.now += timedelta(seconds=5)
    second = await road.enrollment.enroll(order)  # by a node that could not know
    report = await reconcile(road)
    assert len(report.doubles) == 1
    assert sorted(await road.certificates()) == sorted([lost, second])
    assert await road.enrollment.enroll(order) == second


async def test_interrupted_and_repeated_it_leads_to_the_same(
    road: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [road.order(f"device-{number}") for number in range(5)]
    certificates = [await road.enrollment.enroll(order) for order in orders]
    await forget(database, *certificates)
    settle = road.enrollment.settle
    left = 2

    async def settle_twice(intent: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable(Code.STORE_UNAVAILABLE, "the database went away")
        return await settle(intent)

    monkeypatch.setattr(road.enrollment, "settle", settle_twice)
    with pytest.raises(Unavailable):
        await reconcile(road)
    monkeypatch.setattr(road.enrollment, "settle", settle)
    road.now += timedelta(minutes=2)  # what was begun is old enough to be settled
    await reconcile(road)
    assert sorted(await road.certificates()) == sorted(certificates)
    assert [await road.enrollment.enroll(order) for order in orders] == certificates


async def test_another_systems_issuers_are_refused(road: Any, database: Database) -> None:
    certificate = await road.enrollment.enroll(road.order())
    await forget(database, certificate)
    async with database.session() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("DELETE FROM issuer")
    with pytest.raises(Invalid) as caught:
        await work(road).survey()
    assert "none of their issuers" in str(caught.value.problems[0])


async def test_what_another_node_began_is_left_to_it(road: Any, database: Database) -> None:
    certificate = await road.enrollment.enroll(road.order())
    begun = await reserve_and_die(road, road.order("device-2"))
    async with database.session() as connection:
        await connection.execute(
            "UPDATE intent SET journal = regexp_replace(journal, '^[^.]*', '0badcafe') WHERE serial = $1",
            begun.serial,
        )
    await forget(database, certificate)
    road.now += timedelta(minutes=2)
    report = await reconcile(road)
    assert await road.certificates() == [certificate]
    assert (len(report.restored), report.failed, report.open) == (1, [], [begun.serial.hex()])
    assert report.write()["open"] == report.open


async def test_one_that_cannot_be_restored_keeps_none_of_the_others(
    road: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = [await road.enrollment.enroll(road.order(f"device-{number}")) for number in range(3)]
    serials = [
        x509.load_der_x509_certificate(one).serial_number.to_bytes(20, "big").lstrip(b"\0") for one in certificates
    ]
    await forget(database, *certificates)
    resume = road.pool.resume

    async def contradict(mark: str, items: Any) -> Any:
        if items[0].serial == serials[1]:
            raise Broken("serial has two different certificates")
        return await resume(mark, items)

    with monkeypatch.context() as patch:
        patch.setattr(road.pool, "resume", contradict)
        report = await reconcile(road)
    assert report.restored == [serials[0].hex(), serials[2].hex()]
    (failed,) = report.failed
    assert failed.startswith(f"{serials[1].hex()}: serial has two different certificates")
    assert sorted(await road.certificates()) == sorted([certificates[0], certificates[2]])
    road.now += timedelta(minutes=2)
    await reconcile(road)
    assert sorted(await road.certificates()) == sorted(certificates)


async def test_a_journal_that_is_not_here_is_named_and_the_others_are_restored(road: Any, database: Database) -> None:
    kept = await road.enrollment.enroll(road.order("device-1"))
    lost = await road.enrollment.enroll(road.order("device-2"))
    await forget(database, lost)
    gone = f"1-{'0' * 16}"
    async with database.session() as connection:  # as if another signer, whose journal is lost, had made the first one
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE intent SET journal = $1", f"{gone}.5.{'0' * 16}")
        with pytest.raises(Invalid) as caught:
            await work(road).survey()
        assert gone in str(caught.value.problems[0])
        assert "--partial" in str(caught.value.problems[0])
        partial = Reconciliation(
            road.store, road.enrollment, [road.journals], lambda: road.now, lambda _what, _count: None, partial=True
        )
        assert (await partial.survey()).absent == [gone]
    await road.enrollment.enroll(road.order("device-3"))
    report = await reconcile(road)  # with a certificate of a journal that is here, it is only told
    assert (report.absent, len(report.restored)) == ([gone], 1)
    assert report.write()["journals_absent"] == [gone]
    assert ("journals that are not here", gone) in report.describe()
    assert kept in await road.certificates()


async def test_links_that_were_told_to_be_lost_are_not_told_again(road: Any, database: Database) -> None:
    for number in range(3):
        await road.enrollment.enroll(road.order(f"device-{number}"))
    newest, digest = await road.store.find_newest_link()
    await road.signer._control.anchor(newest + 20, digest)
    await road.enrollment.enroll(road.order("device-9"))  # flushes it
    report = await reconcile(road)
    assert report.lost_events == (newest + 19, newest + 20)
    before = await road.store.find_newest_link()
    assert await road.store.find_lost_links() == [(newest + 19, newest + 20)]
    again = await reconcile(road)
    assert again.lost_events is None
    assert await road.store.find_newest_link() == before
