"""What the audit trail says of certificates, revocations and ecosystems, against the tables.

The trail is chained, so what one of its events says is what was written then. Grants and revocations are looked up some
hundred at a time as they come by; of each certificate and each revocation 64 bits are kept, to find rows that no event
speaks of.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

import asyncpg

from estd.auditor.ecosystems import Ecosystems
from estd.auditor.findings import Findings, Invariant
from estd.auditor.trail import key_of, sorted_array

Connection = asyncpg.Connection
_Told = tuple[Any, bytes, Mapping[str, Any]]
"""An event, the serial it names, and its `extra`."""


class Hearing:
    """Hears every event in turn; `connection` sees the tables as they are now."""

    def __init__(self, connection: Connection, findings: Findings, ecosystems: Ecosystems) -> None:
        self._connection = connection
        self._findings = findings
        self._ecosystems = ecosystems
        self._grants: list[_Told] = []
        self._revocations: list[_Told] = []
        self.granted: array[int] = array("Q")
        """The key of every certificate that an event says was granted."""
        self.revoked: array[int] = array("Q")
        self._raised: set[int] = set()
        """The key of every revocation whose reason an event says was raised later."""
        self._risen: list[tuple[int, str, str, bytes]] = []
        """Reasons that are right if an event to come says that they were raised: key, and what is said otherwise."""

    async def hear(self, event: Any) -> None:
        """Take one event; what it says is looked up when enough have gathered."""
        if event["outcome"] != "granted":
            return
        if event["kind"] == _APPLY:
            self._ecosystems.hear(event, _read_extra(event))
        serial, issuer_id = event["serial"], event["issuer_id"]
        if not serial or issuer_id is None:
            return
        try:
            octets = bytes.fromhex(serial)
        except ValueError:
            what = f"names {serial!r}, which is no serial"
            self._findings.add(Invariant.UNBROKEN, f"event {event['event_id']}", what)
            return
        told = (event, octets, _read_extra(event))
        if event["kind"] == _REVOKE:
            if _is_raise(told):
                self._raised.add(key_of(issuer_id, octets))
            else:
                self.revoked.append(key_of(issuer_id, octets))
            self._revocations.append(told)
        else:
            self.granted.append(key_of(issuer_id, octets))
            self._grants.append(told)
        if len(self._grants) + len(self._revocations) >= _BATCH:
            await self.flush()

    async def flush(self) -> None:
        """Look up what has gathered."""
        grants, self._grants = self._grants, []
        if grants:
            keys = [event["issuer_id"] for event, _, _ in grants], [serial for _, serial, _ in grants]
            for told, row in zip(grants, await self._connection.fetch(_GRANTED, *keys), strict=True):
                self._check_grant(told, row)
        revocations, self._revocations = self._revocations, []
        if revocations:
            keys = [event["issuer_id"] for event, _, _ in revocations], [serial for _, serial, _ in revocations]
            for told, row in zip(revocations, await self._connection.fetch(_REVOKED, *keys), strict=True):
                self._check_revocation(told, row)

    async def finish(self, connection: Connection) -> None:
        """Look up the rest, and look for revocations and ecosystems that no event speaks of."""
        await self.flush()
        for key, where, what, serial in self._risen:
            if key not in self._raised:
                self._findings.add(Invariant.UNBROKEN, where, what, serial)
        self.granted, self.revoked = sorted_array(self.granted), sorted_array(self.revoked)
        async for row in connection.cursor("SELECT issuer_id, serial FROM revocation", prefetch=_BATCH):
            self._findings.counts["revocations"] += 1
            if not self._holds(self.revoked, row):
                where = f"revocation {row['issuer_id']}/{row['serial'].hex()}"
                self._findings.add(Invariant.UNBROKEN, where, "no audit event says that it was made", row["serial"])
        self._ecosystems.finish()

    # --- private -----------------------------------------------------------------------------------------------------

    def _check_grant(self, told: _Told, row: Any) -> None:
        event, serial, extra = told
        where = f"{event['issuer_id']}/{serial.hex()}"
        source = f"event {event['event_id']}"
        if row["issued_at"] is None:
            what = f"{source} says that it was granted, and the database does not have it"
            self._findings.add(Invariant.ON_RECORD, f"certificate {where}", what, serial)
        elif row["issued_at"] != event["at"]:
            what = f"issued_at is {row['issued_at']:%Y-%m-%d %H:%M:%S}Z, and {source} is of {event['at']:%Y-%m-%d %H:%M:%S}Z"
            self._findings.add(Invariant.UNBROKEN, f"certificate {where}", what, serial)
        if row["profile"] is None:
            return  # without an intent, as is told from the tables
        said = {
            "certificate's ecosystem_id": (row["certificate_ecosystem_id"], event["ecosystem_id"]),
            "intent's ecosystem_id": (row["ecosystem_id"], event["ecosystem_id"]),
            "intent's identity": (row["identity"], event["identity"]),
            "intent's device": (row["device"], extra.get("device", row["device"])),
            "intent's profile": (row["profile"], extra.get("profile", row["profile"])),
        }
        if event["kind"].startswith(_REQUEST):
            said["intent's operation"] = (_REQUEST + row["operation"], event["kind"])
        for column, (stored, heard) in said.items():
            if stored != heard and stored is not None:
                what = f"the {column} is {stored!r}, and {source} says {heard!r}"
                self._findings.add(Invariant.UNBROKEN, f"intent {where}", what, serial)
        self._check_closing(f"intent {where}", source, told, row)

    def _check_closing(self, where: str, source: str, told: _Told, row: Any) -> None:
        """An orphan is only what had no certificate yet when it was closed, and then the event says so."""
        event, serial, extra = told
        is_late = extra.get("late") is True
        # Of settlements by a version whose events did not say which of them came late.
        may_be_late = not (event["ecosystem"] or event["address"] or event["request_id"] or "settled" in extra)
        if row["closed"] == "orphan" and not (is_late or may_be_late):
            what = f"is closed as an orphan, and {source} says that its certificate was there before"
            self._findings.add(Invariant.ONCE, where, what, serial)
        if row["closed"] is None and is_late:
            what = f"holds its request, and {source} says that it was closed before its certificate was there"
            self._findings.add(Invariant.ONCE, where, what, serial)

    def _check_revocation(self, told: _Told, row: Any) -> None:
        event, serial, extra = told
        where, source = f"revocation {event['issuer_id']}/{serial.hex()}", f"event {event['event_id']}"
        if row["reason"] is None:
            what = f"is missing; {source} says that it was made"
            self._findings.add(Invariant.UNBROKEN, where, what, serial)
            return
        if row["reason"] != extra.get("reason", row["reason"]):
            what = f"reason is {row['reason']!r}, and {source} says {extra['reason']!r}"
            if row["reason"] == _COMPROMISE:
                self._risen.append((key_of(event["issuer_id"], serial), where, what, serial))
            else:
                self._findings.add(Invariant.UNBROKEN, where, what, serial)
        if _is_raise(told):
            return  # the date is that of the first event
        if row["revoked_at"] != event["at"]:
            what = f"revoked_at is {row['revoked_at']:%Y-%m-%d %H:%M:%S}Z, and {source} is of another time"
            self._findings.add(Invariant.UNBROKEN, where, what, serial)

    def _holds(self, values: array[int], row: Any) -> bool:
        key = key_of(row["issuer_id"], row["serial"])
        at = bisect_left(values, key)
        return at < len(values) and values[at] == key


def _read_extra(event: Any) -> Mapping[str, Any]:
    extra = json.loads(event["extra"]) if event["extra"] else {}
    return extra if isinstance(extra, dict) else {}


def _is_raise(told: _Told) -> bool:
    """Whether it is of a revocation that stood already, and had its reason raised."""
    return told[2].get("raised") is True


_BATCH: Final = 500
_APPLY: Final = "ecosystem.apply"
_REVOKE: Final = "certificate.revoke"
_COMPROMISE: Final = "keyCompromise"
"""The one reason that a revocation may be given afterwards."""
_REQUEST: Final = "est."
_GRANTED: Final = """
SELECT
    intent.ecosystem_id, intent.profile, intent.operation, intent.identity, intent.device, intent.closed,
    certificate.ecosystem_id AS certificate_ecosystem_id, certificate.issued_at
FROM unnest($1::integer[], $2::bytea[]) WITH ORDINALITY AS given (issuer_id, serial, place)
LEFT JOIN intent ON intent.issuer_id = given.issuer_id AND intent.serial = given.serial
LEFT JOIN certificate ON certificate.issuer_id = given.issuer_id AND certificate.serial = given.serial
ORDER BY place
"""
_REVOKED: Final = """
SELECT revocation.reason, revocation.revoked_at
FROM unnest($1::integer[], $2::bytea[]) WITH ORDINALITY AS given (issuer_id, serial, place)
LEFT JOIN revocation ON revocation.issuer_id = given.issuer_id AND revocation.serial = given.serial
ORDER BY place
"""
