"""Signers that die at every step, disks that fill up: what is said afterwards must be true.

Each kill comes with its pair: the step before (failed and not recorded) and the step after (failed but recorded).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import signer_harness as harness
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from estd.asn1 import der
from estd.errors import Code, Unavailable
from estd.keys.software import generate
from estd.signer.blocks import Kind, read_entries
from estd.signer.client import SignerPool
from estd.signer.frames import (
    Prepare,
    Prepared,
    PreparedItem,
    RefusedItem,
    Resume,
    ResumeItem,
    Seal,
    SealItem,
    Verdict,
)
from estd.signer.segments import check_journal, read_journal


def seals(prepared: Prepared, number: int = 50) -> Seal:
    return Seal(number, tuple(SealItem(item.issuer_id, item.serial) for item in prepared.items))


def resumes(prepared: Prepared, number: int = 60) -> Resume:
    return Resume(
        number,
        prepared.mark,
        tuple(ResumeItem(item.issuer_id, item.serial, item.tbs_sha256) for item in prepared.items),
    )


def check_certificate(signer: Any, item: PreparedItem, certificate: bytes) -> None:
    """It has the serial that was prepared, and the issuer's key signed it."""
    assert der.octet_string(item.serial) in certificate
    tbs, signature = _split(certificate)
    key = load_der_public_key(signer.key.spki)
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, tbs, ec.ECDSA(hashes.SHA256()))
    else:
        assert isinstance(key, mldsa.MLDSA44PublicKey)
        key.verify(signature, tbs)


def _split(certificate: bytes) -> tuple[bytes, bytes]:
    from asn1crypto.core import Sequence

    parsed = Sequence.load(certificate, strict=True)
    return parsed[0].dump(), parsed[2].contents[1:]


@pytest.fixture(params=["ec-p256", "ml-dsa-44"])
def signer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = harness.SignerProcess(tmp_path, generate(request.param))
    yield made
    made.stop()


# --- death at every step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["prepare: nothing done", "prepare: done, not answered"])
def test_death_while_preparing_leaves_nothing(signer: Any, point: str):
    signer.start(point)
    worker = signer.connect()
    assert worker.call(Prepare(1, (harness.item(1),))) is None
    assert signer.wait() == -9
    assert check_journal(signer.directory / "journal", 0).entries == 0


NOT_RECORDED = ("entries: not written", "entries: half written")
RECORDED = ("entries: written, not flushed", "entries: flushed", "sign: one of many", "sign: all")
RESULT_MISSING = ("results: not written",)
RESULT_RECORDED = ("results: written", "seal: done, not answered")


@pytest.mark.parametrize("point", [*NOT_RECORDED, *RECORDED, *RESULT_MISSING, *RESULT_RECORDED])
def test_what_is_said_after_a_death_while_sealing_is_true(signer: Any, point: str):
    repeatable = signer.key.deterministic
    if point.startswith("results") and repeatable:
        pytest.skip("such keys need no results")
    signer.start(point)
    worker = signer.connect()
    prepared = worker.call(Prepare(1, tuple(harness.item(number) for number in range(3))))
    assert worker.call(seals(prepared)) is None
    assert signer.wait() == -9

    signer.start()
    worker = signer.connect()
    resumed = worker.call(resumes(prepared)).items
    recorded = {
        entry.serial for block in read_journal(signer.directory / "journal", 0) for entry in read_entries(block)
    }
    if point in NOT_RECORDED:
        assert resumed == (Verdict.NEVER_SIGNED,) * 3
        assert not recorded
        # And it stays true: nothing can seal them any more.
        assert {item.code for item in worker.call(seals(prepared)).items} == {Code.SIGNER_UNAVAILABLE}
    else:
        assert recorded == {item.serial for item in prepared.items}
        if repeatable or point in RESULT_RECORDED:
            for item, certificate in zip(prepared.items, resumed, strict=True):
                check_certificate(signer, item, certificate)
        else:
            # Perhaps signed, perhaps even handed out: nothing is claimed, nothing is signed again.
            assert resumed == (Verdict.UNKNOWN,) * 3

    if point in ("entries: half written", "sign: one of many"):
        # The same is said after any other death.
        signer.kill()
        signer.start()
        assert signer.connect().call(resumes(prepared)).items == resumed
    check_journal(signer.directory / "journal", 0, [prepared.mark])


def test_death_after_the_answer_changes_nothing(signer: Any):
    signer.start()
    worker = signer.connect()
    prepared = worker.call(Prepare(1, tuple(harness.item(number) for number in range(3))))
    sealed = worker.call(seals(prepared)).items
    for _ in range(2):
        signer.kill()
        signer.start()
        assert signer.connect().call(resumes(prepared)).items == sealed


def test_death_while_resuming_changes_nothing(signer: Any):
    if not signer.key.deterministic:
        pytest.skip("such keys do not sign again")
    signer.start("entries: flushed")
    worker = signer.connect()
    prepared = worker.call(Prepare(1, tuple(harness.item(number) for number in range(3))))
    assert worker.call(seals(prepared)) is None
    signer.wait()
    signer.start("resume: done, not answered", "2")
    assert signer.connect().call(resumes(prepared)) is None
    signer.wait()
    signer.start()
    for item, certificate in zip(prepared.items, signer.connect().call(resumes(prepared)).items, strict=True):
        check_certificate(signer, item, certificate)


def test_a_lost_journal_denies_nothing(signer: Any):
    signer.start()
    worker = signer.connect()
    prepared = worker.call(Prepare(1, (harness.item(1),)))
    worker.call(seals(prepared))
    signer.kill()
    (signer.directory / "journal").rename(signer.directory / "lost")
    signer.start()
    assert signer.connect().call(resumes(prepared)).items == (Verdict.UNKNOWN,)


def test_a_journal_set_back_to_a_backup_denies_nothing(signer: Any):
    signer.start()
    worker = signer.connect()
    first = worker.call(Prepare(1, (harness.item(1),)))
    worker.call(seals(first))
    backup = signer.directory / "backup"
    subprocess.run(["cp", "-a", str(signer.directory / "journal"), str(backup)], check=True)
    worker.call(seals(worker.call(Prepare(2, (harness.item(2),)))))
    third = worker.call(Prepare(3, (harness.item(3),)))
    worker.call(seals(third))
    signer.kill()
    (signer.directory / "journal").rename(signer.directory / "newer")
    backup.rename(signer.directory / "journal")
    signer.start()
    worker = signer.connect()
    # The mark of the third proves that the journal had come further than the backup knows.
    assert worker.call(resumes(third)).items == (Verdict.UNKNOWN,)
    assert isinstance(worker.call(resumes(first)).items[0], bytes)


# --- a full disk -----------------------------------------------------------------------------------------------------


def large_item(number: int) -> Any:
    return harness.item(number, csr=b"%06d" % number + bytes(2000))


def fill_up(worker: Any) -> list[tuple[Prepared, Any]]:
    """Prepare and seal until preparing is refused, or the signer stops; what was sealed before must have been signed."""
    done: list[tuple[Prepared, Any]] = []
    for number in range(400):
        prepared = worker.call(Prepare(1, tuple(large_item(64 * number + more) for more in range(64))))
        if isinstance(prepared.items[0], RefusedItem):
            check_refused(prepared)
            return done
        sealed = worker.call(seals(prepared))
        if sealed is None:
            return done  # the signer stopped
        assert all(isinstance(item, bytes) for item in sealed.items), "what was prepared found no room"
        done.append((prepared, sealed))
    raise AssertionError("the disk never filled up")


def check_refused(prepared: Prepared) -> None:
    assert {item.code for item in prepared.items} == {Code.SIGNER_UNAVAILABLE}
    assert "no room" in prepared.items[0].detail


def check_after_full_disk(signer: Any, done: list[tuple[Prepared, Any]]) -> None:
    signed = {item.serial for prepared, _ in done for item in prepared.items}
    recorded = {
        entry.serial for block in read_journal(signer.directory / "journal", 0) for entry in read_entries(block)
    }
    assert recorded == signed


@pytest.mark.parametrize("end", ["in order", "killed"])
def test_without_room_nothing_is_signed_and_with_room_it_goes_on(tmp_path: Path, end: str):
    with harness.running(tmp_path) as signer:
        worker = signer.connect()
        limit = 4_500_000  # more than what is set aside at a time
        resource.prlimit(signer.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        held = worker.call(Prepare(1, tuple(large_item(200_000 + more) for more in range(64))))
        done = fill_up(worker)
        check_after_full_disk(signer, done)
        # Room was set aside for what was prepared before.
        done.append((held, worker.call(seals(held))))
        assert all(isinstance(item, bytes) for item in done[-1][1].items)
        check_after_full_disk(signer, done)
        # What was signed before can still be resumed.
        assert worker.call(resumes(done[0][0])).items == done[0][1].items
        resource.prlimit(signer.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        prepared = worker.call(Prepare(1, (harness.item(99_999),)))
        assert isinstance(worker.call(seals(prepared)).items[0], bytes)
        if end == "killed":
            signer.kill()
        else:
            signer.process.terminate()
            assert signer.wait() == 0
        audit = check_journal(signer.directory / "journal", 0, [prepared.mark])
        assert audit.entries == 64 * len(done) + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(where)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_is_survived_and_the_signer_ends_in_order(small_disk: Path, tmp_path: Path):
    settings = {"journal_directory": str(small_disk / "journal"), "segment_bytes": 150_000}
    with harness.running(tmp_path, **settings) as signer:
        (tmp_path / "journal").symlink_to(small_disk / "journal")  # where `check_after_full_disk` looks
        worker = signer.connect()
        done = fill_up(worker)
        # Nobody else leaves an octet either.
        fill_with_ballast(small_disk / "ballast")
        for number in range(3):
            prepared = worker.call(Prepare(1, tuple(large_item(100_000 + 64 * number + more) for more in range(64))))
            check_refused(prepared)
        check_after_full_disk(signer, done)
        signer.process.terminate()
        assert signer.wait() == 0
        assert list(read_journal(small_disk / "journal", 0))[-1].kind is Kind.CLOSED
        (small_disk / "ballast").unlink()
        signer.start()
        assert signer.connect().call(resumes(done[0][0])).items == done[0][1].items


def fill_with_ballast(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
    assert os.statvfs(path).f_bavail == 0


def test_a_write_that_comes_up_short_stops_the_signer_and_is_cut(tmp_path: Path):
    with harness.running(tmp_path) as signer:
        worker = signer.connect()
        # Within what was set aside already, so that no check before the write can see it coming.
        resource.prlimit(signer.process.pid, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        done = fill_up(worker)
        assert signer.wait() == 70
        assert all(isinstance(item, bytes) for _, sealed in done for item in sealed.items)
        signer.start()
        assert "an interrupted write was cut off" in signer.log
        worker = signer.connect()
        assert worker.call(resumes(done[-1][0])).items == done[-1][1].items
        recorded = check_journal(signer.directory / "journal", 0, [prepared.mark for prepared, _ in done])
        assert recorded.entries == 64 * len(done)


# --- under load ------------------------------------------------------------------------------------------------------


async def test_killed_again_and_again_under_load(tmp_path: Path):
    """Two slots, killed in turn while workers enroll and resume; then the books are held against each other."""
    directories = [tmp_path / f"slot-{slot}" for slot in range(2)]
    for directory in directories:
        directory.mkdir()
    signers = [
        harness.SignerProcess(directory, generate("ec-p256"), slot=slot, segment_bytes=20_000).start()
        for slot, directory in enumerate(directories)
    ]
    pool = SignerPool([signer.path for signer in signers], deadline_seconds=2)
    intents: dict[bytes, tuple[str, PreparedItem]] = {}
    certificates: dict[bytes, bytes] = {}
    never: set[bytes] = set()
    stop = asyncio.Event()
    number = 0

    async def settle(mark: str, item: PreparedItem) -> None:
        asked = ResumeItem(item.issuer_id, item.serial, item.tbs_sha256)
        while True:
            try:
                (answer,) = await pool.resume(mark, [asked])
            except Unavailable:
                await asyncio.sleep(0.05)
                continue
            assert answer is not Verdict.UNKNOWN
            if answer is Verdict.NEVER_SIGNED:
                assert item.serial not in certificates
                never.add(item.serial)
            else:
                assert isinstance(answer, bytes)
                assert certificates.setdefault(item.serial, answer) == answer
            return

    async def work() -> None:
        nonlocal number
        while not stop.is_set():
            number += 8
            try:
                mark, prepared = await pool.prepare([harness.item(number + more) for more in range(8)])
            except Unavailable:
                await asyncio.sleep(0.01)
                continue
            items = [item for item in prepared if isinstance(item, PreparedItem)]
            for item in items:
                assert item.serial not in intents
                intents[item.serial] = (mark, item)
            try:
                sealed = await pool.seal(mark, [SealItem(item.issuer_id, item.serial) for item in items])
            except Unavailable:
                sealed = []
            for item, answer in zip(items, sealed, strict=False):
                if isinstance(answer, bytes):
                    assert certificates.setdefault(item.serial, answer) == answer
            for item in items:
                if item.serial not in certificates or secrets.randbelow(20) == 0:
                    await settle(mark, item)

    async def kill() -> None:
        for turn in range(8):
            await asyncio.sleep(0.05 + secrets.randbelow(100) / 1000)
            signer = signers[turn % 2]
            await asyncio.to_thread(signer.kill)
            await asyncio.to_thread(signer.start)

    workers = [asyncio.ensure_future(work()) for _ in range(4)]
    await kill()
    stop.set()
    await asyncio.wait_for(asyncio.gather(*workers), 30)
    await pool.close()
    recorded: dict[bytes, bytes] = {}
    for slot, signer in enumerate(signers):
        signer.process.terminate()
        signer.wait()
        marks = [mark for mark, _ in intents.values() if mark.startswith(f"{slot}-")]
        check_journal(signer.directory / "journal", slot, marks)
        for block in read_journal(signer.directory / "journal", slot):
            recorded |= {entry.serial: entry.tbs for entry in read_entries(block)}
    assert len(certificates) > 50
    # Nothing unlogged, nothing lost, nothing denied that was signed.
    assert set(certificates) | never == set(intents)
    assert not set(certificates) & never
    assert not never & set(recorded)
    assert set(recorded) == set(certificates)
    for serial, certificate in certificates.items():
        assert recorded[serial] in certificate
