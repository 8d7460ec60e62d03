"""Reads a signer's journal as docs/signer.md describes it, trusting nothing and sharing no code with what wrote it.

One block is held at a time. A fault is told with its file and octet; reading then stops for that journal, because what
stands behind a broken link of a chain proves nothing. May read while a signer writes: the head is read first, and whatever
is written after that only makes the journal longer.
"""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec


class JournalFault(Exception):
    """The journal is not as it was written; `where` is file and octet."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        super().__init__(f"{path}:{offset}: {what}")
        self.where = f"{path}:{offset}"
        self.what = what


@dataclass(frozen=True, slots=True)
class JournalBlock:
    """One block that stands where it belongs."""

    kind: int
    sequence: int
    time: int
    digest: bytes
    items: list[Any]
    """The body's list; empty for kinds without one."""
    path: Path
    offset: int

    @property
    def where(self) -> str:
        """File and octet."""
        return f"{self.path}:{self.offset}"


@dataclass(slots=True)
class JournalReader:
    """One journal: a slot of one directory. `blocks` reads it once, from its oldest segment to its end."""

    directory: Path
    slot: int
    name: str = ""
    """Known once the first block was read."""
    first: int = 0
    """Sequence of the oldest block."""
    last: int = 0
    before_first: bytes = bytes(32)
    """Hash of the block before the oldest one, as that one says."""
    is_open: bool = True
    """Whether a signer may still be writing: it has not ended in order."""
    torn_bytes: int = 0
    """What an interrupted write left behind the last block, or one that is going on."""
    end: int = 0
    """Where the last block of the segment in hand ends."""
    size: int = 0
    """How long that segment is."""

    def blocks(self) -> Iterator[JournalBlock]:
        """Every block, each checked before it is given.

        Raises:
            JournalFault: where the journal stops being what was written; what was given before stands.
        """
        copies = self._read_head()
        unproved = {sequence: digest for _, sequence, digest in copies if sequence}
        journal, flushed, _ = max(copies, key=lambda copy: copy[1])
        numbers = self._find_segments()
        digest: bytes | None = bytes(32) if numbers[0] == 1 else None
        path = self._head_path
        for number in numbers:
            path = self.directory / f"journal-{self.slot}-{number:04d}.log"
            content = self._read(path)
            for block, previous, note in self._read_segment(path, content, number == numbers[-1], flushed):
                if not self.first:
                    self.first, self.last, self.before_first = block.sequence, block.sequence - 1, previous
                    if number == 1 and block.sequence != 1:
                        raise JournalFault(path, block.offset, "the first segment does not begin with block 1")
                    digest = previous if digest is None else digest
                    self._prove(unproved, block.sequence - 1, previous)
                if block.sequence != self.last + 1:
                    what = f"block {block.sequence} stands where block {self.last + 1} belongs"
                    raise JournalFault(path, block.offset, what)
                if previous != digest:
                    raise JournalFault(path, block.offset, "the block does not continue the one before it")
                if note is not None and note != [journal, number]:
                    raise JournalFault(path, block.offset, f"this is not segment {number} of journal {journal}")
                self.last, digest, self.name = block.sequence, block.digest, journal
                self.is_open = block.kind != _CLOSED
                self._prove(unproved, block.sequence, block.digest)
                yield block
        if not self.is_open and self.size > self.end:
            raise JournalFault(path, self.end, "something stands behind the block that closed the journal")
        if unproved:
            what = f"says that block {max(unproved)} was flushed, and the journal does not hold it so"
            raise JournalFault(self._head_path, 0, what)

    # --- private -----------------------------------------------------------------------------------------------------

    @property
    def _head_path(self) -> Path:
        return self.directory / f"journal-{self.slot}.head"

    def _prove(self, unproved: dict[int, bytes], sequence: int, digest: bytes) -> None:
        if unproved.get(sequence) == digest:
            del unproved[sequence]

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise JournalFault(path, 0, f"cannot be read: {error.strerror}") from None

    def _read_head(self) -> list[tuple[str, int, bytes]]:
        """Both copies of the head: journal, how many blocks were flushed, hash of the last of them."""
        content = self._read(self._head_path)
        if len(content) != 2 * _HEAD_COPY:
            raise JournalFault(self._head_path, 0, f"has {len(content)} octets instead of {2 * _HEAD_COPY}")
        copies = []
        for at in (0, _HEAD_COPY):
            copy = content[at : at + _HEAD_COPY]
            end = 5 + copy[4]
            body = copy[5:end]
            whole = b"ESJH" + bytes([len(body)]) + body + hashlib.sha256(body).digest()
            if copy != whole.ljust(_HEAD_COPY, b"\0"):
                raise JournalFault(self._head_path, at, "this copy of the head is damaged")
            try:
                journal, sequence, digest = msgspec.msgpack.decode(body, type=tuple[str, int, bytes])
            except msgspec.MsgspecError:
                raise JournalFault(self._head_path, at, "this copy of the head cannot be read") from None
            copies.append((journal, sequence, digest))
        if copies[0][0] != copies[1][0]:
            raise JournalFault(self._head_path, 0, "its two copies are of two journals")
        return copies

    def _find_segments(self) -> list[int]:
        pattern = re.compile(rf"journal-{self.slot}-([0-9]{{4,}})\.log")
        names = (pattern.fullmatch(path.name) for path in self.directory.iterdir())
        numbers = sorted(int(match[1]) for match in names if match)
        if not numbers:
            raise JournalFault(self._head_path, 0, "there is a head, and no segment of its journal")
        for at, number in enumerate(numbers):
            if number != numbers[0] + at:
                missing = self.directory / f"journal-{self.slot}-{numbers[0] + at:04d}.log"
                raise JournalFault(missing, 0, "this segment is missing")
        return numbers

    def _read_segment(
        self, path: Path, content: bytes, is_last: bool, flushed: int
    ) -> Iterator[tuple[JournalBlock, bytes, list[Any] | None]]:
        """Each block with the hash that it says came before it, and what the first one says of its journal."""
        at, seen = 0, 0
        self.end, self.size = 0, len(content)
        while at < self.size:
            found = _read_block(content, at)
            if isinstance(found, str):
                if is_last and (seen or self.last) >= flushed and not _has_witness(content, at, seen + 1):
                    # Behind everything that was ever flushed: what is set aside, or an interrupted write.
                    self.torn_bytes = len(content[at:].rstrip(b"\0"))
                    return
                raise JournalFault(path, at, found)
            kind, sequence, time, previous, body, digest = found
            items = _read_list(body) if kind in _LISTS else []
            if items is None:
                raise JournalFault(path, at, "the block's body cannot be read")
            is_note = kind == _SEGMENT
            block = JournalBlock(kind, sequence, time, digest, [] if is_note else items, path, at)
            seen, at = sequence, at + _HEADER.size + len(body) + 32
            self.end = at
            yield block, previous, items if is_note else None


@dataclass(slots=True)
class KnownBlocks:
    """What is kept of a journal's blocks."""

    before: int
    """Sequence before the oldest one."""
    digests: array[int]
    """The beginning of the hash of that one, and of every one after it."""
    times: array[int]
    """Seconds since 1970, in the same places."""

    def find_time(self, sequence: int) -> int | None:
        """When a block was written; None where it is not known."""
        at = sequence - self.before
        return (self.times[at] or None) if 0 <= at < len(self.times) else None


def find_journals(directory: Path) -> list[JournalReader]:
    """Every journal whose head or segments lie in a directory.

    Raises:
        OSError: the directory cannot be read.
    """
    matches = (
        re.fullmatch(r"journal-([0-9]{1,4})(?:-[0-9]{4,}\.log|\.head)", path.name) for path in directory.iterdir()
    )
    return [JournalReader(directory, slot) for slot in sorted({int(match[1]) for match in matches if match})]


ENTRIES: Final = 3
"""Kind of a block that holds (issuer, serial, request key, to-be-signed bytes, note) for each certificate."""
RESULTS: Final = 4
"""Kind of a block that holds (issuer, serial, certificate) for each."""
ANCHORED: Final = 6
"""Kind of a block that holds a link of the audit trail: (link, digest)."""

_HEADER: Final = struct.Struct(">4sB3sIQQQ32s")
_HEAD_COPY: Final = 512
_SEGMENT: Final = 1
_CLOSED: Final = 5
_LISTS: Final = frozenset({_SEGMENT, ENTRIES, RESULTS, ANCHORED})


def _read_block(content: bytes, at: int) -> tuple[int, int, int, bytes, memoryview, bytes] | str:
    """Kind, sequence, time, hash of the block before, body and hash of the block at this place; or why there is none."""
    if len(content) - at < _HEADER.size + 32:
        return "the block is incomplete"
    magic, kind, zero, length, sequence, _, time, previous = _HEADER.unpack_from(content, at)
    if magic != b"ESJ1" or zero != bytes(3) or not _SEGMENT <= kind <= ANCHORED:
        return "no block begins here"
    end = at + _HEADER.size + length
    digest = content[end : end + 32]
    if len(digest) != 32:
        return "the block is incomplete"
    view = memoryview(content)
    if hashlib.sha256(view[at:end]).digest() != digest:
        return "the block does not match its hash"
    if (kind == _SEGMENT) != (at == 0):
        return "a segment begins with the note of its journal, and has no other"
    return kind, sequence, time, previous, view[at + _HEADER.size : end], digest


def _read_list(body: memoryview) -> list[Any] | None:
    try:
        items = msgspec.msgpack.decode(body)
    except msgspec.MsgspecError:
        return None
    return items if isinstance(items, list) else None


def _has_witness(content: bytes, at: int, sequence: int) -> bool:
    """Whether an intact block behind a fault says that the block missing there was once on the disk."""
    while (at := content.find(b"ESJ1", at + 1)) != -1:
        if not isinstance(_read_block(content, at), str) and _HEADER.unpack_from(content, at)[5] >= sequence:
            return True
    return False
