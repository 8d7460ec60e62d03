"""One audit from beginning to end: journals, audit trail, tables, and what clients received.

The order makes a running server no source of false alarms. The database is looked at as it was at one moment, then the
journals are read: whatever was on record at that moment was journaled before. From journal to tables it is asked what stands
there by now: an intent is committed before its entry is written. Nothing is changed anywhere.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg

from estd.auditor.ecosystems import Ecosystems
from estd.auditor.findings import Findings, Invariant
from estd.auditor.hearing import Hearing
from estd.auditor.journal import ANCHORED, ENTRIES, RESULTS, JournalFault, JournalReader, KnownBlocks, find_journals
from estd.auditor.ledger import Ledger, Times
from estd.auditor.trail import check_anchors, check_trail, find_reconciled, find_set_back
from estd.errors import Invalid, Problem

Advance = Callable[[str, int], None]
"""Called with what is being read, and how much of it was."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to audit, and how."""

    journals: Sequence[Path]
    """Directories of signers' journals."""
    received: Sequence[tuple[str, bytes]] = ()
    """Certificates that clients hold, DER, each with where it comes from."""
    settled_within: timedelta = timedelta(seconds=300)
    """How long an intent may be without result."""
    with_signatures: bool = True
    partial: bool = False
    """Other nodes' journals, or oldest segments, are elsewhere: say what could not be checked, call nothing missing."""


async def audit_url(url: str, scope: Scope, now: datetime, advance: Advance) -> Findings:
    """Audit the database at this URL; see `audit`.

    Raises:
        Invalid: a directory cannot be read, or the database has no audit chain.
        asyncpg.PostgresError, OSError: the database cannot be asked.
    """
    settings = {"application_name": "estd audit", "jit": "off"}
    steady = await asyncpg.connect(url, timeout=10, command_timeout=600, server_settings=settings)
    current = None
    try:
        # It looks up some hundred keys at a time, by index, whatever the planner knows of the tables.
        settings |= {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
        current = await asyncpg.connect(url, timeout=10, command_timeout=600, server_settings=settings)
        async with steady.transaction(isolation="repeatable_read", readonly=True):
            return await audit(steady, current, scope, now, advance)
    finally:
        await steady.close()
        if current is not None:
            await current.close()


async def audit(
    steady: asyncpg.Connection, current: asyncpg.Connection, scope: Scope, now: datetime, advance: Advance
) -> Findings:
    """What holds and what does not. `steady` is in a transaction that sees one moment, `current` sees what is there now.

    Raises:
        Invalid: a directory cannot be read, or the database has no audit chain.
    """
    findings = Findings()
    if await steady.fetchval("SELECT to_regclass('audit_link') IS NULL"):
        problem = Problem("the database", "has no audit chain", "Start this version of estd on it once, then audit.")
        raise Invalid([problem])
    set_back = await find_set_back(steady)
    for low, high, at in set_back:
        findings.notices.append(
            f"the database was set back and reconciled at {at:%Y-%m-%d %H:%M:%S}Z: refusals and other events of the links"
            f" {low + 1} to {high} of the audit trail are lost; certificates are not"
        )
    ecosystems = Ecosystems(findings)
    await ecosystems.read(steady, with_signatures=scope.with_signatures)
    times = Times(now, scope.settled_within, await find_reconciled(steady))
    ledger = Ledger(current, findings, ecosystems, times, with_signatures=scope.with_signatures, partial=scope.partial)
    hearing = Hearing(current, findings, ecosystems)
    clock = time.monotonic()
    for reader in _find_readers(scope.journals):
        await _read_journal(
            reader, ledger, current, findings, [(low, high) for low, high, _ in set_back], scope, advance
        )
    clock = _lap(findings, "journals", clock)
    await check_trail(steady, findings, hearing.hear, lambda count: advance("audit trail", count))
    await hearing.finish(steady)
    clock = _lap(findings, "audit trail", clock)
    await ledger.check_rows(steady, hearing.granted, lambda count: advance("intents and certificates", count))
    clock = _lap(findings, "intents and certificates", clock)
    if scope.received:
        await ledger.check_received(scope.received)
        _lap(findings, "received", clock)
    return findings


# --- private -------------------------------------------------------------------------------------------------------


def _find_readers(directories: Sequence[Path]) -> list[JournalReader]:
    readers: list[JournalReader] = []
    for directory in directories:
        try:
            found = find_journals(directory)
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
            problem = Problem(
                str(directory), what, "Name the directory of the signers' journals; read it as their user."
            )
            raise Invalid([problem]) from None
        readers += found
    return readers


async def _read_journal(
    reader: JournalReader,
    ledger: Ledger,
    connection: asyncpg.Connection,
    findings: Findings,
    set_back: list[tuple[int, int]],
    scope: Scope,
    advance: Advance,
) -> None:
    known = KnownBlocks(0, array("Q"), array("Q"))
    anchors: list[tuple[int, bytes, str]] = []
    findings.counts["journals"] += 1
    try:
        for block in reader.blocks():
            if not known.digests:
                _begin(reader, ledger, known, findings, scope)
            known.digests.append(int.from_bytes(block.digest[:8], "big"))
            known.times.append(block.time)
            if block.kind == ENTRIES:
                await ledger.check_entries(reader.name, block)
            elif block.kind == RESULTS:
                await ledger.check_results(block)
            elif block.kind == ANCHORED:
                anchors.append((block.items[0], block.items[1], block.where))
                if len(anchors) >= _ANCHORS:
                    await check_anchors(connection, findings, anchors, set_back)
                    anchors.clear()
            findings.counts["journal_blocks"] += 1
            if findings.counts["journal_blocks"] % _STEP == 0:
                advance("journals", findings.counts["journal_entries"])
    except JournalFault as fault:
        findings.add(Invariant.UNBROKEN, fault.where, fault.what)
    await ledger.flush()
    await check_anchors(connection, findings, anchors, set_back)
    advance("journals", findings.counts["journal_entries"])
    if reader.torn_bytes:
        findings.notices.append(
            f"{reader.directory}, slot {reader.slot}: {reader.torn_bytes} octets behind the last block are an interrupted"
            " write, or one going on at this moment"
        )


def _begin(reader: JournalReader, ledger: Ledger, known: KnownBlocks, findings: Findings, scope: Scope) -> None:
    """Make the journal known by its first block."""
    known.before = reader.first - 1
    known.digests.append(int.from_bytes(reader.before_first[:8], "big"))
    known.times.append(0)  # when that one was written is not here
    ledger.blocks[reader.name] = known
    if reader.first > 1:
        what = f"begins with block {reader.first}; what was before is not here"
        if scope.partial:
            findings.notices.append(f"journal {reader.name} {what}")
        else:
            findings.add(Invariant.UNBROKEN, f"{reader.directory}/journal-{reader.slot}", what)


def _lap(findings: Findings, what: str, since: float) -> float:
    now = time.monotonic()
    findings.seconds[what] = now - since
    return now


_STEP: Final = 500
_ANCHORS: Final = 1000
