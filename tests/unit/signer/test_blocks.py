from __future__ import annotations

from datetime import UTC, datetime

import pytest

from estd.signer.blocks import (
    BLOCK_OVERHEAD_BYTES,
    HEAD_COPY_BYTES,
    HEADER_BYTES,
    NO_HASH,
    BlockError,
    Entry,
    Head,
    Kind,
    Mark,
    Result,
    SegmentNote,
    decide_torn,
    journal_of,
    read_block,
    read_chain,
    read_entries,
    read_head,
    read_keys,
    read_length,
    read_mark,
    read_note,
    read_results,
    write_block,
    write_entries,
    write_head,
    write_mark,
    write_note,
    write_results,
)

JOURNAL = "3-0123456789abcdef"
ENTRIES = [Entry(7, b"\x01" * 20, b"k" * 32, b"tbs-1"), Entry(8, b"\x02", b"l" * 32, b"tbs-2")]
RESULTS = [Result(7, b"\x01" * 20, b"certificate")]


def chain(*bodies: tuple[Kind, bytes], durable: int = 0) -> bytes:
    content, previous = b"", NO_HASH
    for sequence, (kind, body) in enumerate(bodies, 1):
        block, previous = write_block(kind, sequence, durable, 1_900_000_000 + sequence, previous, body)
        content += block
    return content


WHOLE = chain(
    (Kind.SEGMENT, write_note(SegmentNote(JOURNAL, 1))),
    (Kind.OPENED, b""),
    (Kind.ENTRIES, write_entries(ENTRIES)),
    (Kind.RESULTS, write_results(RESULTS)),
)


def test_a_block_says_what_was_written():
    content, digest = write_block(Kind.ENTRIES, 9, 8, 1_900_000_000, b"p" * 32, write_entries(ENTRIES))
    block = read_block(b"junk" + content, 4)
    assert (block.kind, block.sequence, block.durable, block.previous) == (Kind.ENTRIES, 9, 8, b"p" * 32)
    assert (block.digest, block.offset, block.end) == (digest, 4, 4 + len(content))
    assert block.at == datetime.fromtimestamp(1_900_000_000, UTC)
    assert read_entries(block) == ENTRIES
    assert read_results(block) == []
    assert [(key.issuer_id, key.serial) for key in read_keys(block)] == [(7, b"\x01" * 20), (8, b"\x02")]
    assert read_length(content[:HEADER_BYTES]) == len(content) == len(block.body) + BLOCK_OVERHEAD_BYTES


def test_every_changed_or_missing_octet_of_a_block_is_found():
    content, _ = write_block(Kind.ENTRIES, 9, 8, 1_900_000_000, b"p" * 32, write_entries(ENTRIES))
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 0x10
        with pytest.raises(BlockError):
            read_block(bytes(changed), 0)
        with pytest.raises(BlockError):
            read_block(content[:at], 0)


def test_a_length_is_only_read_from_a_header():
    for header in (b"", b"ESJ1", bytes(HEADER_BYTES), b"ESJ1" + b"\xff" * (HEADER_BYTES - 4)):
        with pytest.raises(BlockError):
            read_length(header)


def test_a_chain_is_read_until_the_zeros_behind_it():
    blocks = list(read_chain(WHOLE + bytes(5000), 0, NO_HASH))
    assert [block.kind for block in blocks] == [Kind.SEGMENT, Kind.OPENED, Kind.ENTRIES, Kind.RESULTS]
    assert read_note(blocks[0]) == SegmentNote(JOURNAL, 1)
    assert read_results(blocks[3]) == RESULTS
    assert blocks[-1].end == len(WHOLE)


def test_a_chain_breaks_where_anything_is_amiss():
    ends = [block.end for block in read_chain(WHOLE, 0, NO_HASH)]
    for at in range(len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[at] ^= 0x01
        before = sum(end <= at for end in ends)
        seen = []
        with pytest.raises(BlockError) as fault:
            seen.extend(read_chain(bytes(changed), 0, NO_HASH))
        assert fault.value.offset == ([0, *ends][before])


def test_blocks_taken_out_put_in_or_exchanged_break_the_chain():
    ends = [block.end for block in read_chain(WHOLE, 0, NO_HASH)]
    parts = [WHOLE[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    for altered in (
        parts[1:],
        [parts[0], *parts[2:]],
        [parts[0], parts[2], parts[1], parts[3]],
        [parts[0], parts[1], *parts[1:]],
        [parts[0], *parts],
    ):
        with pytest.raises(BlockError):
            list(read_chain(b"".join(altered), 0, NO_HASH))
    with pytest.raises(BlockError):
        list(read_chain(WHOLE, 1, NO_HASH))
    with pytest.raises(BlockError):
        list(read_chain(WHOLE, 0, b"q" * 32))


def test_only_zeros_may_follow():
    for tail in (b"\x01", bytes(100) + b"\x01", b"ESJ1"):
        with pytest.raises(BlockError) as fault:
            list(read_chain(WHOLE + tail, 0, NO_HASH))
        assert fault.value.offset == len(WHOLE)


def test_damage_is_torn_unless_a_later_block_says_it_was_whole():
    behind, _ = write_block(Kind.OPENED, 6, 4, 1_900_000_000, b"p" * 32, b"")
    content = WHOLE + b"damage" + behind
    assert decide_torn(content, len(WHOLE), 5)
    assert not decide_torn(content, len(WHOLE), 4)
    assert decide_torn(content[:-1], len(WHOLE), 4)
    assert decide_torn(WHOLE + b"ESJ1" * 1000, len(WHOLE), 1)


def test_a_body_that_matches_its_hash_may_still_be_unreadable():
    for body in (b"", b"\xc0", b"\x91\x92\x01"):
        block = read_block(write_block(Kind.ENTRIES, 1, 0, 1, NO_HASH, body)[0], 0)
        with pytest.raises(BlockError):
            read_entries(block)


def test_a_head_is_read_from_either_copy():
    old, new = Head(JOURNAL, 4, b"o" * 32), Head(JOURNAL, 5, b"n" * 32)
    assert len(write_head(old)) == HEAD_COPY_BYTES
    assert read_head(write_head(old) + write_head(new)) == new
    assert read_head(write_head(new) + write_head(old)) == new
    assert read_head(bytes(HEAD_COPY_BYTES) + write_head(old)) == old
    assert read_head(write_head(old) + write_head(new)[:-1]) == old
    assert read_head(b"") is None
    content = write_head(new) + write_head(old)
    for at in range(90):
        changed = bytearray(content)
        changed[at] ^= 0x40
        assert read_head(bytes(changed)) == old


def test_a_mark_is_text_and_back():
    mark = Mark(JOURNAL, 1234, bytes(range(8)))
    text = write_mark(mark)
    assert text == "3-0123456789abcdef.1234.0001020304050607"
    assert read_mark(text) == mark
    assert journal_of(text) == JOURNAL
    for end in range(len(text)):
        assert read_mark(text[:end]) is None
    for other in (text + "0", " " + text, text.upper(), "", "...", text + "\n"):
        assert read_mark(other) is None
