from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estd.errors import Broken, Code, Refused, Unavailable
from estd.signer.frames import (
    FRAME_MAX_BYTES,
    ITEMS_MAX,
    Done,
    Drain,
    Drop,
    Failed,
    FrameError,
    FrameReader,
    Load,
    LoadedIssuer,
    Ping,
    Prepare,
    Prepared,
    PreparedItem,
    PrepareItem,
    RefusedItem,
    Resume,
    Resumed,
    ResumeItem,
    Seal,
    Sealed,
    SealItem,
    Status,
    StatusReport,
    Unlock,
    Verdict,
    answer_reader,
    control_answer_reader,
    control_reader,
    read_refusal,
    refuse_all,
    request_reader,
    write_frame,
    write_refusal,
)

NOW = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)
MARK = "3-0123456789abcdef.12.0011223344556677"
ITEM = PrepareItem(b"k" * 32, 7, 3, "device", b"csr" * 50, b"0\x00", None)
REFUSAL = RefusedItem(Code.KEY_WEAK, "the key is weak", "RFC 7030 §4.2.3")

REQUESTS = [
    Prepare(1, (ITEM, ITEM)),
    Prepare(2, ()),
    Seal(3, (SealItem(7, b"\x01" * 20),)),
    Seal(6, (), (SealItem(7, b"\x01" * 20),)),
    Resume(4, MARK, (ResumeItem(7, b"\x01", b"h" * 32),)),
    Status(5),
]
ANSWERS = [
    Prepared(1, MARK, (PreparedItem(7, b"\x01" * 20, b"t" * 32, b"s" * 32, NOW, NOW), REFUSAL)),
    Sealed(3, (b"0\x82", REFUSAL)),
    Resumed(4, (b"0\x82", Verdict.NEVER_SIGNED, Verdict.UNKNOWN, REFUSAL)),
    StatusReport(5, "3-0123456789abcdef", False, {7: [2, 3]}, 4, {"turns": 9, "sign_seconds": 0.5}),
]
CONTROLS = [
    Unlock(1, b"e" * 32),
    Load(2, 7, "plant", 3, {"format": 1}, (LoadedIssuer(1, "root", None, b"0\x82", None),)),
    Drop(3, 7),
    Ping(4),
    Drain(5),
    Status(6),
]
CONTROL_ANSWERS = [Done(1), Failed(2, "no"), ANSWERS[3]]

CHANNELS = [
    (request_reader, REQUESTS),
    (answer_reader, ANSWERS),
    (control_reader, CONTROLS),
    (control_answer_reader, CONTROL_ANSWERS),
]


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(("make", "messages"), CHANNELS)
def test_messages_come_out_as_they_went_in(make, messages):
    stream = b"".join(write_frame(message) for message in messages)
    assert make().feed(stream) == messages


@pytest.mark.parametrize(("make", "messages"), CHANNELS)
def test_a_frame_may_come_in_any_pieces(make, messages):
    stream = b"".join(write_frame(message) for message in messages)
    octet_by_octet = make()
    assert [got for at in range(len(stream)) for got in octet_by_octet.feed(stream[at : at + 1])] == messages
    for cut in range(1, len(stream)):
        reader = make()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == messages
        assert reader.pending_bytes == 0


@pytest.mark.parametrize(("make", "messages"), CHANNELS)
def test_every_truncated_or_lengthened_body_is_refused(make, messages):
    for message in messages:
        body = write_frame(message)[4:]
        for end in range(len(body)):
            with pytest.raises(FrameError):
                make().feed(framed(body[:end]))
        with pytest.raises(FrameError):
            make().feed(framed(body + b"\x00"))


def test_half_a_frame_is_kept_and_counted():
    reader = request_reader()
    frame = write_frame(REQUESTS[0])
    assert reader.feed(frame[:10]) == []
    assert reader.pending_bytes == 10


def test_a_long_frame_in_many_pieces_is_read_once():
    message = Prepare(
        1, tuple(PrepareItem(b"k" * 32, 7, 3, "device", b"c" * 60000, b"0\x00", None) for _ in range(100))
    )
    frame = write_frame(message)
    reader = request_reader()
    pieces = [frame[at : at + 4096] for at in range(0, len(frame), 4096)]
    assert [got for piece in pieces for got in reader.feed(piece)] == [message]


def test_the_length_is_capped_before_anything_is_read():
    with pytest.raises(FrameError, match="longer"):
        request_reader().feed((FRAME_MAX_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(FrameError, match="longer"):
        request_reader().feed(b"\xff\xff\xff\xff")
    # The longest length is no fault yet: the body may still come.
    assert request_reader().feed(FRAME_MAX_BYTES.to_bytes(4, "big")) == []


def test_what_does_not_fit_a_frame_is_our_own_fault():
    with pytest.raises(Broken):
        write_frame(Sealed(1, (bytes(FRAME_MAX_BYTES),)))


@pytest.mark.parametrize(("make", "messages"), CHANNELS)
def test_channels_do_not_understand_each_other(make, messages):
    kinds = {type(message) for message in messages}
    for _, others in CHANNELS:
        for message in others:
            if type(message) not in kinds:
                with pytest.raises(FrameError):
                    make().feed(write_frame(message))


def test_workers_cannot_say_what_only_the_supervisor_may():
    for message in (Unlock(1, b"e" * 32), CONTROLS[1], Drop(3, 7), Ping(4), Drain(5)):
        with pytest.raises(FrameError):
            request_reader().feed(write_frame(message))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"\x91\x04",  # Status without its number
        b"\x92\x04\xff",  # a negative number
        b"\x93\x04\x01\x01",  # an element too many
        b"\x92\x63\x01",  # an unknown kind
        b"\xdd\xff\xff\xff\xff",  # an array said to be huge
        b"\x93\x01\x01\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,  # deeply nested
    ],
)
def test_garbage_is_refused(body):
    with pytest.raises(FrameError):
        request_reader().feed(framed(body))


@pytest.mark.parametrize(
    "item",
    [
        PrepareItem(b"k" * 31, 7, 3, "device", b"csr", b"0\x00", None),
        PrepareItem(b"k" * 32, -1, 3, "device", b"csr", b"0\x00", None),
        PrepareItem(b"k" * 32, 7, 3, "", b"csr", b"0\x00", None),
        PrepareItem(b"k" * 32, 7, 3, "d" * 201, b"csr", b"0\x00", None),
        PrepareItem(b"k" * 32, 7, 3, "device", b"c" * 65537, b"0\x00", None),
        PrepareItem(b"k" * 32, 7, 3, "device", b"csr", b"", None),
    ],
)
def test_values_out_of_bounds_are_refused(item):
    with pytest.raises(FrameError):
        request_reader().feed(write_frame(Prepare(1, (item,))))


def test_serials_and_batches_have_bounds():
    for serial in (b"", b"\x01" * 21):
        with pytest.raises(FrameError):
            request_reader().feed(write_frame(Seal(1, (SealItem(7, serial),))))
    with pytest.raises(FrameError):
        request_reader().feed(write_frame(Seal(1, (SealItem(7, b"\x01"),) * (ITEMS_MAX + 1))))


def test_times_without_a_zone_are_refused():
    item = PreparedItem(7, b"\x01", b"t" * 32, b"s" * 32, NOW.replace(tzinfo=None), NOW)
    with pytest.raises(FrameError):
        answer_reader().feed(write_frame(Prepared(1, MARK, (item,))))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CHANNELS), st.binary(max_size=300))
def test_random_octets_never_do_anything_else_than_fail(channel, body):
    reader: FrameReader[object] = channel[0]()
    kinds = {type(message) for message in channel[1]}
    try:
        messages = reader.feed(framed(body))
    except FrameError:
        return
    assert {type(message) for message in messages} <= kinds


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CHANNELS), st.data())
def test_a_changed_octet_gives_a_message_of_the_channel_or_a_failure(channel, data):
    message = data.draw(st.sampled_from(channel[1]))
    frame = bytearray(write_frame(message))
    at = data.draw(st.integers(4, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    try:
        messages = channel[0]().feed(bytes(frame))
    except FrameError:
        return
    assert {type(got) for got in messages} <= {type(known) for known in channel[1]}
    # What was accepted is as bounded as what is written.
    assert [channel[0]().feed(write_frame(got)) for got in messages] == [[got] for got in messages]


def test_refusals_travel():
    assert read_refusal(write_refusal(Refused(Code.KEY_WEAK, "weak", "RFC 7030 §4.2.3"))).args
    back = read_refusal(write_refusal(Refused(Code.KEY_WEAK, "weak", "RFC 7030 §4.2.3")))
    assert isinstance(back, Refused)
    assert (back.code, back.detail, back.clause) == (Code.KEY_WEAK, "weak", "RFC 7030 §4.2.3")
    later = read_refusal(write_refusal(Unavailable(Code.SIGNER_UNAVAILABLE, "later")))
    assert isinstance(later, Unavailable)
    assert later.code is Code.SIGNER_UNAVAILABLE
    ended = read_refusal(write_refusal(Unavailable(Code.ISSUER_NOT_VALID, "the issuer expired", 600)))
    assert isinstance(ended, Unavailable)
    assert (ended.code, ended.detail, ended.retry_after_seconds) == (Code.ISSUER_NOT_VALID, "the issuer expired", 600)
    assert refuse_all([1, 2], Refused(Code.LINT, "no")) == (RefusedItem(Code.LINT, "no"),) * 2


def test_every_code_travels():
    for code in Code:
        frame = write_frame(Sealed(1, (RefusedItem(code, "x"),)))
        assert answer_reader().feed(frame) == [Sealed(1, (RefusedItem(code, "x"),))]


def test_the_key_encryption_key_is_not_shown():
    assert "eeee" not in repr(Unlock(1, b"e" * 32))
