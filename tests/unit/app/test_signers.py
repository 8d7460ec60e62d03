"""The supervisor's side of a signer's control channel."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest
from factory import NOW

from estd.app.signers import SignerControl
from estd.errors import Broken
from estd.signer.frames import Done, Failed, Load, Ping, StatusReport, control_reader, write_frame
from estd.store.contract import EcosystemRecord, IssuerRecord

DIGEST = bytes(32)


def make_record(ecosystem_id: int, version: int = 1) -> EcosystemRecord:
    issuer = IssuerRecord(ecosystem_id * 10, ecosystem_id, "root", None, b"0\x00", b"sealed", NOW)
    return EcosystemRecord(ecosystem_id, 1, f"plant-{ecosystem_id}", version, {"format": 1}, NOW, "test", (issuer,))


@contextlib.asynccontextmanager
async def linked(refusals: Mapping[int, str]) -> AsyncIterator[tuple[SignerControl, list[tuple[int, int]]]]:
    """A signer that refuses these ecosystems, and the ecosystems and versions it was sent."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    sent: list[tuple[int, int]] = []

    async def answer() -> None:
        loop, frames = asyncio.get_running_loop(), control_reader()
        while octets := await loop.sock_recv(theirs, 65536):
            for message in frames.feed(octets):
                assert isinstance(message, Load)
                sent.append((message.ecosystem_id, message.version))
                why = refusals.get(message.ecosystem_id)
                reply = Done(message.number) if why is None else Failed(message.number, why)
                await loop.sock_sendall(theirs, write_frame(reply))

    answering = asyncio.create_task(answer())
    control = await SignerControl.open(ours)
    try:
        yield control, sent
    finally:
        answering.cancel()
        await asyncio.wait({answering})
        control.close()
        theirs.close()


async def test_an_ecosystem_that_is_refused_keeps_no_other_away() -> None:
    """It is remembered, and tried again when its record is another one."""
    refusals = {2: "sealed key: was sealed with another key-encryption key."}
    async with linked(refusals) as (control, sent):
        records = [make_record(1), make_record(2), make_record(3)]
        (refused,) = await control.load(records)
        assert (refused.record, refused.detail) == (records[1], refusals[2])
        assert control.unloaded == {2: refused}
        assert sent == [(1, 1), (2, 1), (3, 1)]
        assert await control.load([*records[:2], make_record(3, 2)]) == []
        assert sent[3:] == [(1, 1), (3, 2)]
        assert control.unloaded == {2: refused}
        mended = replace(records[1], issuers=(replace(records[1].issuers[0], sealed_key=b"restored"),))
        refusals.clear()
        assert await control.load([mended]) == []
        assert sent[5:] == [(2, 1)]
        assert control.unloaded == {}


@pytest.mark.parametrize(
    "changes", [{"certificate": b""}, {"sealed_key": b""}, {"certificate": bytes(9_000_000)}, {"issuer_id": 2**64}]
)
async def test_a_row_that_no_signer_could_read_is_not_sent(changes: dict[str, bytes]) -> None:
    """It would take it for nonsense, and end."""
    good, bad = make_record(1), make_record(2)
    bad = replace(bad, issuers=(replace(bad.issuers[0], **changes),))
    async with linked({}) as (control, sent):
        (refused,) = await control.load([bad, good])
        assert refused.record == bad
        assert "Restore its rows from a backup" in refused.detail
        assert sent == [(1, 1)]


async def test_a_signer_that_answers_nonsense_is_let_go() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        control = await SignerControl.open(ours)
        theirs.sendall(b"\xff" * 100)
        with pytest.raises(Broken, match="answered with something else"):
            await control.load([make_record(1)])
        assert control.gone


async def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    """A caller gave up; the next one gets its own answer and not the one before."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    control = await SignerControl.open(ours)
    late = asyncio.create_task(control.anchor(1, DIGEST))
    (asked,) = control_reader().feed(await loop.sock_recv(theirs, 65536))
    late.cancel()
    await asyncio.wait({late})
    report = asyncio.create_task(control.status())
    (wanted,) = control_reader().feed(await loop.sock_recv(theirs, 65536))
    answer = StatusReport(wanted.number, "0-00", draining=False, ecosystems={}, prepared=0, counters={})
    await loop.sock_sendall(theirs, write_frame(Done(asked.number)) + write_frame(answer))
    assert await report == answer
    control.close()
    theirs.close()


async def test_a_ping_waits_for_its_answer() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    control = await SignerControl.open(ours)
    ping = asyncio.create_task(control.ping())
    (asked,) = control_reader().feed(await loop.sock_recv(theirs, 65536))
    assert isinstance(asked, Ping)
    assert not ping.done()
    await loop.sock_sendall(theirs, write_frame(Done(asked.number)))
    await ping
    control.close()
    theirs.close()
