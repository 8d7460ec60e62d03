"""What the registration authority keeps of a request in the signer's journal, beside the bytes that are signed.

With it a database that was set back to an older state gets its intents back whole: who asked for what under which profile,
and which enrollment code it spent. The signer does not read it.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Note(msgspec.Struct, array_like=True, frozen=True):
    """As `estd.store.contract.Intent` has them; what stands in the journal entry itself is not repeated."""

    ecosystem_id: int
    ecosystem_version: int
    node_id: int
    profile: str
    operation: str
    identity: str
    device: str
    csr_sha256: bytes
    code_id: int | None


def write_note(
    ecosystem_id: int,
    ecosystem_version: int,
    node_id: int,
    profile: str,
    operation: str,
    identity: str,
    device: str,
    csr_sha256: bytes,
    code_id: int | None,
) -> bytes:
    """A note; names longer than any that fits a certificate are cut."""
    return _ENCODER.encode(
        (
            ecosystem_id,
            ecosystem_version,
            node_id,
            profile,
            operation,
            identity[:_NAME_MAX],
            device[:_NAME_MAX],
            csr_sha256,
            code_id,
        )
    )


def read_note(octets: bytes) -> Note | None:
    """A note; None where there is none, or one of a later version."""
    try:
        return _DECODER.decode(octets)
    except msgspec.DecodeError:
        return None


_NAME_MAX: Final = 500
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Note)
