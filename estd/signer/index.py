"""Which block of a journal holds which serial, for the most recent entries, in memory that is set aside at once.

The index answers two questions. In which blocks may an entry or a result stand? And does the index reach back far enough
that what it does not know was never recorded (`Index.holds`)?

A serial is known by the 64 bits of its hash (`index_key`). Two that share them make a block more to look into, never a
wrong answer, since the block itself holds the whole serial. Sixteen octets a place and at most half of the places taken,
so about forty octets an entry, and no objects: a signer's memory is the same after the millionth certificate as after
the first. Must not do I/O.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Final

from estd.signer.blocks import Kind
from estd.signer.segments import Scanned

DIGEST_BYTES: Final = 8
"""How much of a block's hash is kept, here and in marks."""
NEWEST_ENTRIES: Final = 256
"""How many of the newest entries are known by their whole serial: more than can be on their way at once, so that what was
committed late is among them too."""


class Index:
    """Where the most recent entries and results stand.

    Two generations: when the newer one holds `entries` entries it becomes the older one, and what was older is
    forgotten together with its blocks. So nothing is ever removed one by one.
    """

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.newest: deque[tuple[int, bytes]] = deque(maxlen=NEWEST_ENTRIES)
        """Issuer and serial of the newest entries, newest last."""
        self._entries = (_Table(min(2 * entries, _SET_ASIDE)), _Table(min(2 * entries, _SET_ASIDE)))
        # Empty unless an issuer's key would not sign the same bytes again.
        self._results = (_Table(_SMALLEST), _Table(_SMALLEST))
        self._turned_at = 0
        """Sequence with which the newer generation begins."""
        self._first = 0
        """Sequence of the first block known; 0 before there is any."""
        self._before = 0
        """Beginning of the hash of the block before it."""
        self._places = array("Q")
        self._digests = array("Q")

    def follow(self, segment: int, scanned: Scanned) -> None:
        """Learn a block that was read."""
        block = scanned.block
        if self._first == 0:
            self._first = self._turned_at = block.sequence
            self._before = _digest_number(block.previous)
        self.add_block(segment, block.offset, block.digest)
        for item in scanned.keys:
            if block.kind is Kind.ENTRIES:
                self.add_entry(item.issuer_id, item.serial, block.sequence)
            else:
                self.add_result(item.issuer_id, item.serial, block.sequence)

    def add_block(self, segment: int, offset: int, digest: bytes) -> None:
        """Learn where the next block stands, before its entries are added."""
        if self._first == 0:
            self._first = self._turned_at = 1
        if self._entries[0].held >= self.entries:
            self._turn()
        self._places.append(segment << _OFFSET_BITS | offset)
        self._digests.append(_digest_number(digest))

    def add_entry(self, issuer_id: int, serial: bytes, sequence: int) -> None:
        """Learn in which block an entry stands."""
        self._entries[0].add(index_key(issuer_id, serial), sequence)
        self.newest.append((issuer_id, serial))

    def add_result(self, issuer_id: int, serial: bytes, sequence: int) -> None:
        """Learn in which block a result stands."""
        self._results[0].add(index_key(issuer_id, serial), sequence)

    def may_hold(self, issuer_id: int, serial: bytes) -> bool:
        """Whether `find_entry` names a block: "no" is certain, and cheaper."""
        key = index_key(issuer_id, serial)
        return self._entries[0].has(key) or self._entries[1].has(key)

    def find_entry(self, issuer_id: int, serial: bytes) -> list[int]:
        """The blocks the entry may stand in, newest first; it stands in no other."""
        return _find(self._entries, issuer_id, serial)

    def find_result(self, issuer_id: int, serial: bytes) -> list[int]:
        """The blocks the result may stand in, newest first; it stands in no other."""
        return _find(self._results, issuer_id, serial)

    def place(self, sequence: int) -> tuple[int, int, bytes]:
        """Segment and offset of a block that is known, and the beginning of its hash."""
        at = sequence - self._first
        place = self._places[at]
        return place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1), self._digests[at].to_bytes(DIGEST_BYTES, "big")

    def holds(self, sequence: int, digest: bytes) -> bool:
        """Whether every block after that one is known, and that one was as its hash begins."""
        at = sequence - self._first
        if at == -1:
            return self._before == _digest_number(digest)
        return 0 <= at < len(self._digests) and self._digests[at] == _digest_number(digest)

    def _turn(self) -> None:
        end = self._first + len(self._places)
        forget = self._turned_at - self._first
        if forget:
            self._before = self._digests[forget - 1]
            del self._places[:forget]
            del self._digests[:forget]
        self._first, self._turned_at = self._turned_at, end
        # The oldest tables are emptied and become the newest, so that there are never three of a kind.
        self._entries, self._results = self._entries[::-1], self._results[::-1]
        self._entries[0].clear()
        self._results[0].clear()


class _Table:
    """Keys and the sequence beside each, by open addressing; grows when half full."""

    __slots__ = ("_keys", "_mask", "_sequences", "held")

    def __init__(self, places: int) -> None:
        """At least so many places, rounded up to a power of two."""
        size = max(_SMALLEST, 1 << (places - 1).bit_length())
        self.held = 0
        self._mask = size - 1
        self._keys = array("Q", (0,)) * size
        """0 where a place is free."""
        self._sequences = array("Q", (0,)) * size

    def clear(self) -> None:
        """Forget everything and keep the memory."""
        for at in range(0, len(self._keys), _SMALLEST):
            self._keys[at : at + _SMALLEST] = _NOTHING
        self.held = 0

    def add(self, key: int, sequence: int) -> None:
        if 2 * self.held > self._mask:
            self._grow()
        keys, mask = self._keys, self._mask
        at = key & mask
        while keys[at]:
            at = (at + 1) & mask
        keys[at] = key
        self._sequences[at] = sequence
        self.held += 1

    def has(self, key: int) -> bool:
        keys, mask = self._keys, self._mask
        at = key & mask
        while keys[at]:
            if keys[at] == key:
                return True
            at = (at + 1) & mask
        return False

    def find(self, key: int) -> list[int]:
        keys, mask = self._keys, self._mask
        at = key & mask
        found: list[int] = []
        while keys[at]:
            if keys[at] == key:
                found.append(self._sequences[at])
            at = (at + 1) & mask
        return found

    def _grow(self) -> None:
        larger = _Table(2 * len(self._keys))
        for key, sequence in zip(self._keys, self._sequences, strict=True):
            if key:
                larger.add(key, sequence)
        self._keys, self._sequences, self._mask = larger._keys, larger._sequences, larger._mask


def index_key(issuer_id: int, serial: bytes) -> int:
    """Issuer and serial in 64 bits, never 0; means nothing in another process."""
    return hash((issuer_id, serial)) & _KEY_MASK or 1


_OFFSET_BITS: Final = 40
_KEY_MASK: Final = (1 << 64) - 1
_SMALLEST: Final = 64
_NOTHING: Final = array("Q", (0,)) * _SMALLEST
# What a table begins with at most, however many entries it may come to hold.
_SET_ASIDE: Final = 1 << 18


def _find(tables: tuple[_Table, _Table], issuer_id: int, serial: bytes) -> list[int]:
    key = index_key(issuer_id, serial)
    return tables[0].find(key)[::-1] + tables[1].find(key)[::-1]


def _digest_number(digest: bytes) -> int:
    return int.from_bytes(digest[:DIGEST_BYTES], "big")
