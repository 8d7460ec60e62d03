"""The ops port: what it answers while something is missing, or some ecosystem is in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from patience import until

from estd.app import own_certificate, troubles
from estd.app.ops import OpsServer
from estd.errors import Invalid


class Ops:
    """A server whose report is what a test says."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.url = ""
        self.asked = 0
        self.answers = asyncio.Event()
        """Whether a look comes to an end."""
        self.answers.set()

    async def report(self) -> dict[str, str]:
        self.asked += 1
        await self.answers.wait()
        return dict(self.missing)

    async def ask(self, path: str) -> tuple[int, str | None, str]:
        """Status, Retry-After and body."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return answer.status, answer.headers.get("Retry-After"), await answer.text()


@pytest.fixture
async def ops(tmp_path: Path) -> AsyncIterator[Ops]:
    ops = Ops()
    server = OpsServer(ops.report, tmp_path)
    ops.url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    yield ops
    troubles.note("signer-0", {})
    await server.stop()


async def test_ready_means_that_nothing_is_missing(ops: Ops) -> None:
    assert await ops.ask("/readyz") == (200, None, '{"status": "ready", "missing": {}}')
    ops.missing["workers"] = "none is ready"
    assert await ops.ask("/readyz") == (503, "5", '{"status": "not ready", "missing": {"workers": "none is ready"}}')
    assert await ops.ask("/healthz") == (200, None, '{"status": "alive"}')


async def test_an_ecosystem_in_trouble_is_named_and_the_server_is_ready(ops: Ops) -> None:
    troubles.note("signer-0", {"aaa": "version 1: why, and what to do"})
    named = '"ecosystems": {"aaa": "version 1: why, and what to do"}'
    assert await ops.ask("/readyz") == (200, None, f'{{"status": "ready", "missing": {{}}, {named}}}')
    ops.missing["workers"] = "none is ready"
    status, _, text = await ops.ask("/readyz")
    assert status == 503
    assert named in text
    _, _, metrics = await ops.ask("/metrics")
    assert 'estd_ecosystem_unloaded{ecosystem="aaa"} 1.0' in metrics


async def test_a_scrape_has_what_was_found_last_while_a_look_takes_long(
    ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estd.app.ops._SCRAPE_SECONDS", 0.05)
    ready, missing = 'estd_ready{part="database"} 1.0', 'estd_ready{part="database"} 0.0'
    assert ready in (await ops.ask("/metrics"))[2]
    ops.answers.clear()
    ops.missing["database"] = "it does not answer"
    for _ in range(3):
        assert ready in (await ops.ask("/metrics"))[2]
    assert ops.asked == 2  # one look for all of them
    probe = asyncio.create_task(ops.ask("/readyz"))
    await until(lambda: ops.asked == 3)
    assert not probe.done()
    ops.answers.set()
    assert (await probe)[0] == 503
    ops.answers.clear()
    assert missing in (await ops.ask("/metrics"))[2]  # what the look found after its scrape had been answered
    ops.answers.set()
    ops.missing.clear()
    assert ready in (await ops.ask("/metrics"))[2]


async def test_a_port_that_is_taken_is_told(ops: Ops, tmp_path: Path) -> None:
    port = int(ops.url.rpartition(":")[2])
    second = OpsServer(ops.report, tmp_path)
    with pytest.raises(
        Invalid, match=rf"ops\.port: 127\.0\.0\.1 port {port} cannot be opened \(Address already in use\)"
    ):
        await second.start("127.0.0.1", port)
    await second.stop()


async def test_when_the_certificate_ends_is_a_metric(ops: Ops) -> None:
    own_certificate.NOT_AFTER.set(1_900_000_000)
    assert "estd_tls_certificate_not_after_seconds 1.9e+09" in (await ops.ask("/metrics"))[2]
