"""Which block of a journal holds which serial, for the most recent entries, in little memory.

The index answers two questions. Where does an entry or a result stand? And does the index reach back far enough that
what it does not know was never recorded (`Index.holds`)? About 130 octets an entry. Must not do I/O.
"""

from __future__ import annotations

from array import array
from itertools import chain, islice
from typing import Final

from estd.signer.blocks import Kind
from estd.signer.segments import Scanned

DIGEST_BYTES: Final = 8
"""How much of a block's hash is kept, here and in marks."""


class Index:
    """Where the most recent entries and results stand.

    Two generations: when the newer one holds `entries` entries it becomes the older one, and what was older is
    forgotten together with its blocks. So nothing is ever removed one by one.
    """

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._entries: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        self._results: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
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
            key = index_key(item.issuer_id, item.serial)
            if block.kind is Kind.ENTRIES:
                self.add_entry(key, block.sequence)
            else:
                self.add_result(key, block.sequence)

    def add_block(self, segment: int, offset: int, digest: bytes) -> None:
        """Learn where the next block stands, before its entries are added."""
        if self._first == 0:
            self._first = self._turned_at = 1
        if len(self._entries[0]) >= self.entries:
            self._turn()
        self._places.append(segment << _OFFSET_BITS | offset)
        self._digests.append(_digest_number(digest))

    def add_entry(self, key: bytes, sequence: int) -> None:
        """Learn in which block an entry stands."""
        self._entries[0][key] = sequence

    def add_result(self, key: bytes, sequence: int) -> None:
        """Learn in which block a result stands."""
        self._results[0][key] = sequence

    def find_entry(self, key: bytes) -> int | None:
        """The block an entry stands in."""
        return self._entries[0].get(key) or self._entries[1].get(key)

    def find_result(self, key: bytes) -> int | None:
        """The block a result stands in."""
        return self._results[0].get(key) or self._results[1].get(key)

    def newest_entries(self, limit: int) -> list[bytes]:
        """The keys of the newest entries, newest first."""
        return list(islice(chain(reversed(self._entries[0]), reversed(self._entries[1])), limit))

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
        self._entries = ({}, self._entries[0])
        self._results = ({}, self._results[0])


def index_key(issuer_id: int, serial: bytes) -> bytes:
    """Issuer and serial as one key; no two pairs share one."""
    return issuer_id.to_bytes(8, "big") + serial


def split_index_key(key: bytes) -> tuple[int, bytes]:
    """The issuer and serial of a key."""
    return int.from_bytes(key[:8], "big"), key[8:]


_OFFSET_BITS: Final = 40


def _digest_number(digest: bytes) -> int:
    return int.from_bytes(digest[:DIGEST_BYTES], "big")
