from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from postgres_fixture import NOW, Database
from store_values import make_event

from estd.audit import Event
from estd.auditor.findings import Findings
from estd.auditor.trail import check_anchors, check_trail, find_set_back
from estd.store.postgres import PostgresStore

STRANGE = (
    "",
    "plain",
    'quotes " and \\ backslashes, commas, (brackets) [and] {braces}',
    "tab\t newline\n return\r form\f back\b bell\x07 escape\x1b delete\x7f",
    "ünïcödé → 🚀 \u2028 \u00a0",
    "null",
    "/slash </script>",
)


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with database.session() as connection, connection.transaction():
        yield connection


async def trail(connection: asyncpg.Connection) -> tuple[Findings, list[str]]:
    findings, heard = Findings(), list[str]()

    async def hear(event: Any) -> None:
        heard.append(event["kind"])

    await check_trail(connection, findings, hear, lambda _count: None)
    return findings, heard


async def test_an_empty_trail_is_whole(connection: asyncpg.Connection) -> None:
    findings, _ = await trail(connection)
    assert findings.clean


async def test_whatever_an_event_says_it_is_hashed_alike_in_sql_and_here(database: Database) -> None:
    store = await PostgresStore.connect(database.url, clock=lambda: NOW)
    try:
        for text in STRANGE:
            extra = {"text": text, text: [1, 2.5, 1e300, -0.0, 10**20, True, None, {"b": 1, "a": 2}], "é": "\x01"}
            await store.record_events(
                [
                    make_event(detail=text, identity=text, code=text, request_id=text, extra=extra),
                    Event(NOW.replace(microsecond=123456), "k", "granted", issuer_id=3, serial="01ff"),
                ]
            )
    finally:
        await store.close()
    async with database.session() as connection, connection.transaction():
        findings, heard = await trail(connection)
    assert findings.breaches == []
    assert findings.counts["events"] == 2 * len(STRANGE)
    assert findings.counts["links"] == len(STRANGE)
    assert heard == ["est.cacerts", "k"] * len(STRANGE)


async def test_an_event_of_before_the_epoch_is_hashed_alike_too(database: Database) -> None:
    store = await PostgresStore.connect(database.url, clock=lambda: NOW)
    try:
        await store.record_events([make_event(at=NOW.replace(year=1969, microsecond=999999))])
    finally:
        await store.close()
    async with database.session() as connection, connection.transaction():
        assert (await trail(connection))[0].clean


async def test_an_anchor_holds_unless_it_was_said_to_be_lost(database: Database) -> None:
    store = await PostgresStore.connect(database.url, clock=lambda: NOW)
    try:
        for _ in range(3):
            await store.record_events([make_event()])
        newest = await store.find_newest_link()
        assert newest is not None
        extra = {"links_after": newest[0], "links_until": newest[0] + 5}
        await store.record_events([Event(NOW, "audit.reconcile", "granted", extra=extra)])
    finally:
        await store.close()
    async with database.session() as connection:
        ranges = [(low, high) for low, high, _ in await find_set_back(connection)]
        assert ranges == [(newest[0], newest[0] + 5)]
        anchors = [
            (*newest, "a"),
            (newest[0], bytes(32), "b"),
            (newest[0] + 2, bytes(32), "c"),
            (10**6, bytes(32), "d"),
        ]
        findings = Findings()
        await check_anchors(connection, findings, anchors, ranges)
    assert [breach.where for breach in findings.breaches] == ["b", "d"]
    assert findings.counts["anchors_set_back"] == 1
