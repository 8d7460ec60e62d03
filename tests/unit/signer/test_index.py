from __future__ import annotations

import pytest

from estd.signer.index import Index, index_key


def digest(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big") * 4


def test_keys_of_different_pairs_differ():
    pairs = [(1, b"\x02"), (1, b"\x02\x00"), (258, b""), (1, b"\x00\x02"), (0, b"\x01\x02")]
    assert len({index_key(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_it_always_knows_the_newest_and_says_how_far_back(limit: int):
    index = Index(limit)
    for sequence in range(1, 60):
        index.add_block(sequence // 10, sequence * 100, digest(sequence))
        index.add_entry(index_key(1, bytes([sequence])), sequence)
        index.add_result(index_key(1, bytes([sequence])), sequence)
        known = [number for number in range(1, 60) if index.find_entry(index_key(1, bytes([number]))) is not None]
        assert known == list(range(known[0], sequence + 1))
        assert min(limit, sequence) <= len(known) <= 2 * limit
        assert [number for number in range(60) if index.holds(number, digest(number))] == list(
            range(known[0] - 1, sequence + 1)
        )
        for number in known:
            assert index.place(number) == (number // 10, number * 100, digest(number)[:8])
            assert index.find_result(index_key(1, bytes([number]))) == number


def test_before_the_first_block_everything_is_known():
    index = Index(5)
    index.add_block(1, 0, digest(1))
    assert index.holds(0, bytes(8))
    assert not index.holds(0, digest(1))
    assert not index.holds(2, digest(2))
