"""Holds the audit trail in the database against the chain that binds it, and the chain against what the journals kept of it.

An event is hashed as a JSON array of its columns, a link as what it binds and the links before it; the migration that made
the chain says it in SQL, this module in Python. Both tables are read once, in their order, side by side: events wait in
memory until the link that binds them comes by, which is soon, because both were written by one statement.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from estd.auditor.findings import Findings, Invariant

Connection = asyncpg.Connection


async def check_trail(
    connection: Connection,
    findings: Findings,
    hear: Callable[[Any], Awaitable[None]],
    advance: Callable[[int], None],
) -> None:
    """Check every event and every link; `hear` is told each event, in order."""
    trail = _Trail(findings)
    events = aiter(_stream(connection, _EVENTS))
    event = await anext(events, None)
    async for link in _stream(connection, _LINKS):
        wanted = max(link["event_ids"], default=0)
        while event is not None and event["event_id"] <= wanted:
            trail.add_event(event)
            await hear(event)
            event = await anext(events, None)
        trail.add_link(link)
        if findings.counts["links"] % _STEP == 0:
            advance(findings.counts["events"])
    while event is not None:
        trail.add_event(event)
        await hear(event)
        event = await anext(events, None)
    trail.finish()
    advance(findings.counts["events"])


async def check_anchors(
    connection: Connection, findings: Findings, anchors: list[tuple[int, bytes, str]], set_back: list[tuple[int, int]]
) -> None:
    """Hold links as the journals kept them against the database: (link, digest, where the journal has it).

    `set_back` are ranges of links that a reconciliation said were lost with an older state of the database.
    """
    rows = await connection.fetch(
        "SELECT link_id, digest FROM audit_link WHERE link_id = ANY($1::bigint[])", [one[0] for one in anchors]
    )
    found = {row["link_id"]: row["digest"] for row in rows}
    for link_id, digest, where in anchors:
        findings.counts["anchors"] += 1
        if found.get(link_id) == digest:
            continue
        if any(low < link_id <= high for low, high in set_back):
            findings.counts["anchors_set_back"] += 1
            continue
        what = "is missing from" if link_id not in found else "is another one in"
        findings.add(Invariant.UNBROKEN, where, f"link {link_id} of the audit trail {what} the database")


async def find_set_back(connection: Connection) -> list[tuple[int, int, datetime]]:
    """Ranges of links that were lost when the database was set back, as reconciliations recorded it, and when."""
    rows = await connection.fetch(
        "SELECT at, extra ->> 'links_after' AS low, extra ->> 'links_until' AS high FROM event"
        " WHERE kind = 'audit.reconcile' AND outcome = 'granted' AND extra ? 'links_until' ORDER BY event_id"
    )
    return [(int(row["low"]), int(row["high"]), row["at"]) for row in rows]


async def find_reconciled(connection: Connection) -> datetime | None:
    """When the database was reconciled last, if it ever was."""
    found: datetime | None = await connection.fetchval(
        "SELECT max(at) FROM event WHERE kind = 'audit.reconcile' AND outcome = 'granted'"
    )
    return found


def key_of(issuer_id: int, serial: bytes) -> int:
    """Issuer and serial in 64 bits: enough to tell a million of them apart, small enough to keep them all."""
    digest = hashlib.blake2b(issuer_id.to_bytes(8, "big", signed=True) + serial, digest_size=8).digest()
    return int.from_bytes(digest, "big")


def sorted_array(values: array[int]) -> array[int]:
    """The same numbers in order."""
    return array("Q", sorted(values))


def write_event_text(event: Any) -> bytes:
    """What is hashed of an event: `json_build_array` of its columns, as PostgreSQL writes it."""
    values = [event["event_id"], (event["at"] - _EPOCH) // _MICROSECOND, *(event[name] for name in _TEXTS)]
    return (json.dumps(values, ensure_ascii=False)[:-1] + f", {event['extra'] or 'null'}]").encode()


class _Trail:
    """Events that no link has bound yet, and links that later ones may name."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._digests: dict[int, bytes] = {}
        self._links: dict[int, bytes] = {}

    def add_event(self, event: Any) -> None:
        self._findings.counts["events"] += 1
        self._digests[event["event_id"]] = hashlib.sha256(write_event_text(event)).digest()

    def add_link(self, link: Any) -> None:
        counts, link_id = self._findings.counts, link["link_id"]
        counts["links"] += 1
        hashed = hashlib.sha256()
        whole = True
        for previous in link["previous"]:
            digest = self._links.get(previous)
            if digest is None:
                self._complain(f"audit_link {previous}", f"is missing; link {link_id} names it")
                whole = False
            else:
                hashed.update(digest)
        for event_id in link["event_ids"]:
            digest = self._digests.pop(event_id, None)
            if digest is None:
                self._complain(f"event {event_id}", f"is missing, or bound twice; link {link_id} binds it")
                whole = False
            else:
                hashed.update(digest)
        if whole and hashed.digest() != link["digest"]:
            self._complain(
                f"audit_link {link_id}",
                f"does not match what it binds: one of events {_span(link['event_ids'])}, or the link, was changed",
            )
        # Without a link before it there is only the first one; two writers that began at once may both be that.
        if not link["previous"] and counts["links"] > _FIRST_LINKS:
            self._complain(f"audit_link {link_id}", "is bound to nothing before it")
        self._links[link_id] = link["digest"]
        if len(self._links) > 2 * _LINKS_KEPT:
            for old in list(self._links)[:_LINKS_KEPT]:
                del self._links[old]

    def finish(self) -> None:
        for event_id in self._digests:
            self._complain(f"event {event_id}", "is bound by no link: it was added behind estd's back")

    def _complain(self, where: str, what: str) -> None:
        self._findings.add(Invariant.UNBROKEN, where, what)


async def _stream(connection: Connection, query: str) -> AsyncIterator[Any]:
    async for row in connection.cursor(query, prefetch=_STEP):
        yield row


def _span(event_ids: list[int]) -> str:
    return f"{min(event_ids, default=0)} to {max(event_ids, default=0)}"


_STEP: Final = 1000
_FIRST_LINKS: Final = 16
_LINKS_KEPT: Final = 10_000
"""How far back the links that a link names may stand."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TEXTS: Final = (
    "ecosystem_id", "issuer_id", "kind", "outcome", "ecosystem", "code", "detail", "identity", "address", "request_id",
    "serial",
)  # fmt: skip
_EVENTS: Final = (
    "SELECT event_id, at, ecosystem_id, issuer_id, kind, outcome, ecosystem, code, detail, identity, address, request_id,"
    " serial, extra::text AS extra FROM event ORDER BY event_id"
)
_LINKS: Final = "SELECT link_id, event_ids, previous, digest FROM audit_link ORDER BY link_id"
