"""The store in PostgreSQL (15 or later), through asyncpg.

What it promises stands in `estd.store.contract`; how the promises are kept stands beside the statements in
``queries.sql`` and in `estd.store.pool`. Each method is one statement, so one round trip and one commit;
`PostgresStore.record_versions` is a transaction of several.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self, TypeAlias

import asyncpg
import msgspec

from estd.audit import Event
from estd.errors import Broken, Code, Unavailable
from estd.store import rows
from estd.store.contract import (
    KEY_COMPROMISE,
    Closing,
    Conflict,
    Device,
    EcosystemRecord,
    EnrollmentCode,
    Intent,
    Issuance,
    Issued,
    NewIssuer,
    NewVersion,
    Node,
    Outcome,
    Revocation,
    RevocationOutcome,
    StoredCertificate,
)
from estd.store.gathered import Gathered
from estd.store.listener import Follower, Listener
from estd.store.migrator import check_schema
from estd.store.pool import Connection, Pool, unavailable
from estd.store.queries import sql_of
from estd.store.versions import write_versions

_REPEATS = 5
_VERSION_SECONDS = 0.2
"""What one more version may add to the time of a transaction."""
Witness: TypeAlias = Callable[[], Awaitable[Sequence[tuple[int, bytes]]]]
"""Names (issuer, serial) pairs that were surely intended."""


def utc_now() -> datetime:
    """The time of this machine, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


class PostgresStore:
    """Implements `estd.store.contract.Store`.

    Args:
        url: ``postgresql://…``; several hosts are tried in turn for the one that takes writes.
        pool_size: how many statements may run at once, the listening connections not counted.
        clock: decides which certificates have expired.
        statement_seconds: the deadline of one statement.
        witness: names serials that must have an intent; a database in which one has none was set back, or is another
            one, and is not used. Asked for each new connection, which is when a database can have become another.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        clock: Callable[[], datetime] = utc_now,
        statement_seconds: float = 5.0,
        witness: Witness | None = None,
    ) -> None:
        admit = None if witness is None else self._admit
        self._pool = Pool(url, pool_size, statement_seconds=statement_seconds, admit=admit)
        self._witness = witness
        self._clock = clock
        self._certificates = Gathered(self._find_certificates_by_serial)
        self._listeners: list[Listener] = []

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        pool_size: int = 8,
        clock: Callable[[], datetime] = utc_now,
        witness: Witness | None = None,
    ) -> Self:
        """A store whose database answers and has the right schema.

        Raises:
            Unavailable: it does not. (A worker that must start regardless makes the store without `connect`.)
        """
        store = cls(url, pool_size=pool_size, clock=clock, witness=witness)
        try:
            await store.check()
        except BaseException:
            await store.close()
            raise
        return store

    # --- issuance ------------------------------------------------------------------------------------------------
    async def reserve_intents(self, intents: Sequence[Intent]) -> list[Outcome]:
        """See `Store.reserve_intents`."""
        if not intents:
            return []
        if await self._pool.fetch_value(_RESERVE_INTENTS, *rows.write_intents(intents)) == len(intents):
            return [Outcome.RESERVED] * len(intents)
        outcomes: dict[int, Outcome] = {}
        undecided = list(enumerate(intents))
        for _ in range(_REPEATS):
            found = await self._pool.fetch(_FIND_HOLDERS, *rows.write_holders([intent for _, intent in undecided]))
            rest = []
            for (position, intent), row in zip(undecided, found, strict=True):
                outcome = _decide_outcome(intent, row)
                if outcome is None:
                    rest.append((position, intent))
                else:
                    outcomes[position] = outcome
            if not rest:
                return [outcomes[position] for position in range(len(intents))]
            # What stood in the way of the rest has just been closed or rolled back.
            undecided = rest
            await self._pool.fetch(_RESERVE_INTENTS, *rows.write_intents([intent for _, intent in undecided]))
        raise unavailable(None)

    async def find_issuances(self, request_keys: Sequence[bytes]) -> dict[bytes, Issuance]:
        """See `Store.find_issuances`."""
        found = await self._pool.fetch(_FIND_ISSUANCES, list(request_keys))
        return {row["request_key"]: rows.read_issuance(row) for row in found}

    async def record_issued(self, issued: Sequence[Issued]) -> None:
        """See `Store.record_issued`."""
        if not issued:
            return
        try:
            resolved = await self._pool.fetch_value(_RECORD_ISSUED, *rows.write_issued(issued))
        except Broken:
            cleaned = [msgspec.structs.replace(one, event=rows.printable(one.event)) for one in issued]
            if cleaned == list(issued):
                raise
            issued = cleaned
            resolved = await self._pool.fetch_value(_RECORD_ISSUED, *rows.write_issued(issued))
        if resolved == len(issued):
            return
        # Repeats, and results of intents that were given up meanwhile.
        columns = [one.issuer_id for one in issued], [one.serial for one in issued]
        contradictions = []
        for one, row in zip(issued, await self._pool.fetch(_FIND_STORED, *columns), strict=True):
            name = f"serial {one.serial.hex()} of issuer {one.issuer_id}"
            if not row["has_intent"]:
                contradictions.append(f"{name} was signed without an intent")
            elif row["der"] is None:
                await self._pool.fetch(_RECORD_ISSUED_LATE, *rows.write_issued([one]))
            elif row["der"] != one.certificate:
                contradictions.append(f"{name} has two different certificates")
        if contradictions:
            raise Broken("; ".join(contradictions))

    async def close_intent(self, issuer_id: int, serial: bytes, closing: Closing) -> bool:
        """See `Store.close_intent`."""
        if closing is Closing.SUPERSEDED:
            return bool(await self._pool.fetch(_CLOSE_ISSUED, issuer_id, serial))
        return bool(await self._pool.fetch(_CLOSE_UNRESOLVED, issuer_id, serial, closing.value))

    async def find_open_intents(self, before: datetime, limit: int) -> list[Intent]:
        """See `Store.find_open_intents`."""
        return [rows.read_intent(row) for row in await self._pool.fetch(_FIND_OPEN_INTENTS, before, limit)]

    async def find_unintended(self, keys: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """See `Store.find_unintended`."""
        found = await self._pool.fetch(_FIND_UNINTENDED, [key[0] for key in keys], [key[1] for key in keys])
        return [(row["issuer_id"], row["serial"]) for row in found]

    async def restore_intents(self, intents: Sequence[Intent], closing: Closing) -> None:
        """See `Store.restore_intents`."""
        if intents:
            await self._pool.fetch(_RESTORE_INTENTS, *rows.write_intents(intents), closing.value)

    async def find_newest_marks(self, limit: int) -> list[str]:
        """See `Store.find_newest_marks`."""
        return [row["journal"] for row in await self._pool.fetch(_FIND_NEWEST_MARKS, limit)]

    async def find_certificate(self, issuer_id: int, serial: bytes) -> StoredCertificate | None:
        """See `Store.find_certificate`."""
        return await self._certificates.find((issuer_id, serial))

    async def _find_certificates_by_serial(
        self, keys: Sequence[tuple[int, bytes]]
    ) -> dict[tuple[int, bytes], StoredCertificate]:
        columns = [issuer_id for issuer_id, _ in keys], [serial for _, serial in keys]
        found = await self._pool.fetch(_FIND_CERTIFICATES_BY_SERIAL, *columns)
        return {(row["issuer_id"], row["serial"]): rows.read_certificate(row) for row in found}

    async def find_certificates(
        self, ecosystem_id: int | None, device: str | None, limit: int
    ) -> list[StoredCertificate]:
        """See `Store.find_certificates`."""
        if device is None:
            found = await self._pool.fetch(_FIND_NEWEST_CERTIFICATES, ecosystem_id, limit)
        else:
            found = await self._pool.fetch(_FIND_DEVICE_CERTIFICATES, ecosystem_id, device, limit)
        return [rows.read_certificate(row) for row in found]

    async def record_revocation(self, revocation: Revocation, event: Event) -> RevocationOutcome:
        """See `Store.record_revocation`."""
        columns, of_event = rows.write_revocation(revocation), rows.write_event(event)
        if await self._pool.fetch(_RECORD_REVOCATION, *columns, *of_event):
            return RevocationOutcome.REVOKED
        # Nobody takes a revocation away, so what the first statement met is there for the second.
        if revocation.reason == KEY_COMPROMISE and await self._pool.fetch(_RAISE_REVOCATION, *columns[:3], *of_event):
            return RevocationOutcome.RAISED
        return RevocationOutcome.UNCHANGED

    async def find_revocations(self) -> list[Revocation]:
        """See `Store.find_revocations`."""
        return [rows.read_revocation(row) for row in await self._pool.fetch(_FIND_REVOCATIONS, self._clock())]

    async def find_compromised_keys(self) -> list[tuple[int, bytes]]:
        """See `Store.find_compromised_keys`."""
        found = await self._pool.fetch(_FIND_COMPROMISED_KEYS)
        return [(row["ecosystem_id"], row["spki_sha256"]) for row in found]

    # --- ecosystems ----------------------------------------------------------------------------------------------
    async def find_ecosystems(self) -> list[EcosystemRecord]:
        """See `Store.find_ecosystems`."""
        return rows.read_ecosystems(await self._pool.fetch(_FIND_ECOSYSTEMS, None))

    async def record_versions(self, versions: Sequence[NewVersion]) -> list[EcosystemRecord]:
        """See `Store.record_versions`."""
        if not versions:
            return []
        for _ in range(_REPEATS):
            try:
                async with self._pool.transaction(len(versions) * _VERSION_SECONDS) as connection:
                    return await write_versions(connection, versions)
            except asyncpg.UniqueViolationError as error:
                if error.constraint_name == "issuer_certificate":
                    raise Conflict("one of the new issuers exists already") from error
                # Somebody else made the same label at the same moment; look again.
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                pass  # rolled back for others' sake; again
        raise unavailable(None)

    async def record_ecosystem(
        self,
        label: str,
        document: Mapping[str, Any],
        new_issuers: Sequence[NewIssuer],
        expected_version: int,
        applied_by: str,
        event: Event,
    ) -> EcosystemRecord:
        """See `Store.record_ecosystem`."""
        version = NewVersion(label, document, new_issuers, expected_version, applied_by, event)
        return (await self.record_versions([version]))[0]

    async def count_certificates(self, ecosystem_id: int, profiles: Sequence[str], within: int) -> dict[str, int]:
        """See `Store.count_certificates`."""
        columns = ecosystem_id, list(profiles), within, self._clock()
        return {row["profile"]: row["certificates"] for row in await self._pool.fetch(_COUNT_CERTIFICATES, *columns)}

    async def find_nodes(self) -> list[Node]:
        """See `Store.find_nodes`."""
        return [rows.read_node(row) for row in await self._pool.fetch(_FIND_NODES)]

    # --- credentials and inventory ---------------------------------------------------------------------------------
    async def record_codes(self, codes: Sequence[EnrollmentCode]) -> list[EnrollmentCode]:
        """See `Store.record_codes`."""
        if not codes:
            return []
        await self._pool.fetch(_RECORD_CODES, *rows.write_codes(codes))
        found = await self._pool.fetch(_FIND_RECORDED_CODES, *rows.write_code_keys(codes))
        return [rows.read_code(row) for row in found]

    async def find_codes(self, ecosystem_id: int, device: str) -> list[EnrollmentCode]:
        """See `Store.find_codes`."""
        return [rows.read_code(row) for row in await self._pool.fetch(_FIND_CODES, ecosystem_id, device)]

    async def list_codes(
        self, ecosystem_id: int, limit: int, working_at: datetime | None = None
    ) -> list[EnrollmentCode]:
        """See `Store.list_codes`."""
        return [rows.read_code(row) for row in await self._pool.fetch(_LIST_CODES, ecosystem_id, limit, working_at)]

    async def revoke_codes(
        self, ecosystem_id: int, devices: Sequence[str] | None, at: datetime, event: Event
    ) -> list[str]:
        """See `Store.revoke_codes`."""
        found = await self._pool.fetch(_REVOKE_CODES, ecosystem_id, devices, at, *rows.write_event(event))
        return [row["device"] for row in found]

    async def record_devices(self, devices: Sequence[Device]) -> None:
        """See `Store.record_devices`."""
        if devices:
            await self._pool.fetch(_RECORD_DEVICES, *rows.write_devices(devices))

    async def find_device(self, ecosystem_id: int, device: str) -> Device | None:
        """See `Store.find_device`."""
        found = await self._pool.fetch(_FIND_DEVICE, ecosystem_id, device)
        return rows.read_device(found[0]) if found else None

    async def list_devices(self, ecosystem_id: int, after: str, limit: int) -> list[Device]:
        """See `Store.list_devices`."""
        return [rows.read_device(row) for row in await self._pool.fetch(_LIST_DEVICES, ecosystem_id, after, limit)]

    async def remove_devices(self, ecosystem_id: int, devices: Sequence[str], event: Event) -> list[str]:
        """See `Store.remove_devices`."""
        found = await self._pool.fetch(_REMOVE_DEVICES, ecosystem_id, devices, *rows.write_event(event))
        return [row["device"] for row in found]

    # --- audit and life --------------------------------------------------------------------------------------------
    async def record_events(self, events: Sequence[Event]) -> None:
        """See `Store.record_events`."""
        if not events:
            return
        try:
            await self._pool.fetch(_RECORD_EVENTS, *rows.write_events(events))
        except Broken:
            # What a stranger sent may hold characters PostgreSQL has no place for; a refusal is recorded all the same.
            cleaned = [rows.printable(event) for event in events]
            if cleaned == list(events):
                raise
            await self._pool.fetch(_RECORD_EVENTS, *rows.write_events(cleaned))

    async def find_events(
        self, ecosystem_id: int | None, limit: int, *, outcome: str | None = None, request_id: str | None = None
    ) -> list[Event]:
        """See `Store.find_events`."""
        if ecosystem_id is None:
            found = await self._pool.fetch(_FIND_EVENTS, outcome, request_id, limit)
        else:
            found = await self._pool.fetch(_FIND_ECOSYSTEM_EVENTS, ecosystem_id, outcome, request_id, limit)
        return [rows.read_event(row) for row in found]

    async def find_links(self, link_ids: Sequence[int]) -> dict[int, bytes]:
        """See `Store.find_links`."""
        return {row["link_id"]: row["digest"] for row in await self._pool.fetch(_FIND_LINKS, list(link_ids))}

    async def find_lost_links(self) -> list[tuple[int, int]]:
        """See `Store.find_lost_links`."""
        return [(row["low"], row["high"]) for row in await self._pool.fetch(_FIND_LOST_LINKS)]

    async def find_newest_link(self) -> tuple[int, bytes] | None:
        """See `Store.find_newest_link`."""
        found = await self._pool.fetch(_FIND_NEWEST_LINK)
        return (found[0]["link_id"], found[0]["digest"]) if found else None

    async def subscribe(self, follower: Follower) -> None:
        """See `Store.subscribe`."""
        listener = Listener(self._pool, follower)
        self._listeners.append(listener)
        await listener.start()

    async def check(self) -> None:
        """See `Store.check`."""
        async with self._pool.transaction() as connection:
            await check_schema(connection)
            durability = await connection.fetchrow(_DURABILITY)
        assert durability is not None
        if durability["synchronous_commit"] == "off" or durability["fsync"] == "off":
            raise Unavailable(
                Code.STORE_UNAVAILABLE,
                "The database acknowledges what it has not stored: set fsync and synchronous_commit to on.",
                retry_after_seconds=60,
            )

    async def _admit(self, connection: Connection) -> None:
        assert self._witness is not None
        keys = await self._witness()
        if keys and await connection.fetch(_FIND_UNINTENDED, [key[0] for key in keys], [key[1] for key in keys]):
            detail = "The database is at an older state than the signers' journals, and is not used until reconciled."
            raise Unavailable(Code.STORE_UNAVAILABLE, detail, retry_after_seconds=5)

    async def close(self) -> None:
        """See `Store.close`."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        await self._pool.close()


def _decide_outcome(intent: Intent, row: rows.Row) -> Outcome | None:
    """What became of one intent; None when nothing holds it up any more and it may be tried again."""
    if row["own_request_key"] is not None:
        if row["own_request_key"] != intent.request_key:
            raise Broken(f"serial {intent.serial.hex()} of issuer {intent.issuer_id} was chosen twice")
        return Outcome.RESERVED if row["own_is_unresolved"] else Outcome.EXISTS
    if row["request_key_is_held"]:
        return Outcome.EXISTS
    return Outcome.CODE_SPENT if row["code_is_spent"] else None


_RESERVE_INTENTS = sql_of("reserve_intents")
_FIND_HOLDERS = sql_of("find_holders")
_FIND_ISSUANCES = sql_of("find_issuances")
_RECORD_ISSUED = sql_of("record_issued")
_RECORD_ISSUED_LATE = sql_of("record_issued_late")
_FIND_STORED = sql_of("find_stored")
_CLOSE_UNRESOLVED = sql_of("close_unresolved")
_CLOSE_ISSUED = sql_of("close_issued")
_FIND_OPEN_INTENTS = sql_of("find_open_intents")
_FIND_UNINTENDED = sql_of("find_unintended")
_RESTORE_INTENTS = sql_of("restore_intents")
_FIND_NEWEST_MARKS = sql_of("find_newest_marks")
_FIND_LINKS = sql_of("find_links")
_FIND_LOST_LINKS = sql_of("find_lost_links")
_FIND_NEWEST_LINK = sql_of("find_newest_link")
_FIND_CERTIFICATES_BY_SERIAL = sql_of("find_certificates_by_serial")
_FIND_NEWEST_CERTIFICATES = sql_of("find_newest_certificates")
_FIND_DEVICE_CERTIFICATES = sql_of("find_device_certificates")
_RECORD_REVOCATION = sql_of("record_revocation")
_RAISE_REVOCATION = sql_of("raise_revocation")
_FIND_REVOCATIONS = sql_of("find_revocations")
_FIND_COMPROMISED_KEYS = sql_of("find_compromised_keys")
_FIND_ECOSYSTEMS = sql_of("find_ecosystems")
_COUNT_CERTIFICATES = sql_of("count_certificates")
_FIND_NODES = sql_of("find_nodes")
_RECORD_CODES = sql_of("record_codes")
_FIND_RECORDED_CODES = sql_of("find_recorded_codes")
_FIND_CODES = sql_of("find_codes")
_LIST_CODES = sql_of("list_codes")
_REVOKE_CODES = sql_of("revoke_codes")
_RECORD_DEVICES = sql_of("record_devices")
_FIND_DEVICE = sql_of("find_device")
_LIST_DEVICES = sql_of("list_devices")
_REMOVE_DEVICES = sql_of("remove_devices")
_RECORD_EVENTS = sql_of("record_events")
_FIND_EVENTS = sql_of("find_events")
_FIND_ECOSYSTEM_EVENTS = sql_of("find_ecosystem_events")
_DURABILITY = sql_of("durability")
