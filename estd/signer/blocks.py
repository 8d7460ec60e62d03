"""The octets of a signer's journal: blocks chained by SHA-256, the head that says how far it was durable, and marks.

A journal is a sequence of *blocks*, numbered from 1 without gaps across all its segments::

    "ESJ1" | kind 1 | zero 3 | body length 4 | sequence 8 | durable 8 | time 8 | previous 32 | body | hash 32

All numbers are big-endian. `hash` is SHA-256 over everything before it in the block and `previous` is the hash of the
block before, so no block can be changed, removed, added or moved without breaking the chain from there on. `durable` is
the last sequence known to be on stable storage when the block was written: a later block thereby testifies that an
earlier one was once complete, and a torn end can be told from damage. `time` is in seconds since 1970. A body is
MessagePack; what it holds depends on the kind.

The *head* is the one place that is written over: two copies of (sequence, hash, journal), written in turn after each
flush, so that a journal that lost its end does not look whole. A *mark* is the same as text; workers store it with each
intent, outside the signer's reach, and so testify later how far the journal had come.

Pure: bytes in, values out. Must not do I/O.
"""

from __future__ import annotations

import enum
import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

BLOCK_MAX_BYTES: Final = 32 * 1024 * 1024
"""No block is longer; a longer one is damage."""
BLOCK_OVERHEAD_BYTES: Final = 100
"""What a block adds to its body."""
HEAD_COPY_BYTES: Final = 512
"""The head file holds two copies, each in a sector of its own."""
_HEADER: Final = struct.Struct(">4sBxxxIQQQ32s")
HEADER_BYTES: Final = _HEADER.size
"""What precedes a block's body."""
NO_HASH: Final = bytes(32)
"""`previous` of the first block."""


class Kind(enum.IntEnum):
    """What a block's body holds."""

    SEGMENT = 1
    """`SegmentNote`; the first block of every segment and nowhere else."""
    OPENED = 2
    """Random octets: a signer took the journal over."""
    ENTRIES = 3
    """`Entry` each: flushed before any of them is signed."""
    RESULTS = 4
    """`Result` each: written after signing with a key that would not sign the same bytes again."""
    CLOSED = 5
    """Nothing; the signer ended in order."""
    ANCHOR = 6
    """`Anchor`: how far the audit trail in the database had come."""


class SegmentNote(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Which journal a segment belongs to."""

    journal: str
    number: int


class Entry(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One certificate about to be signed."""

    issuer_id: int
    serial: bytes
    request_key: bytes
    tbs: bytes
    """The exact to-be-signed bytes."""
    note: bytes = b""
    """What the registration authority wants to find again should the database be set back; means nothing here."""


class Anchor(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A link of the audit trail's chain, kept where the database's owner cannot change it."""

    link_id: int
    digest: bytes


class Result(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One certificate that was signed, DER."""

    issuer_id: int
    serial: bytes
    certificate: bytes


class EntryKey(Struct, array_like=True, frozen=True):
    """The beginning of an `Entry` or a `Result`: all that an index needs."""

    issuer_id: int
    serial: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """One block as read; `offset` and `end` are where it stands in its segment."""

    kind: Kind
    sequence: int
    durable: int
    time: int
    previous: bytes
    body: bytes
    digest: bytes
    offset: int
    end: int

    @property
    def at(self) -> datetime:
        """When it was written, aware UTC."""
        return datetime.fromtimestamp(self.time, UTC)


class BlockError(Exception):
    """No intact block stands at this offset, or not the one that must follow."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"at octet {offset}: {what}")
        self.offset = offset
        self.what = what


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a journal had come: it held `sequence` blocks on stable storage, and the last one's hash began so."""

    journal: str
    sequence: int
    digest: bytes
    """The first eight octets of the hash."""


@dataclass(frozen=True, slots=True)
class Head:
    """The journal's end as last flushed."""

    journal: str
    sequence: int
    digest: bytes


def write_block(
    kind: Kind, sequence: int, durable: int, time: int, previous: bytes, body: bytes
) -> tuple[bytes, bytes]:
    """One block, and its hash."""
    head = _HEADER.pack(_MAGIC, kind, len(body), sequence, durable, time, previous) + body
    digest = hashlib.sha256(head).digest()
    return head + digest, digest


def read_block(content: bytes | memoryview, offset: int) -> Block:
    """The block at this offset, checked against its own hash; whether it belongs there is `read_chain`'s affair.

    Raises:
        BlockError: there is none.
    """
    body_at = offset + HEADER_BYTES
    if len(content) < body_at:
        raise BlockError(offset, "the block's header is incomplete")
    magic, kind, length, sequence, durable, time, previous = _HEADER.unpack_from(content, offset)
    if magic != _MAGIC or kind not in _KINDS:
        raise BlockError(offset, "no block begins here")
    hash_at = body_at + length
    end = hash_at + _HASH_BYTES
    if length > BLOCK_MAX_BYTES or len(content) < end:
        raise BlockError(offset, "the block is incomplete")
    digest = bytes(content[hash_at:end])
    if hashlib.sha256(content[offset:hash_at]).digest() != digest:
        raise BlockError(offset, "the block does not match its hash")
    body = bytes(content[body_at:hash_at])
    return Block(_KINDS[kind], sequence, durable, time, previous, body, digest, offset, end)


def read_length(header: bytes) -> int:
    """How long the block is in all whose first `HEADER_BYTES` these are.

    Raises:
        BlockError: they are not the beginning of a block.
    """
    if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
        raise BlockError(0, "no block begins here")
    length: int = _HEADER.unpack_from(header)[2]
    if length > BLOCK_MAX_BYTES:
        raise BlockError(0, "the block is longer than any block")
    return HEADER_BYTES + length + _HASH_BYTES


def read_chain(content: bytes, sequence: int | None, previous: bytes | None) -> Iterator[Block]:
    """The blocks of one segment, in order, until its end or the zeros that were set aside beyond it.

    `sequence` and `previous` are those of the block before the segment; None takes the first block's word for it.

    Raises:
        BlockError: where the chain breaks; what was yielded before stands.
    """
    view = memoryview(content)
    offset = 0
    while offset < len(content):
        try:
            block = read_block(view, offset)
        except BlockError:
            if content.count(0, offset) == len(content) - offset:
                return
            raise
        if sequence is not None and block.sequence != sequence + 1:
            raise BlockError(offset, f"block {block.sequence} stands where block {sequence + 1} belongs")
        if previous is not None and block.previous != previous:
            raise BlockError(offset, f"block {block.sequence} does not continue the block before it")
        if (block.kind is Kind.SEGMENT) != (offset == 0):
            raise BlockError(offset, "a segment begins with the note of its journal, and has no other")
        sequence, previous, offset = block.sequence, block.digest, block.end
        yield block


def decide_torn(content: bytes, offset: int, sequence: int) -> bool:
    """Whether damage at this offset, where block `sequence` was to stand, can be the end of an interrupted write.

    It cannot when any intact block behind it says that this block was once on stable storage.
    """
    at = offset
    while (at := content.find(_MAGIC, at + 1)) != -1:
        try:
            block = read_block(memoryview(content), at)
        except BlockError:
            continue
        if block.durable >= sequence:
            return False
    return True


def write_entries(entries: Sequence[Entry]) -> bytes:
    """The body of an ENTRIES block."""
    return _ENCODER.encode(entries)


def write_results(results: Sequence[Result]) -> bytes:
    """The body of a RESULTS block."""
    return _ENCODER.encode(results)


def write_anchor(anchor: Anchor) -> bytes:
    """The body of an ANCHOR block."""
    return _ENCODER.encode(anchor)


def write_note(note: SegmentNote) -> bytes:
    """The body of a SEGMENT block."""
    return _ENCODER.encode(note)


def read_entries(block: Block) -> list[Entry]:
    """The entries of an ENTRIES block; none of any other."""
    return _decode(block, _ENTRIES) if block.kind is Kind.ENTRIES else []


def read_results(block: Block) -> list[Result]:
    """The results of a RESULTS block; none of any other."""
    return _decode(block, _RESULTS) if block.kind is Kind.RESULTS else []


def read_keys(block: Block) -> list[EntryKey]:
    """Issuer and serial of each entry or result."""
    return _decode(block, _KEYS) if block.kind in (Kind.ENTRIES, Kind.RESULTS) else []


def read_anchor(block: Block) -> Anchor | None:
    """What an ANCHOR block holds; None of any other."""
    return _decode(block, _ANCHOR) if block.kind is Kind.ANCHOR else None


def read_note(block: Block) -> SegmentNote:
    """What a SEGMENT block says."""
    return _decode(block, _NOTE)


def write_head(head: Head) -> bytes:
    """One copy of the head, as long as a sector."""
    body = _ENCODER.encode((head.journal, head.sequence, head.digest))
    return (_HEAD_MAGIC + bytes([len(body)]) + body + hashlib.sha256(body).digest()).ljust(HEAD_COPY_BYTES, b"\0")


def read_head(content: bytes) -> Head | None:
    """The newer of the intact copies; None when there is none."""
    copies = [_read_head_copy(content[at : at + HEAD_COPY_BYTES]) for at in (0, HEAD_COPY_BYTES)]
    return max((copy for copy in copies if copy is not None), key=lambda head: head.sequence, default=None)


def write_mark(mark: Mark) -> str:
    """A mark as text, at most 60 characters: ``<journal>.<sequence>.<hash>``."""
    return f"{mark.journal}.{mark.sequence}.{mark.digest.hex()}"


def read_mark(text: str) -> Mark | None:
    """A mark from its text; None when the text is not one."""
    match = _MARK.fullmatch(text)
    if match is None:
        return None
    return Mark(match["journal"], int(match["sequence"]), bytes.fromhex(match["digest"]))


def journal_of(mark: str) -> str:
    """The name of the journal a mark belongs to, without looking further at it."""
    return mark.partition(".")[0]


_Body = TypeVar("_Body")

_MAGIC: Final = b"ESJ1"
_HEAD_MAGIC: Final = b"ESJH"
_HASH_BYTES: Final = 32
_KINDS: Final = {kind.value: kind for kind in Kind}
_MARK: Final = re.compile(r"(?P<journal>[0-9]{1,4}-[0-9a-f]{16})\.(?P<sequence>[0-9]{1,18})\.(?P<digest>[0-9a-f]{16})")

_ENCODER: Final = msgspec.msgpack.Encoder()
_ENTRIES: Final = msgspec.msgpack.Decoder(list[Entry])
_RESULTS: Final = msgspec.msgpack.Decoder(list[Result])
_KEYS: Final = msgspec.msgpack.Decoder(list[EntryKey])
_ANCHOR: Final = msgspec.msgpack.Decoder(Anchor)
_NOTE: Final = msgspec.msgpack.Decoder(SegmentNote)
_HEAD: Final = msgspec.msgpack.Decoder(tuple[str, int, bytes])


def _decode(block: Block, decoder: msgspec.msgpack.Decoder[_Body]) -> _Body:
    try:
        return decoder.decode(block.body)
    except msgspec.DecodeError as error:
        raise BlockError(block.offset, f"the body of block {block.sequence} cannot be read: {error}") from None


def _read_head_copy(copy: bytes) -> Head | None:
    if len(copy) < HEAD_COPY_BYTES or not copy.startswith(_HEAD_MAGIC):
        return None
    body_at = len(_HEAD_MAGIC) + 1
    body = copy[body_at : body_at + copy[len(_HEAD_MAGIC)]]
    if copy[body_at + len(body) :][:_HASH_BYTES] != hashlib.sha256(body).digest():
        return None
    try:
        return Head(*_HEAD.decode(body))
    except msgspec.DecodeError:
        return None
