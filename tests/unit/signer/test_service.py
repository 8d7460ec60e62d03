from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import signer_harness as harness
import signer_program as program
from signer_harness import resumes, seals

from estd.errors import Broken, Code, Unavailable
from estd.keys.software import generate, seal
from estd.signer.blocks import Result
from estd.signer.frames import (
    FRAME_MAX_BYTES,
    Load,
    LoadedIssuer,
    Prepare,
    Prepared,
    PreparedItem,
    RefusedItem,
    Resume,
    ResumeItem,
    Seal,
    SealItem,
    Status,
    Verdict,
    write_frame,
)
from estd.signer.journal import Journal
from estd.signer.segments import check_journal, read_journal
from estd.signer.service import Signer

NOW = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    journals: list[Journal] = []

    def build(key_type: str = "ec-p256", limit: int = 100) -> Signer[Any]:
        engine = program.PlainEngine()
        engine.unlock(harness.KEK)
        sealed = seal(generate(key_type), harness.KEK, harness.CONTEXT)
        issuers = (LoadedIssuer(harness.ISSUER, "issuer", None, b"0\x00", sealed),)
        engine.load(Load(1, harness.ECOSYSTEM, "plant", harness.VERSION, {}, issuers), 0.0)
        journal = Journal.open(tmp_path / "journal", len(journals), NOW)
        journals.append(journal)
        return Signer(engine, journal, limit, 60.0, 3600.0)

    yield build
    for journal in journals:
        if journal._tail is not None:
            journal.close(NOW)


def prepare(signer: Signer[Any], *numbers: int, at: float = 0.0) -> Prepared:
    return signer.prepare(Prepare(1, tuple(harness.item(number) for number in numbers)), NOW, at)


def test_prepared_is_journaled_signed_and_answered(make: Any):
    signer = make()
    prepared = prepare(signer, 1, 2)
    assert prepared.mark == signer.journal.mark
    assert signer.prepared == 2
    (sealed,) = signer.seal([Seal(8, seals(prepared.items))], NOW)
    assert sealed.number == 8
    for item, certificate in zip(prepared.items, sealed.items, strict=True):
        found = signer.journal.find(item.issuer_id, item.serial)
        assert found.entry.request_key in {harness.item(1).request_key, harness.item(2).request_key}
        assert hashlib.sha256(found.entry.tbs).digest() == item.tbs_sha256
        assert found.entry.tbs in certificate
    assert signer.prepared == 0


def test_nothing_is_journaled_before_the_seal(make: Any):
    signer = make()
    before = signer.journal.mark
    prepared = prepare(signer, 1)
    assert signer.journal.mark == before
    assert signer.journal.find(prepared.items[0].issuer_id, prepared.items[0].serial) is None


def test_one_bad_item_is_refused_alone(make: Any):
    signer = make()
    request = Prepare(
        1,
        (
            harness.item(1),
            harness.item(2, b"bad csr"),
            harness.item(3, b"strange csr"),
            harness.item(4, version=99),
            harness.item(5),
        ),
    )
    items = signer.prepare(request, NOW, 0.0).items
    assert [item.code if isinstance(item, RefusedItem) else None for item in items] == [
        None,
        Code.CSR_SIGNATURE,
        Code.INTERNAL,
        Code.SIGNER_UNAVAILABLE,
        None,
    ]
    assert items[1].clause == "RFC 7030 §4.2.1"
    assert "foresaw" not in items[2].detail
    assert signer.prepared == 2


def test_a_serial_is_sealed_once(make: Any):
    signer = make()
    prepared = prepare(signer, 1)
    (item,) = seals(prepared.items)
    first, second = signer.seal([Seal(1, (item, item)), Seal(2, (item,))], NOW)
    assert isinstance(first.items[0], bytes)
    for other in (first.items[1], second.items[0], signer.seal([Seal(3, (item,))], NOW)[0].items[0]):
        assert other.code is Code.SIGNER_UNAVAILABLE


def test_what_is_unwanted_gives_its_room_back_and_is_never_sealed(make: Any):
    signer = make()
    kept, unwanted = seals(prepare(signer, 1, 2).items)
    (sealed,) = signer.seal([Seal(1, (kept,), (unwanted, SealItem(11, b"\x01" * 20)))], NOW)
    assert isinstance(sealed.items[0], bytes)
    assert signer.prepared == 0
    (late,) = signer.seal([Seal(2, (unwanted,))], NOW)
    assert late.items[0].code is Code.SIGNER_UNAVAILABLE
    assert signer.journal.counters.entries == 1


def test_what_was_never_prepared_cannot_be_sealed(make: Any):
    signer = make()
    (sealed,) = signer.seal([Seal(1, (SealItem(11, b"\x01" * 20),))], NOW)
    assert sealed.items[0].code is Code.SIGNER_UNAVAILABLE
    assert signer.journal.counters.entries == 0


def test_seals_of_one_turn_share_one_flush(make: Any):
    signer = make()
    batches = [prepare(signer, number, number + 100) for number in range(5)]
    flushes = signer.journal.counters.flushes
    answers = signer.seal([Seal(number, seals(batch.items)) for number, batch in enumerate(batches)], NOW)
    assert signer.journal.counters.flushes == flushes + 1
    assert [answer.number for answer in answers] == [0, 1, 2, 3, 4]
    for batch, answer in zip(batches, answers, strict=True):
        for item, certificate in zip(batch.items, answer.items, strict=True):
            assert item.serial in certificate


def test_resume_gives_the_same_bytes_again(make: Any):
    signer = make()
    prepared = prepare(signer, 1, 2)
    (sealed,) = signer.seal([Seal(1, seals(prepared.items))], NOW)
    for _ in range(3):
        assert signer.resume(Resume(2, prepared.mark, resumes(prepared.items))).items == sealed.items


def test_never_signed_stays_true(make: Any):
    signer = make()
    prepared = prepare(signer, 1)
    assert signer.resume(Resume(2, prepared.mark, resumes(prepared.items))).items == (Verdict.NEVER_SIGNED,)
    assert signer.prepared == 0
    (sealed,) = signer.seal([Seal(3, seals(prepared.items))], NOW)
    assert sealed.items[0].code is Code.SIGNER_UNAVAILABLE
    assert signer.resume(Resume(4, prepared.mark, resumes(prepared.items))).items == (Verdict.NEVER_SIGNED,)


def test_a_mark_that_is_not_borne_out_leaves_it_unknown_and_never_sealed(make: Any):
    signer, other = make(), make()
    prepared = prepare(signer, 1)
    for mark in (other.journal.mark, "junk", prepared.mark[:-1] + "x"):
        assert signer.resume(Resume(2, mark, resumes(prepared.items))).items == (Verdict.UNKNOWN,)
    (sealed,) = signer.seal([Seal(3, seals(prepared.items))], NOW)
    assert sealed.items[0].code is Code.SIGNER_UNAVAILABLE


def test_other_bytes_under_a_signed_serial_are_unknown(make: Any):
    signer = make()
    prepared = prepare(signer, 1)
    signer.seal([Seal(1, seals(prepared.items))], NOW)
    (item,) = seals(prepared.items)
    asked = ResumeItem(item.issuer_id, item.serial, bytes(32))
    assert signer.resume(Resume(2, prepared.mark, (asked,))).items == (Verdict.UNKNOWN,)


def test_a_key_that_signs_differently_each_time_signs_once(make: Any):
    signer = make("ml-dsa-44")
    prepared = prepare(signer, 1)
    (sealed,) = signer.seal([Seal(1, seals(prepared.items))], NOW)
    for _ in range(2):
        assert signer.resume(Resume(2, prepared.mark, resumes(prepared.items))).items == sealed.items
    assert signer.journal.find(11, prepared.items[0].serial).certificate == sealed.items[0]


def test_without_its_result_such_a_signature_is_unknown(make: Any, monkeypatch: Any):
    signer = make("ml-dsa-44")
    prepared = prepare(signer, 1)

    def no_room(_results: list[Result], _now: datetime) -> None:
        raise Unavailable(Code.SIGNER_UNAVAILABLE, "no room")

    monkeypatch.setattr(signer.journal, "record_results", no_room)
    (sealed,) = signer.seal([Seal(1, seals(prepared.items))], NOW)
    assert isinstance(sealed.items[0], bytes)
    assert signer.resume(Resume(2, prepared.mark, resumes(prepared.items))).items == (Verdict.UNKNOWN,)


def test_resume_waits_for_the_issuer(make: Any):
    signer = make()
    prepared = prepare(signer, 1)
    (sealed,) = signer.seal([Seal(1, seals(prepared.items))], NOW)
    keys = dict(signer.engine.keys)
    signer.engine.drop(harness.ECOSYSTEM)
    (answer,) = signer.resume(Resume(2, prepared.mark, resumes(prepared.items))).items
    assert answer.code is Code.SIGNER_UNAVAILABLE
    signer.engine.keys.update(keys)
    assert signer.resume(Resume(3, prepared.mark, resumes(prepared.items))).items == sealed.items


def test_a_fault_while_signing_leaves_it_to_be_resumed(make: Any, monkeypatch: Any):
    signer = make()
    prepared = prepare(signer, 1)

    def fail(_approved: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(signer.engine, "seal", fail)
        (sealed,) = signer.seal([Seal(1, seals(prepared.items))], NOW)
    assert sealed.items[0].code is Code.INTERNAL
    (certificate,) = signer.resume(Resume(2, prepared.mark, resumes(prepared.items))).items
    assert isinstance(certificate, bytes)


def test_without_room_nothing_is_signed(make: Any, monkeypatch: Any):
    signer = make()
    prepared = prepare(signer, 1)

    def no_room(_entries: Any, _now: datetime) -> None:
        raise Unavailable(Code.SIGNER_UNAVAILABLE, "no room")

    def sign(_approved: Any) -> Any:
        raise AssertionError("signed without a record")

    with monkeypatch.context() as patch:
        patch.setattr(signer.journal, "record_entries", no_room)
        patch.setattr(signer.engine, "seal", sign)
        (sealed,) = signer.seal([Seal(1, seals(prepared.items))], NOW)
    assert sealed.items[0].code is Code.SIGNER_UNAVAILABLE
    assert signer.resume(Resume(2, prepared.mark, resumes(prepared.items))).items == (Verdict.NEVER_SIGNED,)


def test_a_journal_that_failed_stops_everything(make: Any):
    signer = make()
    prepared = prepare(signer, 1)
    signer.journal._failed = True
    with pytest.raises(Broken):
        signer.seal([Seal(1, seals(prepared.items))], NOW)
    with pytest.raises(Broken):
        signer.resume(Resume(2, prepared.mark, resumes(prepared.items)))


def test_what_is_prepared_is_bounded_in_number_and_time(make: Any):
    signer = make(limit=3)
    first = prepare(signer, 1, 2, at=100.0)
    second = prepare(signer, 3, 4, at=130.0)
    assert isinstance(second.items[0], PreparedItem)
    assert second.items[1].code is Code.OVERLOADED
    signer.keep_house(159.9)
    assert signer.prepared == 3
    signer.keep_house(160.0)
    assert signer.prepared == 1
    (sealed,) = signer.seal([Seal(1, seals([*first.items, second.items[0]]))], NOW)
    assert [isinstance(item, bytes) for item in sealed.items] == [False, False, True]
    assert signer.resume(Resume(2, first.mark, resumes(first.items))).items == (Verdict.NEVER_SIGNED,) * 2


def test_a_draining_signer_prepares_nothing_and_seals_what_it_has(make: Any):
    signer = make()
    prepared = prepare(signer, 1)
    signer.draining = True
    assert [item.code for item in prepare(signer, 2, 3).items] == [Code.SIGNER_UNAVAILABLE] * 2
    (sealed,) = signer.seal([Seal(1, seals(prepared.items))], NOW)
    assert isinstance(sealed.items[0], bytes)


def test_a_clock_behind_the_journal_prepares_nothing(make: Any):
    signer = make()
    prepared = prepare(signer, 1)
    signer.seal([Seal(1, seals(prepared.items))], NOW)
    for behind, granted in ((timedelta(minutes=59), True), (timedelta(hours=2), False), (timedelta(days=20000), False)):
        (item,) = signer.prepare(Prepare(1, (harness.item(2),)), NOW - behind, 0.0).items
        assert isinstance(item, PreparedItem) is granted


def test_a_start_under_a_wrong_clock_is_no_reason_to_refuse_when_it_is_right(make: Any, tmp_path: Path):
    """What is written at a start says when the journal was opened, not that anything was issued then."""
    signer = make()
    prepared = prepare(signer, 1)
    signer.seal([Seal(1, seals(prepared.items))], NOW)
    signer.journal.close(NOW)
    ahead = NOW + timedelta(days=3650)
    Journal.open(tmp_path / "journal", 0, ahead).close(ahead)
    signer.journal = Journal.open(tmp_path / "journal", 0, NOW)
    (item,) = prepare(signer, 2).items
    assert isinstance(item, PreparedItem)
    signer.journal.close(NOW)


def test_a_full_disk_is_found_before_anything_is_spent(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Nothing is prepared that could not be journaled, the report says why, and room that is back is used."""
    signer = make(limit=3000)
    room = os.posix_fallocate

    def full(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    granted = 0
    while isinstance(item := prepare(signer, granted).items[0], PreparedItem):
        granted += 1  # what was set aside before is there to be used
        assert granted < 2000
    assert item.code is Code.SIGNER_UNAVAILABLE
    assert "no room" in item.detail
    assert signer.prepared == granted
    assert "no room" in signer.report(Status(1), {}, NOW).hindrance
    monkeypatch.setattr(os, "posix_fallocate", room)
    assert isinstance(prepare(signer, 5000).items[0], PreparedItem)
    assert signer.report(Status(1), {}, NOW).hindrance == ""


def test_an_answer_longer_than_a_frame_is_left_to_be_resumed(make: Any):
    signer = make(limit=1000)
    prepared: list[Any] = []
    for number in range(130):
        item = harness.item(number, csr=b"%05d" % number + bytes(60_000))
        prepared += signer.prepare(Prepare(1, (item,)), NOW, 0.0).items
    (sealed,) = signer.seal([Seal(1, seals(prepared))], NOW)
    assert len(write_frame(sealed)) <= FRAME_MAX_BYTES
    missing = [item for item, got in zip(prepared, sealed.items, strict=True) if not isinstance(got, bytes)]
    assert 0 < len(missing) < 130
    resumed = signer.resume(Resume(2, signer.journal.mark, resumes(missing[:50]))).items
    assert all(isinstance(item, bytes) for item in resumed)


def test_the_report_counts(make: Any):
    signer = make()
    prepared = prepare(signer, 1, 2, 3)
    signer.seal([Seal(1, seals(prepared.items[:2]))], NOW)
    report = signer.report(Status(6), {"turns": 4}, NOW)
    assert (report.number, report.journal, report.prepared) == (6, signer.journal.name, 1)
    assert report.ecosystems == {harness.ECOSYSTEM: [harness.VERSION]}
    assert report.counters["prepare_items"] == 3
    assert report.counters["seal_items"] == 2
    assert report.counters["turns"] == 4
    assert report.counters["journal_bytes"] > 0
    assert report.hindrance == ""


def test_the_journal_of_a_signer_can_be_audited(make: Any, tmp_path: Path):
    signer = make("ml-dsa-44")
    marks = []
    for number in range(5):
        prepared = prepare(signer, number)
        marks.append(prepared.mark)
        signer.seal([Seal(1, seals(prepared.items))], NOW)
    audit = check_journal(tmp_path / "journal", 0, marks)
    assert (audit.entries, audit.results) == (5, 5)
    assert len(list(read_journal(tmp_path / "journal", 0))) == 2 + 10
