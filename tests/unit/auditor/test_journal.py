"""The auditor's reader against what the signer's journal writes; damage of every kind is in tests/faults/test_tamper.py."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from estd.auditor.journal import ANCHORED, ENTRIES, RESULTS, JournalFault, find_journals
from estd.signer.blocks import Anchor, Entry, Result
from estd.signer.journal import Journal

NOW = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)


def entry(number: int) -> Entry:
    return Entry(1, number.to_bytes(4, "big"), bytes([number]) * 32, b"tbs %d" % number, b"note")


def fill(directory: Path, *, segment_bytes: int = 64 << 20, close: bool = True) -> Journal:
    journal = Journal.open(directory, 0, NOW, segment_bytes=segment_bytes)
    for number in range(1, 31):
        journal.record_entries([entry(number)], NOW)
    journal.record_results([Result(1, (30).to_bytes(4, "big"), b"certificate")], NOW)
    journal.record_anchor(Anchor(5, bytes(32)), NOW)
    journal.flush()
    if close:
        journal.close(NOW)
    return journal


def test_what_was_written_is_read_over_all_segments(tmp_path: Path) -> None:
    fill(tmp_path / "journal", segment_bytes=1000)
    (reader,) = find_journals(tmp_path / "journal")
    blocks = list(reader.blocks())
    entries = [item for block in blocks if block.kind == ENTRIES for item in block.items]
    assert [item[1] for item in entries] == [number.to_bytes(4, "big") for number in range(1, 31)]
    assert entries[6] == [1, (7).to_bytes(4, "big"), bytes([7]) * 32, b"tbs 7", b"note"]
    assert [block.items for block in blocks if block.kind == RESULTS] == [
        [[1, (30).to_bytes(4, "big"), b"certificate"]]
    ]
    assert [block.items for block in blocks if block.kind == ANCHORED] == [[5, bytes(32)]]
    assert len({block.path for block in blocks}) > 2
    assert [block.sequence for block in blocks] == list(range(1, len(blocks) + 1))
    assert not reader.is_open


def test_a_journal_that_is_being_written_is_whole(tmp_path: Path) -> None:
    journal = fill(tmp_path / "journal", close=False)
    (reader,) = find_journals(tmp_path / "journal")
    assert sum(block.kind == ENTRIES for block in reader.blocks()) == 30
    assert reader.is_open
    assert reader.torn_bytes == 0
    journal.close(NOW)


def test_an_interrupted_write_is_no_fault_and_is_told(tmp_path: Path) -> None:
    journal = fill(tmp_path / "journal", close=False)
    path = tmp_path / "journal" / "journal-0-0001.log"
    (reader,) = find_journals(tmp_path / "journal")
    end = max(block.offset for block in reader.blocks()) + 1
    with path.open("r+b") as file:
        file.seek(reader.end)
        file.write(b"ESJ1\x03half a block")
    assert end < reader.end
    (again,) = find_journals(tmp_path / "journal")
    list(again.blocks())
    assert again.torn_bytes == len(b"ESJ1\x03half a block")
    journal._release()


def test_a_fault_names_file_and_octet_and_what_stood_before_it_stands(tmp_path: Path) -> None:
    fill(tmp_path / "journal")
    path = tmp_path / "journal" / "journal-0-0001.log"
    (reader,) = find_journals(tmp_path / "journal")
    offsets = [block.offset for block in reader.blocks()]
    content = bytearray(path.read_bytes())
    content[offsets[12] + 80] ^= 1
    path.write_bytes(content)
    (reader,) = find_journals(tmp_path / "journal")
    read = []
    with pytest.raises(JournalFault) as caught:
        read += [block.sequence for block in reader.blocks()]
    assert caught.value.where == f"{path}:{offsets[12]}"


def test_a_lost_end_is_found_by_the_head(tmp_path: Path) -> None:
    fill(tmp_path / "journal")
    path = tmp_path / "journal" / "journal-0-0001.log"
    (reader,) = find_journals(tmp_path / "journal")
    offsets = [block.offset for block in reader.blocks()]
    path.write_bytes(path.read_bytes()[: offsets[-2]])
    (reader,) = find_journals(tmp_path / "journal")
    with pytest.raises(JournalFault):
        list(reader.blocks())


def test_oldest_segments_may_be_in_an_archive(tmp_path: Path) -> None:
    fill(tmp_path / "journal", segment_bytes=1000)
    (tmp_path / "journal" / "journal-0-0001.log").unlink()
    (reader,) = find_journals(tmp_path / "journal")
    list(reader.blocks())
    assert reader.first > 1
    (tmp_path / "journal" / "journal-0-0003.log").unlink()
    (reader,) = find_journals(tmp_path / "journal")
    with pytest.raises(JournalFault, match="missing"):
        list(reader.blocks())
