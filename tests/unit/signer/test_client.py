from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import signer_harness as harness
from signer_harness import resumes, seals

from estd.errors import Broken, Code, Unavailable
from estd.signer.client import SignerPool
from estd.signer.frames import (
    ITEMS_MAX,
    Prepared,
    PreparedItem,
    RefusedItem,
    ResumeItem,
    Sealed,
    SealItem,
    Status,
    StatusReport,
    Verdict,
    request_reader,
    write_frame,
)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Two slots of one node, for tests that leave them as they were."""
    directories = [tmp_path_factory.mktemp(f"slot-{slot}") for slot in range(2)]
    with harness.running(directories[0], slot=0) as first, harness.running(directories[1], slot=1) as second:
        yield [first, second]


@pytest.fixture
async def pool(signers: list[Any]) -> AsyncIterator[SignerPool]:
    made = SignerPool([signer.path for signer in signers])
    await live(made, 2)
    yield made
    await made.close()


async def live(pool: SignerPool, slots: int) -> None:
    async with asyncio.timeout(10):
        while pool.live != slots:
            await asyncio.sleep(0.01)


async def test_the_whole_road(pool: SignerPool):
    mark, prepared = await pool.prepare([harness.item(1), harness.item(2, b"bad csr"), harness.item(3)])
    assert [type(item) for item in prepared] == [PreparedItem, RefusedItem, PreparedItem]
    sealed = await pool.seal(mark, seals(prepared))
    assert all(isinstance(certificate, bytes) for certificate in sealed)
    assert await pool.resume(mark, resumes(prepared)) == sealed
    assert pool.knows(mark)


async def test_a_pool_stays_at_home_and_uses_the_others_when_that_is_busy(pool: SignerPool):
    alone = [await pool.prepare([harness.item(number)]) for number in range(4)]
    assert len({mark.split(".")[0] for mark, _ in alone}) == 1
    together = await asyncio.gather(*(pool.prepare([harness.item(number)]) for number in range(4, 8)))
    assert len({mark.split(".")[0] for mark, _ in together}) == 2
    for mark, prepared in (*alone, *together):
        assert isinstance((await pool.seal(mark, seals(prepared)))[0], bytes)


async def test_what_belongs_together_goes_to_one_slot_however_busy_it_is(pool: SignerPool):
    mark, first = await pool.prepare([harness.item(1)])
    (other, _), (same, rest) = await asyncio.gather(
        pool.prepare([harness.item(number) for number in (2, 3)]), pool.prepare([harness.item(4)], mark)
    )
    assert other.split(".")[0] == same.split(".")[0] == mark.split(".")[0]
    assert all(isinstance(one, bytes) for one in await pool.seal(mark, seals([*first, *rest])))


async def test_the_busy_slot_is_spared(pool: SignerPool, signers: list[Any]):
    os.kill(signers[0].process.pid, signal.SIGSTOP)
    try:
        stuck = [asyncio.ensure_future(pool.prepare([harness.item(1)] * 8)) for _ in range(2)]
        await asyncio.sleep(0.05)
        names = {(await pool.prepare([harness.item(number)]))[0].split(".")[0] for number in range(6)}
        assert len(names) == 1
    finally:
        os.kill(signers[0].process.pid, signal.SIGCONT)
    await asyncio.gather(*stuck)


async def test_many_calls_at_once(pool: SignerPool):
    async def one(number: int) -> None:
        mark, prepared = await pool.prepare([harness.item(number)])
        (certificate,) = await pool.seal(mark, seals(prepared))
        assert isinstance(certificate, bytes)
        assert prepared[0].serial in certificate
        assert b"csr %d" % number in certificate

    await asyncio.gather(*(one(number) for number in range(200)))


async def test_resume_and_never_signed(pool: SignerPool):
    mark, prepared = await pool.prepare([harness.item(1)])
    assert await pool.resume(mark, resumes(prepared)) == [Verdict.NEVER_SIGNED]
    (refused,) = await pool.seal(mark, seals(prepared))
    assert isinstance(refused, RefusedItem)


async def test_journals_of_others_are_nobodys_here(pool: SignerPool):
    mark = "0-0000000000000000.1.0000000000000000"
    assert not pool.knows(mark)
    with pytest.raises(Unavailable):
        await pool.seal(mark, [SealItem(1, b"\x01")])
    with pytest.raises(Unavailable):
        await pool.resume(mark, [ResumeItem(1, b"\x01", bytes(32))])


async def test_too_much_in_one_batch_is_our_own_fault(pool: SignerPool):
    with pytest.raises(Broken):
        await pool.prepare([harness.item(1)] * (ITEMS_MAX + 1))
    with pytest.raises(Broken):
        await pool.prepare([harness.item(1, csr=bytes(65_000))] * 200)
    assert pool.live == 2


async def test_status_comes_from_every_live_slot(pool: SignerPool):
    assert len({report.journal for report in await pool.status()}) == 2


async def test_a_cancelled_call_leaves_nothing_behind(pool: SignerPool, signers: list[Any]):
    for signer in signers:
        os.kill(signer.process.pid, signal.SIGSTOP)
    try:
        call = asyncio.ensure_future(pool.prepare([harness.item(1)]))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    finally:
        for signer in signers:
            os.kill(signer.process.pid, signal.SIGCONT)
    assert [slot.load for slot in pool._slots] == [0, 0]
    assert all(not slot.channel._waiting for slot in pool._slots)
    await pool.prepare([harness.item(2)])


# --- what goes wrong -----------------------------------------------------------------------------------------------------


async def test_a_signer_that_does_not_answer_meets_the_deadline(tmp_path: Path):
    with harness.running(tmp_path) as signer:
        pool = SignerPool([signer.path], deadline_seconds=0.3)
        await live(pool, 1)
        os.kill(signer.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="in time"):
            await pool.prepare([harness.item(1)])
        assert 0.2 < time.monotonic() - started < 3
        os.kill(signer.process.pid, signal.SIGCONT)
        # Its late answer is for nobody, and the next call gets its own.
        mark, prepared = await pool.prepare([harness.item(2)])
        assert isinstance((await pool.seal(mark, seals(prepared)))[0], bytes)
        await pool.close()


def journal_of(answer: tuple[str, Any]) -> str:
    return answer[0].split(".")[0]


async def test_a_signer_that_does_not_answer_is_left_alone_until_it_does(tmp_path: Path):
    directories = [tmp_path / "0", tmp_path / "1"]
    for directory in directories:
        directory.mkdir()
    with harness.running(directories[0], slot=0) as first, harness.running(directories[1], slot=1) as second:
        pool = SignerPool([first.path, second.path], deadline_seconds=0.5)
        await live(pool, 2)
        home = await pool.prepare([harness.item(0)])
        os.kill(first.process.pid, signal.SIGSTOP)
        # Nobody knows yet, so one request finds out, and another signer does it.
        other = await pool.prepare([harness.item(1)])
        assert journal_of(other) != journal_of(home)
        # From then on nobody asks it, not even to prepare beside what was prepared there.
        asked = first_slot(pool)._number
        for number in range(2, 8):
            mark, prepared = await pool.prepare([harness.item(number)], home[0])
            assert journal_of((mark, prepared)) == journal_of(other)
            assert isinstance((await pool.seal(mark, seals(prepared)))[0], bytes)
        assert first_slot(pool)._number == asked
        # Only it knows what became of what it prepared.
        with pytest.raises(Unavailable, match="in time"):
            await pool.resume(home[0], resumes(home[1]))
        os.kill(first.process.pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            while first_slot(pool).is_silent:
                await asyncio.sleep(0.01)
        assert journal_of(await pool.prepare([harness.item(9)])) == journal_of(home)
        await pool.close()


async def test_when_no_signer_answers_one_is_asked_all_the_same(tmp_path: Path):
    directories = [tmp_path / "0", tmp_path / "1"]
    for directory in directories:
        directory.mkdir()
    with harness.running(directories[0], slot=0) as first, harness.running(directories[1], slot=1) as second:
        pool = SignerPool([first.path, second.path], deadline_seconds=1.0)
        await live(pool, 2)
        for signer in (first, second):
            os.kill(signer.process.pid, signal.SIGSTOP)
        with pytest.raises(Unavailable, match="in time"):
            await pool.prepare([harness.item(1)])
        assert all(slot.is_silent for slot in pool._slots)
        waiting = asyncio.ensure_future(pool.prepare([harness.item(2)]))
        await asyncio.sleep(0)
        os.kill(first.process.pid, signal.SIGCONT)
        os.kill(second.process.pid, signal.SIGCONT)
        mark, prepared = await waiting
        assert isinstance((await pool.seal(mark, seals(prepared)))[0], bytes)
        await pool.close()


def first_slot(pool: SignerPool) -> Any:
    return pool._slots[0]


async def test_a_signer_that_dies_fails_its_calls_at_once_and_comes_back(tmp_path: Path):
    with harness.running(tmp_path) as signer:
        pool = SignerPool([signer.path], patience_seconds=0.2)
        mark, prepared = await pool.prepare([harness.item(1)])
        os.kill(signer.process.pid, signal.SIGSTOP)
        calls = [
            asyncio.ensure_future(call)
            for call in (
                pool.seal(mark, seals(prepared)),
                pool.resume(mark, resumes(prepared)),
                pool.prepare([harness.item(2)]),
            )
        ]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        signer.kill()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
            assert outcome.code is Code.SIGNER_UNAVAILABLE
        assert time.monotonic() - started < 1
        with pytest.raises(Unavailable):
            await pool.prepare([harness.item(3)])
        # The slot is still known by its journal, and says that it is away.
        assert pool.knows(mark)
        with pytest.raises(Unavailable, match="does not answer"):
            await pool.resume(mark, resumes(prepared))
        signer.start()
        await live(pool, 1)
        assert await pool.resume(mark, resumes(prepared)) == [Verdict.NEVER_SIGNED]
        await pool.close()


async def test_a_connection_that_broke_is_complained_of_and_one_that_was_closed_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with harness.running(tmp_path) as signer:
        for breaks in (False, True):
            pool = SignerPool([signer.path])
            await live(pool, 1)
            if breaks:
                signer.kill()
                await live(pool, 0)
            await pool.close()
            complaints = [record.message for record in caplog.records if record.name == "estd.signer.client"]
            assert complaints == ["the connection to a signer broke"] * breaks


async def test_what_a_slot_that_dies_was_preparing_another_one_prepares(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with harness.running(tmp_path / "a", slot=0) as home, harness.running(tmp_path / "b", slot=1) as other:
        pool = SignerPool([home.path, other.path])
        await live(pool, 2)
        try:
            os.kill(home.process.pid, signal.SIGSTOP)
            waiting = asyncio.ensure_future(pool.prepare([harness.item(1)]))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            os.kill(home.process.pid, signal.SIGKILL)
            mark, prepared = await asyncio.wait_for(waiting, 4)
            assert isinstance(prepared[0], PreparedItem)
            assert all(isinstance(one, bytes) for one in await pool.seal(mark, seals(prepared)))
        finally:
            await pool.close()


async def test_a_slot_that_is_stopping_is_avoided(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with harness.running(tmp_path / "a", slot=0) as home, harness.running(tmp_path / "b", slot=1) as other:
        pool = SignerPool([home.path, other.path])
        await live(pool, 2)
        try:
            mark, prepared = await pool.prepare([harness.item(1)])  # which keeps its slot alive for a while
            os.kill(home.process.pid, signal.SIGTERM)
            async with asyncio.timeout(10):
                while True:
                    _, answers = await pool.prepare([harness.item(2)])
                    if isinstance(answers[0], RefusedItem):
                        break
            for number in range(20):
                _, answers = await pool.prepare([harness.item(100 + number)], mark)
                assert isinstance(answers[0], PreparedItem)
            assert all(isinstance(one, bytes) for one in await pool.seal(mark, seals(prepared)))
        finally:
            await pool.close()


async def test_the_other_slot_goes_on(tmp_path: Path, signers: list[Any]):
    with harness.running(tmp_path, slot=5) as signer:
        pool = SignerPool([signer.path, signers[0].path])
        await live(pool, 2)
        gone, _ = await pool.prepare([harness.item(9)])
        signer.kill()
        await live(pool, 1)
        for number in range(5):
            mark, prepared = await pool.prepare([harness.item(number)], gone)
            assert isinstance((await pool.seal(mark, seals(prepared)))[0], bytes)
        await pool.close()


async def test_a_pool_made_before_its_signers_waits_a_little(tmp_path: Path):
    pool = SignerPool([str(tmp_path / "signer.sock")], patience_seconds=8)
    call = asyncio.ensure_future(pool.prepare([harness.item(1)]))
    await asyncio.sleep(0.05)
    with harness.running(tmp_path):
        # It may connect before the ecosystem is loaded; then the item says so.
        _, (item,) = await call
        assert isinstance(item, PreparedItem) or item.code is Code.SIGNER_UNAVAILABLE
    await pool.close()


async def test_without_any_signer_it_says_so(tmp_path: Path):
    pool = SignerPool([str(tmp_path / "none.sock")], patience_seconds=0.1)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="no signer answers"):
        await pool.prepare([harness.item(1)])
    assert time.monotonic() - started < 2
    assert await pool.status() == []
    await pool.close()


async def test_closing_fails_what_is_on_its_way(tmp_path: Path):
    with harness.running(tmp_path) as signer:
        pool = SignerPool([signer.path])
        await live(pool, 1)
        os.kill(signer.process.pid, signal.SIGSTOP)
        call = asyncio.ensure_future(pool.prepare([harness.item(1)]))
        await asyncio.sleep(0.05)
        await pool.close()
        with pytest.raises(Unavailable):
            await call


REPORT = StatusReport(0, "0-0123456789abcdef", False, {}, 0, {})
MARK = "0-0123456789abcdef.1.0123456789abcdef"


async def serve(path: Path, answer: Callable[[Any], bytes]) -> asyncio.Server:
    """Something that says it is a signer, and then answers as it likes."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = request_reader()
        while received := await reader.read(65536):
            for message in frames.feed(received):
                if isinstance(message, Status):
                    writer.write(write_frame(StatusReport(message.number, REPORT.journal, False, {}, 0, {})))
                else:
                    writer.write(answer(message))
        writer.close()

    return await asyncio.start_unix_server(meet, str(path))


@pytest.mark.parametrize(
    "answer",
    [
        lambda message: b"\xff\xff\xff\xff",
        lambda message: b"\x00\x00\x00\x01\xc0",
        lambda message: write_frame(Prepared(message.number, MARK, ())),
        lambda message: write_frame(Prepared(message.number, MARK, (RefusedItem(Code.LINT, ""),) * 9)),
        lambda message: write_frame(Sealed(message.number, (b"",))),
        lambda message: write_frame(StatusReport(message.number, REPORT.journal, False, {}, 0, {})),
    ],
)
async def test_a_signer_that_answers_nonsense_is_left(tmp_path: Path, answer: Any):
    server = await serve(tmp_path / "false.sock", answer)
    pool = SignerPool([str(tmp_path / "false.sock")], deadline_seconds=1)
    await live(pool, 1)
    with pytest.raises(Unavailable):
        await pool.prepare([harness.item(1)])
    await pool.close()
    server.close()


async def test_answers_to_nobody_are_ignored(tmp_path: Path):
    def answer(message: Any) -> bytes:
        refusal = (RefusedItem(Code.LINT, "no"),)
        return write_frame(Prepared(message.number ^ 0x7000, MARK, refusal)) + write_frame(
            Prepared(message.number, MARK, refusal)
        )

    server = await serve(tmp_path / "false.sock", answer)
    pool = SignerPool([str(tmp_path / "false.sock")], deadline_seconds=1)
    assert await pool.prepare([harness.item(1)]) == (MARK, [RefusedItem(Code.LINT, "no")])
    await pool.close()
    server.close()


def test_it_works_under_uvloop_too(signers: list[Any]):
    uvloop = pytest.importorskip("uvloop")

    async def road() -> None:
        pool = SignerPool([signer.path for signer in signers])
        mark, prepared = await pool.prepare([harness.item(1)])
        assert isinstance((await pool.seal(mark, seals(prepared)))[0], bytes)
        await pool.close()

    uvloop.run(road())
