"""Every promise of `estd.store.contract`, of every implementation.

Implementations: PostgreSQL itself, and PostgreSQL behind a proxy on a good day (that the proxy of the fault tests
changes nothing by itself).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from database_proxy import database_proxy
from postgres_fixture import NOW, Database
from store_values import (
    T0,
    digest,
    make_code,
    make_device,
    make_event,
    make_intent,
    make_issued,
    make_new_issuer,
    make_revocation,
)

from estd.audit import Event
from estd.errors import Broken, Code, Unavailable
from estd.store.contract import (
    Closing,
    Conflict,
    EcosystemRecord,
    Intent,
    Issuance,
    NewVersion,
    Outcome,
    RevocationOutcome,
    Store,
    StoredCertificate,
)
from estd.store.postgres import PostgresStore

MakeStore = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["postgres", "postgres behind a proxy"])
async def make_store(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[MakeStore]:
    async with contextlib.AsyncExitStack() as stack:
        url = database.url
        if request.param == "postgres behind a proxy":
            url = (await stack.enter_async_context(database_proxy(database.socket))).url(database.name)

        async def make() -> Store:
            store = await PostgresStore.connect(url, pool_size=4, clock=lambda: NOW)
            stack.push_async_callback(store.close)
            return store

        yield make


@pytest.fixture
async def store(make_store: MakeStore) -> Store:
    return await make_store()


async def reserve(store: Store, *intents: Intent) -> list[Outcome]:
    return await store.reserve_intents(intents)


async def issue(store: Store, **fields: Any) -> Intent:
    """An intent and its result, stored."""
    intent = make_intent(**{name: value for name, value in fields.items() if name in Intent.__slots__})
    assert await reserve(store, intent) == [Outcome.RESERVED]
    rest = {name: value for name, value in fields.items() if name not in Intent.__slots__}
    await store.record_issued([make_issued(intent, **rest)])
    return intent


async def make_ecosystem(store: Store, label: str = "campus") -> EcosystemRecord:
    return await store.record_ecosystem(label, {"n": 1}, [make_new_issuer()], 0, "ada", make_event(ecosystem_id=None))


def make_version(label: str, document: dict[str, Any], **fields: Any) -> NewVersion:
    """A version with an issuer of its own."""
    made: dict[str, Any] = {
        "new_issuers": [make_new_issuer()],
        "expected_version": 0,
        "applied_by": "ada",
        "event": make_event(ecosystem_id=None),
    }
    return NewVersion(label, document, **made | fields)


# --- intents ---------------------------------------------------------------------------------------------------------
async def test_reserving_keeps_every_field_and_answers_in_order(store: Store) -> None:
    first, second = make_intent(code_id=7), make_intent(serial=b"\x00")
    assert await reserve(store, first, second) == [Outcome.RESERVED, Outcome.RESERVED]
    found = await store.find_issuances([first.request_key, second.request_key, digest("request", "unknown")])
    assert found == {
        first.request_key: Issuance(first, None, None, None),
        second.request_key: Issuance(second, None, None, None),
    }


async def test_nothing_asked_nothing_done(store: Store) -> None:
    assert await store.reserve_intents([]) == []
    assert await store.find_issuances([]) == {}
    await store.record_issued([])
    await store.record_events([])
    assert await store.record_codes([]) == []
    assert await store.find_events(None, 10) == []


async def test_repeating_an_intent_reserves_it_again(store: Store) -> None:
    intent = make_intent(code_id=7)
    assert await reserve(store, intent) == [Outcome.RESERVED]
    assert await reserve(store, intent, make_intent()) == [Outcome.RESERVED, Outcome.RESERVED]
    assert await reserve(store, intent, intent) == [Outcome.RESERVED, Outcome.RESERVED]


async def test_a_held_request_key_exists(store: Store) -> None:
    intent = make_intent()
    rival = make_intent(request_key=intent.request_key)
    await reserve(store, intent)
    bystander = make_intent()
    assert await reserve(store, rival, bystander) == [Outcome.EXISTS, Outcome.RESERVED]
    assert (await store.find_issuances([rival.request_key]))[rival.request_key].intent == intent


async def test_one_request_key_in_a_batch_is_reserved_once(store: Store) -> None:
    key = digest("request", "shared")
    outcomes = await reserve(store, *(make_intent(request_key=key) for _ in range(5)))
    assert Counter(outcomes) == {Outcome.RESERVED: 1, Outcome.EXISTS: 4}
    winner = outcomes.index(Outcome.RESERVED)
    assert len(await store.find_open_intents(NOW, 10)) == 1
    assert winner in range(5)


async def test_one_code_in_a_batch_is_spent_once(store: Store) -> None:
    intents = [make_intent(code_id=7) for _ in range(5)]
    outcomes = await reserve(store, *intents)
    assert Counter(outcomes) == {Outcome.RESERVED: 1, Outcome.CODE_SPENT: 4}
    assert await store.find_open_intents(NOW, 10) == [intents[outcomes.index(Outcome.RESERVED)]]


async def test_a_spent_code_leaves_no_intent(store: Store) -> None:
    await reserve(store, make_intent(code_id=7))
    rival = make_intent(code_id=7)
    assert await reserve(store, rival) == [Outcome.CODE_SPENT]
    assert await store.find_issuances([rival.request_key]) == {}
    assert await store.find_certificate(rival.issuer_id, rival.serial) is None
    assert await reserve(store, msgspec.structs.replace(rival, code_id=8)) == [Outcome.RESERVED]


async def test_an_intent_that_is_not_reserved_spends_no_code(store: Store) -> None:
    intent = make_intent()
    await reserve(store, intent)
    assert await reserve(store, make_intent(request_key=intent.request_key, code_id=7)) == [Outcome.EXISTS]
    assert await reserve(store, make_intent(code_id=7)) == [Outcome.RESERVED]


async def test_an_intent_with_a_result_is_not_reserved_again(store: Store) -> None:
    intent = await issue(store)
    assert await reserve(store, intent) == [Outcome.EXISTS]


@pytest.mark.parametrize("closing", [Closing.VOID, Closing.ORPHAN])
async def test_a_closed_intent_is_not_reserved_again(store: Store, closing: Closing) -> None:
    intent = make_intent()
    await reserve(store, intent)
    await store.close_intent(intent.issuer_id, intent.serial, closing)
    assert await reserve(store, intent) == [Outcome.EXISTS]
    assert await store.find_issuances([intent.request_key]) == {}
    assert await reserve(store, make_intent(request_key=intent.request_key)) == [Outcome.RESERVED]


async def test_a_serial_is_never_chosen_twice(store: Store) -> None:
    intent = make_intent()
    await reserve(store, intent)
    with pytest.raises(Broken, match="chosen twice"):
        await reserve(store, make_intent(serial=intent.serial))
    assert await reserve(store, make_intent(serial=intent.serial, issuer_id=2)) == [Outcome.RESERVED]


# --- codes and closings ----------------------------------------------------------------------------------------------
async def close(store: Store, intent: Intent, closing: Closing) -> bool:
    return await store.close_intent(intent.issuer_id, intent.serial, closing)


async def test_void_frees_the_request_key_and_the_code(store: Store) -> None:
    intent = make_intent(code_id=7)
    await reserve(store, intent)
    assert await close(store, intent, Closing.VOID)
    assert await reserve(store, make_intent(code_id=7)) == [Outcome.RESERVED]
    assert await reserve(store, make_intent(request_key=intent.request_key)) == [Outcome.RESERVED]


async def test_an_orphan_keeps_its_code_for_its_own_request(store: Store) -> None:
    orphan = make_intent(code_id=7)
    await reserve(store, orphan)
    assert await close(store, orphan, Closing.ORPHAN)
    assert await reserve(store, make_intent(code_id=7)) == [Outcome.CODE_SPENT]
    again = make_intent(code_id=7, request_key=orphan.request_key)
    assert await reserve(store, again) == [Outcome.RESERVED]
    assert await reserve(store, make_intent(code_id=7)) == [Outcome.CODE_SPENT]
    # Voiding the second attempt proves nothing about the first.
    assert await close(store, again, Closing.VOID)
    assert await reserve(store, make_intent(code_id=7)) == [Outcome.CODE_SPENT]
    assert await reserve(store, make_intent(code_id=7, request_key=orphan.request_key)) == [Outcome.RESERVED]


async def test_a_superseded_certificate_gives_its_code_to_nobody(store: Store) -> None:
    first = await issue(store, code_id=7)
    assert await close(store, first, Closing.SUPERSEDED)
    assert await reserve(store, make_intent(code_id=7)) == [Outcome.CODE_SPENT]
    assert await reserve(store, make_intent(code_id=7, request_key=first.request_key)) == [Outcome.CODE_SPENT]
    second = make_intent(request_key=first.request_key)
    assert await reserve(store, second) == [Outcome.RESERVED]
    await store.record_issued([make_issued(second)])
    assert (await store.find_issuances([first.request_key]))[first.request_key].intent == second
    assert await store.find_certificate(first.issuer_id, first.serial) is not None


async def test_an_orphan_whose_certificate_came_to_light_gives_its_code_to_nobody(store: Store) -> None:
    orphan = make_intent(code_id=7)
    await reserve(store, orphan)
    assert await close(store, orphan, Closing.ORPHAN)
    await store.record_issued([make_issued(orphan)])
    again = make_intent(code_id=7, request_key=orphan.request_key)
    assert await reserve(store, again, make_intent()) == [Outcome.CODE_SPENT, Outcome.RESERVED]


@pytest.mark.parametrize(
    ("state", "closing", "closes"),
    [
        ("open", Closing.VOID, True),
        ("open", Closing.ORPHAN, True),
        ("open", Closing.SUPERSEDED, False),
        ("issued", Closing.VOID, False),
        ("issued", Closing.ORPHAN, False),
        ("issued", Closing.SUPERSEDED, True),
        *[(state, closing, False) for state in ("void", "orphan", "superseded", "absent") for closing in Closing],
    ],
)
async def test_closing(store: Store, state: str, closing: Closing, closes: bool) -> None:
    intent = make_intent()
    if state != "absent":
        await reserve(store, intent)
    if state in ("issued", "superseded"):
        await store.record_issued([make_issued(intent)])
    if state in ("void", "orphan", "superseded"):
        assert await close(store, intent, Closing(state))
    assert await close(store, intent, closing) is closes
    assert (intent.request_key in await store.find_issuances([intent.request_key])) is (
        state in ("open", "issued") and not closes
    )


# --- results ---------------------------------------------------------------------------------------------------------
async def test_a_result_is_found_by_request_key_and_by_serial(store: Store) -> None:
    intent = make_intent()
    await reserve(store, intent)
    issued = make_issued(intent)
    await store.record_issued([issued])
    assert await store.find_issuances([intent.request_key]) == {
        intent.request_key: Issuance(intent, None, issued.certificate, issued.issued_at)
    }
    assert await store.find_certificate(intent.issuer_id, intent.serial) == StoredCertificate(
        issuer_id=intent.issuer_id,
        serial=intent.serial,
        ecosystem_id=intent.ecosystem_id,
        profile=intent.profile,
        device=intent.device,
        identity=intent.identity,
        certificate=issued.certificate,
        not_before=issued.not_before,
        not_after=issued.not_after,
        issued_at=issued.issued_at,
        revoked_at=None,
    )
    assert await store.find_certificate(2, intent.serial) is None
    assert await store.find_events(None, 10) == [issued.event]
    assert await store.find_open_intents(NOW, 10) == []


async def test_a_device_certificate_need_not_end(store: Store) -> None:
    never = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    intent = await issue(store, not_after=never)
    found = await store.find_certificate(intent.issuer_id, intent.serial)
    assert found is not None
    assert found.not_after == never


async def test_repeated_results_are_ignored(store: Store) -> None:
    intents = [make_intent() for _ in range(3)]
    await reserve(store, *intents)
    results = [make_issued(intent) for intent in intents]
    await store.record_issued(results[:2])
    await store.record_issued(results)
    await store.record_issued(results)
    assert sorted(event.request_id for event in await store.find_events(None, 10)) == sorted(
        result.event.request_id for result in results
    )


async def test_a_serial_has_one_certificate(store: Store) -> None:
    intent, bystander = make_intent(), make_intent()
    await reserve(store, intent, bystander)
    await store.record_issued([make_issued(intent)])
    with pytest.raises(Broken, match="two different certificates"):
        await store.record_issued([make_issued(intent, certificate=b"\x30\x00"), make_issued(bystander)])
    found = await store.find_certificate(intent.issuer_id, intent.serial)
    assert found is not None
    assert found.certificate == make_issued(intent).certificate
    assert await store.find_certificate(bystander.issuer_id, bystander.serial) is not None


async def test_a_result_needs_an_intent(store: Store) -> None:
    unknown = make_intent()
    with pytest.raises(Broken, match="without an intent"):
        await store.record_issued([make_issued(unknown)])
    assert await store.find_certificate(unknown.issuer_id, unknown.serial) is None
    assert await store.find_events(None, 10) == []


@pytest.mark.parametrize("closing", [Closing.VOID, Closing.ORPHAN])
async def test_what_was_signed_is_recorded_even_after_closing(store: Store, closing: Closing) -> None:
    intent = make_intent()
    await reserve(store, intent)
    await close(store, intent, closing)
    issued = make_issued(intent)
    await store.record_issued([issued])
    await store.record_issued([issued])
    found = await store.find_certificate(intent.issuer_id, intent.serial)
    assert found is not None
    assert found.certificate == issued.certificate
    (event,) = await store.find_events(None, 10)
    assert event == msgspec.structs.replace(issued.event, extra={**issued.event.extra, "late": True})
    assert await store.find_issuances([intent.request_key]) == {}


async def test_intents_without_result_are_found_oldest_first(store: Store) -> None:
    intents = [make_intent(created_at=T0 + timedelta(seconds=second)) for second in (30, 10, 20, 40)]
    await reserve(store, *intents)
    await store.record_issued([make_issued(intents[2])])
    assert await store.find_open_intents(T0 + timedelta(seconds=40), 10) == [intents[1], intents[0]]
    assert await store.find_open_intents(T0 + timedelta(seconds=41), 2) == [intents[1], intents[0]]
    await close(store, intents[1], Closing.ORPHAN)
    assert await store.find_open_intents(T0 + timedelta(seconds=41), 10) == [intents[0], intents[3]]


async def test_certificates_newest_first(store: Store) -> None:
    campus, harbour = await make_ecosystem(store), await make_ecosystem(store, "harbour")
    made = [
        await issue(store, ecosystem_id=ecosystem.ecosystem_id, device=device, issued_at=T0 + timedelta(seconds=second))
        for second, ecosystem, device in [
            (1, campus, "pump"), (4, campus, "pump"), (2, campus, "valve"), (3, harbour, "pump"),
        ]
    ]  # fmt: skip

    async def serials(ecosystem_id: int | None, device: str | None, limit: int = 10) -> list[int]:
        order = [intent.serial for intent in made]
        return [order.index(found.serial) for found in await store.find_certificates(ecosystem_id, device, limit)]

    assert await serials(None, None) == [1, 3, 2, 0]
    assert await serials(None, None, 2) == [1, 3]
    assert await serials(campus.ecosystem_id, None) == [1, 2, 0]
    assert await serials(None, "pump") == [1, 3, 0]
    assert await serials(campus.ecosystem_id, "pump") == [1, 0]
    assert await serials(campus.ecosystem_id, "pump", 1) == [1]
    assert await serials(harbour.ecosystem_id, "valve") == []


# --- revocation ------------------------------------------------------------------------------------------------------
async def test_revoking_once(store: Store) -> None:
    issuer_id = (await make_ecosystem(store)).issuers[0].issuer_id
    intent = await issue(store, issuer_id=issuer_id)
    revocation = make_revocation(issuer_id, intent.serial)
    event = make_event(kind="certificate.revoke")
    assert await store.record_revocation(revocation, event) is RevocationOutcome.REVOKED
    for reason in (revocation.reason, "superseded"):
        again = dataclasses.replace(revocation, reason=reason)
        assert await store.record_revocation(again, make_event()) is RevocationOutcome.UNCHANGED
    assert await store.find_revocations() == [revocation]
    found = await store.find_certificate(issuer_id, intent.serial)
    assert found is not None
    assert found.revoked_at == revocation.revoked_at
    assert (await store.find_certificates(None, intent.device, 1))[0].revoked_at == revocation.revoked_at
    assert (await store.find_events(None, 1)) == [event]


async def test_a_reason_rises_to_key_compromise_and_never_falls(store: Store) -> None:
    ecosystem = await make_ecosystem(store)
    issuer_id = ecosystem.issuers[0].issuer_id
    intent = await issue(store, issuer_id=issuer_id, ecosystem_id=ecosystem.ecosystem_id)
    first = make_revocation(issuer_id, intent.serial, reason="superseded")
    told = make_event(kind="certificate.revoke", extra={"reason": "superseded"})
    assert await store.record_revocation(first, told) is RevocationOutcome.REVOKED
    assert await store.find_compromised_keys() == []
    other = dataclasses.replace(first, reason="privilegeWithdrawn")
    assert await store.record_revocation(other, make_event()) is RevocationOutcome.UNCHANGED
    later = make_revocation(issuer_id, intent.serial, revoked_at=first.revoked_at + timedelta(days=1))
    event = make_event(kind="certificate.revoke", extra={"reason": later.reason})
    assert await store.record_revocation(later, event) is RevocationOutcome.RAISED
    assert await store.find_compromised_keys() == [(ecosystem.ecosystem_id, intent.spki_sha256)]
    for reason in (later.reason, "superseded"):
        again = dataclasses.replace(later, reason=reason)
        assert await store.record_revocation(again, make_event()) is RevocationOutcome.UNCHANGED
    assert await store.find_revocations() == [dataclasses.replace(first, reason="keyCompromise")]
    assert (await store.find_issuances([intent.request_key]))[intent.request_key].revoked_for == "keyCompromise"
    raised = msgspec.structs.replace(event, extra={"reason": "keyCompromise", "raised": True})
    assert [one for one in await store.find_events(None, 9) if one.kind == "certificate.revoke"] == [raised, told]


async def test_of_two_who_revoke_at_once_the_graver_reason_stands(store: Store) -> None:
    issuer_id = (await make_ecosystem(store)).issuers[0].issuer_id
    for number in range(8):
        serial = bytes([number + 1])
        reasons = ("superseded", "keyCompromise") if number % 2 else ("keyCompromise", "superseded")
        revocations = [make_revocation(issuer_id, serial, reason=reason) for reason in reasons]
        await asyncio.gather(*(store.record_revocation(one, make_event()) for one in revocations))
    assert {one.reason for one in await store.find_revocations()} == {"keyCompromise"}


async def test_a_revocation_is_found_with_what_was_issued(store: Store) -> None:
    issuer_id = (await make_ecosystem(store)).issuers[0].issuer_id
    intents = [await issue(store, issuer_id=issuer_id) for _ in range(2)]
    begun = make_intent(issuer_id=issuer_id)
    await reserve(store, begun)
    for intent, reason in ((intents[0], "superseded"), (begun, "keyCompromise")):
        revocation = make_revocation(issuer_id, intent.serial, reason=reason)
        assert await store.record_revocation(revocation, make_event()) is RevocationOutcome.REVOKED
    found = await store.find_issuances([intent.request_key for intent in (*intents, begun)])
    assert {key: one.revoked_for for key, one in found.items()} == {
        intents[0].request_key: "superseded",
        intents[1].request_key: None,
        begun.request_key: "keyCompromise",
    }


async def test_compromised_keys_are_known_for_ever(store: Store) -> None:
    campus, harbour = await make_ecosystem(store), await make_ecosystem(store, "harbour")
    expected = set()
    for ecosystem, reason, not_after in [
        (campus, "keyCompromise", NOW + timedelta(days=1)),
        (campus, "keyCompromise", NOW - timedelta(days=1)),
        (harbour, "keyCompromise", NOW + timedelta(days=1)),
        (harbour, "superseded", NOW + timedelta(days=1)),
    ]:
        ids = {"issuer_id": ecosystem.issuers[0].issuer_id, "ecosystem_id": ecosystem.ecosystem_id}
        intent = await issue(store, not_after=not_after, **ids)
        await store.record_revocation(make_revocation(intent.issuer_id, intent.serial, reason=reason), make_event())
        if reason == "keyCompromise":
            expected.add((ecosystem.ecosystem_id, intent.spki_sha256))
    # The same key twice, and a serial nobody knows.
    twin = await issue(store, spki_sha256=intent.spki_sha256, **ids)
    await store.record_revocation(make_revocation(twin.issuer_id, twin.serial), make_event())
    await store.record_revocation(make_revocation(twin.issuer_id, b"\x01"), make_event())
    expected.add((harbour.ecosystem_id, twin.spki_sha256))
    found = await store.find_compromised_keys()
    assert len(found) == 4
    assert set(found) == expected


async def test_revocations_outlive_only_unexpired_certificates(store: Store) -> None:
    issuer_id = (await make_ecosystem(store)).issuers[0].issuer_id
    unexpired = await issue(store, issuer_id=issuer_id, not_after=NOW)
    expired = await issue(store, issuer_id=issuer_id, not_after=NOW - timedelta(seconds=1))
    orphan = make_intent(issuer_id=issuer_id)
    await reserve(store, orphan)
    for intent in (unexpired, expired, orphan):
        await store.record_revocation(make_revocation(issuer_id, intent.serial), make_event())
    assert {revocation.serial for revocation in await store.find_revocations()} == {unexpired.serial, orphan.serial}


# --- ecosystems ------------------------------------------------------------------------------------------------------
async def test_the_first_version_makes_the_ecosystem_and_its_place(store: Store) -> None:
    document = {"profiles": {"sensor": {"days": 90}}, "name": "Campus Süd", "none": None, "list": [1, 2.5, True]}
    event = make_event(kind="ecosystem.apply", ecosystem_id=None)
    new = [make_new_issuer("root", sealed_key=None), make_new_issuer("issuing", "root")]
    record = await store.record_ecosystem("campus", document, new, 0, "ada", event)
    assert (record.label, record.version, record.document, record.applied_at, record.applied_by) == (
        "campus", 1, document, event.at, "ada",
    )  # fmt: skip
    root, issuing = record.issuers
    assert [(i.name, i.certificate, i.sealed_key) for i in record.issuers] == [
        (i.name, i.certificate, i.sealed_key) for i in new
    ]
    assert (root.parent_id, issuing.parent_id) == (None, root.issuer_id)
    assert {issuer.ecosystem_id for issuer in record.issuers} == {record.ecosystem_id}
    assert {issuer.created_at for issuer in record.issuers} == {event.at}
    assert await store.find_ecosystems() == [record]
    (place,) = await store.find_nodes()
    assert (place.node_id, place.parent_id, place.kind, place.name) == (record.node_id, None, "ecosystem", "campus")
    expected = msgspec.structs.replace(event, ecosystem_id=record.ecosystem_id)
    assert await store.find_events(record.ecosystem_id, 10) == [expected]


async def test_versions_follow_one_another(store: Store) -> None:
    first = await make_ecosystem(store)
    rolled = make_new_issuer("issuing")
    second = await store.record_ecosystem("campus", {"n": 2}, [rolled], 1, "bo", make_event())
    assert (second.version, second.document, second.ecosystem_id) == (2, {"n": 2}, first.ecosystem_id)
    assert [issuer.certificate for issuer in second.issuers] == [first.issuers[0].certificate, rolled.certificate]
    assert await store.find_ecosystems() == [second]
    assert len(await store.find_nodes()) == 1
    # A child of the rolled issuer hangs under the newest of that name.
    third = await store.record_ecosystem(
        "campus", {"n": 3}, [make_new_issuer("leaf", "issuing")], 2, "bo", make_event()
    )
    assert third.issuers[2].parent_id == third.issuers[1].issuer_id


async def test_a_stale_version_changes_nothing(store: Store) -> None:
    record = await make_ecosystem(store)
    for expected_version in (0, 2, 7):
        with pytest.raises(Conflict):
            await store.record_ecosystem(
                "campus", {"n": 2}, [make_new_issuer()], expected_version, "bo", make_event(ecosystem="stale")
            )
    with pytest.raises(Conflict):
        await store.record_ecosystem("harbour", {"n": 1}, [], 1, "bo", make_event(ecosystem="stale"))
    imported = make_new_issuer(certificate=record.issuers[0].certificate)
    with pytest.raises(Conflict):
        await store.record_ecosystem("campus", {"n": 2}, [imported], 1, "bo", make_event(ecosystem="stale"))
    assert await store.find_ecosystems() == [record]
    assert "stale" not in {event.ecosystem for event in await store.find_events(None, 10)}


async def test_applying_again_answers_the_same(store: Store) -> None:
    new, event = [make_new_issuer()], make_event()
    first = await store.record_ecosystem("campus", {"n": 1}, new, 0, "ada", event)
    assert await store.record_ecosystem("campus", {"n": 1}, new, 0, "ada", event) == first
    assert len(await store.find_events(None, 10)) == 1
    second = await store.record_ecosystem("campus", {"n": 2}, [], 1, "ada", event)
    assert await store.record_ecosystem("campus", {"n": 2}, [], 1, "ada", event) == second
    with pytest.raises(Conflict):
        await store.record_ecosystem("campus", {"n": 1}, new, 0, "ada", event)


@pytest.mark.parametrize("label", ["Campus", "", "campus/x", "cämpus", "-campus", "campus\n", "k" * 64, "ＣＡＭＰＵＳ"])
async def test_a_label_has_one_spelling(store: Store, label: str) -> None:
    with pytest.raises(Broken):
        await store.record_ecosystem(label, {}, [], 0, "ada", make_event())
    assert await store.find_nodes() == []


async def test_a_parent_must_exist(store: Store) -> None:
    with pytest.raises(Broken, match="parent"):
        await store.record_ecosystem("campus", {}, [make_new_issuer("issuing", "root")], 0, "ada", make_event())
    assert await store.find_ecosystems() == []


async def test_of_many_that_apply_one_wins(make_store: MakeStore) -> None:
    stores = [await make_store() for _ in range(3)]

    async def apply(number: int, expected_version: int) -> int | None:
        with contextlib.suppress(Conflict):
            document = {"n": number}
            record = await stores[number % 3].record_ecosystem(
                "campus", document, [make_new_issuer()], expected_version, f"admin-{number}", make_event()
            )
            assert record.document == document
            return number
        return None

    for expected_version in (0, 1):
        won = await asyncio.gather(*(apply(number, expected_version) for number in range(12)))
        assert len([number for number in won if number is not None]) == 1
        (record,) = await stores[0].find_ecosystems()
        assert record.version == expected_version + 1
        assert len(record.issuers) == expected_version + 1
    assert len(await stores[0].find_nodes()) == 1


async def test_several_ecosystems_are_applied_all_or_none(store: Store) -> None:
    campus = await make_ecosystem(store)
    new = [make_version("campus", {"n": 2}, expected_version=1), make_version("harbour", {"n": 1})]
    records = await store.record_versions(new)
    assert [(one.label, one.version, len(one.issuers)) for one in records] == [("campus", 2, 2), ("harbour", 1, 1)]
    assert await store.find_ecosystems() == records
    # Once more changes nothing and answers the same.
    assert await store.record_versions(new) == records
    events = await store.find_events(None, 10)
    assert len(events) == 3
    for spoilt, fault in (
        (make_version("campus", {"n": 3}, expected_version=1), Conflict),
        (make_version("yard", {}, expected_version=4), Conflict),
        (make_version("harbour", {}, expected_version=1, new_issuers=[make_new_issuer("leaf", "nobody")]), Broken),
        (make_version("Yard", {}), Broken),
    ):
        with pytest.raises(fault):
            await store.record_versions([make_version("depot", {}), spoilt])
    assert await store.find_ecosystems() == records
    assert len(await store.find_nodes()) == 2
    assert await store.find_events(None, 10) == events
    assert await store.record_versions([]) == []
    assert campus.ecosystem_id == records[0].ecosystem_id


def claiming(*labels: object) -> dict[str, Any]:
    return {"profile": {f"p{number}": {"label": label} for number, label in enumerate(labels)}}


async def test_a_label_leads_to_one_ecosystem(store: Store) -> None:
    await store.record_versions([make_version("campus", claiming("gates", "doors", None, 7))])
    before = await store.find_ecosystems()
    for label, document in (("gates", {}), ("harbour", claiming("campus")), ("harbour", claiming("x", "doors"))):
        with pytest.raises(Conflict, match="leads to campus too"):
            await store.record_versions([make_version(label, document)])
    with pytest.raises(Conflict, match="leads to"):
        await store.record_versions([make_version("north", claiming("yard")), make_version("yard", {})])
    # Documents of another shape claim nothing, and stand in nobody's way.
    for number, strange in enumerate(({"profile": ["label"]}, {"profile": {"a": None, "b": {"label": ["x"]}}}, {})):
        await store.record_versions([make_version(f"strange-{number}", strange)])
    # What the newest version gives up is free; its own labels an ecosystem may keep.
    await store.record_versions([make_version("campus", claiming("doors"), expected_version=1)])
    await store.record_versions([make_version("gates", {})])
    assert len(await store.find_ecosystems()) == len(before) + 4


async def test_of_two_that_claim_one_label_at_once_one_gets_it(make_store: MakeStore) -> None:
    stores = [await make_store() for _ in range(2)]

    async def apply(store: Store, label: str, document: dict[str, Any]) -> bool:
        try:
            await store.record_versions([make_version(label, document)])
        except Conflict:
            return False
        return True

    for number in range(6):
        label = f"gates-{number}"
        won = await asyncio.gather(
            apply(stores[0], label, {}),
            apply(stores[1], f"campus-{number}", claiming(label)),
            apply(stores[0], f"yard-{number}", claiming(label)),
        )
        assert sum(won) == 1
    assert len(await stores[1].find_ecosystems()) == 6


async def test_good_certificates_of_profiles_are_counted(store: Store) -> None:
    record = await make_ecosystem(store)
    mine = {"ecosystem_id": record.ecosystem_id, "issuer_id": record.issuers[0].issuer_id}
    for _ in range(3):
        await issue(store, **mine, profile="sensor")
    await issue(store, **mine, profile="sensor", not_after=NOW - timedelta(seconds=1))
    revoked = await issue(store, **mine, profile="sensor")
    await store.record_revocation(make_revocation(revoked.issuer_id, revoked.serial), make_event())
    await issue(store, **mine, profile="pump", issued_at=T0 + timedelta(days=1))
    await issue(store, **mine, profile="valve")
    await issue(store, ecosystem_id=record.ecosystem_id + 1, issuer_id=99, profile="sensor")
    profiles = ["sensor", "pump", "none"]
    assert await store.count_certificates(record.ecosystem_id, profiles, 100) == {"sensor": 3, "pump": 1}
    assert await store.count_certificates(record.ecosystem_id, profiles, 1) == {"pump": 1}
    assert await store.count_certificates(record.ecosystem_id, [], 100) == {}


# --- codes, devices, events ------------------------------------------------------------------------------------------
async def test_codes_are_stored_once_and_show_when_they_were_spent(store: Store) -> None:
    ecosystem_id = (await make_ecosystem(store)).ecosystem_id
    codes = [
        make_code(ecosystem_id, device="pump"),
        make_code(ecosystem_id, device="pump", single_use=False, expires_at=None, profile="gateway"),
        make_code(ecosystem_id, device="valve"),
    ]
    stored = await store.record_codes(codes)
    assert [dataclasses.replace(code, code_id=0) for code in stored] == codes
    assert len({code.code_id for code in stored}) == 3
    assert await store.record_codes(codes) == stored
    assert await store.find_codes(ecosystem_id, "pump") == [stored[1], stored[0]]
    assert await store.list_codes(ecosystem_id, 2) == [stored[2], stored[1]]
    assert await store.find_codes(ecosystem_id + 1, "pump") == []
    await reserve(store, make_intent(code_id=stored[0].code_id, created_at=T0 + timedelta(hours=1)))
    spent = dataclasses.replace(stored[0], spent_at=T0 + timedelta(hours=1))
    assert await store.find_codes(ecosystem_id, "pump") == [stored[1], spent]
    assert (await store.list_codes(ecosystem_id, 10))[-1] == spent


async def find_kind(store: Store, kind: str) -> list[Event]:
    return [event for event in await store.find_events(None, 100) if event.kind == kind]


async def test_codes_that_work_are_listed_and_end_when_they_are_revoked(store: Store) -> None:
    ecosystem_id = (await make_ecosystem(store)).ecosystem_id
    now, event = T0 + timedelta(hours=2), make_event(kind="code.revoke", ecosystem_id=ecosystem_id)
    spent, expired, pump, reusable, valve = await store.record_codes(
        [
            make_code(ecosystem_id, device="pump", expires_at=None),
            make_code(ecosystem_id, device="pump", expires_at=now),
            make_code(ecosystem_id, device="pump", expires_at=now + timedelta(days=1)),
            make_code(ecosystem_id, device="pump", single_use=False, expires_at=None),
            make_code(ecosystem_id, device="valve", expires_at=None),
        ]
    )
    await reserve(store, make_intent(code_id=spent.code_id, created_at=T0))
    assert await store.list_codes(ecosystem_id, 10, now) == [valve, reusable, pump]
    assert await store.list_codes(ecosystem_id, 1, now) == [valve]
    assert await store.list_codes(ecosystem_id, 10, now - timedelta(seconds=1)) == [valve, reusable, pump, expired]
    assert await store.revoke_codes(ecosystem_id + 1, None, now, event) == []
    assert await store.revoke_codes(ecosystem_id, ["nobody"], now, event) == []
    assert await find_kind(store, "code.revoke") == []
    # One that is spent ends as well: no retry is answered any more.
    assert await store.revoke_codes(ecosystem_id, ["pump"], now, event) == ["pump", "pump", "pump"]
    assert await find_kind(store, "code.revoke") == [event]
    assert await store.list_codes(ecosystem_id, 10, now) == [valve]
    ended = [dataclasses.replace(code, expires_at=now) for code in (reusable, pump)]
    assert await store.find_codes(ecosystem_id, "pump") == [
        *ended,
        expired,
        dataclasses.replace(spent, spent_at=T0, expires_at=now),
    ]
    assert await store.revoke_codes(ecosystem_id, ["pump"], now, event) == []
    (used,) = await store.record_codes([make_code(ecosystem_id, device="tank", expires_at=None)])
    await reserve(store, make_intent(code_id=used.code_id, created_at=T0))
    assert await store.revoke_codes(ecosystem_id, None, now, event) == ["valve"]
    assert await store.revoke_codes(ecosystem_id, None, now, event) == []
    assert await store.find_codes(ecosystem_id, "tank") == [dataclasses.replace(used, spent_at=T0)]
    assert await find_kind(store, "code.revoke") == [event, event]


async def test_devices_are_replaced(store: Store) -> None:
    ecosystem_id = (await make_ecosystem(store)).ecosystem_id
    pump = make_device(ecosystem_id, device="pump", san=("dns:p.example", "ip:192.0.2.1"))
    valve = make_device(ecosystem_id, device="valve", subject=None, san=())
    await store.record_devices([pump, valve])
    assert await store.find_device(ecosystem_id, "pump") == pump
    assert await store.find_device(ecosystem_id, "valve") == valve
    assert await store.find_device(ecosystem_id + 1, "pump") is None
    changed = dataclasses.replace(pump, subject="CN=new", san=("uri:urn:x",))
    await store.record_devices([valve, pump, changed])
    assert await store.find_device(ecosystem_id, "pump") == changed


async def test_devices_are_listed_by_name_and_removed(store: Store) -> None:
    ecosystem_id = (await make_ecosystem(store)).ecosystem_id
    other = (await make_ecosystem(store, "other")).ecosystem_id
    event = make_event(kind="inventory.remove", ecosystem_id=ecosystem_id)
    pump, tank, valve = (make_device(ecosystem_id, device=name) for name in ("pump", "tank", "valve"))
    await store.record_devices([valve, make_device(other, device="qualm"), pump, tank])
    assert await store.list_devices(ecosystem_id, "", 10) == [pump, tank, valve]
    assert await store.list_devices(ecosystem_id, "", 2) == [pump, tank]
    assert await store.list_devices(ecosystem_id, "pump", 1) == [tank]
    assert await store.list_devices(ecosystem_id, "valve", 10) == []
    assert await store.remove_devices(ecosystem_id, ["nobody", "qualm"], event) == []
    assert await find_kind(store, "inventory.remove") == []
    assert await store.remove_devices(ecosystem_id, ["valve", "nobody", "pump"], event) == ["pump", "valve"]
    assert await find_kind(store, "inventory.remove") == [event]
    assert await store.list_devices(ecosystem_id, "", 10) == [tank]
    assert await store.find_device(other, "qualm") is not None


async def test_events_newest_first(store: Store) -> None:
    events = [
        make_event(ecosystem_id=1),
        make_event(ecosystem_id=2, outcome="refused", code="code-spent", detail="already used", request_id="asked"),
        Event(T0, "tls.handshake", "failed"),
        make_event(ecosystem_id=1, extra={"nested": {"a": [1, None, "ü"]}}, serial="40ab", issuer_id=3),
    ]
    await store.record_events(events[:2])
    await store.record_events(events[2:])
    assert await store.find_events(None, 10) == events[::-1]
    assert await store.find_events(None, 2) == [events[3], events[2]]
    assert await store.find_events(1, 10) == [events[3], events[0]]
    assert await store.find_events(1, 1) == [events[3]]
    # Also the one that others came after.
    assert await store.find_events(None, 1, outcome="refused") == [events[1]]
    assert await store.find_events(2, 1, outcome="refused") == [events[1]]
    assert await store.find_events(1, 10, outcome="refused") == []
    asked = events[1].request_id
    assert await store.find_events(None, 1, request_id=asked) == [events[1]]
    assert await store.find_events(2, 9, outcome="refused", request_id=asked) == [events[1]]
    assert await store.find_events(1, 9, request_id=asked) == []


async def test_a_refusal_is_recorded_whatever_the_stranger_sent(store: Store) -> None:
    hostile = "a\0b\ud800\N{GRINNING FACE}'; DROP TABLE event; --"
    clean = "a\ufffdb?\N{GRINNING FACE}'; DROP TABLE event; --"
    event = make_event(identity=hostile, detail=hostile, extra={hostile: [hostile, {"x": hostile}, 7]})
    expected = msgspec.structs.replace(event, identity=clean, detail=clean, extra={clean: [clean, {"x": clean}, 7]})
    await store.record_events([event, make_event()])
    assert (await store.find_events(None, 2))[1] == expected
    intent = make_intent()
    await reserve(store, intent)
    await store.record_issued([make_issued(intent, event=event)])
    stored = (await store.find_events(None, 1))[0]
    assert msgspec.structs.replace(stored, issuer_id=None) == expected
    issuer_id = (await make_ecosystem(store)).issuers[0].issuer_id
    await store.record_revocation(make_revocation(issuer_id, intent.serial), event)
    assert (await store.find_events(None, 1))[0] == expected


# --- many at once ----------------------------------------------------------------------------------------------------
async def test_a_hundred_uses_of_one_code_make_one_intent(make_store: MakeStore) -> None:
    stores = [await make_store() for _ in range(4)]
    intents = [make_intent(code_id=7) for _ in range(100)]
    answers = await asyncio.gather(*(reserve(stores[n % 4], intent) for n, intent in enumerate(intents)))
    outcomes = [outcome for answer in answers for outcome in answer]
    assert Counter(outcomes) == {Outcome.RESERVED: 1, Outcome.CODE_SPENT: 99}
    assert await stores[0].find_open_intents(NOW, 200) == [intents[outcomes.index(Outcome.RESERVED)]]


async def test_fifty_reservations_of_one_request_key_make_one_intent(make_store: MakeStore) -> None:
    stores = [await make_store() for _ in range(5)]
    key = digest("request", "shared")
    intents = [make_intent(request_key=key, code_id=7) for _ in range(50)]
    answers = await asyncio.gather(*(reserve(stores[n % 5], intent) for n, intent in enumerate(intents)))
    outcomes = [outcome for answer in answers for outcome in answer]
    assert Counter(outcomes) == {Outcome.RESERVED: 1, Outcome.EXISTS: 49}
    assert await stores[0].find_open_intents(NOW, 200) == [intents[outcomes.index(Outcome.RESERVED)]]


async def test_batches_with_requests_and_codes_in_common(make_store: MakeStore) -> None:
    """Each of 12 requests, with its code, is in every one of 8 batches, each time in another order."""
    stores = [await make_store() for _ in range(4)]
    keys = [digest("request", ("common", number)) for number in range(12)]

    async def attempt(number: int) -> list[tuple[int, Outcome]]:
        order = [(position * (2 * number + 1) + number) % 13 for position in range(13)]
        order = [position for position in order if position < 12]
        batch = [make_intent(request_key=keys[position], code_id=100 + position) for position in order]
        return list(zip(order, await reserve(stores[number % 4], *batch), strict=True))

    answers = [pair for answer in await asyncio.gather(*map(attempt, range(6))) for pair in answer]
    assert Counter(answers) == {(n, Outcome.RESERVED): 1 for n in range(12)} | {
        (n, Outcome.EXISTS): 5 for n in range(12)
    }
    assert len(await stores[0].find_open_intents(NOW, 100)) == 12


async def test_codes_crossing_requests_never_reserve_twice(make_store: MakeStore) -> None:
    """Requests and codes paired differently in each batch: whatever is decided, no key and no code is held twice."""
    stores = [await make_store() for _ in range(4)]
    keys = [digest("request", ("crossed", number)) for number in range(5)]
    batches = [
        [make_intent(request_key=keys[n], code_id=100 + (n * 2 + shift) % 5) for n in range(5)] for shift in range(8)
    ]
    answers = await asyncio.gather(*(reserve(stores[n % 4], *batch) for n, batch in enumerate(batches)))
    held = [
        intent
        for batch, answer in zip(batches, answers, strict=True)
        for intent, outcome in zip(batch, answer, strict=True)
        if outcome is Outcome.RESERVED
    ]
    assert len({intent.request_key for intent in held}) == len(held) >= 1
    assert len({intent.code_id for intent in held}) == len(held)
    by_serial = sorted(held, key=lambda intent: intent.serial)
    assert sorted(await stores[0].find_open_intents(NOW, 100), key=lambda intent: intent.serial) == by_serial


async def test_a_result_and_a_closing_compete(make_store: MakeStore) -> None:
    """Either the intent is issued and open, or it is closed and its certificate known nonetheless."""
    one, other = await make_store(), await make_store()
    for _ in range(20):
        intent = make_intent(code_id=None)
        await reserve(one, intent)
        issued = make_issued(intent)
        _, closed = await asyncio.gather(one.record_issued([issued]), close(other, intent, Closing.ORPHAN))
        found = await one.find_certificate(intent.issuer_id, intent.serial)
        assert found is not None
        assert found.certificate == issued.certificate
        assert (intent.request_key in await other.find_issuances([intent.request_key])) is not closed
    assert await one.find_open_intents(NOW, 10) == []
    assert len(await one.find_events(None, 100)) == 20


async def test_the_same_results_recorded_at_once(make_store: MakeStore) -> None:
    stores = [await make_store() for _ in range(4)]
    intents = [make_intent() for _ in range(10)]
    await reserve(stores[0], *intents)
    results = [make_issued(intent) for intent in intents]
    await asyncio.gather(*(store.record_issued(results[n:] + results[:n]) for n, store in enumerate(stores)))
    assert len(await stores[0].find_events(None, 100)) == 10


async def test_closing_once(make_store: MakeStore) -> None:
    stores = [await make_store() for _ in range(4)]
    intent = make_intent()
    await reserve(stores[0], intent)
    closed = await asyncio.gather(*(close(store, intent, Closing.VOID) for store in stores))
    assert sorted(closed) == [False, False, False, True]


async def test_a_request_waiting_for_one_that_gives_up_gets_its_turn(make_store: MakeStore) -> None:
    """Reserving and voiding in turns by many: each ends up reserved once, and the code is never in two hands."""
    stores = [await make_store() for _ in range(3)]

    async def use(number: int) -> None:
        intent = make_intent(code_id=7)
        while (await reserve(stores[number % 3], intent)) != [Outcome.RESERVED]:
            await asyncio.sleep(0.002)
        assert await stores[0].find_open_intents(NOW, 10) == [intent]
        assert await close(stores[number % 3], intent, Closing.VOID)

    await asyncio.gather(*map(use, range(9)))


# --- followers and life ----------------------------------------------------------------------------------------------
async def test_followers_hear_of_changes_within_a_second(make_store: MakeStore) -> None:
    writer, reader = await make_store(), await make_store()
    heard: asyncio.Queue[str] = asyncio.Queue()
    await reader.subscribe(heard.put)
    await make_store()
    record = await make_ecosystem(writer)
    assert await asyncio.wait_for(heard.get(), 1) == "ecosystems"
    issuer_id = record.issuers[0].issuer_id
    revocation = make_revocation(issuer_id, b"\x01")
    for reason in ("superseded", revocation.reason):  # the second raises the reason of the first
        await writer.record_revocation(dataclasses.replace(revocation, reason=reason), make_event())
        assert await asyncio.wait_for(heard.get(), 1) == "revocations"
    # What changed nothing is not told.
    assert await writer.record_revocation(revocation, make_event()) is RevocationOutcome.UNCHANGED
    with pytest.raises(Conflict):
        await writer.record_ecosystem("campus", {"other": True}, [], 0, "bo", make_event())
    await asyncio.sleep(0.1)
    assert heard.empty()


async def test_a_follower_that_fails_is_asked_to_resync(store: Store) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def follow(topic: str) -> None:
        await heard.put(topic)
        if heard.qsize() < 2:
            raise Unavailable(Code.STORE_UNAVAILABLE, "not now")

    await store.subscribe(follow)
    await make_ecosystem(store)
    await asyncio.sleep(0.2)
    assert heard.qsize() == 1
    async with asyncio.timeout(5):
        while heard.qsize() < 2:
            await asyncio.sleep(0.05)
    assert [heard.get_nowait(), heard.get_nowait()] == ["ecosystems", "resync"]


async def test_a_good_database_passes_the_check(store: Store) -> None:
    await store.check()


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    await store.subscribe(_ignore)
    await store.close()
    with pytest.raises(Unavailable):
        await reserve(store, make_intent())
    with pytest.raises(Unavailable):
        await store.check()
    await store.close()


async def _ignore(_: str) -> None:
    """Hear and do nothing."""


# --- a database that was set back ------------------------------------------------------------------------------------


async def test_intents_that_are_missing_are_named_and_restored_beside_what_holds_their_key(store: Store) -> None:
    standing, lost = make_intent(), make_intent()
    double = make_intent(request_key=standing.request_key)
    assert await store.reserve_intents([standing]) == [Outcome.RESERVED]
    keys = [(one.issuer_id, one.serial) for one in (lost, standing, double)]
    assert await store.find_unintended(keys) == [keys[0], keys[2]]
    for _ in range(2):
        await store.restore_intents([double, standing], Closing.ORPHAN)
    assert await store.find_unintended(keys) == [keys[0]]
    issuance = (await store.find_issuances([standing.request_key]))[standing.request_key]
    assert issuance.intent == standing
    # Its certificate is known all the same, and it can be revoked like any other.
    await store.record_issued([make_issued(double)])
    found = await store.find_certificate(double.issuer_id, double.serial)
    assert found is not None
    assert await store.find_open_intents(NOW + timedelta(days=1), 10) == [standing]


async def test_marks_of_the_newest_certificates_and_of_the_unresolved_are_found(store: Store) -> None:
    record = await store.record_ecosystem("campus", {"n": 1}, [make_new_issuer("root")], 0, "ada", make_event())
    issued = make_intent(ecosystem_id=record.ecosystem_id, journal="0-0123456789abcdef.7.0123456789abcdef")
    waiting = make_intent(journal="1-0123456789abcdef.9.0123456789abcdef")
    await store.reserve_intents([issued, waiting])
    await store.record_issued([make_issued(issued)])
    assert sorted(await store.find_newest_marks(10)) == [issued.journal, waiting.journal]


async def test_each_group_of_events_is_a_link_of_the_trail(store: Store) -> None:
    assert await store.find_newest_link() is None
    await store.record_events([make_event(), make_event()])
    first = await store.find_newest_link()
    assert first is not None
    await store.record_events([make_event()])
    second = await store.find_newest_link()
    assert second is not None
    assert second[0] > first[0]
    assert await store.find_links([first[0], second[0], 10**9]) == dict([first, second])
