"""Groups of a batch in a real store with a real signer: what is issued once, what is refused alone, who waits for whom."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from cryptography import x509
from est_world import HOME, NEIGHBOUR, Caller, World, now, open_world
from factory import make_csr, make_key, make_name
from postgres_fixture import PostgresServer
from store_values import make_event

from estd.asn1 import der
from estd.errors import Broken, Code, Unavailable
from estd.ra import bulk
from estd.ra.admission import Admitted, Purpose
from estd.ra.bulk import GROUPS_AT_ONCE, SLICE_SIZE, Answer, Bulk
from estd.ra.vouching import Request, decide_order
from estd.store.contract import Device, Revocation
from estd.wire.exchange import Peer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(postgres_server: PostgresServer) -> AsyncIterator[World]:
    database = await postgres_server.take()
    async with open_world(database) as world:
        yield world
    await postgres_server.give_back(database)


async def admit(world: World, label: str = HOME, purpose: Purpose = Purpose.BATCH) -> Admitted:
    caller = await world.authority(label) if purpose is Purpose.BATCH else world.born(label)
    place = world.est.directory.find_place(label)
    peer = Peer("192.0.2.7", caller.certificates)
    return await world.est._admission.admit(world.est.directory, place, purpose, peer, None, now())


def lane(world: World) -> Bulk:
    return world.est._batches._bulk


def make_requests(world: World, count: int) -> list[Request]:
    names = [world.new_name() for _ in range(count)]
    return [Request(f"row {name}", make_csr(make_name(name))) for name in names]


async def send(
    world: World, requests: list[Request], admitted: Admitted | None = None, *, look_first: bool = False
) -> list[Answer]:
    admitted = admitted or await admit(world)
    return await lane(world).send(admitted, requests, "192.0.2.7", "request-1", look_first=look_first)


async def test_each_request_has_its_certificate_and_its_event(world: World) -> None:
    requests = make_requests(world, 70)
    admitted = await admit(world)
    mark = await world.mark()
    answers = await send(world, requests, admitted)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates, len(trace.events)) == (70, 70, 70)
    issuer = x509.load_der_x509_certificate(world.issuer(HOME).certificate)
    events = {int(event["serial"], 16): event for event in trace.events}
    for request, answer in zip(requests, answers, strict=True):
        assert answer.certificate is not None
        assert not answer.is_repeated
        certificate, csr = x509.load_der_x509_certificate(answer.certificate), x509.load_der_x509_csr(request.csr)
        certificate.verify_directly_issued_by(issuer)
        assert (certificate.subject, certificate.public_key()) == (csr.subject, csr.public_key())
        event = events[certificate.serial_number]
        assert (event["kind"], event["outcome"], event["identity"]) == (
            *("est.batch", "granted"),
            admitted.credential.identity,
        )
        extra = json.loads(event["extra"])
        assert extra["device"] == request.name.removeprefix("row ")
        assert extra["registration_authority"] == admitted.credential.device


@pytest.mark.parametrize("look_first", [False, True])
async def test_the_same_requests_again_whoever_sends_them(world: World, look_first: bool) -> None:
    requests = make_requests(world, 5)
    first = await send(world, requests)
    mark = await world.mark()
    again = await send(world, [*requests, *requests], look_first=look_first)
    assert [answer.certificate for answer in again] == [answer.certificate for answer in first] * 2
    assert all(answer.is_repeated for answer in again)
    trace = await world.since(mark)
    # The second authority's own certificate is all that is new.
    assert (trace.intents, trace.certificates) == (1, 1)


async def test_one_request_twice_in_a_group_and_in_two_groups_at_once(world: World) -> None:
    requests, admitted = make_requests(world, 3), await admit(world)
    mark = await world.mark()
    groups = await asyncio.gather(*(send(world, [*requests, *requests], admitted) for _ in range(2)))
    certificates = {answer.certificate for answers in groups for answer in answers}
    assert len(certificates) == 3
    assert None not in certificates
    assert (await world.since(mark)).certificates == 3


async def test_what_a_device_asks_for_itself_is_its_own(world: World) -> None:
    device = world.born(HOME)
    csr = device.csr()
    await send(world, [Request("", csr)])
    operation, outcome, _ = await world.ask("simpleenroll", HOME, device, body=base64.b64encode(csr))
    assert (operation, outcome) == ("simpleenroll", "ok")
    rows = await world.database.fetch("SELECT operation FROM intent WHERE device = $1 ORDER BY 1", device.name)
    assert [row["operation"] for row in rows] == ["batch", "simpleenroll"]


async def test_bad_requests_are_refused_alone_and_on_record(world: World) -> None:
    good, forged, weak = make_requests(world, 3)
    broken = bytearray(forged.csr)
    broken[-1] ^= 1
    requests = [
        Request("forged", bytes(broken)),
        good,
        Request("empty", b""),
        Request("garbage", b"\x30\x03\x02\x01\x00"),
        Request("", make_csr(x509.Name([]))),
        Request("san", make_csr(make_name("named"), san=[x509.DNSName("pump.example")])),
        weak,
    ]
    admitted = await admit(world)
    mark = await world.mark()
    answers = await send(world, requests, admitted)
    codes = [None if answer.reason is None else answer.reason.code for answer in answers]
    assert codes == [
        Code.CSR_SIGNATURE,
        None,
        Code.MALFORMED_REQUEST,
        Code.CSR_MALFORMED,
        Code.SUBJECT_REFUSED,
        Code.SAN_REFUSED,
        None,
    ]
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates) == (2, 2)
    refused = {json.loads(event["extra"]).get("item"): event for event in trace.events if event["code"]}
    assert len(refused) == 5
    assert (refused["forged"]["outcome"], refused["forged"]["code"]) == ("refused", "csr-signature-invalid")
    assert all(event["identity"] == admitted.credential.identity for event in refused.values())


async def test_the_name_of_the_row_names_a_device_without_a_subject(world: World) -> None:
    name = world.new_name()
    await world.store.record_devices([Device(world.records[HOME].ecosystem_id, name, f"CN={name},O=Plant", ())])
    admitted = with_profile(await admit(world), subject="inventory")
    requests = [Request(name.upper(), make_csr(x509.Name([]))), Request("nobody", make_csr(make_name("not there")))]
    order = await decide_order(world.store, admitted, requests[0], "192.0.2.7", "request-1")
    assert order.device == name
    assert x509.Name.from_rfc4514_string(f"CN={name},O=Plant").public_bytes() == order.subject
    (answer,) = await send(world, requests[1:], admitted)
    assert answer.reason is not None
    assert answer.reason.code is Code.NOT_AUTHORIZED


def with_profile(admitted: Admitted, **changes: Any) -> Admitted:
    """The same under rules that differ."""
    profile = dataclasses.replace(admitted.place.profile, **changes)
    return msgspec.structs.replace(admitted, place=dataclasses.replace(admitted.place, profile=profile))


async def test_nobody_else_may_send(world: World) -> None:
    with pytest.raises(Broken):
        lane(world).send(await admit(world, purpose=Purpose.ENROLL), [], "", "", look_first=False)


async def test_each_ecosystem_has_certificates_of_its_own(world: World) -> None:
    request = Request("", make_csr(make_name(world.new_name())))
    (home,) = await send(world, [request], await admit(world, HOME))
    (neighbour,) = await send(world, [request], await admit(world, NEIGHBOUR))
    assert not neighbour.is_repeated
    assert home.certificate != neighbour.certificate


# --- what goes wrong on the way ----------------------------------------------------------------------------------------


async def test_a_seal_whose_answer_is_lost_is_found_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, admitted = make_requests(world, 4), await admit(world)
    seal, calls = world.signers.seal, 0

    async def lose(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        answer = await seal(*arguments)
        if calls == 1:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the connection broke")
        return answer

    monkeypatch.setattr(world.signers, "seal", lose)
    mark = await world.mark()
    answers = await send(world, requests, admitted)
    assert all(answer.certificate is not None for answer in answers)
    trace = await world.since(mark)
    assert (calls, trace.intents, trace.certificates) == (1, 4, 4)


async def test_a_seal_that_never_reached_the_signer_is_done_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, admitted = make_requests(world, 4), await admit(world)
    seal, calls = world.signers.seal, 0

    async def lose(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the connection broke")
        return await seal(*arguments)

    monkeypatch.setattr(world.signers, "seal", lose)
    mark = await world.mark()
    answers = await send(world, requests, admitted)
    assert all(answer.certificate is not None for answer in answers)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates) == (8, 4)
    names = [request.name.removeprefix("row ") for request in requests]
    closed = await world.database.fetch("SELECT closed FROM intent WHERE device = ANY($1::text[])", names)
    assert [row["closed"] for row in closed].count("void") == 4


@pytest.mark.parametrize("method", ["reserve_intents", "record_issued"])
@pytest.mark.parametrize("is_done", [False, True])
async def test_a_commit_of_which_nobody_knows(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str, is_done: bool
) -> None:
    requests, admitted = make_requests(world, 4), await admit(world)
    real, calls = getattr(world.store, method), 0

    async def lose(values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1 or is_done:
            answer = await real(values)
        if calls == 1:
            raise Unavailable(Code.STORE_UNAVAILABLE, "the connection broke")
        return answer

    monkeypatch.setattr(world.store, method, lose)
    mark = await world.mark()
    answers = await send(world, requests, admitted)
    assert all(answer.certificate is not None for answer in answers)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates, len(trace.events)) == (4, 4, 4)


async def test_a_store_that_is_away_costs_nothing_but_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: Any) -> Any:
        raise Unavailable(Code.STORE_UNAVAILABLE, "away")

    requests, admitted = make_requests(world, 2), await admit(world)
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "record_issued", away)
        answers = await send(world, requests, admitted)
    assert [answer.reason.code for answer in answers if answer.reason] == [Code.STORE_UNAVAILABLE] * 2
    mark = await world.mark()
    answers = await send(world, requests, admitted)
    assert all(answer.certificate is not None for answer in answers)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates) == (0, 2)  # what had been signed is what they get


@pytest.mark.parametrize("method", ["reserve_intents", "prepare"])
async def test_what_was_prepared_in_vain_gives_its_room_in_the_signer_back(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seal, prepare = world.signers.seal, world.signers.prepare
    forgotten: list[int] = []
    prepared = 0

    async def count(journal: str, items: Any, unwanted: Any = ()) -> Any:
        assert not items
        forgotten.append(len(unwanted))
        return await seal(journal, items, unwanted)

    async def prepare_once(items: Any, beside: str | None) -> Any:
        nonlocal prepared
        if prepared and method == "prepare":
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the connection broke")
        prepared += len(items)
        return await prepare(items, beside)

    async def away(_: Any) -> Any:
        raise Unavailable(Code.STORE_UNAVAILABLE, "away")

    requests, admitted = make_requests(world, SLICE_SIZE + 8), await admit(world)
    with monkeypatch.context() as patch:
        patch.setattr(world.signers, "seal", count)
        patch.setattr(world.signers, "prepare", prepare_once)
        if method == "reserve_intents":
            patch.setattr(world.store, method, away)
        answers = await send(world, requests, admitted)
    assert all(isinstance(answer.reason, Unavailable) for answer in answers)
    assert prepared == SLICE_SIZE + (8 if method == "reserve_intents" else 0)
    assert sum(forgotten) == prepared
    assert all(answer.certificate for answer in await send(world, requests, admitted))


async def test_a_certificate_that_is_over_is_no_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, admitted = make_requests(world, 2), await admit(world)
    first = await send(world, requests, admitted)
    later = lane(world)._clock() + timedelta(days=200)
    monkeypatch.setattr(lane(world), "_clock", lambda: later)
    again = await send(world, requests, admitted)
    assert not any(answer.is_repeated for answer in again)
    assert {answer.certificate for answer in again}.isdisjoint({answer.certificate for answer in first})


@pytest.mark.parametrize("look_first", [False, True])
@pytest.mark.parametrize("reason", ["keyCompromise", "cessationOfOperation"])
async def test_a_revoked_certificate_is_no_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, reason: str, look_first: bool
) -> None:
    requests, admitted = make_requests(world, 2), await admit(world)
    first = await send(world, requests, admitted)
    assert first[0].certificate is not None
    await revoke(world, first[0].certificate, reason)
    mark = await world.mark()
    again = await send(world, requests, admitted, look_first=look_first)
    assert again[0].reason is not None
    assert again[0].reason.code is Code.REQUEST_REVOKED
    assert again[1] == Answer(first[1].certificate, is_repeated=True)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates) == (0, 0)
    (event,) = trace.events
    assert (event["kind"], event["outcome"], event["code"]) == ("est.batch", "refused", "request-revoked")
    # When the certificate is over, it depends on why it was revoked.
    later = lane(world)._clock() + timedelta(days=200)
    monkeypatch.setattr(lane(world), "_clock", lambda: later)
    over = await send(world, requests[:1], admitted, look_first=look_first)
    assert (over[0].certificate is None) is (reason == "keyCompromise")


async def test_a_compromised_key_is_not_certified_again(world: World) -> None:
    key, name = make_key(), world.new_name()
    (first,) = await send(world, [Request("", make_csr(make_name(name), key))])
    assert first.certificate is not None
    await revoke(world, first.certificate, "keyCompromise")
    await world.reload()
    other = make_requests(world, 1)
    refused, granted = await send(world, [Request("", make_csr(make_name(f"{name}-b"), key)), *other])
    assert refused.reason is not None
    assert refused.reason.code is Code.KEY_REVOKED
    assert granted.certificate is not None
    # The neighbour has no part in it.
    (theirs,) = await send(world, [Request("", make_csr(make_name(name), key))], await admit(world, NEIGHBOUR))
    assert theirs.certificate is not None


async def revoke(world: World, certificate: bytes, reason: str) -> None:
    serial = der.integer(x509.load_der_x509_certificate(certificate).serial_number)[2:]
    revocation = Revocation(world.issuer(HOME).issuer_id, serial, reason, now())
    assert await world.store.record_revocation(revocation, make_event(kind="certificate.revoke"))


async def test_a_group_is_sealed_by_one_signer_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seal, sealed = world.signers.seal, []

    async def count(journal: str, items: Any, unwanted: Any = ()) -> Any:
        sealed.append(len(items))
        return await seal(journal, items, unwanted)

    monkeypatch.setattr(world.signers, "seal", count)
    answers = await send(world, make_requests(world, SLICE_SIZE + 3))
    assert all(answer.certificate for answer in answers)
    assert sealed == [SLICE_SIZE + 3]


# --- devices come first ------------------------------------------------------------------------------------------------


async def test_only_so_many_groups_are_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, under_way, most, sizes = world.signers.prepare, 0, 0, []

    async def count(items: Any, beside: str | None) -> Any:
        nonlocal under_way, most
        under_way, most = under_way + 1, max(most, under_way + 1)
        sizes.append(len(items))
        try:
            return await prepare(items, beside)
        finally:
            under_way -= 1

    monkeypatch.setattr(world.signers, "prepare", count)
    admitted = await admit(world)
    groups = [make_requests(world, SLICE_SIZE + 8) for _ in range(3 * GROUPS_AT_ONCE)]
    answers = await asyncio.gather(*(send(world, group, admitted) for group in groups))
    assert all(answer.certificate for group in answers for answer in group)
    assert most <= GROUPS_AT_ONCE
    assert sorted(set(sizes)) == [8, SLICE_SIZE]


async def test_a_slice_waits_while_devices_wait_but_not_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    def pretend(waiting: Callable[[], int]) -> None:
        monkeypatch.setattr(type(lane(world)._enrollment), "waiting", property(lambda _: waiting()))

    async def count(seconds: float, *more: Any) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(bulk.asyncio, "sleep", count)
    admitted, requests = await admit(world), make_requests(world, 1)
    pretend(lambda: 5)
    await send(world, requests, admitted)
    assert tuple(pauses) == bulk._WAYS_TO_GIVE
    pauses.clear()
    pretend(lambda: 0)
    await send(world, make_requests(world, 1), admitted)
    assert pauses == []


async def test_devices_are_served_in_the_middle_of_a_batch(world: World) -> None:
    admitted, devices = await admit(world), [world.born(HOME) for _ in range(5)]
    groups = [lane(world).send(admitted, make_requests(world, 64), "", "", look_first=False) for _ in range(8)]

    async def enroll(device: Caller) -> int:
        assert (await world.ask("simpleenroll", HOME, device))[1] == "ok"
        return sum(group.done() for group in groups)

    done = await asyncio.gather(*(enroll(device) for device in devices))
    assert max(done) < len(groups)  # nobody waited for the batch to be over
    assert all(answer.certificate for answers in await asyncio.gather(*groups) for answer in answers)


async def test_draining_waits_for_groups(world: World) -> None:
    group = lane(world).send(await admit(world), make_requests(world, 3), "", "", look_first=False)
    await lane(world).drain()
    assert group.done()
    assert all(answer.certificate for answer in group.result())
