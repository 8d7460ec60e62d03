from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from journal_lab import crash, entry

from estd.errors import Broken, Invalid, Unavailable
from estd.signer.blocks import NO_HASH, Anchor, Entry, Head, Kind, Result
from estd.signer.journal import Journal
from estd.signer.segments import Files, check_journal, read_journal

NOW = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)


@pytest.fixture
def journal(directory: Path) -> Iterator[Journal]:
    opened = Journal.open(directory, 3, NOW)
    yield opened
    if opened._tail is not None:
        opened.close(NOW)


def test_what_was_recorded_is_found(journal: Journal):
    entries = [entry(number) for number in range(200)]
    journal.record_entries(entries[:1], NOW)
    journal.record_entries(entries[1:], NOW)
    for each in entries:
        found = journal.find(7, each.serial)
        assert found is not None
        assert (found.entry, found.certificate) == (each, None)
    assert journal.find(8, entries[0].serial) is None
    assert journal.find(7, b"\x00") is None


def test_results_are_found_with_their_entries(journal: Journal):
    journal.record_entries([entry(1), entry(2)], NOW)
    journal.record_results([Result(7, entry(2).serial, b"certificate")], NOW)
    assert journal.find(7, entry(1).serial).certificate is None
    assert journal.find(7, entry(2).serial).certificate == b"certificate"


def test_results_become_durable_with_the_next_entries_or_a_flush(journal: Journal):
    journal.record_entries([entry(number) for number in range(200)], NOW)
    mark, flushes = journal.mark, journal.counters.flushes
    journal.record_results([Result(7, entry(number).serial, b"certificate %d" % number) for number in range(200)], NOW)
    assert (journal.mark, journal.counters.flushes) == (mark, flushes)
    journal.flush()
    assert journal.mark != mark
    journal.flush()
    assert journal.counters.flushes == flushes + 1
    assert all(journal.find(7, entry(number).serial).certificate == b"certificate %d" % number for number in range(200))


@pytest.mark.parametrize("in_order", [True, False])
def test_it_is_all_there_after_opening_again(directory: Path, tmp_path: Path, in_order: bool):
    journal = Journal.open(directory, 3, NOW)
    entries = [entry(number) for number in range(100)]
    journal.record_entries(entries, NOW)
    journal.record_results([Result(7, entries[5].serial, b"certificate")], NOW)
    name, mark = journal.name, journal.mark
    where = directory if in_order else crash(directory, tmp_path / "crashed")
    journal.close(NOW)
    again = Journal.open(where, 3, NOW)
    assert again.name == name
    assert again.covers(mark)
    assert again.counters.cut_bytes == 0
    assert [again.find(7, each.serial).entry for each in entries] == entries
    assert again.find(7, entries[5].serial).certificate == b"certificate"
    again.record_entries([entry(1000)], NOW)
    again.close(NOW)
    audit = check_journal(where, 3, [mark])
    assert (audit.journal, audit.entries, audit.results) == (name, 101, 1)
    kinds = [block.kind for block in read_journal(where, 3)]
    assert kinds.count(Kind.OPENED) == 2
    assert kinds.count(Kind.CLOSED) == (2 if in_order else 1)
    assert kinds[-1] is Kind.CLOSED


def test_files_are_for_nobody_else(directory: Path, journal: Journal):
    assert directory.stat().st_mode & 0o777 == 0o700
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_directory_open_to_others_is_refused(directory: Path):
    directory.mkdir(mode=0o750)
    with pytest.raises(Invalid, match="open to others"):
        Journal.open(directory, 3, NOW)


def test_a_slot_out_of_range_is_refused(directory: Path):
    for slot in (-1, 10_000):
        with pytest.raises(Invalid, match="out of range"):
            Journal.open(directory, slot, NOW)


def test_two_signers_never_share_a_journal(directory: Path, journal: Journal):
    with pytest.raises(Invalid, match="another signer"):
        Journal.open(directory, 3, NOW)
    other = Journal.open(directory, 4, NOW)
    assert other.name != journal.name
    other.close(NOW)
    journal.close(NOW)
    Journal.open(directory, 3, NOW).close(NOW)


def test_a_serial_is_recorded_once(journal: Journal):
    journal.record_entries([entry(1)], NOW)
    for again in ([entry(1)], [entry(2), entry(2)], [Entry(7, entry(1).serial, b"x" * 32, b"other")]):
        with pytest.raises(Broken, match="twice"):
            journal.record_entries(again, NOW)
    assert journal.find(7, entry(2).serial) is None
    journal.record_entries([Entry(8, entry(1).serial, b"x" * 32, b"another issuer's")], NOW)


def test_the_journal_grows_over_segments_and_stays_one(directory: Path, tmp_path: Path):
    journal = Journal.open(directory, 3, NOW, segment_bytes=8192)
    marks = []
    for number in range(60):
        journal.record_entries([entry(number, 500)], NOW)
        marks.append(journal.mark)
    segments = sorted(path.name for path in directory.glob("*.log"))
    assert segments[:2] == ["journal-3-0001.log", "journal-3-0002.log"]
    assert len(segments) > 4
    assert all(path.stat().st_size <= 8192 for path in directory.glob("*.log"))
    for number in range(60):
        assert journal.find(7, entry(number, 500).serial).entry == entry(number, 500)
    crashed = crash(directory, tmp_path / "crashed")
    assert check_journal(crashed, 3, marks).entries == 60
    journal.close(NOW)
    again = Journal.open(crashed, 3, NOW, segment_bytes=8192)
    assert all(again.covers(mark) for mark in marks)
    assert again.find(7, entry(0, 500).serial).entry == entry(0, 500)
    again.close(NOW)


def test_one_batch_larger_than_a_segment_is_whole(directory: Path):
    journal = Journal.open(directory, 3, NOW, segment_bytes=4096)
    journal.record_entries([entry(number, 1000) for number in range(100)], NOW)
    journal.record_entries([entry(100)], NOW)
    journal.close(NOW)
    assert check_journal(directory, 3).entries == 101


def test_the_index_forgets_and_says_so(directory: Path):
    journal = Journal.open(directory, 3, NOW, index_entries=10)
    marks = [journal.mark]
    for number in range(35):
        journal.record_entries([entry(number)], NOW)
        marks.append(journal.mark)
    known = [number for number in range(35) if journal.find(7, entry(number).serial) is not None]
    assert known == list(range(known[0], 35))
    assert 10 <= len(known) <= 20
    # A mark is covered when everything after it is known: entry n was recorded after mark n.
    assert [journal.covers(mark) for mark in marks] == [number >= known[0] for number in range(36)]
    journal.close(NOW)
    again = Journal.open(directory, 3, NOW, index_entries=10)
    for number, mark in enumerate(marks):
        if again.covers(mark):
            assert all(again.find(7, entry(later).serial) is not None for later in range(number, 35))
    assert again.covers(marks[25])
    again.close(NOW)


def test_two_serials_that_share_a_key_are_told_apart(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("estd.signer.index.index_key", lambda issuer_id, serial: 42)
    journal = Journal.open(directory, 3, NOW)
    for number in range(5):
        journal.record_entries([entry(number)], NOW)
        journal.record_results([Result(7, entry(number).serial, b"certificate %d" % number)], NOW)
    for number in range(5):
        found = journal.find(7, entry(number).serial)
        assert found is not None
        assert (found.entry, found.certificate) == (entry(number), b"certificate %d" % number)
    assert journal.find(7, entry(5).serial) is None
    with pytest.raises(Broken, match="twice"):
        journal.record_entries([entry(3)], NOW)
    journal.close(NOW)


def test_old_segments_may_be_taken_away(directory: Path):
    journal = Journal.open(directory, 3, NOW, segment_bytes=4096)
    marks = [journal.mark]
    for number in range(40):
        journal.record_entries([entry(number, 500)], NOW)
        marks.append(journal.mark)
    journal.close(NOW)
    for number in (1, 2):
        (directory / f"journal-3-{number:04d}.log").unlink()
    audit = check_journal(directory, 3)
    assert audit.first > 1
    again = Journal.open(directory, 3, NOW, segment_bytes=4096)
    assert not again.covers(marks[0])
    assert again.covers(marks[-1])
    for number, mark in enumerate(marks):
        if again.covers(mark):
            assert all(again.find(7, entry(later, 500).serial) is not None for later in range(number, 40))
    again.close(NOW)


def test_marks_of_others_are_not_covered(tmp_path: Path, journal: Journal):
    other = Journal.open(tmp_path / "other", 3, NOW)
    assert not journal.covers(other.mark)
    other.close(NOW)
    name, sequence, digest = journal.mark.split(".")
    assert journal.covers(journal.mark)
    assert not journal.covers(f"{name}.{int(sequence) + 1}.{digest}")
    assert not journal.covers(f"{name}.{int(sequence) - 1}.{digest}")
    assert not journal.covers(f"{name}.{sequence}.{'0' * 16}")
    assert not journal.covers(f"4{name[1:]}.{sequence}.{digest}")
    for text in ("", "junk", journal.mark + "0", f"{name}.99999999999999999999.{digest}"):
        assert not journal.covers(text)


def test_a_journal_set_back_is_noticed_by_its_marks(directory: Path, tmp_path: Path):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    early = journal.mark
    backup = crash(directory, tmp_path / "backup")
    journal.record_entries([entry(2)], NOW)
    late = journal.mark
    journal.record_entries([entry(3)], NOW)
    journal.close(NOW)
    restored = Journal.open(backup, 3, NOW)
    # It cannot know of entries 2 and 3; it must not claim that they never were, where the mark proves more was there.
    assert restored.covers(early)
    assert not restored.covers(late)
    for number in range(10, 20):
        restored.record_entries([entry(number)], NOW)
    assert not restored.covers(late)
    restored.close(NOW)
    with pytest.raises(Invalid, match="mark"):
        check_journal(backup, 3, [early, late])


def test_two_copies_of_one_journal_part_ways_at_once(directory: Path, tmp_path: Path):
    Journal.open(directory, 3, NOW).close(NOW)
    copied = crash(directory, tmp_path / "copy")
    one, other = Journal.open(directory, 3, NOW), Journal.open(copied, 3, NOW)
    assert one.name == other.name
    assert not one.covers(other.mark)
    assert not other.covers(one.mark)
    one.close(NOW)
    other.close(NOW)


def test_the_newest_time_is_remembered(directory: Path):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW + timedelta(hours=5))
    journal.record_entries([entry(2)], NOW)
    journal.close(NOW)
    again = Journal.open(directory, 3, NOW)
    assert again.last_time == int((NOW + timedelta(hours=5)).timestamp())
    again.close(NOW)
    times = [block.at for block in read_journal(directory, 3) if block.kind is Kind.ENTRIES]
    assert times == [NOW + timedelta(hours=5), NOW]


def test_a_clock_before_1970_does_not_stop_the_record(directory: Path):
    journal = Journal.open(directory, 3, datetime(1969, 1, 1, tzinfo=UTC))
    journal.record_entries([entry(1)], datetime(1969, 1, 1, tzinfo=UTC))
    journal.close(NOW)


# --- an interrupted end ----------------------------------------------------------------------------------------------


def test_an_interrupted_write_is_cut_wherever_it_stopped(directory: Path, tmp_path: Path):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    head = (directory / "journal-3.head").read_bytes()
    start = journal._tail.end
    journal.record_entries([entry(2), entry(3)], NOW)
    end = journal._tail.end
    segment = (directory / "journal-3-0001.log").read_bytes()
    journal.close(NOW)
    for cut in [*range(start, end, 17), end - 1, end]:
        for tail in (b"", bytes(len(segment) - cut)):
            where = tmp_path / "crashed"
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir(mode=0o700)
            (where / "journal-3.head").write_bytes(head)
            (where / "journal-3-0001.log").write_bytes(segment[:cut] + tail)
            again = Journal.open(where, 3, NOW, step_bytes=4096)
            assert again.find(7, entry(1).serial) is not None
            # Where it ends with zeros, those of the room set aside make it whole.
            whole = (segment[:cut] + tail)[start:end] == segment[start:end]
            assert (again.find(7, entry(2).serial) is not None) is whole
            assert (again.find(7, entry(3).serial) is not None) is whole
            again.record_entries([entry(4)], NOW)
            again.close(NOW)
            assert check_journal(where, 3).entries == (4 if whole else 2)


def test_pages_of_an_interrupted_write_may_arrive_in_any_order(directory: Path, tmp_path: Path):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    head = (directory / "journal-3.head").read_bytes()
    start = journal._tail.end
    journal.record_results([Result(7, entry(1).serial, b"c" * 9000)], NOW)  # not flushed by itself
    journal.record_entries([entry(number, 2000) for number in range(100, 300)], NOW)  # several blocks, one flush
    segment = bytearray((directory / "journal-3-0001.log").read_bytes()[: journal._tail.end])
    journal.close(NOW)
    for hole in range(start, len(segment) - 4096, 40_000):
        where = tmp_path / "crashed"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(mode=0o700)
        holed = bytearray(segment)
        holed[hole : hole + 4096] = bytes(4096)
        (where / "journal-3.head").write_bytes(head)
        (where / "journal-3-0001.log").write_bytes(holed)
        again = Journal.open(where, 3, NOW)
        assert again.counters.cut_bytes > 0
        assert again.find(7, entry(1).serial) is not None
        again.close(NOW)
        check_journal(where, 3)


def test_a_segment_that_was_just_being_begun_is_begun_again(directory: Path, tmp_path: Path):
    journal = Journal.open(directory, 3, NOW, segment_bytes=4096)
    for number in range(5):
        journal.record_entries([entry(number, 500)], NOW)
    journal.close(NOW)
    last = sorted(directory.glob("*.log"))[-1]
    number = int(last.stem.split("-")[-1])
    for content in (b"", bytes(100), b"ESJ1", last.read_bytes()[:60]):
        where = crash(directory, tmp_path / "crashed")
        (where / f"journal-3-{number + 1:04d}.log").write_bytes(content)
        again = Journal.open(where, 3, NOW, segment_bytes=4096)
        again.record_entries([entry(number, 500) for number in range(5, 10)], NOW)
        again.close(NOW)
        assert check_journal(where, 3).entries == 10


def test_a_journal_that_was_just_being_begun_is_begun_again(directory: Path):
    files = Files(directory, 3)
    os.close(files.take())
    files.begin(Head("3-0123456789abcdef", 0, NO_HASH))
    for content in (None, b"", bytes(50)):
        if content is not None:
            files.segment(1).write_bytes(content)
        journal = Journal.open(directory, 3, NOW)
        assert journal.name == "3-0123456789abcdef"
        journal.record_entries([entry(1)], NOW)
        journal.close(NOW)
        assert check_journal(directory, 3).entries == 1
        files.segment(1).unlink()
        files.head.unlink()
        files.begin(Head("3-0123456789abcdef", 0, NO_HASH))


def test_reading_while_the_signer_writes(directory: Path, journal: Journal):
    journal.record_entries([entry(1)], NOW)
    assert check_journal(directory, 3, [journal.mark]).entries == 1
    journal.record_entries([entry(2)], NOW)
    audit = check_journal(directory, 3, [journal.mark])
    assert (audit.entries, audit.torn_bytes) == (2, 0)


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """While its one element is true, no disk space can be had."""
    state = [False]
    allocate = os.posix_fallocate

    def perhaps(fd: int, offset: int, length: int) -> None:
        if state[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", perhaps)
    yield state
    state[0] = False


def test_a_journal_is_not_begun_without_room(directory: Path, full: list[bool]):
    full[0] = True
    with pytest.raises(Unavailable, match="no room"):
        Journal.open(directory, 3, NOW)
    full[0] = False
    Journal.open(directory, 3, NOW).close(NOW)
    full[0] = True
    with pytest.raises(Unavailable, match="no room"):
        Journal.open(directory, 3, NOW)
    full[0] = False
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    journal.close(NOW)
    assert check_journal(directory, 3).entries == 1


@pytest.mark.parametrize("segment_bytes", [4096, 1_000_000])
def test_without_room_nothing_changes_and_the_end_is_in_order(
    directory: Path, tmp_path: Path, full: list[bool], segment_bytes: int
):
    journal = Journal.open(directory, 3, NOW, segment_bytes=segment_bytes, step_bytes=1024)
    recorded = refused = 0
    for number in range(120):
        full[0] = number % 3 != 0
        before = journal.mark
        try:
            journal.record_entries([entry(number, 900)], NOW)
            recorded += 1
        except Unavailable:
            refused += 1
            assert journal.mark == before
            assert journal.find(7, entry(number, 900).serial) is None
    assert recorded >= 40
    assert refused > 40
    full[0] = True
    crashed = crash(directory, tmp_path / "crashed")
    journal.close(NOW)
    full[0] = False
    assert check_journal(directory, 3).entries == recorded
    assert list(read_journal(directory, 3))[-1].kind is Kind.CLOSED
    assert check_journal(crashed, 3).entries == recorded


# --- a journal that failed ---------------------------------------------------------------------------------------------


def test_after_a_failed_flush_everything_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(Broken, match="flushed"):
            journal.record_entries([entry(2)], NOW)
    assert journal.failed
    for call in (
        lambda: journal.record_entries([entry(3)], NOW),
        lambda: journal.record_results([Result(7, entry(1).serial, b"c")], NOW),
        lambda: journal.find(7, entry(2).serial),
        lambda: journal.covers(journal.mark),
    ):
        with pytest.raises(Broken):
            call()
    journal.close(NOW)
    again = Journal.open(directory, 3, NOW)
    # Whether entry 2 is there is for the disk to say; entry 1 was promised, entry 3 never written.
    assert again.find(7, entry(1).serial) is not None
    assert again.find(7, entry(3).serial) is None
    again.close(NOW)


def test_a_block_that_changed_under_us_is_our_own_fault(directory: Path, journal: Journal):
    journal.record_entries([entry(1)], NOW)
    with (directory / "journal-3-0001.log").open("r+b") as segment:
        segment.seek(journal._tail.end - 40)
        segment.write(b"\xff")
    with pytest.raises(Broken, match="cannot be read"):
        journal.find(7, entry(1).serial)


def test_an_anchor_is_kept_and_the_newest_entries_are_known_again(tmp_path: Path) -> None:
    directory = tmp_path / "anchored"
    journal = Journal.open(directory, 0, NOW)
    entries = [Entry(1, bytes([number, 7]), bytes(32), b"tbs", b"note %d" % number) for number in range(1, 6)]
    journal.record_entries(entries, NOW)
    journal.record_anchor(Anchor(17, bytes(range(32))), NOW)
    journal.flush()
    journal.close(NOW)
    kinds = [block.kind for block in read_journal(directory, 0)]
    assert kinds == [Kind.SEGMENT, Kind.OPENED, Kind.ENTRIES, Kind.ANCHOR, Kind.CLOSED]
    again = Journal.open(directory, 0, NOW)
    assert again.newest() == [(1, bytes([number, 7])) for number in (5, 4, 3, 2, 1)]
    found = again.find(1, bytes([4, 7]))
    assert found is not None
    assert found.entry.note == b"note 4"
    again.close(NOW)
