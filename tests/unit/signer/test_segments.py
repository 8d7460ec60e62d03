from __future__ import annotations

import itertools
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from journal_lab import crash, entry

from estd.errors import Invalid
from estd.signer.blocks import Entry, Result, read_chain
from estd.signer.journal import Journal
from estd.signer.segments import check_journal

NOW = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)


@pytest.fixture(params=["closed", "crashed"])
def recorded(request: pytest.FixtureRequest, directory: Path, tmp_path: Path) -> Path:
    """A journal of several segments whose every block was flushed."""
    journal = Journal.open(directory, 3, NOW, segment_bytes=4096, step_bytes=1024)
    for number in range(0, 60, 3):
        journal.record_entries([entry(number + more, 300) for more in range(3)], NOW)
    where = crash(directory, tmp_path / "recorded")
    journal.close(NOW)
    return directory if request.param == "closed" else where


def assert_refused(where: Path) -> None:
    """Neither an auditor nor a signer accepts it, and the signer leaves it as it is."""
    before = {path.name: path.read_bytes() for path in where.iterdir()}
    with pytest.raises(Invalid):
        check_journal(where, 3)
    with pytest.raises(Invalid) as refusal:
        Journal.open(where, 3, NOW, segment_bytes=4096)
    problem = refusal.value.problems[0]
    assert str(where) in problem.where
    assert problem.remedy
    assert {path.name: path.read_bytes() for path in where.iterdir()} == before | {
        "journal-3.lock": before.get("journal-3.lock", b"")
    }


def ends(path: Path) -> list[int]:
    return [block.end for block in read_chain(path.read_bytes(), None, None)]


def test_every_changed_octet_is_found(recorded: Path, tmp_path: Path):
    segments = sorted(recorded.glob("*.log"))
    for nth, path in enumerate(segments):
        length = ends(path)[-1]
        for at in range(nth % 5, length, 211):
            where = crash(recorded, tmp_path / "altered")
            content = bytearray(path.read_bytes())
            content[at] ^= 1 << at % 8
            (where / path.name).write_bytes(content)
            assert_refused(where)


def test_every_lost_end_is_found(recorded: Path, tmp_path: Path):
    segments = sorted(recorded.glob("*.log"))
    for path in (segments[1], segments[-1]):
        length = ends(path)[-1]
        for at in sorted({0, 1, length - 1, *ends(path)[:-1], *range(0, length, 149)}):
            for zeros in (0, length - at):
                where = crash(recorded, tmp_path / "altered")
                (where / path.name).write_bytes(path.read_bytes()[:at] + bytes(zeros))
                assert_refused(where)


def test_blocks_removed_repeated_or_moved_are_found(recorded: Path, tmp_path: Path):
    for path in sorted(recorded.glob("*.log"))[:3]:
        content, edges = path.read_bytes(), [0, *ends(path)]
        parts = [content[start:end] for start, end in itertools.pairwise(edges)]
        tail = content[edges[-1] :]
        alterations = [parts[:at] + parts[at + 1 :] for at in range(len(parts))]
        alterations += [parts[:at] + parts[at : at + 1] + parts[at:] for at in range(len(parts))]
        alterations += [[*parts[:at], parts[at + 1], parts[at], *parts[at + 2 :]] for at in range(len(parts) - 1)]
        for altered in alterations:
            where = crash(recorded, tmp_path / "altered")
            (where / path.name).write_bytes(b"".join(altered) + tail)
            assert_refused(where)


def test_whole_files_lost_or_exchanged_are_found(recorded: Path, tmp_path: Path):
    segments = sorted(path.name for path in recorded.glob("*.log"))
    for name in [*segments[1:], "journal-3.head"]:
        where = crash(recorded, tmp_path / "altered")
        (where / name).unlink()
        assert_refused(where)
    where = crash(recorded, tmp_path / "altered")
    (where / segments[1]).write_bytes((recorded / segments[2]).read_bytes())
    (where / segments[2]).write_bytes((recorded / segments[1]).read_bytes())
    assert_refused(where)
    where = crash(recorded, tmp_path / "altered")
    for name in segments:
        (where / name).unlink()
    assert_refused(where)


def test_octets_added_are_found(recorded: Path, tmp_path: Path):
    segments = sorted(recorded.glob("*.log"))
    for path in segments[:-1]:
        for more in (b"\0", b"x", bytes(100)):
            where = crash(recorded, tmp_path / "altered")
            (where / path.name).write_bytes(path.read_bytes() + more)
            assert_refused(where)


def test_a_broken_head_is_found(recorded: Path, tmp_path: Path):
    for content in (b"", bytes(1024), os.urandom(1024)):
        where = crash(recorded, tmp_path / "altered")
        (where / "journal-3.head").write_bytes(content)
        assert_refused(where)


def test_segments_of_another_journal_are_found(recorded: Path, tmp_path: Path):
    other = Journal.open(tmp_path / "other", 3, NOW, segment_bytes=4096, step_bytes=1024)
    for number in range(0, 60, 3):
        other.record_entries([entry(number + more, 300) for more in range(3)], NOW)
    other.close(NOW)
    for path in sorted(recorded.glob("*.log")):
        where = crash(recorded, tmp_path / "altered")
        shutil.copy(tmp_path / "other" / path.name, where / path.name)
        assert_refused(where)
    where = crash(recorded, tmp_path / "altered")
    shutil.copy(tmp_path / "other" / "journal-3.head", where / "journal-3.head")
    assert_refused(where)


def test_a_rewritten_history_is_found_by_marks_kept_elsewhere(directory: Path, tmp_path: Path):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    mark = journal.mark
    journal.close(NOW)
    # Whoever can write every file can make a consistent other history, but not the hash that was given out.
    head = (directory / "journal-3.head").read_bytes()
    assert head
    forged = tmp_path / "forged"
    other = Journal.open(forged, 3, NOW)
    other.record_entries([entry(2)], NOW)
    other.close(NOW)
    check_journal(forged, 3)
    with pytest.raises(Invalid, match="mark"):
        check_journal(forged, 3, [mark])
    with pytest.raises(Invalid, match="not a mark"):
        check_journal(directory, 3, ["junk"])


def test_an_auditor_finds_a_serial_with_two_entries(directory: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    monkeypatch.setattr(journal._index, "find_entry", lambda issuer_id, serial: [])
    journal.record_entries([Entry(7, entry(1).serial, b"x" * 32, b"other")], NOW)
    journal.close(NOW)
    with pytest.raises(Invalid, match="two entries"):
        check_journal(directory, 3)


def test_an_auditor_finds_a_result_without_entry(directory: Path):
    journal = Journal.open(directory, 3, NOW)
    journal.record_results([Result(7, b"\x01", b"certificate")], NOW)
    journal.close(NOW)
    with pytest.raises(Invalid, match="no entry"):
        check_journal(directory, 3)


def test_an_empty_directory_holds_no_journal(tmp_path: Path):
    with pytest.raises(Invalid, match="no journal"):
        check_journal(tmp_path, 3)


def test_a_journal_that_was_set_back_is_refused_and_left_as_it_is(directory: Path, tmp_path: Path):
    """An older copy with a head that agrees, and one that went on from there: the marks of a database tell."""
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    early = journal.mark
    older = crash(directory, tmp_path / "older")
    journal.record_entries([entry(2)], NOW)
    late = journal.mark
    journal.close(NOW)
    before = {path.name: path.read_bytes() for path in older.iterdir() if path.suffix != ".lock"}
    with pytest.raises(Invalid, match="had reached"):
        Journal.open(older, 3, NOW, marks=[early, late])
    assert {path.name: path.read_bytes() for path in older.iterdir() if path.suffix != ".lock"} == before
    forked = Journal.open(older, 3, NOW)  # by whoever knows no marks
    for number in range(5, 10):
        forked.record_entries([entry(number)], NOW)
    forked.close(NOW)
    with pytest.raises(Invalid, match="is another one than the database says"):
        Journal.open(older, 3, NOW, marks=[early, late])
    Journal.open(directory, 3, NOW, marks=[early, late, "4-0123456789abcdef.99.0123456789abcdef"]).close(NOW)


def test_a_new_journal_knows_nothing_of_marks_of_an_old_one(directory: Path, tmp_path: Path):
    journal = Journal.open(directory, 3, NOW)
    journal.record_entries([entry(1)], NOW)
    mark = journal.mark
    journal.close(NOW)
    Journal.open(tmp_path / "new", 3, NOW, marks=[mark]).close(NOW)
