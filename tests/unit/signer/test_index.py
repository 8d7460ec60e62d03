from __future__ import annotations

import sys
from itertools import count

import pytest

from estd.signer.index import NEWEST_ENTRIES, Index, index_key


def digest(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big") * 4


def serial(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_a_key_is_never_that_of_a_free_place():
    keys = {index_key(issuer, serial(number)) for issuer in range(3) for number in range(1000)}
    assert len(keys) == 3000
    assert all(0 < key < 1 << 64 for key in keys)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_it_always_knows_the_newest_and_says_how_far_back(limit: int):
    index = Index(limit)
    for sequence in range(1, 60):
        index.add_block(sequence // 10, sequence * 100, digest(sequence))
        index.add_entry(1, serial(sequence), sequence)
        index.add_result(1, serial(sequence), sequence)
        known = [number for number in range(1, 60) if index.find_entry(1, serial(number))]
        assert known == list(range(known[0], sequence + 1))
        assert min(limit, sequence) <= len(known) <= 2 * limit
        assert [number for number in range(60) if index.holds(number, digest(number))] == list(
            range(known[0] - 1, sequence + 1)
        )
        assert [number for number in range(60) if index.may_hold(1, serial(number))] == known
        for number in known:
            assert index.place(number) == (number // 10, number * 100, digest(number)[:8])
            assert index.find_entry(1, serial(number)) == index.find_result(1, serial(number)) == [number]
            assert not index.find_entry(2, serial(number))


def test_a_table_that_grows_keeps_what_it_holds():
    index = Index(300_000)
    for number in range(1, 200_001):
        if number % 100 == 1:
            index.add_block(1, number, digest(number))
        index.add_entry(number % 3, serial(number), number // 100 + 1)
    for number in range(1, 200_001, 77):
        assert index.find_entry(number % 3, serial(number)) == [number // 100 + 1]
        assert not index.find_entry(number % 3, serial(number + 1_000_000))
    assert list(index.newest) == [(number % 3, serial(number)) for number in range(200_001 - NEWEST_ENTRIES, 200_001)]


def test_keys_that_are_alike_are_all_answered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("estd.signer.index.index_key", lambda issuer_id, serial: (1 << 64) - 1)
    index = Index(10)
    for sequence in (1, 2, 3):
        index.add_block(1, sequence, digest(sequence))
        index.add_entry(1, serial(sequence), sequence)
    assert index.find_entry(1, serial(9)) == [3, 2, 1]


def test_its_memory_is_set_aside_at_once():
    index = Index(1000)
    tables, sizes = list(index._entries), set[int]()
    numbers = count(1)
    for sequence in range(1, 500):
        index.add_block(1, sequence, digest(sequence))
        for _ in range(16):
            index.add_entry(1, serial(next(numbers)), sequence)
        sizes.add(sum(sys.getsizeof(part) for table in index._entries for part in (table._keys, table._sequences)))
    assert sizes == {2 * 2 * (8 * 2048 + sys.getsizeof(index._entries[0]._keys[:0]))}
    assert {id(table) for table in tables} == {id(table) for table in index._entries}, (
        "a third one would be more memory"
    )
    assert index._entries[0].held <= 1000
    assert not index.may_hold(1, serial(1)), "what was there before is forgotten"


def test_before_the_first_block_everything_is_known():
    index = Index(5)
    index.add_block(1, 0, digest(1))
    assert index.holds(0, bytes(8))
    assert not index.holds(0, digest(1))
    assert not index.holds(2, digest(2))
