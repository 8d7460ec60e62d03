from __future__ import annotations

from estd.ra.notes import Note, read_note, write_note
from estd.signer.frames import NOTE_MAX_BYTES


def test_a_note_comes_back_as_it_was() -> None:
    octets = write_note(1, 2, 3, "pump", "simpleenroll", "code:pump-17", "pump-17", bytes(32), 9)
    assert read_note(octets) == Note(1, 2, 3, "pump", "simpleenroll", "code:pump-17", "pump-17", bytes(32), 9)


def test_no_note_is_none_and_neither_is_what_cannot_be_read() -> None:
    assert read_note(b"") is None
    assert read_note(b"\x93\x01\x02\x03") is None


def test_the_longest_names_fit_what_a_journal_takes() -> None:
    long = "\U0001f680" * 4000
    assert (
        len(write_note(2**31, 2**31, 2**31, "p" * 200, "simplereenroll", long, long, bytes(32), 2**62)) < NOTE_MAX_BYTES
    )
