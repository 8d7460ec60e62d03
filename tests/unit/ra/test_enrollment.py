"""The one road, on a real store and a real signer process: groups, retries, and what dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from database_proxy import DatabaseProxy
from factory import KEK, NOW, make_csr, make_maker, make_name, make_record, make_rules
from postgres_fixture import Database

from estd.app.signers import SignerControl
from estd.audit import Event
from estd.errors import Code, Refused, Unavailable
from estd.ra.enrollment import Enrollment
from estd.ra.order import Order, write_request_key
from estd.signer.client import SignerPool
from estd.signer.frames import PreparedItem, PrepareItem, RefusedItem, SealItem
from estd.signer.server import SignerSettings
from estd.store.contract import EcosystemRecord, EnrollmentCode, Intent, NewIssuer
from estd.store.postgres import PostgresStore
from estd.store.queries import sql_of
from estd.wire.pkcs10 import read_request

EVENT = Event(NOW, "test", "granted")
# testECCP256, whose private value RFC 9500 §2.3 prints.
PUBLISHED_P256 = int("E6CB5BDD80AA45AE9C95E8C15476679FFEC953C16851E711E743939589C64FC1", 16)


class SignerProcess:
    """One real signer on a directory of its own."""

    def __init__(self, directory: Path, record: EcosystemRecord) -> None:
        self.socket = str(directory / "signer.sock")
        self._directory = directory
        self._record = record
        self._process: asyncio.subprocess.Process | None = None
        self._control: SignerControl | None = None

    async def start(self) -> None:
        settings = SignerSettings(
            slot=0,
            socket_path=self.socket,
            journal_directory=str(self._directory / "journal"),
            allowed_uids=[os.getuid()],
            clock_tolerance_seconds=1e9,
            log_level="error",
        )
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as file:
            file.write(msgspec.json.encode(settings))
            file.flush()
            fds = [file.fileno(), theirs.fileno()]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "estd.signer.server", *map(str, fds), pass_fds=fds
            )
        theirs.close()
        self._control = await SignerControl.open(ours)
        await self._control.unlock(KEK)
        await self._control.load([self._record])

    async def kill(self) -> None:
        assert self._process is not None
        assert self._control is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self._control.close()


class Road:
    """An `Enrollment` and everything under it."""

    def __init__(self, store: PostgresStore, signer: SignerProcess, pool: SignerPool, record: EcosystemRecord) -> None:
        self.store = store
        self.signer = signer
        self.pool = pool
        self.record = record
        self.now: datetime = datetime.now(NOW.tzinfo).replace(microsecond=0)
        self.observed = Counter[str]()
        self.groups: list[float] = []
        self.enrollment = Enrollment(store, pool, lambda: self.now, self._observe)

    def _observe(self, what: str, value: float) -> None:
        self.observed[what] += 1
        if what == "group_size":
            self.groups.append(value)

    def order(self, name: str = "device-1", csr: bytes | None = None, **changes: object) -> Order:
        der = csr or make_csr(make_name(name))
        digest = read_request(der).sha256
        fields: dict[str, object] = {
            "request_key": write_request_key(self.record.ecosystem_id, name, "simpleenroll", digest),
            "ecosystem_id": self.record.ecosystem_id,
            "ecosystem_version": self.record.version,
            "node_id": self.record.node_id,
            "ecosystem": "campus",
            "profile": "device",
            "retry_window": timedelta(hours=1),
            "operation": "simpleenroll",
            "identity": name,
            "device": name,
            "csr": der,
            "csr_sha256": digest,
            "subject": make_name(name).public_bytes(),
            "san": None,
            "code_id": None,
            "address": "192.0.2.7",
            "request_id": "req",
        }
        return Order(**(fields | changes))  # type: ignore[arg-type]

    async def certificates(self) -> list[bytes]:
        return [row.certificate for row in await self.store.find_certificates(None, None, 10_000)]


@contextlib.asynccontextmanager
async def open_road(url: str, directory: Path, pool: type[SignerPool] = SignerPool) -> AsyncIterator[Road]:
    store = await PostgresStore.connect(url)
    made = make_record(make_rules(make_maker()))
    issuers = [
        NewIssuer(issuer.name, "root" if issuer.parent_id is not None else None, issuer.certificate, issuer.sealed_key)
        for issuer in made.issuers
    ]
    record = await store.record_ecosystem("campus", made.document, issuers, 0, "test", EVENT)
    signer = SignerProcess(directory, record)
    (directory / "journal").mkdir(mode=0o700)
    await signer.start()
    signers = pool([signer.socket])
    road = Road(store, signer, signers, record)
    try:
        yield road
        await road.enrollment.drain()
    finally:
        await signers.close()
        await signer.kill()
        await store.close()


@pytest.fixture
def valid_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issuers made now: a real signer goes by the real clock."""
    monkeypatch.setattr("factory.NOW", datetime.now(NOW.tzinfo).replace(microsecond=0))


@pytest.fixture
async def road(database: Database, tmp_path: Path, valid_now: None) -> AsyncIterator[Road]:
    async with open_road(database.url, tmp_path) as road:
        yield road


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
        few = [asyncio.create_task(road.enrollment.enroll(road.order(f"device-{n}"))) for n in range(1, 32)]
        await asyncio.sleep(0.2)
        assert (road.groups, road.enrollment.waiting) == ([1], 31)
        last = road.order("device-32")
        certificates = await asyncio.gather(*few, road.enrollment.enroll(last))
        assert road.groups == [1, 32]
        assert not slow.done()
        assert sorted(certificates) == sorted(await road.certificates())
        road.pool.go_on.set()
        assert await slow in await road.certificates()


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


async def test_the_same_request_many_times_at_once_is_one_certificate(road: Road) -> None:
    order = road.order()
    answers = await asyncio.gather(*(road.enrollment.enroll(order) for _ in range(20)))
    assert len(set(answers)) == 1
    assert await road.certificates() == [answers[0]]


async def test_retries_take_no_room_in_the_signer(road: Road) -> None:
    order = road.order()
    first = await road.enrollment.enroll(order)
    for _ in range(5):
        assert set(await asyncio.gather(*(road.enrollment.enroll(order) for _ in range(20)))) == {first}
    await road.enrollment.drain()
    assert [report.prepared for report in await road.pool.status()] == [0]


async def test_two_workers_with_one_request_give_one_certificate(road: Road) -> None:
    other = Enrollment(road.store, road.pool, lambda: road.now, lambda _what, _value: None)
    order = road.order()
    answers = await asyncio.gather(*(worker.enroll(order) for worker in (road.enrollment, other) for _ in range(5)))
    assert len(set(answers)) == 1
    await other.drain()


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


async def closings(database: Database) -> Counter[str | None]:
    return Counter(row["closed"] for row in await database.fetch("SELECT closed FROM intent"))


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


async def reserve_and_die(road: Road, order: Order) -> Intent:
    """As a worker that is killed right after its intent was committed."""
    waiting = Enrollment(road.store, road.pool, lambda: road.now, lambda _what, _value: None)

    class Killed(BaseException):
        pass

    async def die(journal: str, mine: object) -> None:
        raise Killed

    waiting._sign = die  # type: ignore[method-assign, assignment]
    with pytest.raises(Exception):  # noqa: B017  # what a killed worker's client sees does not matter here
        await waiting.enroll(order)
    intents = await road.store.find_open_intents(road.now + timedelta(minutes=1), 10)
    return next(intent for intent in intents if intent.request_key == order.request_key)


async def test_without_a_signer_nothing_is_reserved(road: Road) -> None:
    await road.signer.kill()
    with pytest.raises(Unavailable) as caught:
        await road.enrollment.enroll(road.order())
    assert caught.value.code is Code.SIGNER_UNAVAILABLE
    assert await road.store.find_open_intents(road.now + timedelta(days=1), 10) == []
    await road.signer.start()
    assert await road.enrollment.enroll(road.order())


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
