"""The files of one slot's journal: who may hold them, how they are found again, and whether they are still whole.

Two readers share what is here. A signer that opens its journal (`read_newest`) wants the newest segments, and what an
interrupted write left behind. An auditor (`read_journal`, `check_journal`) wants everything from the oldest retained
segment on, and may read while the signer writes: no lock is taken and nothing is changed.

Both refuse with `Invalid` whatever is not a whole journal; the message names the file and the octet. Must not write to
a segment: that is `estd.signer.journal`'s alone.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from estd.errors import Invalid, Problem
from estd.signer.blocks import (
    NO_HASH,
    Block,
    BlockError,
    EntryKey,
    Head,
    Kind,
    SegmentNote,
    decide_torn,
    read_chain,
    read_entries,
    read_head,
    read_keys,
    read_mark,
    read_note,
    write_head,
)

SLOT_MAX: Final = 9999
"""Slots are numbered from 0 to this."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where the journal of a slot is kept."""

    directory: Path
    slot: int

    @property
    def head(self) -> Path:
        """The head file."""
        return self.directory / f"journal-{self.slot}.head"

    @property
    def lock(self) -> Path:
        """The lock file; never removed, so that everybody locks the same one."""
        return self.directory / f"journal-{self.slot}.lock"

    def segment(self, number: int) -> Path:
        """One segment."""
        return self.directory / f"journal-{self.slot}-{number:04d}.log"

    def take(self) -> int:
        """Make sure of the directory and take the lock; its descriptor, which holds it while open.

        Raises:
            Invalid: others may read the directory, or another signer holds the journal.
        """
        if not 0 <= self.slot <= SLOT_MAX:
            raise _invalid(self.directory, f"slot {self.slot} is out of range", f"Number slots from 0 to {SLOT_MAX}.")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = self.directory.stat()
        if state.st_mode & 0o077 or state.st_uid != os.geteuid():
            raise _invalid(
                self.directory,
                "the journal's directory is open to others, or another user's",
                f"Give it to the signer's user alone: chown and chmod 700 {self.directory}.",
            )
        lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise _invalid(
                self.lock, "another signer holds this journal", "Stop it first, or give this one another slot."
            ) from None
        return lock

    def begin(self, head: Head) -> None:
        """Write the head of a new journal, before its first segment exists."""
        fd = os.open(self.head, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, 2 * len(write_head(head)))
            os.pwrite(fd, write_head(head) * 2, 0)
            os.fsync(fd)
        except OSError:
            self.head.unlink()
            raise
        finally:
            os.close(fd)
        self.flush_directory()

    def flush_directory(self) -> None:
        """Make names that were added or removed durable."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def survey(self) -> tuple[Head | None, list[int]]:
        """The head, and the numbers of the segments in order; (None, []) where there is no journal yet.

        Raises:
            Invalid: one is there without the other, or a segment is missing between two others.
        """
        # The head first: a signer that writes at this moment only makes the segments longer than it says.
        try:
            head = read_head(self.head.read_bytes())
        except FileNotFoundError:
            head = None
        else:
            if head is None:
                raise _invalid(self.head, "neither copy of the journal's head is intact", REMEDY)
        pattern = re.compile(rf"journal-{self.slot}-([0-9]{{4,}})\.log")
        matches = (pattern.fullmatch(name) for name in os.listdir(self.directory))  # noqa: PTH208 - names are enough
        numbers = sorted(int(match[1]) for match in matches if match)
        if head is None and numbers:
            raise _invalid(self.head, "the journal's head is missing while its segments are there", REMEDY)
        if head is not None and head.sequence > 0 and not numbers:
            raise _invalid(self.head, f"says {head.sequence} blocks were flushed, and no segment is there", REMEDY)
        for before, after in itertools.pairwise(numbers):
            if after != before + 1:
                raise _invalid(self.segment(before + 1), "this segment of the journal is missing", REMEDY)
        return head, numbers


@dataclass(frozen=True, slots=True)
class Scanned:
    """One block as an index needs it; its body is let go unless it is the segment's note."""

    block: Block
    keys: list[EntryKey]


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as read."""

    number: int
    blocks: list[Scanned]
    torn_bytes: int
    """What an interrupted write left behind the last block."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What a whole journal holds."""

    journal: str
    first: int
    """Sequence of the oldest retained block."""
    last: int
    digest: bytes
    """Hash of the last block: whoever keeps it elsewhere can tell later whether this journal was rewritten."""
    entries: int
    results: int
    torn_bytes: int


def read_newest(files: Files, head: Head, numbers: Sequence[int], entries: int) -> list[Segment]:
    """The newest segments, oldest first, that hold at least so many entries, checked against each other and the head.

    The very last one may be without a block: it was being begun when its signer died.

    Raises:
        Invalid: the journal is not whole.
    """
    segments: list[Segment] = []
    held = 0
    for number in reversed(numbers):
        segment = _read_segment(files, number, head, last=not segments)
        segments.insert(0, segment)
        held += sum(len(scanned.keys) for scanned in segment.blocks if scanned.block.kind is Kind.ENTRIES)
        if held >= entries and segment.blocks:
            break
    before: Block | None = None
    for segment in segments:
        if before is not None and segment.blocks:
            _check_continues(files, segment.number, before, segment.blocks[0].block)
        before = segment.blocks[-1].block if segment.blocks else before
    _check_head(files, head, [scanned.block for segment in segments for scanned in segment.blocks])
    return segments


def check_marks(files: Files, journal: str, segments: Sequence[Segment], marks: Iterable[str]) -> None:
    """Hold the newest segments against marks that a database kept, as far as these reach back.

    Raises:
        Invalid: the journal was at an earlier time where a mark says it was, or another one; it was set back.
    """
    blocks = [scanned.block for segment in segments for scanned in segment.blocks]
    last = blocks[-1].sequence if blocks else 0
    for mark in filter(None, map(read_mark, marks)):
        if mark.journal != journal:
            continue
        if mark.sequence > last:
            what = f"ends with block {last} of journal {journal}, and the database says that it had reached {mark.sequence}"
            raise _invalid(files.head, what, SET_BACK_REMEDY)
        at = mark.sequence - blocks[0].sequence if blocks else -1
        if at >= 0 and blocks[at].digest[: len(mark.digest)] != mark.digest:
            what = f"block {mark.sequence} of journal {journal} is another one than the database says"
            raise _invalid(files.head, what, SET_BACK_REMEDY)


def read_journal(directory: Path, slot: int) -> Iterator[Block]:
    """Every block from the oldest retained segment on, each checked before it is yielded.

    Raises:
        Invalid: where the journal stops being whole; what was yielded before stands.
    """
    for block, _ in _read_all(Files(directory, slot)):
        yield block


def check_journal(directory: Path, slot: int, marks: Iterable[str] = ()) -> Audit:
    """Read a whole journal and hold it against itself, its head and marks that were kept elsewhere.

    Holds issuer and serial of every entry in memory, about 120 octets each.

    Raises:
        Invalid: it is not whole, one serial has two entries, a result has no entry, or a mark is not borne out.
    """
    files = Files(directory, slot)
    expected: dict[int, list[str]] = {}
    for text in marks:
        mark = read_mark(text)
        if mark is None:
            raise _invalid(files.head, f"{text!r} is not a mark", "Give marks as they are stored with intents.")
        expected.setdefault(mark.sequence, []).append(text)
    serials: set[tuple[int, bytes]] = set()
    first = last = results = torn_bytes = 0
    journal, digest = "", NO_HASH
    for block, torn_bytes in _read_all(files):  # noqa: B007 - its last value is the journal's
        if block.kind is Kind.SEGMENT:
            journal = read_note(block).journal
        if first == 0:
            first = block.sequence
            _check_marks(files, journal, block.sequence - 1, block.previous, expected)
        last, digest = block.sequence, block.digest
        for entry in read_entries(block):
            key = (entry.issuer_id, entry.serial)
            if key in serials:
                raise _invalid(
                    directory, f"serial {entry.serial.hex()} of issuer {entry.issuer_id} has two entries", REMEDY
                )
            serials.add(key)
        if block.kind is Kind.RESULTS:
            for key in ((result.issuer_id, result.serial) for result in read_keys(block)):
                # Where the oldest segments were taken away, so was perhaps the entry.
                if key not in serials and first == 1:
                    raise _invalid(directory, f"serial {key[1].hex()} of issuer {key[0]} has no entry", REMEDY)
                results += 1
        _check_marks(files, journal, last, digest, expected)
    beyond = [text for sequence, texts in expected.items() for text in texts if sequence >= first]
    if beyond:
        raise _invalid(files.head, f"the journal does not reach the mark {beyond[0]}", REMEDY)
    return Audit(journal, first, last, digest, len(serials), results, torn_bytes)


REMEDY: Final = (
    "Do not mend it by hand: keep the whole directory as evidence, move it aside, and start with an empty one; "
    "docs/signer.md says what becomes of open intents."
)
"""What to do about a journal that is not whole."""


SET_BACK_REMEDY: Final = (
    "This is an older copy of the journal, or one that went on from there. Put the newest files back; where they are lost, "
    "keep the whole directory as evidence, move it aside, and start with an empty one (docs/signer.md)."
)
"""What to do about a journal that was set back."""


def damaged(path: Path, fault: BlockError) -> Invalid:
    """The refusal for a fault in a segment."""
    return _invalid(path, f"the journal is damaged at octet {fault.offset}: {fault.what}", REMEDY)


def _read_all(files: Files) -> Iterator[tuple[Block, int]]:
    """Every block in order, and what lies torn behind its segment."""
    head, numbers = files.survey()
    if head is None:
        raise _invalid(files.directory, f"holds no journal of slot {files.slot}", "Name the right directory and slot.")
    before: Block | None = None
    vouched = head.sequence == 0
    for number in numbers:
        try:
            content = files.segment(number).read_bytes()
        except OSError as error:
            raise _invalid(files.segment(number), f"cannot be read ({error.strerror})", REMEDY) from None
        blocks, torn_bytes = _read_blocks(files, number, content, head, last=number == numbers[-1])
        if blocks:
            if before is not None:
                _check_continues(files, number, before, blocks[0])
            elif head.sequence == blocks[0].sequence - 1:
                vouched = head.digest == blocks[0].previous
        for block in blocks:
            vouched = vouched or (block.sequence, block.digest) == (head.sequence, head.digest)
            yield block, torn_bytes
            before = block
    if not vouched:
        raise _not_as_flushed(files, head)


def _read_segment(files: Files, number: int, head: Head, *, last: bool) -> Segment:
    try:
        content = files.segment(number).read_bytes()
    except OSError as error:
        raise _invalid(files.segment(number), f"cannot be read ({error.strerror})", REMEDY) from None
    blocks, torn_bytes = _read_blocks(files, number, content, head, last=last)
    return Segment(
        number,
        [
            Scanned(block if block.kind is Kind.SEGMENT else replace(block, body=b""), read_keys(block))
            for block in blocks
        ],
        torn_bytes,
    )


def _read_blocks(files: Files, number: int, content: bytes, head: Head, *, last: bool) -> tuple[list[Block], int]:
    """The blocks of one segment, and how many octets of an interrupted write follow them."""
    path = files.segment(number)
    blocks: list[Block] = []
    torn_bytes = 0
    try:
        for block in read_chain(content, None, None):
            read_keys(block)
            if not blocks and read_note(block) != SegmentNote(head.journal, number):
                raise BlockError(0, f"this is not segment {number} of journal {head.journal}")
            blocks.append(block)
        if not last and (not blocks or blocks[-1].end != len(content)):
            raise BlockError(blocks[-1].end if blocks else 0, "a segment that was closed ends in zeros")
    except BlockError as fault:
        if not last:
            raise damaged(path, fault) from fault
        # A segment's first block is flushed before a second is written: any block behind it proves it was whole.
        expected = blocks[-1].sequence + 1 if blocks else 0
        if (blocks and expected <= head.sequence) or not decide_torn(content, fault.offset, expected):
            raise damaged(path, fault) from fault
        torn_bytes = len(content) - fault.offset
    if blocks and number == 1 and (blocks[0].sequence, blocks[0].previous) != (1, NO_HASH):
        raise damaged(path, BlockError(0, "the first segment does not begin with block 1"))
    return blocks, torn_bytes


def _check_continues(files: Files, number: int, before: Block, after: Block) -> None:
    if (after.sequence, after.previous) != (before.sequence + 1, before.digest):
        raise damaged(files.segment(number), BlockError(0, "this segment does not continue the one before it"))


def _check_head(files: Files, head: Head, blocks: list[Block]) -> None:
    if head.sequence == 0:
        return
    if blocks:
        at = head.sequence - blocks[0].sequence
        if at == -1 and blocks[0].previous == head.digest:
            return
        if 0 <= at < len(blocks) and blocks[at].digest == head.digest:
            return
    raise _not_as_flushed(files, head)


def _check_marks(files: Files, journal: str, sequence: int, digest: bytes, expected: dict[int, list[str]]) -> None:
    for text in expected.pop(sequence, ()):
        mark = read_mark(text)
        if mark is None or mark.journal != journal or mark.digest != digest[: len(mark.digest)]:
            raise _invalid(files.head, f"the journal does not bear out the mark {text}", REMEDY)


def _not_as_flushed(files: Files, head: Head) -> Invalid:
    return _invalid(
        files.head, f"says that block {head.sequence} was flushed, and the journal does not hold it so", REMEDY
    )


def _invalid(path: Path, what: str, remedy: str) -> Invalid:
    return Invalid([Problem(str(path), what, remedy)])
