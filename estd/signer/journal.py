"""A signer's own record of what its keys were about to sign: append-only, flushed before each signature, hash-chained.

One journal belongs to one slot and to one signer at a time (an exclusive lock). Its files, all below one directory of
mode 0700: ``journal-<slot>-<NNNN>.log`` (segments of blocks, see `estd.signer.blocks`), ``journal-<slot>.head`` and
``journal-<slot>.lock``. Promises:

* *Durable on return.* `Journal.record_entries` returns after ``fdatasync``; nothing may be signed before it returns.
* *Room first.* Disk space is set aside before a block is written, with enough left over to end in order. Where there is
  none, `Unavailable` is raised and the journal is as it was.
* *Never half-sure.* After a failed write or flush nobody knows what is on the disk: the journal refuses everything from
  then on (`Broken`), and whoever opens it again reads what is really there.
* *Cut only what was never promised.* An interrupted last write is cut off on opening. Every other fault — a changed,
  missing, added or moved octet, a lost segment, a lost end — is `Invalid`, and the journal is left untouched.
* *Silence means something.* `Journal.find` knows the most recent entries; `Journal.covers` says whether that reaches
  back to a mark, so that "not found" proves "never signed".

Must not know keys, sockets or clocks: `now` is an argument, and monotonic time only measures.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self, TypeVar

from estd.errors import Broken, Code, Unavailable
from estd.signer.blocks import (
    BLOCK_OVERHEAD_BYTES,
    HEAD_COPY_BYTES,
    HEADER_BYTES,
    NO_HASH,
    Anchor,
    Block,
    BlockError,
    Entry,
    Head,
    Kind,
    Mark,
    Result,
    SegmentNote,
    read_block,
    read_entries,
    read_length,
    read_mark,
    read_results,
    write_anchor,
    write_block,
    write_entries,
    write_head,
    write_mark,
    write_note,
    write_results,
)
from estd.signer.index import DIGEST_BYTES, Index
from estd.signer.segments import Files, Segment, read_newest

SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""A segment that reaches this size is closed and the next one begun."""
INDEX_ENTRIES: Final = 120_000
"""How many of the most recent entries `Journal.find` knows at least (at most twice as many)."""
BLOCK_ENTRIES: Final = 64
"""How many entries or results share a block."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the journal holds of one serial."""

    entry: Entry
    certificate: bytes | None
    """Only where a `Result` was recorded."""


@dataclass(slots=True)
class Counters:
    """What the journal did since it was opened."""

    blocks: int = 0
    entries: int = 0
    written_bytes: int = 0
    flushes: int = 0
    flush_seconds: float = 0.0
    cut_bytes: int = 0
    """Length of the interrupted write that was cut off on opening."""


class Journal:
    """The journal of one slot, open for appending. Use `Journal.open`."""

    def __init__(
        self, files: Files, head: Head, lock: int, segment_bytes: int, index_entries: int, step_bytes: int
    ) -> None:
        self._files = files
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._step_bytes = step_bytes
        self._index = Index(index_entries)
        self._name = head.journal
        self._head_fd = os.open(files.head, os.O_RDWR | os.O_CLOEXEC)
        self._fd = -1
        self._segment = 0
        self._end = 0
        self._first_end = 0
        self._allocated = 0
        self._sequence = 0
        self._digest = NO_HASH
        self._durable = Head(head.journal, 0, NO_HASH)
        self._time = 0
        self._failed = False
        self._mark = ""
        self._head_at = 0
        self.counters = Counters()

    @classmethod
    def open(
        cls,
        directory: Path,
        slot: int,
        now: datetime,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        index_entries: int = INDEX_ENTRIES,
        step_bytes: int = 4 * 1024 * 1024,
    ) -> Self:
        """Take the journal of a slot over, or begin it; `step_bytes` is how much disk space is set aside at a time.

        Raises:
            Invalid: it is damaged, incomplete, somebody else's, or held by another signer.
            Unavailable: there is no room for its first block.
        """
        files = Files(directory, slot)
        lock = files.take()
        journal: Self | None = None
        try:
            head, numbers = files.survey()
            if head is None:
                head = Head(f"{slot}-{secrets.token_hex(8)}", 0, NO_HASH)
                files.begin(head)
            segments = read_newest(files, head, numbers, index_entries)
            journal = cls(files, head, lock, segment_bytes, index_entries, step_bytes)
            journal._recover(head, segments, now)
            # Random, so that two copies of one journal part ways at once, and their marks with them.
            journal._append([(Kind.OPENED, secrets.token_bytes(16))], now)
            journal._flush()
        except BaseException as fault:
            if journal is None:
                os.close(lock)
            else:
                journal._release()
            if isinstance(fault, OSError) and fault.errno in _FULL:
                raise _no_room(fault) from fault
            raise
        return journal

    @property
    def name(self) -> str:
        """Names this journal among all journals that ever were: ``<slot>-<16 hexadecimal digits>``."""
        return self._name

    @property
    def mark(self) -> str:
        """How far the journal is durable, to be stored with every intent prepared from now on."""
        return self._mark

    @property
    def last_time(self) -> int:
        """The newest time at which entries were recorded, in seconds since 1970.

        Blocks of other kinds do not count: a signer that was only started while the clock was wrong issued nothing.
        """
        return self._time

    @property
    def failed(self) -> bool:
        """Whether a write or flush failed, so that only opening it again can tell what it holds."""
        return self._failed

    def record_entries(self, entries: Sequence[Entry], now: datetime) -> None:
        """Record, durably, that these are about to be signed.

        Raises:
            Unavailable: there is no room; nothing was recorded.
            Broken: a serial was recorded before, or the journal failed.
        """
        serials = {(entry.issuer_id, entry.serial) for entry in entries}
        if len(serials) < len(entries) or any(self._find_entry(*one) is not None for one in serials):
            raise Broken("a serial was about to be journaled twice")
        bodies = [
            (Kind.ENTRIES, write_entries(entries[at : at + BLOCK_ENTRIES]))
            for at in range(0, len(entries), BLOCK_ENTRIES)
        ]
        first = self._append(bodies, now)
        self._flush()
        self._time = max(self._time, _read_seconds(now))
        for at, entry in enumerate(entries):
            self._index.add_entry(entry.issuer_id, entry.serial, first + at // BLOCK_ENTRIES)
        self.counters.entries += len(entries)

    def set_aside(self, octets: int) -> None:
        """Make sure that so many octets of entries find room, before anything is promised that needs it.

        Raises:
            Unavailable: they do not; the journal is as it was.
            Broken: the journal failed.
        """
        self._check_alive()
        self._make_room(octets + BLOCK_OVERHEAD_BYTES)

    def record_results(self, results: Sequence[Result], now: datetime) -> None:
        """Record certificates that could not be made again. Survives the process; the disk has it after the next flush.

        Raises:
            Unavailable: there is no room; nothing was recorded.
            Broken: the journal failed.
        """
        bodies = [
            (Kind.RESULTS, write_results(results[at : at + BLOCK_ENTRIES]))
            for at in range(0, len(results), BLOCK_ENTRIES)
        ]
        first = self._append(bodies, now)
        for at, result in enumerate(results):
            self._index.add_result(result.issuer_id, result.serial, first + at // BLOCK_ENTRIES)

    def record_anchor(self, anchor: Anchor, now: datetime) -> None:
        """Record how far the audit trail had come. Survives the process; the disk has it after the next flush.

        Raises:
            Unavailable: there is no room; nothing was recorded.
            Broken: the journal failed.
        """
        self._append([(Kind.ANCHOR, write_anchor(anchor))], now)

    def flush(self) -> None:
        """Make results durable that no entry behind them has made durable yet.

        Raises:
            Broken: the journal failed.
        """
        if not self._failed and self._durable.sequence != self._sequence:
            self._flush()

    def find(self, issuer_id: int, serial: bytes) -> Found | None:
        """What the journal holds of a serial, if it is among the most recent.

        Raises:
            Broken: the journal failed, or what was written is not there any more.
        """
        self._check_alive()
        entry = self._find_entry(issuer_id, serial)
        if entry is None:
            return None
        for sequence in self._index.find_result(issuer_id, serial):
            result = _pick(read_results(self._read(sequence)), issuer_id, serial)
            if result is not None:
                return Found(entry, result.certificate)
        return Found(entry, None)

    def newest(self) -> list[tuple[int, bytes]]:
        """Issuer and serial of the newest entries, newest first, `estd.signer.index.NEWEST_ENTRIES` of them at most."""
        return list(reversed(self._index.newest))

    def covers(self, mark: str) -> bool:
        """Whether everything recorded since that mark is known here, so that what `find` misses was never recorded.

        False for the mark of another journal, for one older than what `find` knows, and for one this journal never
        gave or gave before it was set back to an older state.
        """
        self._check_alive()
        read = read_mark(mark)
        return read is not None and read.journal == self._name and self._index.holds(read.sequence, read.digest)

    def close(self, now: datetime) -> None:
        """End in order: the last block says so and the space set aside is given back."""
        try:
            if not self._failed:
                try:
                    self._append([(Kind.CLOSED, b"")], now, is_last=True)
                except Unavailable:
                    pass  # its absence only says that the end was not in order, which is so
                self._flush()
                os.ftruncate(self._fd, self._end)
                os.fsync(self._fd)
                os.fsync(self._head_fd)
        finally:
            self._release()

    # --- private -----------------------------------------------------------------------------------------------------

    def _append(self, bodies: Sequence[tuple[Kind, bytes]], now: datetime, *, is_last: bool = False) -> int:
        """Write blocks without flushing them; the first one's sequence. Space for CLOSED is kept behind them."""
        self._check_alive()
        needed = sum(len(body) + BLOCK_OVERHEAD_BYTES for _, body in bodies)
        if not is_last:
            needed += BLOCK_OVERHEAD_BYTES
            if self._end + needed > self._segment_bytes and self._end > self._first_end:
                self._rotate(now)
        self._make_room(needed)
        time_ = _read_seconds(now)
        sequence, digest = self._sequence, self._digest
        blocks: list[bytes] = []
        at = self._end
        places: list[tuple[int, bytes]] = []
        for kind, body in bodies:
            block, digest = write_block(kind, sequence + 1, self._durable.sequence, time_, digest, body)
            sequence += 1
            blocks.append(block)
            places.append((at, digest))
            at += len(block)
        self._write(b"".join(blocks))
        first = self._sequence + 1
        for offset, hash_ in places:
            self._index.add_block(self._segment, offset, hash_)
        self._sequence, self._digest, self._end = sequence, digest, at
        self.counters.blocks += len(blocks)
        return first

    def _write(self, octets: bytes) -> None:
        # Whatever goes wrong here leaves the file in a state nobody can know: see `failed`.
        try:
            written = os.pwrite(self._fd, octets, self._end)
        except OSError as error:
            raise self._fail("written", error) from error
        if written != len(octets):
            self._failed = True
            raise Broken(f"only {written} of {len(octets)} octets of the journal were written")
        self.counters.written_bytes += written

    def _flush(self) -> None:
        started = time.perf_counter()
        try:
            os.fdatasync(self._fd)
            self._durable = Head(self._name, self._sequence, self._digest)
            # Not flushed: after a power cut the head may be older than the journal, never newer.
            os.pwrite(self._head_fd, write_head(self._durable), self._head_at)
            self._head_at ^= HEAD_COPY_BYTES
        except OSError as error:
            raise self._fail("flushed", error) from error
        self._mark = write_mark(Mark(self._name, self._sequence, self._digest[:DIGEST_BYTES]))
        self.counters.flushes += 1
        self.counters.flush_seconds += time.perf_counter() - started

    def _make_room(self, needed: int) -> None:
        """Set disk space aside, generously if there is plenty, so that no write can meet a full disk."""
        missing = self._end + needed - self._allocated
        if missing <= 0:
            return
        # Not beyond the segment's end, unless one large block needs it.
        generous = min(self._step_bytes, max(0, self._segment_bytes - self._allocated))
        if self._allocate(max(generous, missing)) is None:
            return
        fault = self._allocate(missing)
        if fault is not None:
            raise _no_room(fault) from fault

    def _allocate(self, wanted: int) -> OSError | None:
        """Set that much more aside; why it could not be, if it could not."""
        try:
            os.posix_fallocate(self._fd, self._allocated, wanted)
        except OSError as fault:
            try:
                # A file that grew before the disk was full is cut back.
                os.ftruncate(self._fd, self._allocated)
            except OSError as error:
                raise self._fail("cut back", error) from error
            return fault
        self._allocated += wanted
        return None

    def _rotate(self, now: datetime) -> None:
        """Begin the next segment. The old one is whole on the disk before the new one exists."""
        try:
            os.ftruncate(self._fd, self._end)
            self._allocated = self._end
            os.fsync(self._fd)
            self.flush()
            os.fsync(self._head_fd)
        except OSError as error:
            raise self._fail("flushed", error) from error
        self._begin_segment(self._segment + 1, now)

    def _begin_segment(self, number: int, now: datetime) -> None:
        path = self._files.segment(number)
        note = write_note(SegmentNote(self._name, number))
        block, digest = write_block(
            Kind.SEGMENT, self._sequence + 1, self._durable.sequence, _read_seconds(now), self._digest, note
        )
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(fd, 0, len(block) + BLOCK_OVERHEAD_BYTES)
            os.pwrite(fd, block, 0)
            os.fsync(fd)
            self._files.flush_directory()
        except OSError as error:
            if fd != -1:
                os.close(fd)
                path.unlink()
            if error.errno in _FULL:
                raise _no_room(error) from error
            raise self._fail("continued in a new segment", error) from error
        if self._fd != -1:
            os.close(self._fd)
        self._fd, self._segment = fd, number
        self._sequence, self._digest = self._sequence + 1, digest
        self._end = self._first_end = len(block)
        self._allocated = len(block) + BLOCK_OVERHEAD_BYTES
        self._index.add_block(number, 0, digest)
        self.counters.blocks += 1

    def _find_entry(self, issuer_id: int, serial: bytes) -> Entry | None:
        for sequence in self._index.find_entry(issuer_id, serial):
            entry = _pick(read_entries(self._read(sequence)), issuer_id, serial)
            if entry is not None:
                return entry
        return None

    def _read(self, sequence: int) -> Block:
        segment, offset, digest = self._index.place(sequence)
        try:
            if segment == self._segment:
                block = _read_at(self._fd, offset)
            else:
                fd = os.open(self._files.segment(segment), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    block = _read_at(fd, offset)
                finally:
                    os.close(fd)
        except (OSError, BlockError) as error:
            raise Broken(f"block {sequence} of journal {self._name} cannot be read any more: {error}") from error
        if block.digest[:DIGEST_BYTES] != digest:
            raise Broken(f"block {sequence} of journal {self._name} is not what was written")
        return block

    def _recover(self, head: Head, segments: Sequence[Segment], now: datetime) -> None:
        """Continue where the newest segments end; what an interrupted write left is cut off here and nowhere else."""
        self._durable = head
        self.counters.cut_bytes = sum(segment.torn_bytes for segment in segments)
        for segment in segments:
            for scanned in segment.blocks:
                self._index.follow(segment.number, scanned)
        if segments and not segments[-1].blocks:
            # Interrupted while this segment was begun: as if it never was.
            self._files.segment(segments[-1].number).unlink()
            self._files.flush_directory()
            segments = segments[:-1]
        if segments:
            self._time = max(
                (
                    scanned.block.time
                    for segment in segments
                    for scanned in segment.blocks
                    if scanned.block.kind is Kind.ENTRIES
                ),
                default=0,
            )
            self._take_over(segments[-1], head)
        else:
            self._begin_segment(1, now)

    def _take_over(self, segment: Segment, head: Head) -> None:
        """Open the last segment for appending; make durable whatever the head does not vouch for."""
        blocks = [scanned.block for scanned in segment.blocks]
        self._segment = segment.number
        self._sequence, self._digest, self._end = blocks[-1].sequence, blocks[-1].digest, blocks[-1].end
        self._first_end = blocks[0].end
        self._fd = os.open(self._files.segment(segment.number), os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._fd, self._end)
        self._allocated = self._end
        unsure = next((block.offset for block in blocks if block.sequence > head.sequence), None)
        if unsure is not None:
            # Written anew, because after a failed flush the kernel may hold octets that it will never write.
            os.pwrite(self._fd, os.pread(self._fd, self._end - unsure, unsure), unsure)
        os.fsync(self._fd)

    def _fail(self, what: str, error: OSError) -> Broken:
        self._failed = True
        return Broken(f"the journal could not be {what}: {error.strerror}")

    def _check_alive(self) -> None:
        if self._failed:
            raise Broken("the journal failed and must be opened again")

    def _release(self) -> None:
        for fd in (self._fd, self._head_fd, self._lock):
            if fd != -1:
                os.close(fd)
        self._fd = self._head_fd = self._lock = -1
        self._failed = True


_Item = TypeVar("_Item", Entry, Result)

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _pick(items: Sequence[_Item], issuer_id: int, serial: bytes) -> _Item | None:
    return next((item for item in items if item.serial == serial and item.issuer_id == issuer_id), None)


def _read_at(fd: int, offset: int) -> Block:
    length = read_length(os.pread(fd, HEADER_BYTES, offset))
    return read_block(os.pread(fd, length, offset), 0)


def _read_seconds(now: datetime) -> int:
    return max(0, int(now.timestamp()))


def _no_room(fault: OSError) -> Unavailable:
    return Unavailable(Code.SIGNER_UNAVAILABLE, f"the signer's journal has no room: {fault.strerror}", 30)
