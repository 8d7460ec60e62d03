"""Who may call what, where: every operation by every kind of caller at every kind of label, and every shape of path.

The matrix is generated from `estd.est.operations.ROUTES`. `ALLOWED` names the only cells that end in a certificate;
everything else has to be refused with the code that `REFUSED` documents, by one audit event and without an intent.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from est_world import (
    ADDRESS,
    HOME,
    NEIGHBOUR,
    NOWHERE,
    PROFILE,
    Caller,
    World,
    basic,
    identity_of,
    now,
    open_world,
    read_certificate,
)
from factory import CLIENT_AUTH, CMC_RA, SERVER_AUTH, make_csr, make_device, make_key, make_maker, make_name
from odd_certificates import ODD_CERTIFICATES
from postgres_fixture import PostgresServer
from store_values import make_event

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.errors import Broken, Code, Unavailable
from estd.est.messages import STATUS, write_binding
from estd.est.operations import OWN_ROOT, ROOT, ROUTES, Guarded, Public, Route, Streamed, takes_stream
from estd.ra import admission, paths, refusals
from estd.ra.admission import Purpose
from estd.ra.directory import Directory
from estd.ra.limits import Rate
from estd.store.contract import Revocation
from estd.wire.exchange import HOME as HOME_OF_PEER
from estd.wire.exchange import Peer, Reply

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENROLL, REENROLL, BATCH = "simpleenroll", "simplereenroll", "batch"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(postgres_server: PostgresServer) -> AsyncIterator[World]:
    database = await postgres_server.take()
    async with open_world(database) as world:
        yield world
    await postgres_server.give_back(database)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demanding(postgres_server: PostgresServer) -> AsyncIterator[World]:
    """A world whose profile wants a channel binding and the letter of the RFCs."""
    database = await postgres_server.take()
    async with open_world(database, "require_binding = true\nstrict = true") as world:
        yield world
    await postgres_server.give_back(database)


# --- the table itself --------------------------------------------------------------------------------------------------


async def test_the_operations_are_these() -> None:
    """A new operation has to be entered here and in the tables below, or the suite fails."""
    assert [(route.operation, route.method, type(route.access)) for route in ROUTES] == [
        ("cacerts", "GET", Public),
        ("csrattrs", "GET", Public),
        (ENROLL, "POST", Guarded),
        (REENROLL, "POST", Guarded),
        (BATCH, "POST", Streamed),
    ]
    purposes = {route.operation: route.access.purpose for route in ROUTES if isinstance(route.access, Guarded)}
    assert purposes == {ENROLL: Purpose.ENROLL, REENROLL: Purpose.REENROLL, BATCH: Purpose.BATCH}
    for reasons in REFUSED.values():
        assert set(reasons) == set(purposes)


async def test_a_route_cannot_be_written_down_without_access() -> None:
    assert inspect.signature(Route).parameters["access"].default is inspect.Parameter.empty
    with pytest.raises(TypeError):
        Route("fullcmc", "POST")  # type: ignore[call-arg]  # that is the point
    with pytest.raises(TypeError):
        Guarded(handler=None)  # type: ignore[call-arg, arg-type]  # that is the point


async def test_no_handler_but_the_public_ones_is_called_without_an_admitted() -> None:
    for route in ROUTES:
        third = list(inspect.signature(route.access.handler).parameters.values())[2]
        assert third.annotation == ("Place" if isinstance(route.access, Public) else "Admitted"), route.operation


# --- the callers -------------------------------------------------------------------------------------------------------

CALLERS: dict[str, Callable[[World], Awaitable[Caller]]] = {}


def caller(make: Callable[[World], Awaitable[Caller]]) -> Callable[[World], Awaitable[Caller]]:
    CALLERS[make.__name__] = make
    return make


@caller
async def nobody(world: World) -> Caller:
    return Caller(world.new_name())


@caller
async def stranger(world: World) -> Caller:
    name = world.new_name()
    return Caller(name, (make_device(None, name, starts=now() - timedelta(hours=1)).der,))


@caller
async def stranger_with_own_root(world: World) -> Caller:
    name, maker = world.new_name(), make_maker("Maker of campus", starts=now() - timedelta(days=1))
    return Caller(name, (make_device(maker, name, starts=now() - timedelta(hours=1)).der, maker.der))


@caller
async def stranger_with_an_odd_certificate(world: World) -> Caller:
    return Caller(world.new_name(), (ODD_CERTIFICATES["an unknown TLS feature"](None),))


@caller
async def idevid(world: World) -> Caller:
    return world.born(HOME)


@caller
async def neighbours_idevid(world: World) -> Caller:
    return world.born(NEIGHBOUR)


@caller
async def neighbours_idevid_in_good_company(world: World) -> Caller:
    device, issuer = world.born(NEIGHBOUR), world.issuer(HOME).certificate
    return Caller(device.name, (*device.certificates, world.makers[HOME].der, issuer))


@caller
async def own(world: World) -> Caller:
    return await world.enrolled(HOME)


@caller
async def own_gateway(world: World) -> Caller:
    return await world.enrolled(HOME, "gateway")


@caller
async def own_from_neighbour(world: World) -> Caller:
    return await world.enrolled(NEIGHBOUR)


@caller
async def own_unrecorded(world: World) -> Caller:
    party = world.signed(HOME)
    return Caller(world.new_name(), (party.der,))


@caller
async def own_forged(world: World) -> Caller:
    """Issuer's name, serial and authority key identifier of a certificate on record; another key signed it."""
    real = await world.enrolled(HOME)
    serial = x509.load_der_x509_certificate(real.certificates[0]).serial_number
    party = world.signed(HOME, name=real.name, serial=serial)
    return Caller(real.name, (party.der,))


@caller
async def own_revoked(world: World) -> Caller:
    device = await world.enrolled(HOME)
    await world.revoke(device)
    return device


@caller
async def own_expired(world: World) -> Caller:
    return await world.recorded(HOME, starts=now() - timedelta(hours=1), ends=now() - timedelta(seconds=5))


@caller
async def own_for_servers_only(world: World) -> Caller:
    return await world.recorded(HOME, eku=[SERVER_AUTH])


@caller
async def idevid_expired(world: World) -> Caller:
    return world.born(HOME, ends=now() - timedelta(seconds=5))


@caller
async def idevid_from_the_future(world: World) -> Caller:
    return world.born(HOME, starts=now() + timedelta(hours=1))


@caller
async def idevid_for_servers_only(world: World) -> Caller:
    return world.born(HOME, eku=[SERVER_AUTH])


@caller
async def idevid_that_cannot_sign(world: World) -> Caller:
    return world.born(HOME, digital_signature=False)


@caller
async def maker_itself(world: World) -> Caller:
    return Caller(world.new_name(), (world.makers[HOME].der,))


@caller
async def ca_of_a_maker(world: World) -> Caller:
    return world.born(HOME, ca=True)


@caller
async def our_issuer_itself(world: World) -> Caller:
    return Caller(world.new_name(), (world.issuer(HOME).certificate,))


@caller
async def authority(world: World) -> Caller:
    return await world.authority(HOME)


@caller
async def authority_of_neighbour(world: World) -> Caller:
    return await world.authority(NEIGHBOUR)


@caller
async def authority_of_neighbour_in_good_company(world: World) -> Caller:
    party, issuer = await world.authority(NEIGHBOUR), world.issuer(HOME).certificate
    return Caller(party.name, (*party.certificates, issuer))


@caller
async def authority_revoked(world: World) -> Caller:
    party = await world.authority(HOME)
    await world.revoke(party)
    return party


@caller
async def authority_expired(world: World) -> Caller:
    window = {"starts": now() - timedelta(hours=1), "ends": now() - timedelta(seconds=5)}
    return await world.recorded(HOME, "authority", eku=[CLIENT_AUTH, CMC_RA], **window)


@caller
async def authority_without_the_purpose(world: World) -> Caller:
    """Issued under the profile that the rules name, but its certificate does not say what it is for."""
    return await world.recorded(HOME, "authority")


@caller
async def device_with_the_purpose(world: World) -> Caller:
    """Issued under another profile than the rules name; the purpose alone is worth nothing."""
    return await world.recorded(HOME, eku=[CLIENT_AUTH, CMC_RA])


@caller
async def idevid_with_the_purpose(world: World) -> Caller:
    return world.born(HOME, eku=[CLIENT_AUTH, CMC_RA])


@caller
async def stranger_with_the_purpose(world: World) -> Caller:
    name, maker = world.new_name(), make_maker("Line", starts=now() - timedelta(days=1))
    leaf = make_device(maker, name, starts=now() - timedelta(hours=1), eku=[CLIENT_AUTH, CMC_RA])
    return Caller(name, (leaf.der, maker.der))


@caller
async def code(world: World) -> Caller:
    return await world.coded(HOME)


@caller
async def code_wrong(world: World) -> Caller:
    device = await world.coded(HOME)
    return Caller(device.name, (), basic(device.name, "00000-00000-00000-00000"))


@caller
async def code_of_another_device(world: World) -> Caller:
    device, other = await world.coded(HOME), await world.coded(HOME)
    secret = base64.b64decode((other.authorization or "").partition(" ")[2]).decode().partition(":")[2]
    return Caller(device.name, (), basic(device.name, secret))


@caller
async def code_of_neighbour(world: World) -> Caller:
    return await world.coded(NEIGHBOUR)


@caller
async def code_of_neighbours_namesake(world: World) -> Caller:
    device = await world.coded(HOME)
    return await world.coded(NEIGHBOUR, name=device.name)


@caller
async def code_spent(world: World) -> Caller:
    device = await world.coded(HOME)
    read_certificate(await world.ask(ENROLL, HOME, device))
    return device


@caller
async def code_expired(world: World) -> Caller:
    return await world.coded(HOME, expires_at=now() - timedelta(seconds=1))


@caller
async def code_for_another_profile(world: World) -> Caller:
    return await world.coded(HOME, profile="gateway")


@caller
async def code_wrong_beside_idevid(world: World) -> Caller:
    device = world.born(HOME)
    return Caller(device.name, device.certificates, basic(device.name, "00000-00000-00000-00000"))


@caller
async def code_beside_neighbours_idevid(world: World) -> Caller:
    device, foreign = await world.coded(HOME), world.born(NEIGHBOUR)
    return Caller(device.name, foreign.certificates, device.authorization)


@caller
async def bearer_beside_idevid(world: World) -> Caller:
    device = world.born(HOME)
    return Caller(device.name, device.certificates, "Bearer eyJhbGciOiJub25lIn0.e30.")


# --- the matrix --------------------------------------------------------------------------------------------------------

LABELS = (HOME, PROFILE, NEIGHBOUR, NOWHERE, "estd-server", None)
"""The ecosystem, one of its profiles, the neighbour, nobody, the server's own, and none, which the operator made `HOME`."""

ALLOWED = {
    ("idevid", ENROLL, HOME),
    ("neighbours_idevid", ENROLL, NEIGHBOUR),
    ("neighbours_idevid_in_good_company", ENROLL, NEIGHBOUR),
    ("own", ENROLL, PROFILE),
    ("own", REENROLL, HOME),
    ("own_gateway", REENROLL, PROFILE),
    ("own_from_neighbour", REENROLL, NEIGHBOUR),
    ("code", ENROLL, HOME),
    ("code_of_neighbour", ENROLL, NEIGHBOUR),
    ("code_of_neighbours_namesake", ENROLL, NEIGHBOUR),
    ("code_beside_neighbours_idevid", ENROLL, HOME),
    ("device_with_the_purpose", ENROLL, PROFILE),
    ("device_with_the_purpose", REENROLL, HOME),
    ("idevid_with_the_purpose", ENROLL, HOME),
    ("authority", BATCH, HOME),
    ("authority_of_neighbour", BATCH, NEIGHBOUR),
    ("authority_of_neighbour_in_good_company", BATCH, NEIGHBOUR),
}
"""A code says who asks, whatever certificate its connection carries (RFC 7030 §3.2.3)."""

_MISSING, _INVALID, _SPENT = Code.CREDENTIAL_MISSING, Code.CREDENTIAL_INVALID, Code.CODE_SPENT
_UNTRUSTED, _UNFIT, _ROLE = Code.CERTIFICATE_UNTRUSTED, Code.CERTIFICATE_UNFIT, Code.NOT_AUTHORIZED
_REVOKED, _EXPIRED, _EARLY = Code.CERTIFICATE_REVOKED, Code.CERTIFICATE_EXPIRED, Code.CERTIFICATE_NOT_YET_VALID
_YES = None


def _row(*six: Code | None) -> dict[str, tuple[Code | None, ...]]:
    assert len(six) == 6
    # Who may renew at most is no registration authority; whatever else speaks against a certificate speaks here too.
    return {ENROLL: six[:3], REENROLL: six[3:], BATCH: tuple(_ROLE if code is None else code for code in six[3:])}


def _authority(*nine: Code | None) -> dict[str, tuple[Code | None, ...]]:
    assert len(nine) == 9
    return {ENROLL: nine[:3], REENROLL: nine[3:6], BATCH: nine[6:]}


# At the ecosystem, its profile's label and the neighbour's: first to enroll, then to renew, then for a batch.
REFUSED: dict[str, dict[str, tuple[Code | None, ...]]] = {
    "nobody": _row(*[_MISSING] * 6),
    "stranger": _row(*[_UNTRUSTED] * 6),
    "stranger_with_an_odd_certificate": _row(*[_UNFIT] * 6),
    "stranger_with_own_root": _row(*[_UNTRUSTED] * 6),
    "idevid": _row(_YES, _ROLE, _UNTRUSTED, _ROLE, _ROLE, _UNTRUSTED),
    "neighbours_idevid": _row(_UNTRUSTED, _UNTRUSTED, _YES, _UNTRUSTED, _UNTRUSTED, _ROLE),
    "neighbours_idevid_in_good_company": _row(_UNTRUSTED, _UNTRUSTED, _YES, _UNTRUSTED, _UNTRUSTED, _ROLE),
    "own": _row(_ROLE, _YES, _UNTRUSTED, _YES, _ROLE, _UNTRUSTED),
    "own_gateway": _row(_ROLE, _ROLE, _UNTRUSTED, _ROLE, _YES, _UNTRUSTED),
    "own_from_neighbour": _row(_UNTRUSTED, _UNTRUSTED, _ROLE, _UNTRUSTED, _UNTRUSTED, _YES),
    "own_unrecorded": _row(*[_UNTRUSTED] * 6),
    "own_forged": _row(*[_UNTRUSTED] * 6),
    "own_revoked": _row(_REVOKED, _REVOKED, _UNTRUSTED, _REVOKED, _REVOKED, _UNTRUSTED),
    "own_expired": _row(_EXPIRED, _EXPIRED, _UNTRUSTED, _EXPIRED, _EXPIRED, _UNTRUSTED),
    "own_for_servers_only": _row(*[_UNFIT] * 6),
    "idevid_expired": _row(_EXPIRED, _EXPIRED, _UNTRUSTED, _EXPIRED, _EXPIRED, _UNTRUSTED),
    "idevid_from_the_future": _row(_EARLY, _EARLY, _UNTRUSTED, _EARLY, _EARLY, _UNTRUSTED),
    "idevid_for_servers_only": _row(*[_UNFIT] * 6),
    "idevid_that_cannot_sign": _row(*[_UNFIT] * 6),
    "maker_itself": _row(*[_UNFIT] * 6),
    "ca_of_a_maker": _row(*[_UNFIT] * 6),
    "our_issuer_itself": _row(*[_UNFIT] * 6),
    "authority": _authority(_ROLE, _ROLE, _UNTRUSTED, _ROLE, _ROLE, _UNTRUSTED, _YES, _ROLE, _UNTRUSTED),
    "authority_of_neighbour": _authority(*[_UNTRUSTED, _UNTRUSTED, _ROLE] * 2, _UNTRUSTED, _UNTRUSTED, _YES),
    "authority_of_neighbour_in_good_company": _authority(
        *[_UNTRUSTED, _UNTRUSTED, _ROLE] * 2, _UNTRUSTED, _UNTRUSTED, _YES
    ),
    "authority_revoked": _authority(*[_REVOKED, _REVOKED, _UNTRUSTED] * 3),
    "authority_expired": _authority(*[_EXPIRED, _EXPIRED, _UNTRUSTED] * 3),
    "authority_without_the_purpose": _authority(*[_ROLE, _ROLE, _UNTRUSTED] * 3),
    "device_with_the_purpose": _row(_ROLE, _YES, _UNTRUSTED, _YES, _ROLE, _UNTRUSTED),
    "idevid_with_the_purpose": _row(_YES, _ROLE, _UNTRUSTED, _ROLE, _ROLE, _UNTRUSTED),
    "stranger_with_the_purpose": _row(*[_UNTRUSTED] * 6),
    "code": _row(_YES, _ROLE, _INVALID, *[_MISSING] * 3),
    "code_wrong": _row(_INVALID, _INVALID, _INVALID, *[_MISSING] * 3),
    "code_of_another_device": _row(_INVALID, _INVALID, _INVALID, *[_MISSING] * 3),
    "code_of_neighbour": _row(_INVALID, _INVALID, _YES, *[_MISSING] * 3),
    "code_of_neighbours_namesake": _row(_INVALID, _INVALID, _YES, *[_MISSING] * 3),
    "code_spent": _row(_SPENT, _ROLE, _INVALID, *[_MISSING] * 3),
    "code_expired": _row(_INVALID, _INVALID, _INVALID, *[_MISSING] * 3),
    # The profile it is for takes no codes at all.
    "code_for_another_profile": _row(_ROLE, _ROLE, _INVALID, *[_MISSING] * 3),
    "code_wrong_beside_idevid": _row(_INVALID, _INVALID, _INVALID, _ROLE, _ROLE, _UNTRUSTED),
    "code_beside_neighbours_idevid": _row(_YES, _ROLE, _INVALID, _UNTRUSTED, _UNTRUSTED, _ROLE),
    "bearer_beside_idevid": _row(_INVALID, _INVALID, _INVALID, _ROLE, _ROLE, _UNTRUSTED),
}


def expected_refusal(who: str, operation: str, label: str | None) -> Code | None:
    if label in (NOWHERE, "estd-server"):
        return Code.LABEL_UNKNOWN
    return REFUSED[who][operation][(HOME, PROFILE, NEIGHBOUR).index(label or HOME)]


async def test_the_tables_agree_on_what_is_allowed() -> None:
    assert set(REFUSED) == set(CALLERS)
    cells = {
        (who, operation, label)
        for who in CALLERS
        for operation in (ENROLL, REENROLL, BATCH)
        for label in (HOME, PROFILE, NEIGHBOUR)
        if expected_refusal(who, operation, label) is None
    }
    assert cells == ALLOWED


@pytest.mark.parametrize("who", CALLERS)
async def test_what_is_public_tells_everybody_the_same(world: World, who: str) -> None:
    caller = await CALLERS[who](world)
    for route in ROUTES:
        if not isinstance(route.access, Public):
            continue
        for label in LABELS:
            mark = await world.mark()
            operation, outcome, reply = await world.ask(route.operation, label, caller)
            assert operation == route.operation
            check_public(await world.since(mark), outcome, reply, label)
            if outcome == "ok":
                assert reply == (await world.ask(route.operation, label, Caller("nobody")))[2]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(
    "route", [route for route in ROUTES if isinstance(route.access, Guarded)], ids=lambda route: route.operation
)
@pytest.mark.parametrize("who", CALLERS)
async def test_matrix(world: World, who: str, route: Route, label: str | None) -> None:
    caller = await CALLERS[who](world)
    mark = await world.mark()
    operation, outcome, reply = await world.ask(route.operation, label, caller)
    trace = await world.since(mark)
    assert operation == route.operation
    refusal = expected_refusal(who, route.operation, label)
    assert ((who, route.operation, label or HOME) in ALLOWED) == (refusal is None)
    if refusal is None:
        check_granted(world, trace, (operation, outcome, reply), caller, label)
        return
    assert outcome == refusal.value
    assert reply.status == STATUS[refusal]
    assert (trace.intents, trace.certificates) == (0, 0)
    (event,) = trace.events
    assert event["kind"] == f"est.{route.operation}"
    assert event["outcome"] == "refused"
    assert event["code"] == refusal.value
    assert event["ecosystem"] == label
    known = None if label in (NOWHERE, "estd-server") else NEIGHBOUR if label == NEIGHBOUR else HOME
    assert event["ecosystem_id"] == (None if known is None else world.records[known].ecosystem_id)
    assert event["identity"] == identity_of(caller)
    assert event["address"] == ADDRESS
    assert event["request_id"] in dict(reply.headers)["X-Request-Id"]
    assert event["serial"] is None


def check_public(trace: Any, outcome: str, reply: Reply, label: str | None) -> None:
    assert (trace.intents, trace.certificates) == (0, 0)
    if label in (NOWHERE, "estd-server"):
        assert (outcome, reply.status) == (Code.LABEL_UNKNOWN.value, 404)
        assert len(trace.events) == 1
    else:
        assert outcome == "ok"
        assert reply.status in (200, 204)
        assert trace.events == []


def check_granted(world: World, trace: Any, answer: tuple[str, str, Reply], caller: Caller, label: str | None) -> None:
    certificate = x509.load_der_x509_certificate(read_certificate(answer))
    assert (trace.intents, trace.certificates) == (1, 1)
    (event,) = trace.events
    assert (event["kind"], event["outcome"], event["code"]) == (f"est.{answer[0]}", "granted", None)
    assert int(event["serial"], 16) == certificate.serial_number
    home = world.records[NEIGHBOUR if label == NEIGHBOUR else HOME]
    assert event["ecosystem_id"] == home.ecosystem_id
    certificate.verify_directly_issued_by(
        x509.load_der_x509_certificate(world.issuer(NEIGHBOUR if label == NEIGHBOUR else HOME).certificate)
    )
    assert certificate.subject == make_name(caller.name)
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


async def test_only_streamed_operations_take_a_body_of_any_length() -> None:
    for route in ROUTES:
        for method in ("GET", "POST", "PUT"):
            path = f"{route.root}{HOME}/{route.operation}"
            expected = isinstance(route.access, Streamed) and method == route.method
            assert takes_stream(method, path) is takes_stream(method, f"{path}/") is expected, (method, path)
    assert not takes_stream("POST", f"{ROOT}{HOME}/{BATCH}")
    assert not takes_stream("POST", f"{OWN_ROOT}{HOME}/{ENROLL}")


async def test_what_estd_adds_is_not_below_the_root_of_the_standard(world: World) -> None:
    party = await authority(world)
    for path in (f"{ROOT}{HOME}/{BATCH}", f"{OWN_ROOT}{HOME}/{ENROLL}", f"{OWN_ROOT}x/{HOME}/{BATCH}", "/batch"):
        mark = await world.mark()
        _, outcome, reply = await world.ask(BATCH, HOME, party, path=path)
        assert (outcome, reply.status) == (Code.PATH_UNKNOWN.value, 404), path
        assert (await world.since(mark)).intents == 0


async def test_without_a_default_ecosystem_a_path_without_label_leads_nowhere(world: World) -> None:
    for default in (None, "estd-server", "not-there"):
        await world.reload(default=default)
        for route in ROUTES:
            mark = await world.mark()
            _, outcome, reply = await world.ask(route.operation, None, world.born(HOME))
            assert (outcome, reply.status) == (Code.LABEL_UNKNOWN.value, 404)
            assert (await world.since(mark)).intents == 0
    await world.reload()


# --- authorization that fails -------------------------------------------------------------------------------------------


PARTS = sorted(
    {
        name
        for module in (admission, paths)
        for name, part in inspect.getmembers(module, inspect.isfunction)
        if part.__module__.startswith("estd.ra.")
    }
)
"""Every function that admission is made of."""


@pytest.mark.parametrize("fault", [RuntimeError("x"), TimeoutError(), KeyError("x"), Broken("x"), OSError()], ids=repr)
async def test_a_part_of_admission_that_fails_admits_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    met = set()
    for who, operation in (("idevid", ENROLL), ("own", REENROLL), ("code", ENROLL)):
        for part in PARTS:
            caller = await CALLERS[who](world)
            called = []

            def fail(*_: object, called: list[bool] = called, **__: object) -> None:
                called.append(True)
                raise fault

            mark = await world.mark()
            with monkeypatch.context() as patch:
                for module in (admission, paths):
                    if hasattr(module, part):
                        patch.setattr(module, part, fail)
                try:
                    outcome = (await world.ask(operation, HOME, caller))[1]
                except type(fault):
                    outcome = "fault"
            trace = await world.since(mark)
            if called:
                met.add(part)
                assert outcome != "ok", (who, part)
                assert (trace.intents, trace.certificates) == (0, 0), (who, part)
            # The trail reads the name that is claimed by the same means.
            if outcome == "fault" and part != "_read_basic":
                assert (trace.events[0]["outcome"], trace.events[0]["code"]) == ("failed", Code.INTERNAL.value)
                assert (trace.events[0]["address"], trace.events[0]["serial"]) == (ADDRESS, None)
    assert {"validate_path", "check_window", "_check_role", "hash_secret", "_read_basic"} <= met


@pytest.mark.parametrize("answer", [None, True, 1, "admitted", object()], ids=repr)
async def test_whatever_admission_returns_but_an_admitted_grants_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    async def admit(*_: object) -> object:
        return answer

    device = world.born(HOME)
    mark = await world.mark()
    monkeypatch.setattr(world.est._admission, "admit", admit)
    with pytest.raises(AttributeError):
        await world.ask(ENROLL, HOME, device)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates) == (0, 0)
    assert [(event["outcome"], event["code"]) for event in trace.events] == [("failed", Code.INTERNAL.value)]


@pytest.mark.parametrize("call", ["find_certificate", "find_codes"])
async def test_a_store_that_knows_nothing_admits_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    device = await (own(world) if call == "find_certificate" else code(world))
    operation = REENROLL if call == "find_certificate" else ENROLL

    async def forgotten(*_: object) -> None:
        return None

    async def away(*_: object) -> None:
        raise Unavailable(Code.STORE_UNAVAILABLE, "away")

    mark = await world.mark()
    for instead, code_expected in (
        (forgotten, Code.CERTIFICATE_UNTRUSTED if operation == REENROLL else Code.CREDENTIAL_INVALID),
        (away, Code.STORE_UNAVAILABLE),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(world.store, call, instead)
            _, outcome, reply = await world.ask(operation, HOME, device)
        assert (outcome, reply.status) == (code_expected.value, STATUS[code_expected])
    assert 5 <= int(dict(reply.headers)["Retry-After"]) <= 7
    trace = await world.since(mark)
    assert trace.intents == 0
    assert [event["outcome"] for event in trace.events] == ["refused", "failed"]
    read_certificate(await world.ask(operation, HOME, device))  # and nothing of it is held against the device


async def test_who_is_admitted_has_its_home_there_and_who_is_refused_has_none(world: World) -> None:
    """The web floor tells crowds apart by it, so nobody may get one by asking alone."""
    homes = {label: world.records[label].ecosystem_id for label in (HOME, NEIGHBOUR)}
    for make in (nobody, stranger, own_forged, own_revoked, idevid_expired, neighbours_idevid, code_wrong):
        refused = await make(world)
        peer = Peer(ADDRESS, refused.certificates)
        assert (await world.ask(ENROLL, HOME, refused, peer=peer))[1] != "ok"
        assert (await world.ask("cacerts", HOME, refused, peer=peer))[1] == "ok", "which is anybody's"
        assert HOME_OF_PEER not in peer.memo, make.__name__
    for operation, make, label in (
        (ENROLL, idevid, HOME),
        (ENROLL, code, HOME),
        (REENROLL, own_from_neighbour, NEIGHBOUR),
    ):
        admitted = await make(world)
        peer = Peer(ADDRESS, admitted.certificates)
        read_certificate(await world.ask(operation, label, admitted, peer=peer))
        assert peer.memo[HOME_OF_PEER] == homes[label]
        assert (await world.ask(operation, "estd-server", admitted, peer=peer))[1] != "ok"
        assert peer.memo[HOME_OF_PEER] == homes[label], "elsewhere it was refused"
    device = world.born(HOME)
    peer = Peer(ADDRESS, device.certificates)
    assert (await world.ask(ENROLL, HOME, device, peer=peer, body=b"no request"))[1] != "ok"
    assert peer.memo[HOME_OF_PEER] == homes[HOME], "what it asked for was refused, and not itself"


# --- paths and methods --------------------------------------------------------------------------------------------------

NO_PATHS = [
    "",
    "/",
    "*",
    ".well-known/est/campus/OP",
    "/.well-known/est",
    "/.well-known/est/",
    "/.well-known/est//",
    "/.well-known/est/campus",
    "/.well-known/est/campus/",
    "/.well-known/est/campus//",
    "/.well-known/est/campus//OP",
    "/.well-known/est//campus/OP",
    "/.well-known//est/campus/OP",
    "//.well-known/est/campus/OP",
    "/.well-known/est//OP",
    "/.well-known/est/campus/OP//",
    "/.well-known/est/./campus/OP",
    "/.well-known/est/campus/./OP",
    "/.well-known/est/south/../campus/OP",
    "/.well-known/est/../est/campus/OP",
    "/.well-known/est/campus/../OP",
    "/.well-known/est/../OP",
    "/x/../.well-known/est/campus/OP",
    "/.well-known/est/%2e/campus/OP",
    "/.well-known/est/south/%2e%2e/campus/OP",
    "/.well-known/est/campus%2FOP",
    "/.well-known/est/campus%2fOP",
    "/.well-known%2Fest/campus/OP",
    "/.well-known/est/%63ampus/OP",
    "/.well-known/est/campus/%63acerts",
    "/.well-known/est/campus/OP%00",
    "/.well-known/est/campus%00/OP",
    "/.well-known/est/campus\x00/OP",
    "/.well-known/est/campus/OP\x00",
    "/.well-known/est/campus\n/OP",
    "/.well-known/est/campus/OP\n",
    "/.well-known/est/campus/OP ",
    "/.well-known/est/ campus/OP",
    "/.well-known/est/campus /OP",
    "/.well-known/est/campus\\OP",
    "/.well-known/est/campus;x=y/OP",
    "/.well-known/est/campus/OP;x=y",
    "/.well-known/est/campus/OP?",
    "/.well-known/est/campus/OP#",
    "/.well-known/est/CAMPUS/OP",
    "/.well-known/est/Campus/OP",
    "/.WELL-KNOWN/est/campus/OP",
    "/.well-known/EST/campus/OP",
    "/.well-known/est/campus/OPx",
    "/.well-known/est/campus/xOP",
    "/.well-known/estx/campus/OP",
    "/.well-known/est-campus/OP",
    "/.well-known/est/campus/campus/OP",
    "/.well-known/est/campus/OP/OP",
    "/.well-known/est/campus/OP/x",
    "/.well-known/est/c\u0430mpus/OP",  # a Cyrillic letter
    "/.well-known/est/ｃampus/OP",
    "/.well-known/est/campu\u017f/OP",  # folds to s
    "/.well-known/est/campus\u200b/OP",
    "/.well-known/est/*/OP",
    "/.well-known/est/camp%/OP",
    "/.well-known/est/camp_s/OP",
    "/.well-known/est/../../etc/passwd",
    "/.well-known/est/" + "a" * 64 + "/OP",
    "/.well-known/est/" + "a" * 8000 + "/OP",
    "/.well-known/est/" + "a/" * 4000 + "OP",
    "https://localhost/.well-known/est/campus/OP",
]
"""OP is the operation. Nothing is decoded, folded, collapsed or guessed at: these are no paths of ours."""

NO_LABELS = ["campu", "campuss", "campus-", "campus-gateway", "campus-gatewaysx", "campus.", "a" * 63, "OP", "cacerts"]
"""These might be labels and are nobody's."""


@pytest.mark.parametrize("operation", ["cacerts", ENROLL])
@pytest.mark.parametrize("path", NO_PATHS)
async def test_paths_that_are_not_ours(world: World, path: str, operation: str) -> None:
    await check_nowhere(world, path.replace("OP", operation), operation, Code.PATH_UNKNOWN)


@pytest.mark.parametrize("operation", ["cacerts", ENROLL])
@pytest.mark.parametrize("label", NO_LABELS)
async def test_labels_that_are_nobodys(world: World, label: str, operation: str) -> None:
    path = f"{ROOT}{label}/{operation}".replace("OP", operation)
    await check_nowhere(world, path, operation, Code.LABEL_UNKNOWN)


async def check_nowhere(world: World, path: str, operation: str, refusal: Code) -> None:
    mark = await world.mark()
    _, outcome, reply = await world.ask(operation, None, world.born(HOME), path=path)
    assert (outcome, reply.status) == (refusal.value, 404)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates, len(trace.events)) == (0, 0, 1)


async def test_one_slash_at_the_end_is_put_up_with_and_counted(world: World) -> None:
    before = world.tolerances[(HOME, "trailing-slash")]
    for label in (f"{HOME}/", ""):
        read_certificate(await world.ask(ENROLL, None, world.born(HOME), path=f"{ROOT}{label}{ENROLL}/"))
    assert (await world.ask("cacerts", None, Caller("x"), path=f"{ROOT}{HOME}/cacerts/"))[1] == "ok"
    assert world.tolerances[(HOME, "trailing-slash")] == before + 3


async def test_a_strict_profile_puts_up_with_no_slash_at_the_end(demanding: World) -> None:
    before = dict(demanding.tolerances)
    for operation in ("cacerts", ENROLL):
        path = f"{ROOT}{HOME}/{operation}/"
        _, outcome, reply = await demanding.ask(operation, None, demanding.born(HOME), path=path)
        assert (outcome, reply.status) == (Code.NOT_STRICT.value, 400)
    assert demanding.tolerances == before
    assert (await demanding.ask("cacerts", HOME, Caller("x")))[1] == "ok"


async def test_an_operation_that_is_no_label_of_anybody_is_found_at_the_root_only(world: World) -> None:
    assert (await world.ask("cacerts", None, Caller("x"), path=f"{ROOT}cacerts"))[1] == "ok"
    assert (await world.ask("cacerts", "cacerts", Caller("x")))[1] == Code.LABEL_UNKNOWN.value


async def test_an_ecosystem_that_cannot_be_read_is_asked_for_again_later(world: World) -> None:
    """Its neighbour is served, and the trail says what became of each request."""
    records = [
        replace(record, document={"format": 99}) if label == HOME else record for label, record in world.records.items()
    ]
    kept, world.est.directory = world.est.directory, Directory(records, [], HOME)
    mark = await world.mark()
    try:
        for operation in ("cacerts", ENROLL):
            _, outcome, reply = await world.ask(operation, HOME, world.born(HOME))
            assert (outcome, reply.status) == (Code.STORE_UNAVAILABLE.value, 503)
            assert int(dict(reply.headers)["Retry-After"]) > 0
        assert read_certificate(await world.ask(ENROLL, NEIGHBOUR, world.born(NEIGHBOUR)))
    finally:
        world.est.directory = kept
    told = [(event["code"], event["outcome"]) for event in (await world.since(mark)).events]
    assert told == [(Code.STORE_UNAVAILABLE.value, "failed")] * 2 + [(None, "granted")]


METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "QUERY"]
METHODS += ["get", "post", "Get"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_methods(world: World, route: Route, method: str) -> None:
    device = await {REENROLL: own, BATCH: authority}.get(route.operation, idevid)(world)
    mark = await world.mark()
    _, outcome, reply = await world.ask(route.operation, HOME, device, method=method)
    trace = await world.since(mark)
    if method == route.method or (method, route.method) == ("HEAD", "GET"):
        assert outcome == "ok"
        assert trace.certificates == (route.method == "POST")
        return
    assert (outcome, reply.status) == (Code.METHOD_NOT_ALLOWED.value, 405)
    assert dict(reply.headers)["Allow"] == ("POST" if route.method == "POST" else "GET, HEAD")
    assert (trace.intents, len(trace.events)) == (0, 1)


async def test_a_wrong_method_is_told_whatever_the_label(world: World) -> None:
    _, outcome, reply = await world.ask(ENROLL, NOWHERE, Caller("x"), method="GET")
    assert (outcome, dict(reply.headers)["Allow"]) == (Code.METHOD_NOT_ALLOWED.value, "POST")


# --- bodies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "refusal"),
    [
        ("text/plain", Code.MEDIA_TYPE),
        ("application/pkcs7-mime", Code.MEDIA_TYPE),
        ("application/pkcs10x", Code.MEDIA_TYPE),
        ("multipart/form-data; boundary=x", Code.MEDIA_TYPE),
        ("*/*", Code.MEDIA_TYPE),
        ("application/pkcs10, text/plain", Code.MEDIA_TYPE),
        ("APPLICATION/PKCS10", None),
        (" application/pkcs10 ", None),
        ("application/pkcs10; charset=utf-8", None),
    ],
)
async def test_media_types(world: World, content_type: str, refusal: Code | None) -> None:
    mark = await world.mark()
    answer = await world.ask(ENROLL, HOME, world.born(HOME), headers={"content-type": content_type})
    if refusal is None:
        read_certificate(answer)
    else:
        assert (answer[1], answer[2].status) == (refusal.value, 415)
        assert (await world.since(mark)).intents == 0


async def test_tolerances_are_counted_by_ecosystem(world: World) -> None:
    device = world.born(HOME)
    before = dict(world.tolerances)
    read_certificate(await world.ask(ENROLL, HOME, device, body=device.csr()))
    assert world.tolerances[(HOME, "raw-der")] == before.get((HOME, "raw-der"), 0) + 1
    assert not [key for key in world.tolerances if key[0] == NEIGHBOUR]


async def test_a_strict_profile_refuses_what_others_put_up_with(demanding: World) -> None:
    device = demanding.born(HOME)
    mark = await demanding.mark()
    _, outcome, reply = await demanding.ask(ENROLL, HOME, device, body=device.csr())
    assert (outcome, reply.status) == (Code.NOT_STRICT.value, 400)
    assert (await demanding.since(mark)).intents == 0


async def test_credentials_are_looked_at_before_the_body(world: World) -> None:
    """Who has none cannot make the server parse anything, nor learn what it makes of a request."""
    for who in ("nobody", "stranger", "code_wrong", "own_revoked"):
        code = REFUSED[who][ENROLL][0]
        assert code is not None
        caller = await CALLERS[who](world)
        _, outcome, _ = await world.ask(ENROLL, HOME, caller, body=b"\xff" * 1000)
        assert outcome == code.value


@pytest.mark.parametrize("authorization", ["Basic \xe9", "Basic \udcff\udcfe", "\udcff"])
async def test_a_header_that_is_not_ascii_keeps_no_refusal_out_of_the_trail(world: World, authorization: str) -> None:
    for operation, label, method, status in (
        (ENROLL, HOME, None, 401),
        (REENROLL, HOME, None, 401),
        ("cacerts", NOWHERE, None, 404),
        ("cacerts", HOME, "POST", 405),
    ):
        mark = await world.mark()
        _, outcome, reply = await world.ask(operation, label, Caller("x", (), authorization), method=method)
        assert reply.status == status
        (event,) = (await world.since(mark)).events
        assert (event["outcome"], event["code"], event["identity"]) == ("refused", outcome, "")


async def test_a_code_where_the_name_belongs_is_not_written_down(world: World) -> None:
    device = await world.coded(HOME)
    user, _, secret = base64.b64decode((device.authorization or "")[6:]).decode().partition(":")
    for claimed in (secret, secret.lower(), f" {secret} "):
        mark = await world.mark()
        await world.ask(ENROLL, HOME, Caller(user, (), basic(claimed, user)))
        (event,) = (await world.since(mark)).events
        assert event["identity"] == "code:?"
        assert secret.lower() not in str(event).lower()


async def test_what_is_refused_names_nothing_of_the_neighbours(world: World) -> None:
    device = world.born(NEIGHBOUR)
    _, _, reply = await world.ask(ENROLL, HOME, device)
    text = reply.body.decode().lower()
    assert NEIGHBOUR not in text
    assert device.name not in text


# --- channel binding (RFC 7030 §3.5) ------------------------------------------------------------------------------------

TLS_EXPORTER, TLS_UNIQUE = hashlib.sha256(b"exporter").digest(), b"unique-binds"


class Channel:
    """A channel whose bindings are known."""

    def __init__(self, **bindings: bytes) -> None:
        self._bindings = {name.replace("_", "-"): value for name, value in bindings.items()}

    @property
    def version(self) -> str:
        return "TLSv1.3" if "tls-unique" not in self._bindings else "TLSv1.2"

    def channel_binding(self, kind: str) -> bytes | None:
        return self._bindings.get(kind)


TLS13 = Channel(tls_exporter=TLS_EXPORTER)
TLS12 = Channel(tls_exporter=TLS_EXPORTER, tls_unique=TLS_UNIQUE)


def bound_csr(
    device: Caller, *, linking: bytes | None = None, challenge: bytes | None = None, **others: bytes
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(make_name(device.name))
    if challenge is not None:
        builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, challenge)
    if linking is not None:
        builder = builder.add_attribute(x509.ObjectIdentifier(OIDS["estIdentityLinking"]), linking)
    for name, value in others.items():
        builder = builder.add_attribute(x509.ObjectIdentifier(OIDS[name]), value)
    return base64.b64encode(builder.sign(make_key(), hashes.SHA256()).public_bytes(Encoding.DER))


async def ask_bound(world: World, device: Caller, channel: Channel | None, body: bytes) -> str:
    mark = await world.mark()
    _, outcome, _ = await world.ask(ENROLL, HOME, device, body=body, peer=Peer(ADDRESS, device.certificates, channel))
    assert (await world.since(mark)).certificates == (outcome == "ok")
    return outcome


@pytest.mark.parametrize(
    ("channel", "binding", "outcome"),
    [
        (TLS13, TLS_EXPORTER, "ok"),
        (TLS12, TLS_UNIQUE, "ok"),
        (TLS12, TLS_EXPORTER, "ok"),
        (TLS13, TLS_UNIQUE, "refused"),
        (TLS13, TLS_EXPORTER[:-1], "refused"),
        (TLS13, b"", "refused"),
        (None, TLS_EXPORTER, "refused"),
        (Channel(), TLS_EXPORTER, "refused"),
    ],
)
@pytest.mark.parametrize("place", ["challenge", "linking"])
async def test_a_binding_must_be_this_channels(
    world: World, place: str, channel: Channel | None, binding: bytes, outcome: str
) -> None:
    device = world.born(HOME)
    text = write_binding(binding).encode() or b"="
    body = bound_csr(device, **{place: text})
    expected = outcome if outcome == "ok" else Code.BINDING_REFUSED.value
    assert await ask_bound(world, device, channel, body) == expected


async def test_the_binding_in_est_identity_linking(world: World) -> None:
    """RFC 7894 §3.3: where challengePassword is there too, both have to match; a right one repairs no wrong one."""
    right, wrong = write_binding(TLS_EXPORTER).encode(), write_binding(bytes(32)).encode()
    device = world.born(HOME)
    assert await ask_bound(world, device, TLS13, bound_csr(device, linking=right)) == "ok"
    assert await ask_bound(world, device, TLS13, bound_csr(device, linking=right, challenge=right)) == "ok"
    for linking, challenge in ((right, wrong), (wrong, right), (wrong, wrong)):
        body = bound_csr(device, linking=linking, challenge=challenge)
        assert await ask_bound(world, device, TLS13, body) == Code.BINDING_REFUSED.value
    unique = write_binding(TLS_UNIQUE).encode()
    assert await ask_bound(world, device, TLS12, bound_csr(device, linking=unique, challenge=right)) == "ok"


@pytest.mark.parametrize("attribute", ["otpChallenge", "revocationChallenge"])
async def test_a_challenge_that_cannot_be_verified_is_refused(world: World, attribute: str) -> None:
    device, right = world.born(HOME), write_binding(TLS_EXPORTER).encode()
    body = bound_csr(device, challenge=right, **{attribute: right})
    assert await ask_bound(world, device, TLS13, body) == Code.BINDING_REFUSED.value


async def test_a_profile_may_demand_the_binding(demanding: World) -> None:
    device = demanding.born(HOME)
    assert await ask_bound(demanding, device, TLS13, bound_csr(device)) == Code.BINDING_REFUSED.value
    bound = bound_csr(device, challenge=write_binding(TLS_EXPORTER).encode())
    assert await ask_bound(demanding, device, TLS13, bound) == "ok"


async def test_a_retry_on_another_connection_is_bound_anew(demanding: World) -> None:
    """The stored answer of a bound request is not given out over a channel it is not bound to."""
    device = demanding.born(HOME)
    bound = bound_csr(device, challenge=write_binding(TLS_EXPORTER).encode())
    assert await ask_bound(demanding, device, TLS13, bound) == "ok"
    elsewhere = Channel(tls_exporter=bytes(32))
    assert await ask_bound(demanding, device, elsewhere, bound) == Code.BINDING_REFUSED.value


# --- one request, one answer ---------------------------------------------------------------------------------------------


async def test_a_retry_gets_the_same_bytes_and_leaves_no_second_intent(world: World) -> None:
    device = world.born(HOME)
    body = base64.b64encode(device.csr())
    first = read_certificate(await world.ask(ENROLL, HOME, device, body=body))
    mark = await world.mark()
    assert read_certificate(await world.ask(ENROLL, HOME, device, body=body)) == first
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates) == (0, 0)


async def test_the_rules_may_change_while_a_request_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request uses the directory it began with, whatever replaces it meanwhile."""
    device = await own(world)
    find = world.store.find_certificate

    async def slow(*arguments: Any) -> Any:
        found = await find(*arguments)
        await world.reload(default=None)
        return found

    monkeypatch.setattr(world.store, "find_certificate", slow)
    certificate = read_certificate(await world.ask(REENROLL, None, device))
    assert x509.load_der_x509_certificate(certificate).subject == make_name(device.name)
    monkeypatch.undo()
    await world.reload()


async def test_a_refusal_of_the_signers_is_told_like_any_other(world: World) -> None:
    device = world.born(HOME)
    broken = bytearray(device.csr())
    broken[-3] ^= 1
    mark = await world.mark()
    _, outcome, reply = await world.ask(ENROLL, HOME, device, body=base64.b64encode(bytes(broken)))
    assert (outcome, reply.status) == (Code.CSR_SIGNATURE.value, 400)
    trace = await world.since(mark)
    assert (trace.intents, len(trace.events)) == (0, 1)


async def test_a_flood_of_refusals_does_not_fill_the_trail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_OF_A_SOURCE", Rate(0.001, burst=5))
    here, before = Peer("198.51.100.77"), await world.mark()
    for _ in range(30):
        assert (await world.ask("", None, Caller("nobody"), method="GET", path="/x", peer=here))[1] == "path-unknown"
    assert len((await world.since(before)).events) == 5
    assert [event.extra["count"] for event in world.refusals.sum_up(now(), is_last=True)] == [25]


# --- what was revoked --------------------------------------------------------------------------------------------------


async def test_a_revoked_certificate_is_no_answer_to_a_retry_and_that_is_on_record(world: World) -> None:
    device = await world.coded(HOME)
    body = base64.b64encode(device.csr())
    certificate = read_certificate(await world.ask(ENROLL, HOME, device, body=body))
    assert read_certificate(await world.ask(ENROLL, HOME, device, body=body)) == certificate
    serial = der.integer(x509.load_der_x509_certificate(certificate).serial_number)[2:]
    revocation = Revocation(world.issuer(HOME).issuer_id, serial, "superseded", now())
    await world.store.record_revocation(revocation, make_event())
    mark = await world.mark()
    _, outcome, reply = await world.ask(ENROLL, HOME, device, body=body)
    assert (outcome, reply.status) == ("request-revoked", 403)
    trace = await world.since(mark)
    assert (trace.intents, trace.certificates) == (0, 0)
    assert [(event["outcome"], event["code"]) for event in trace.events] == [("refused", "request-revoked")]


async def test_a_compromised_key_gets_no_certificate_by_any_credential_of_its_ecosystem(world: World) -> None:
    key, name = make_key(), world.new_name()
    body = base64.b64encode(make_csr(make_name(name), key))
    first = await world.coded(HOME, name=name)
    certificate = read_certificate(await world.ask(ENROLL, HOME, first, body=body))
    await world.revoke(Caller(name, (certificate,)))  # for keyCompromise
    mark = await world.mark()
    for caller in (await world.coded(HOME, name=name), world.born(HOME, name), first):
        _, outcome, reply = await world.ask(ENROLL, HOME, caller, body=body)
        assert (outcome, reply.status) == ("key-revoked", 400)
    assert (await world.since(mark)).certificates == 0
    read_certificate(await world.ask(ENROLL, NEIGHBOUR, world.born(NEIGHBOUR, name), body=body))
    read_certificate(await world.ask(ENROLL, HOME, world.born(HOME, name)))
