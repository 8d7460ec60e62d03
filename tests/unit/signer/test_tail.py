from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from estd.errors import Unavailable
from estd.signer.blocks import NO_HASH, Block, BlockError, Kind, read_block, write_block
from estd.signer.segments import Files
from estd.signer.tail import Tail

SIZES = (4096, 1024)


def block(sequence: int, body: bytes, previous: bytes = NO_HASH) -> tuple[bytes, bytes]:
    return write_block(Kind.ENTRIES, sequence, 0, 0, previous, body)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, 3)


@pytest.fixture
def tail(files: Files) -> Tail:
    return Tail.create(files, 1, block(1, b"first")[0], 100, SIZES)


def read_all(content: bytes) -> list[Block]:
    found: list[Block] = []
    at = 0
    while at < len(content):
        found.append(read_block(content, at))
        at = found[-1].end
    return found


def test_a_segment_begins_with_its_first_block_and_room_behind_it(files: Files, tail: Tail):
    first = block(1, b"first")[0]
    assert files.segment(1).read_bytes() == first + bytes(100)
    assert files.segment(1).stat().st_mode & 0o777 == 0o600
    assert (tail.number, tail.end) == (1, len(first))
    with pytest.raises(FileExistsError):
        Tail.create(files, 1, first, 100, SIZES)
    assert files.segment(1).exists()


def test_what_is_appended_stands_at_the_end_and_can_be_read(files: Files, tail: Tail):
    second = block(2, b"second")[0]
    at = tail.end
    tail.make_room(len(second))
    tail.append(second)
    tail.flush()
    assert tail.end == at + len(second)
    assert tail.read(1, at).body == b"second"
    with pytest.raises(BlockError):
        tail.read(1, at + 1)
    tail.finish()
    assert files.segment(1).read_bytes() == block(1, b"first")[0] + second
    newer = Tail.create(files, 2, block(3, b"third")[0], 100, SIZES)
    assert newer.read(1, at).body == b"second"
    with pytest.raises(FileNotFoundError):
        newer.read(7, 0)


def test_room_is_set_aside_in_steps_and_never_beyond_a_full_segment(files: Files, tail: Tail):
    begun = files.segment(1).stat().st_size
    tail.make_room(50)
    assert files.segment(1).stat().st_size == begun
    tail.make_room(101)
    assert files.segment(1).stat().st_size == begun + 1024
    tail.make_room(3500)
    assert files.segment(1).stat().st_size == tail.end + 3500
    tail.make_room(3800)
    assert files.segment(1).stat().st_size == 4096
    tail.make_room(9000)
    assert files.segment(1).stat().st_size == tail.end + 9000


def test_a_segment_is_full_when_it_holds_more_than_its_first_block(tail: Tail):
    assert not tail.is_full_with(1_000_000)
    tail.append(block(2, b"second")[0])
    assert not tail.is_full_with(4096 - tail.end)
    assert tail.is_full_with(4096 - tail.end + 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_without_room_everything_is_as_it_was(files: Files, tail: Tail, monkeypatch: pytest.MonkeyPatch, code: int):
    def grow_and_fail(fd: int, offset: int, length: int) -> None:
        os.ftruncate(fd, offset + length // 2)
        raise OSError(code, os.strerror(code))

    before = files.segment(1).read_bytes()
    monkeypatch.setattr(os, "posix_fallocate", grow_and_fail)
    with pytest.raises(Unavailable, match="no room"):
        tail.make_room(2000)
    assert files.segment(1).read_bytes() == before
    with pytest.raises(Unavailable, match="no room"):
        Tail.create(files, 2, b"block", 100, SIZES)
    assert not files.segment(2).exists()


def test_an_interrupted_end_is_cut_off_when_a_segment_is_taken_over(files: Files):
    first, digest = block(1, b"first")
    second = block(2, b"second", digest)[0]
    files.segment(1).write_bytes(first + second + b"torn" + bytes(500))
    tail = Tail.take_over(files, 1, read_all(first + second), 1, SIZES)
    assert files.segment(1).read_bytes() == first + second
    assert tail.end == len(first + second)
    tail.append(b"next")
    assert files.segment(1).read_bytes() == first + second + b"next"


def test_what_the_head_does_not_vouch_for_is_written_anew(files: Files, monkeypatch: pytest.MonkeyPatch):
    first, digest = block(1, b"first")
    second = block(2, b"second", digest)[0]
    files.segment(1).write_bytes(first + second)
    written: list[tuple[bytes, int]] = []
    monkeypatch.setattr(os, "pwrite", lambda _fd, octets, at: written.append((octets, at)))
    Tail.take_over(files, 1, read_all(first + second), 2, SIZES)
    assert written == []
    Tail.take_over(files, 1, read_all(first + second), 1, SIZES)
    assert written == [(second, len(first))]


def test_a_write_that_stopped_halfway_is_a_fault(tail: Tail, monkeypatch: pytest.MonkeyPatch):
    end = tail.end
    monkeypatch.setattr(os, "pwrite", lambda _fd, octets, _at: len(octets) - 1)
    with pytest.raises(OSError, match="only 9 of 10 octets"):
        tail.append(bytes(10))
    assert tail.end == end
