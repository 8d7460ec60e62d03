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

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self, TypeVar

from estd.errors import Broken, Unavailable
from estd.signer.blocks import (
    BLOCK_OVERHEAD_BYTES,
    HEAD_COPY_BYTES,
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
    read_entries,
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
from estd.signer.segments import Files, Segment, check_marks, read_newest
from estd.signer.tail import Tail, is_full, no_room

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
        self._sizes = (segment_bytes, step_bytes)
        self._index = Index(index_entries)
        self._name = head.journal
        self._head_fd = os.open(files.head, os.O_RDWR | os.O_CLOEXEC)
        self._tail: Tail | None = None  # until it is found or begun, and once it is let go
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
        marks: Sequence[str] = (),
    ) -> Self:
        """Take the journal of a slot over, or begin it; `step_bytes` is how much disk space is set aside at a time, `marks`
        what a database kept of it (those of other journals are passed over).

        Raises:
            Invalid: it is damaged, incomplete, somebody else's, held by another signer, or does not bear a mark out.
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
            check_marks(files, head.journal, segments, marks)
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
            if isinstance(fault, OSError) and is_full(fault):
                raise no_room(fault) from fault
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
        may_hold = self._index.may_hold
        if len(serials) < len(entries) or any(may_hold(*one) and self._find_entry(*one) for one in serials):
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
        self._make_room(self._alive(), octets + BLOCK_OVERHEAD_BYTES)

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
        self._alive()
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
        self._alive()
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
                self._alive().finish()
                os.fsync(self._head_fd)
        finally:
            self._release()

    # --- private -----------------------------------------------------------------------------------------------------

    def _append(self, bodies: Sequence[tuple[Kind, bytes]], now: datetime, *, is_last: bool = False) -> int:
        """Write blocks without flushing them; the first one's sequence. Space for CLOSED is kept behind them."""
        tail = self._alive()
        needed = sum(len(body) + BLOCK_OVERHEAD_BYTES for _, body in bodies)
        if not is_last:
            needed += BLOCK_OVERHEAD_BYTES
            if tail.is_full_with(needed):
                tail = self._rotate(tail, now)
        self._make_room(tail, needed)
        time_ = _read_seconds(now)
        sequence, digest, at = self._sequence, self._digest, tail.end
        blocks: list[bytes] = []
        places: list[tuple[int, bytes]] = []
        for kind, body in bodies:
            block, digest = write_block(kind, sequence + 1, self._durable.sequence, time_, digest, body)
            sequence += 1
            blocks.append(block)
            places.append((at, digest))
            at += len(block)
        self._write(tail, b"".join(blocks))
        first = self._sequence + 1
        for offset, hash_ in places:
            self._index.add_block(tail.number, offset, hash_)
        self._sequence, self._digest = sequence, digest
        self.counters.blocks += len(blocks)
        return first

    def _write(self, tail: Tail, octets: bytes) -> None:
        try:
            tail.append(octets)
        except OSError as error:
            raise self._fail("written", error) from error
        self.counters.written_bytes += len(octets)

    def _make_room(self, tail: Tail, octets: int) -> None:
        try:
            tail.make_room(octets)
        except OSError as error:
            raise self._fail("cut back", error) from error

    def _flush(self) -> None:
        started = time.perf_counter()
        try:
            self._alive().flush()
            self._durable = Head(self._name, self._sequence, self._digest)
            # Not flushed: after a power cut the head may be older than the journal, never newer.
            os.pwrite(self._head_fd, write_head(self._durable), self._head_at)
            self._head_at ^= HEAD_COPY_BYTES
        except OSError as error:
            raise self._fail("flushed", error) from error
        self._mark = write_mark(Mark(self._name, self._sequence, self._digest[:DIGEST_BYTES]))
        self.counters.flushes += 1
        self.counters.flush_seconds += time.perf_counter() - started

    def _rotate(self, tail: Tail, now: datetime) -> Tail:
        """Begin the next segment. The old one is whole on the disk before the new one exists."""
        try:
            tail.finish()
            self.flush()
            os.fsync(self._head_fd)
        except OSError as error:
            raise self._fail("flushed", error) from error
        return self._begin_segment(tail.number + 1, now)

    def _begin_segment(self, number: int, now: datetime) -> Tail:
        note = write_note(SegmentNote(self._name, number))
        block, digest = write_block(
            Kind.SEGMENT, self._sequence + 1, self._durable.sequence, _read_seconds(now), self._digest, note
        )
        try:
            tail = Tail.create(self._files, number, block, BLOCK_OVERHEAD_BYTES, self._sizes)
        except OSError as error:
            raise self._fail("continued in a new segment", error) from error
        if self._tail is not None:
            self._tail.close()
        self._tail = tail
        self._sequence, self._digest = self._sequence + 1, digest
        self._index.add_block(number, 0, digest)
        self.counters.blocks += 1
        return tail

    def _find_entry(self, issuer_id: int, serial: bytes) -> Entry | None:
        for sequence in self._index.find_entry(issuer_id, serial):
            entry = _pick(read_entries(self._read(sequence)), issuer_id, serial)
            if entry is not None:
                return entry
        return None

    def _read(self, sequence: int) -> Block:
        segment, offset, digest = self._index.place(sequence)
        try:
            block = self._alive().read(segment, offset)
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
            last = segments[-1]
            blocks = [scanned.block for scanned in last.blocks]
            self._tail = Tail.take_over(self._files, last.number, blocks, head.sequence, self._sizes)
            self._sequence, self._digest = blocks[-1].sequence, blocks[-1].digest
        else:
            self._begin_segment(1, now)

    def _fail(self, what: str, error: OSError) -> Broken:
        self._failed = True
        return Broken(f"the journal could not be {what}: {error.strerror}")

    def _alive(self) -> Tail:
        if self._failed or self._tail is None:
            raise Broken("the journal failed and must be opened again")
        return self._tail

    def _release(self) -> None:
        if self._tail is not None:
            self._tail.close()
            self._tail = None
        for fd in (self._head_fd, self._lock):
            if fd != -1:
                os.close(fd)
        self._head_fd = self._lock = -1
        self._failed = True


_Item = TypeVar("_Item", Entry, Result)


def _pick(items: Sequence[_Item], issuer_id: int, serial: bytes) -> _Item | None:
    return next((item for item in items if item.serial == serial and item.issuer_id == issuer_id), None)


def _read_seconds(now: datetime) -> int:
    return max(0, int(now.timestamp()))
