"""The link to a signer that runs on its own; real ones, of another user, are in ``tests/deploy/test_signer_apart.py``."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from patience import until

from estd.app import signer_link
from estd.app.signer_link import SignerLink
from estd.app.signers import SignerControl
from estd.errors import Broken


@pytest.fixture
async def listening(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """Where something takes connections and says nothing."""
    monkeypatch.setattr(signer_link, "_PAUSE_SECONDS", 0.01)
    ends: list[asyncio.StreamWriter] = []
    with tempfile.TemporaryDirectory(prefix="estd-test-") as directory:  # short enough for a socket
        path = Path(directory) / "control"
        server = await asyncio.start_unix_server(lambda _reader, writer: ends.append(writer), path)
        yield path
        for end in ends:
            end.close()
        server.close()
        await server.wait_closed()


async def test_a_signer_is_looked_for_until_it_can_be_greeted(
    listening: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[Exception] = [KeyError("unexpected"), KeyError("unexpected"), Broken("another key")]

    async def greet(end: socket.socket) -> SignerControl:
        if faults:
            end.close()
            raise faults.pop(0)
        return await SignerControl.open(end)

    link = SignerLink("signer-0", listening, greet)
    link.start()
    await until(lambda: link.ready)
    await link.stop()
    assert not link.ready
    told = [record for record in caplog.records if record.message == "a signer cannot be reached"]
    assert [(record.levelname, bool(record.exc_info)) for record in told] == [("ERROR", True), ("WARNING", False)]


async def test_a_signer_that_is_not_there_is_said_once(listening: Path, caplog: pytest.LogCaptureFixture) -> None:
    greeted: list[socket.socket] = []

    async def greet(end: socket.socket) -> SignerControl:
        greeted.append(end)
        return await SignerControl.open(end)

    away = listening.with_name("away")
    link = SignerLink("signer-0", away, greet)
    link.start()
    assert not await link.wait_ready(0.2)
    listening.rename(away)
    await until(lambda: link.ready)
    await link.stop()
    assert len(greeted) == 1
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "a signer cannot be reached"
    ]
