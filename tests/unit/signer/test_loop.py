from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import signer_harness as harness
from patience import wait_until
from signer_harness import resume_all, seal_all

from estd.errors import Code
from estd.keys.software import generate
from estd.signer.blocks import Entry, Kind, read_entries
from estd.signer.frames import (
    Done,
    Drain,
    Drop,
    Failed,
    Load,
    Ping,
    Prepare,
    PreparedItem,
    Status,
    StatusReport,
    Unlock,
    Verdict,
    write_frame,
)
from estd.signer.journal import Journal
from estd.signer.segments import check_journal, read_journal

# --- the road ----------------------------------------------------------------------------------------------------------


def test_a_worker_is_served(shared: Any):
    worker = shared.connect()
    status = worker.call(Status(1))
    prepared = worker.call(Prepare(2, (harness.item(1), harness.item(2, b"bad csr"), harness.item(3))))
    assert prepared.mark.startswith(status.journal + ".")
    assert prepared.items[1].code is Code.CSR_SIGNATURE
    sealed = worker.call(seal_all(prepared))
    assert all(isinstance(certificate, bytes) for certificate in sealed.items)
    assert worker.call(resume_all(prepared)).items == sealed.items
    assert check_journal(shared.directory / "journal", 0, [prepared.mark]).entries >= 2


def test_answers_carry_the_number_of_their_request(shared: Any):
    worker = shared.connect()
    for number in (4, 4_000_000_000, 0):
        worker.send(Prepare(number, (harness.item(number),)))
    worker.send(Status(9))
    assert [worker.receive().number for _ in range(4)] == [4, 4_000_000_000, 0, 9]


def test_what_one_connection_prepared_another_may_seal(shared: Any):
    first, second = shared.connect(), shared.connect()
    prepared = first.call(Prepare(1, (harness.item(1),)))
    first.close()
    assert isinstance(second.call(seal_all(prepared)).items[0], bytes)


def test_never_signed_is_said_and_kept(shared: Any):
    worker = shared.connect()
    prepared = worker.call(Prepare(1, (harness.item(1),)))
    # Sent together: whichever is done first, the other one must agree with it.
    worker.end.sendall(write_frame(seal_all(prepared)) + write_frame(resume_all(prepared)))
    answers = {answer.number: answer.items[0] for answer in (worker.receive(), worker.receive())}
    if answers[60] is Verdict.NEVER_SIGNED:
        assert answers[50].code is Code.SIGNER_UNAVAILABLE
        serials = {
            entry.serial for block in read_journal(shared.directory / "journal", 0) for entry in read_entries(block)
        }
        assert prepared.items[0].serial not in serials
    else:
        assert answers[50] == answers[60]


def test_what_is_prepared_expires(tmp_path: Path):
    with harness.running(tmp_path, prepared_seconds=0.1, prepared_limit=2) as signer:
        worker = signer.connect()
        prepared = worker.call(Prepare(1, tuple(harness.item(number) for number in range(3))))
        assert prepared.items[2].code is Code.OVERLOADED
        wait_until(lambda: signer.report().counters["expired"] == 2, 8)
        assert worker.call(seal_all(prepared)).items[0].code is Code.SIGNER_UNAVAILABLE
        assert worker.call(resume_all(prepared)).items == (Verdict.NEVER_SIGNED,) * 2


# --- who may call what -------------------------------------------------------------------------------------------------


def test_other_users_are_refused_at_accept(tmp_path: Path):
    with harness.running(tmp_path, allowed_uids=[os.getuid() + 1]) as signer:
        stranger = signer.connect()
        assert stranger.call(Status(1)) is None
        assert signer.report().counters["connections_refused"] == 1
        assert signer.report().counters["connections_accepted"] == 0
        assert "its user may not call" in signer.log


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("allowed", [False, True])
def test_the_kernel_says_which_user_calls(allowed: bool, tmp_path: Path):
    nobody = 65534
    with harness.running(tmp_path, allowed_uids=[0, nobody] if allowed else [0]) as signer:
        # Even where file modes would let another user in.
        for path in (tmp_path, *tmp_path.parents):
            if path.owner() == "root" and path != Path("/") and not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
        Path(signer.path).chmod(0o666)
        code = (
            "import os, socket, sys\n"
            f"os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})\n"
            f"s = socket.socket(socket.AF_UNIX); s.connect({signer.path!r})\n"
            f"s.sendall({write_frame(Status(1))!r})\n"
            "print(len(s.recv(10)))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
        if allowed:
            assert done.stdout.strip() == "10", done.stderr
        else:
            assert done.stdout.strip() in ("0", ""), done.stderr
            assert signer.report().counters["connections_refused"] == 1


def test_workers_cannot_load_or_unlock_or_drain(shared: Any):
    before = shared.report().counters["connections_cut"]
    for message in (Unlock(1, bytes(32)), shared.load_message(), Drop(3, 7), Drain(4), Ping(5)):
        worker = shared.connect()
        assert worker.call(message) is None
    assert shared.report().counters["connections_cut"] == before + 5
    assert shared.report().ecosystems == {harness.ECOSYSTEM: [harness.VERSION]}


def test_too_many_connections_are_refused(tmp_path: Path):
    with harness.running(tmp_path, connections_max=3) as signer:
        workers = [signer.connect() for _ in range(3)]
        assert all(worker.call(Status(1)) is not None for worker in workers)
        assert signer.connect().call(Status(1)) is None
        workers[0].close()
        wait_until(lambda: signer.report().counters["connections"] == 2, 8)
        assert signer.connect().call(Status(1)) is not None


# --- the control channel -----------------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_the_key_encryption_key(tmp_path: Path):
    signer = harness.SignerProcess(tmp_path, generate("ec-p256")).start(load=False)
    try:
        assert signer.control.call(Ping(1)) == Done(1)
        assert isinstance(signer.control.call(signer.load_message()), Failed)
        assert signer.control.call(Unlock(2, harness.KEK)) == Done(2)
        assert isinstance(signer.control.call(Unlock(3, bytes(32))), Failed)
        assert isinstance(signer.control.call(signer.load_message()), Done)
        worker = signer.connect()
        assert isinstance(worker.call(Prepare(1, (harness.item(1),))).items[0], PreparedItem)
        assert signer.control.call(Drop(4, harness.ECOSYSTEM)) == Done(4)
        assert worker.call(Prepare(2, (harness.item(2),))).items[0].code is Code.SIGNER_UNAVAILABLE
    finally:
        signer.stop()


def test_a_wrong_key_encryption_key_is_refused_and_survived(tmp_path: Path):
    signer = harness.SignerProcess(tmp_path, generate("ec-p256")).start(load=False)
    try:
        signer.control.call(Unlock(1, bytes(32)))
        answer = signer.control.call(signer.load_message())
        assert isinstance(answer, Failed)
        assert "key-encryption key" in answer.detail
        assert signer.control.call(Ping(3)) == Done(3)
    finally:
        signer.stop()


def test_an_ecosystem_that_nobody_could_foresee_is_refused_and_survived(tmp_path: Path):
    """The engine of these tests trips over one without issuers, as the real one might over what a newer program wrote."""
    with harness.running(tmp_path) as signer:
        strange = Load(3, 8, "strange", 1, {}, ())
        answer = signer.control.call(strange)
        assert isinstance(answer, Failed)
        assert "IndexError" in answer.detail
        assert signer.report().ecosystems == {harness.ECOSYSTEM: [harness.VERSION]}
        worker = signer.connect()
        assert isinstance(worker.call(Prepare(1, (harness.item(1),))).items[0], PreparedItem)
        assert "ecosystem not loaded" in signer.log


def test_garbage_on_the_control_channel_ends_the_signer_in_order(signer: Any):
    signer.control.end.sendall(b"\xff" * 100)
    assert signer.wait() == 0
    assert list(read_journal(signer.directory / "journal", 0))[-1].kind is Kind.CLOSED


# --- hostile and slow peers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octets",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x80\x00\x01",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\xc0",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        write_frame(Status(1))[:-1] + b"\xff\xff",
    ],
)
def test_garbage_cuts_its_sender_alone(shared: Any, octets: bytes):
    honest, hostile = shared.connect(), shared.connect()
    assert honest.call(Status(1)) is not None
    hostile.end.sendall(octets)
    while hostile.receive() is not None:
        pass
    assert isinstance(honest.call(Prepare(2, (harness.item(1),))).items[0], PreparedItem)


def test_half_a_frame_is_given_up_after_a_while(shared: Any):
    hostile, idle = shared.connect(), shared.connect()
    hostile.end.sendall(write_frame(Status(1))[:3])
    started = time.monotonic()
    assert hostile.receive() is None
    assert 0.4 < time.monotonic() - started < 5
    assert "it did not move" in shared.log
    assert idle.call(Status(2)) is not None


def test_a_peer_that_does_not_read_holds_up_nobody(shared: Any):
    hostile, honest = shared.connect(), shared.connect()
    before = shared.report().counters["connections_cut"]
    csr = bytes(60_000)
    items = tuple(harness.item(number, csr=csr + b"%d" % number) for number in range(20))
    prepared = hostile.call(Prepare(1, items))
    hostile.call(seal_all(prepared))
    # Each answer is more than a megabyte; nothing is read any more.
    hostile.end.settimeout(0.2)
    asked = 0
    try:
        for _ in range(200):
            hostile.send(resume_all(prepared))
            asked += 1
    except TimeoutError:
        pass
    for number in range(20):
        assert isinstance(honest.call(Prepare(2, (harness.item(1000 + number),))).items[0], PreparedItem)
    rss = int(Path(f"/proc/{shared.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert rss < 300 * 1024 * 1024
    wait_until(lambda: shared.report().counters["connections_cut"] > before, 8)
    honest.close()


def test_a_slow_reader_that_keeps_reading_gets_everything(shared: Any):
    slow = shared.connect()
    items = tuple(harness.item(number, csr=bytes(50_000) + b"%d" % number) for number in range(10))
    prepared = slow.call(Prepare(1, items))
    sealed = slow.call(seal_all(prepared))
    frames = b"".join(write_frame(resume_all(prepared, number)) for number in range(30))
    sender = threading.Thread(target=slow.end.sendall, args=(frames,))
    sender.start()
    answers = []
    while len(answers) < 30:
        answers.append(slow.receive())
        time.sleep(0.01)
    sender.join()
    assert [answer.number for answer in answers] == list(range(30))
    assert all(answer.items == sealed.items for answer in answers)


def test_a_flood_does_not_starve_others(shared: Any):
    flood, honest = shared.connect(), shared.connect()
    batch = write_frame(Prepare(1, tuple(harness.item(number) for number in range(64))))
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                flood.end.sendall(batch)
            except OSError:
                return

    def read() -> None:
        while not stop.is_set():
            try:
                if not flood.end.recv(1 << 20):
                    return
            except OSError:
                return

    threads = [threading.Thread(target=target) for target in (send, read)]
    for thread in threads:
        thread.start()
    try:
        for number in range(30):
            started = time.monotonic()
            assert isinstance(honest.call(Status(number)), StatusReport)
            assert time.monotonic() - started < 0.5
    finally:
        stop.set()
        flood.end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


# --- life and death ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", "Drain", "supervisor gone"])
def test_draining_finishes_what_is_in_hand(signer: Any, how: str):
    worker = signer.connect()
    prepared = worker.call(Prepare(1, (harness.item(1),)))
    if how == "SIGTERM":
        signer.process.terminate()
    elif how == "Drain":
        assert signer.control.call(Drain(1)) == Done(1)
    else:
        signer.control.close()
    wait_until(lambda: "draining" in signer.log, 8)
    assert worker.call(Prepare(2, (harness.item(2),))).items[0].code is Code.SIGNER_UNAVAILABLE
    assert isinstance(worker.call(seal_all(prepared)).items[0], bytes)
    assert signer.wait() == 0
    assert worker.receive() is None
    assert not Path(signer.path).exists()
    assert list(read_journal(signer.directory / "journal", 0))[-1].kind is Kind.CLOSED


def test_draining_does_not_wait_for_ever(tmp_path: Path):
    with harness.running(tmp_path, drain_seconds=0.5) as signer:
        worker = signer.connect()
        worker.call(Prepare(1, (harness.item(1),)))
        started = time.monotonic()
        signer.process.terminate()
        assert signer.wait() == 0
        assert 0.3 < time.monotonic() - started < 5


def test_a_clock_set_back_stops_issuance(tmp_path: Path):
    future = datetime.now(UTC) + timedelta(days=2)
    journal = Journal.open(tmp_path / "journal", 0, future)
    journal.record_entries([Entry(1, b"\x01", bytes(32), b"tbs")], future)
    journal.close(future)
    with harness.running(tmp_path) as signer:
        (item,) = signer.connect().call(Prepare(1, (harness.item(1),))).items
        assert item.code is Code.SIGNER_UNAVAILABLE
        assert "clock" in item.detail
