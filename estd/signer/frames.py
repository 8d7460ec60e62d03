"""What workers, signers and the supervisor say to each other: typed messages in length-prefixed frames.

A frame is four octets of length, big-endian, at most `FRAME_MAX_BYTES`, and that many octets of MessagePack. Every
message is an array that starts with its kind and the number by which its answer is told from others; a reader is made
for one direction of one channel and accepts nothing else: an unknown kind, a missing or an additional element, a value
out of bounds, or an octet too many is a `FrameError`, and whoever reads one closes the connection.

Two channels use this. On the *request channel* workers call `Prepare`, `Seal`, `Resume` and `Status`. On the *control
channel*, which only the supervisor that started the signer holds, `Unlock`, `Load`, `Drop`, `Ping`, `Drain`, `Anchor`
and `Status` are understood; none of the first four exists on the request channel.

Must not import anything but the error vocabulary: both ends share this module.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from estd.errors import Broken, Code, Refused, Unavailable

FRAME_MAX_BYTES: Final = 8 * 1024 * 1024
"""The longest frame body either end accepts."""
ITEMS_MAX: Final = 256
"""The most items one request may carry."""
CSR_MAX_BYTES: Final = 64 * 1024
"""As the web floor's cap on a request body."""
NOTE_MAX_BYTES: Final = 8192
"""The longest note a journal entry carries."""

_Number = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# RFC 5280 §4.1.2.2: a serial number has at most 20 octets.
_Serial = Annotated[bytes, Meta(min_length=1, max_length=20)]
_Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Text = Annotated[str, Meta(max_length=4000)]
_Time = Annotated[datetime, Meta(tz=True)]
_Der = Annotated[bytes, Meta(min_length=2, max_length=CSR_MAX_BYTES)]


class Verdict(enum.IntEnum):
    """What a journal says of a serial when it has no certificate to hand out."""

    NEVER_SIGNED = 1
    """The journal is complete for that time and holds no record; what was prepared is dropped and cannot be sealed."""
    UNKNOWN = 2
    """It may have been signed: the journal does not reach back, or only says that a signature was begun."""


# --- request channel: items ------------------------------------------------------------------------------------------


class PrepareItem(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One certificate asked for: whose names were decided by the registration authority."""

    request_key: _Digest
    ecosystem_id: _Id
    version: _Id
    profile: _Name
    csr: _Der
    subject: _Der
    """DER Name."""
    san: _Der | None
    """DER GeneralNames, or None for a certificate without subjectAltName."""
    note: Annotated[bytes, Meta(max_length=NOTE_MAX_BYTES)] = b""
    """Kept with the journal entry, for whoever restores the database from it."""


class PreparedItem(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=1):
    """One certificate ready to be sealed; its to-be-signed bytes stay in the signer."""

    issuer_id: _Id
    serial: _Serial
    tbs_sha256: _Digest
    spki_sha256: _Digest
    not_before: _Time
    not_after: _Time


class RefusedItem(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """One item answered no, or not now; the rest of its batch is not touched by it."""

    code: Code
    detail: _Text
    clause: _Text | None = None


class SealItem(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One prepared certificate whose intent is committed: journal and sign it."""

    issuer_id: _Id
    serial: _Serial


class ResumeItem(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One intent without result: what became of it?"""

    issuer_id: _Id
    serial: _Serial
    tbs_sha256: _Digest


# --- request channel: messages ---------------------------------------------------------------------------------------


class Prepare(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=1):
    """Check, choose serials and dates, build and lint; sign nothing."""

    number: _Number
    items: Annotated[tuple[PrepareItem, ...], Meta(max_length=ITEMS_MAX)]


class Seal(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """Journal and sign what was prepared."""

    number: _Number
    items: Annotated[tuple[SealItem, ...], Meta(max_length=ITEMS_MAX)]
    unwanted: Annotated[tuple[SealItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    """What was prepared and will never be sealed, since its intent was not reserved: to be forgotten now."""


class Resume(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=3):
    """Tell what became of intents; `mark` is what `Prepared` said of them."""

    number: _Number
    mark: _Name
    items: Annotated[tuple[ResumeItem, ...], Meta(max_length=ITEMS_MAX)]


class Status(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=4):
    """Ask for counters; also how a worker learns which journal a slot keeps."""

    number: _Number


class Prepared(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=17):
    """The answer to `Prepare`, in its order."""

    number: _Number
    mark: _Name
    """Names the journal and how far it reached: `estd.signer.blocks.Mark`."""
    items: tuple[PreparedItem | RefusedItem, ...]


class Sealed(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=18):
    """The answer to `Seal`, in its order: certificates, DER."""

    number: _Number
    items: tuple[bytes | RefusedItem, ...]


class Resumed(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=19):
    """The answer to `Resume`, in its order: the certificate, a verdict, or "ask again"."""

    number: _Number
    items: tuple[bytes | Verdict | RefusedItem, ...]


class StatusReport(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=20):
    """The answer to `Status`."""

    number: _Number
    journal: _Name
    """The journal's name; every mark of this slot starts with it."""
    draining: bool
    ecosystems: dict[_Id, list[_Id]]
    """Which versions of which ecosystem can be prepared for."""
    prepared: _Id
    """Items prepared and neither sealed nor expired."""
    counters: dict[_Name, int | float]
    newest: tuple[SealItem, ...] = ()
    """The newest journal entries: a database that holds no intent for one of them was set back, or is another one."""
    hindrance: _Text = ""
    """Why nothing at all can be prepared now; empty when something can."""


# --- control channel -------------------------------------------------------------------------------------------------


class Unlock(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=33):
    """The first message: the key-encryption key that opens sealed issuer keys. It is nowhere else."""

    number: _Number
    kek: Annotated[bytes, Meta(min_length=32, max_length=32)]

    def __repr__(self) -> str:
        return f"Unlock(number={self.number})"


class LoadedIssuer(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One issuer of an ecosystem as the store holds it; see `estd.store.contract.IssuerRecord`."""

    issuer_id: _Id
    name: _Name
    parent_id: _Id | None
    certificate: _Der
    sealed_key: Annotated[bytes, Meta(min_length=1, max_length=64 * 1024)] | None


class Load(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=34):
    """One version of an ecosystem; becomes the current one unless a newer one is loaded."""

    number: _Number
    ecosystem_id: _Id
    label: _Name
    version: _Id
    document: dict[str, Any]
    issuers: tuple[LoadedIssuer, ...]
    """Oldest first; the newest of each name is the active one."""


class Drop(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=35):
    """Forget an ecosystem at once, keys included."""

    number: _Number
    ecosystem_id: _Id


class Ping(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=36):
    """Is the event loop turning?"""

    number: _Number


class Drain(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=37):
    """Prepare nothing more, finish what is in hand, exit."""

    number: _Number


class Anchor(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=38):
    """Keep in the journal how far the audit trail has come."""

    number: _Number
    link_id: _Id
    digest: _Digest


class Done(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=49):
    """The control message was obeyed."""

    number: _Number


class Failed(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=50):
    """The control message was not obeyed, and nothing was changed by it."""

    number: _Number
    detail: _Text


Request: TypeAlias = Prepare | Seal | Resume | Status
Answer: TypeAlias = Prepared | Sealed | Resumed | StatusReport
Control: TypeAlias = Unlock | Load | Drop | Ping | Drain | Anchor | Status
ControlAnswer: TypeAlias = Done | Failed | StatusReport

_Message = TypeVar("_Message")


class FrameError(Exception):
    """The other end does not speak this protocol; nothing it says after this can be trusted."""


class FrameReader(Generic[_Message]):
    """Turns received octets into the messages of one direction of one channel.

    Holds at most one incomplete frame, so at most `FRAME_MAX_BYTES` and what one read brought.
    """

    __slots__ = ("_decoder", "_needed", "_pending")

    def __init__(self, messages: msgspec.msgpack.Decoder[_Message]) -> None:
        self._decoder = messages
        self._pending = bytearray()
        self._needed = _PREFIX_BYTES

    @property
    def pending_bytes(self) -> int:
        """Octets of a frame that is not complete."""
        return len(self._pending)

    def feed(self, received: bytes) -> list[_Message]:
        """The messages that these octets complete, in order.

        Raises:
            FrameError: see the module.
        """
        if self._pending:
            self._pending += received
            if len(self._pending) < self._needed:
                return []
            received = bytes(self._pending)
            self._pending.clear()
        messages: list[_Message] = []
        at, end = 0, len(received)
        while end - at >= _PREFIX_BYTES:
            length = int.from_bytes(received[at : at + _PREFIX_BYTES], "big")
            if length > FRAME_MAX_BYTES:
                raise FrameError(f"a frame of {length} octets is longer than {FRAME_MAX_BYTES}")
            if end - at < _PREFIX_BYTES + length:
                self._needed = _PREFIX_BYTES + length
                break
            body = memoryview(received)[at + _PREFIX_BYTES : at + _PREFIX_BYTES + length]
            try:
                messages.append(self._decoder.decode(body))
            except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
                raise FrameError(f"not a message of this channel: {error}") from None
            at += _PREFIX_BYTES + length
        else:
            self._needed = _PREFIX_BYTES
        if at < end:
            self._pending += received[at:]
        return messages


def request_reader() -> FrameReader[Request]:
    """What a signer reads from a worker."""
    return FrameReader(_REQUESTS)


def answer_reader() -> FrameReader[Answer]:
    """What a worker reads from a signer."""
    return FrameReader(_ANSWERS)


def control_reader() -> FrameReader[Control]:
    """What a signer reads from its supervisor."""
    return FrameReader(_CONTROLS)


def control_answer_reader() -> FrameReader[ControlAnswer]:
    """What a supervisor reads from a signer."""
    return FrameReader(_CONTROL_ANSWERS)


def write_frame(message: Request | Answer | Control | ControlAnswer) -> bytes:
    """One message as a frame."""
    body = _ENCODER.encode(message)
    if len(body) > FRAME_MAX_BYTES:
        raise Broken(f"a {type(message).__name__} of {len(body)} octets does not fit a frame")
    return len(body).to_bytes(_PREFIX_BYTES, "big") + body


def write_refusal(reason: Refused | Unavailable) -> RefusedItem:
    """A refusal as it travels."""
    return RefusedItem(reason.code, reason.detail[:4000], reason.clause if isinstance(reason, Refused) else None)


def read_refusal(item: RefusedItem) -> Refused | Unavailable:
    """A refusal as it is raised: "not now" for the codes that say so, "no" for all others."""
    if item.code in _NOT_NOW:
        return Unavailable(item.code, item.detail, _NOT_NOW[item.code])
    return Refused(item.code, item.detail, item.clause)


def refuse_all(items: Iterable[object], reason: Refused | Unavailable) -> tuple[RefusedItem, ...]:
    """The same refusal for every item."""
    refusal = write_refusal(reason)
    return tuple(refusal for _ in items)


_PREFIX_BYTES: Final = 4
_NOT_NOW: Final[Mapping[Code, int]] = {
    Code.SIGNER_UNAVAILABLE: 1,
    Code.ISSUER_NOT_VALID: 600,
    Code.STORE_UNAVAILABLE: 1,
    Code.OVERLOADED: 1,
    Code.RATE_LIMITED: 1,
}
"""When to ask again, in seconds: the time itself does not travel."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUESTS: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_ANSWERS: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)
_CONTROLS: Final[msgspec.msgpack.Decoder[Control]] = msgspec.msgpack.Decoder(Control)
_CONTROL_ANSWERS: Final[msgspec.msgpack.Decoder[ControlAnswer]] = msgspec.msgpack.Decoder(ControlAnswer)
