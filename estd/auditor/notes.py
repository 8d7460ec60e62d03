"""What a journal says of one request, beside what the tables say of it: every column that both speak of is compared.

An entry holds the bytes that were about to be signed and a note of who asked for what (docs/signer.md). Both are chained and
flushed in files that the database's owner need not be able to write. Pure; must not do I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import msgspec

from estd.auditor.certificates import Content
from estd.auditor.findings import Invariant

Difference = tuple[Invariant, str]


class Note(msgspec.Struct, array_like=True, frozen=True):
    """A note as docs/signer.md describes it."""

    ecosystem_id: int
    ecosystem_version: int
    node_id: int
    profile: str
    operation: str
    identity: str
    device: str
    csr_sha256: bytes
    code_id: int | None


def read_note(octets: bytes) -> Note | None:
    """A note; None where there is none, or one of a later version."""
    try:
        return _DECODER.decode(octets)
    except msgspec.DecodeError:
        return None


def compare_note(note: Note, row: Any) -> Iterator[Difference]:
    """Where an intent says something else than the note."""
    for column in _COLUMNS:
        said, noted = row[column], getattr(note, column)
        if isinstance(noted, str):
            said = said[:_NAME_MAX]
        if said != noted:
            yield Invariant.INTENDED, f"{column} is {_show(said)}, and the journal's note says {_show(noted)}"
    if row["closed"] == "void":
        return
    if row["code_holder"] is None and note.code_id is not None:
        what = f"enrollment code {note.code_id} was spent for it, the journal's note says, and nothing holds that code"
        yield Invariant.ONCE, what
    # Reconciling, a code that was spent anew meanwhile is left to whoever spent it.
    lets_go = row["code_id"] is None and row["held_code_id"] is None and row["code_holder"] is not None
    if row["code_id"] != note.code_id and not lets_go:
        yield Invariant.ONCE, f"code_id is {row['code_id']}, and the journal's note says {note.code_id}"


def compare_content(content: Content, serial: bytes, row: Any) -> Iterator[Difference]:
    """Where intent and certificate say something else than the bytes that were to be signed."""
    if content.serial != serial:
        yield Invariant.ONE_CONTENT, f"the journaled bytes carry the serial {content.serial.hex()}"
    if row["request_key"] is not None and row["spki_sha256"] != content.spki_sha256:
        yield Invariant.INTENDED, "spki_sha256 is not that of the key in the journaled bytes"
    if row["der"] is None:
        return
    for column in ("not_before", "not_after"):
        if row[column] != getattr(content, column):
            what = f"{column} is {_show(row[column])}, and the certificate says {_show(getattr(content, column))}"
            yield Invariant.ON_RECORD, what


def compare_times(created_at: datetime, journaled_at: int, marked_at: int | None) -> Iterator[Difference]:
    """Where an intent was not created about when its entry was written.

    Between the mark and the entry, give or take an hour, whichever of them a clock that was turned made the later one.
    """
    seconds = created_at.timestamp()
    first, last = (min(journaled_at, marked_at), max(journaled_at, marked_at)) if marked_at else (journaled_at,) * 2
    if not first - _TIME_SLACK_SECONDS <= seconds <= last + _TIME_SLACK_SECONDS:
        yield Invariant.INTENDED, f"created_at is {_show(created_at)}, and that is not when the journal has it"


def _show(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()[:16] + "…"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}Z"
    return repr(value)


_NAME_MAX: Final = 500
"""Names longer than this are cut in a note."""
_TIME_SLACK_SECONDS: Final = 3600
_COLUMNS: Final = (
    "ecosystem_id", "ecosystem_version", "node_id", "profile", "operation", "identity", "device", "csr_sha256",
)  # fmt: skip
_DECODER: Final = msgspec.msgpack.Decoder(Note)
