"""What must survive, and what the store promises about it.

Every implementation passes ``tests/contracts/test_store.py``. Promises that hold for every method:

* *Durable on return.* A method that returns has committed; PostgreSQL runs with ``synchronous_commit = on``.
* *Unknown on error.* A method that raises `Unavailable` may or may not have committed (a connection lost during COMMIT
  was durable in more than half of the cases measured), and so may one that is cancelled. Callers never assume "not
  committed": they look up by key or repeat the call, and every writing method here is safe to repeat with the same
  arguments.
* *Refused whole.* A method that raises `estd.errors.Broken` has changed nothing, unless it says otherwise.
* *Concurrent.* All methods may be called from many tasks and many processes at once.

Times are aware UTC to the second. This module must not import a driver.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from estd.audit import Event


class Outcome(enum.Enum):
    """What `Store.reserve_intents` did with one intent."""

    RESERVED = "reserved"
    """This call (or an earlier, identical one) holds the request key: go on and sign."""
    EXISTS = "exists"
    """Do not sign: another intent holds the request key, or this very one has its result or was closed meanwhile. Ask
    `Store.find_issuances`; where that finds nothing, begin again with a new serial."""
    CODE_SPENT = "code-spent"
    """The enrollment code was single-use and is spent: by another request key, or by this one for a certificate."""


class Closing(enum.Enum):
    """Why an intent no longer holds its request key."""

    VOID = "void"
    """The journal proves that its serial was never signed; its enrollment code is free again."""
    ORPHAN = "orphan"
    """It may have been signed and no result is known: counts as issued, is revocable, never signed again. As long as none is
    known, its own request may ask once more with the same enrollment code."""
    SUPERSEDED = "superseded"
    """Its certificate was delivered long ago; the same request now asks for a new one."""


class Intent(msgspec.Struct, frozen=True):
    """The durable record that a certificate is about to be signed."""

    request_key: bytes
    """SHA-256 over ecosystem, identity, operation and CSR; 32 bytes; unique among intents that are not closed."""
    issuer_id: int
    serial: bytes
    """Content octets of the serial INTEGER; unique per issuer for ever."""
    ecosystem_id: int
    ecosystem_version: int
    node_id: int
    profile: str
    operation: str
    identity: str
    """Who asked, as `estd.ra.admission` names it."""
    device: str
    """The name an operator knows the device by."""
    csr_sha256: bytes
    spki_sha256: bytes
    tbs_sha256: bytes
    journal: str
    """Which signer journal knows whether it was signed."""
    code_id: int | None
    """The single-use enrollment code this request spends, if any."""
    created_at: datetime


class Issued(msgspec.Struct, frozen=True):
    """The result of one intent. `event` is committed with it, so no issuance is without its audit event."""

    issuer_id: int
    serial: bytes
    certificate: bytes
    """DER."""
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    event: Event


class Issuance(msgspec.Struct, frozen=True):
    """An intent as found again, with its certificate if there is one."""

    intent: Intent
    closed: Closing | None
    certificate: bytes | None
    issued_at: datetime | None
    revoked_for: str | None = None
    """Why its serial was revoked, a CRLReason name of RFC 5280 §5.3.1; None when it was not."""


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """What is known of a certificate that was issued, found by issuer and serial."""

    issuer_id: int
    serial: bytes
    ecosystem_id: int
    profile: str
    device: str
    identity: str
    certificate: bytes
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    revoked_at: datetime | None


KEY_COMPROMISE: Final = "keyCompromise"
"""The CRLReason after which a key is not certified again."""


class RevocationOutcome(enum.Enum):
    """What `Store.record_revocation` did."""

    REVOKED = "revoked"
    RAISED = "raised"
    """It was revoked before for another reason; now the reason is `KEY_COMPROMISE`."""
    UNCHANGED = "unchanged"
    """It was revoked before, for that reason or another that stays."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A serial that is no longer good. `reason` is a CRLReason name of RFC 5280 §5.3.1."""

    issuer_id: int
    serial: bytes
    reason: str
    revoked_at: datetime


@dataclass(frozen=True, slots=True)
class IssuerRecord:
    """A CA certificate of an ecosystem and its sealed key. Never updated: a new key is a new record."""

    issuer_id: int
    ecosystem_id: int
    name: str
    parent_id: int | None
    certificate: bytes
    """DER."""
    sealed_key: bytes | None
    """The private key as `estd.keys.software` sealed it; None when only the certificate was imported."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EcosystemRecord:
    """One version of an ecosystem: its document as `estd.ca.ecosystem` wrote it, and its issuers."""

    ecosystem_id: int
    node_id: int
    label: str
    version: int
    document: Mapping[str, Any]
    applied_at: datetime
    applied_by: str
    issuers: tuple[IssuerRecord, ...]
    """All issuers this ecosystem ever had, oldest first; the newest of each name is the active one."""


@dataclass(frozen=True, slots=True)
class NewIssuer:
    """An issuer to be created together with the version of the ecosystem that first names it."""

    name: str
    parent: str | None
    certificate: bytes
    sealed_key: bytes | None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """The next version of one ecosystem, and what comes with it."""

    label: str
    document: Mapping[str, Any]
    new_issuers: Sequence[NewIssuer]
    """A parent is named among the ecosystem's issuers or earlier among these."""
    expected_version: int
    """The version that it follows; 0 means that the label is new."""
    applied_by: str
    event: Event
    """Its time is that of the version and of its issuers; a new ecosystem's id is filled in."""


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the tree of ecosystem, organization and site. Administration will be delegated by node."""

    node_id: int
    parent_id: int | None
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class EnrollmentCode:
    """A one-time secret for HTTP Basic, as stored: only its hash."""

    code_id: int
    ecosystem_id: int
    device: str
    secret_sha256: bytes
    single_use: bool
    profile: str | None
    """The only profile it is good for; None means any that takes codes."""
    expires_at: datetime | None
    created_at: datetime
    spent_at: datetime | None


@dataclass(frozen=True, slots=True)
class Device:
    """An inventory row: what the operator wants in this device's certificate, whatever the device asks for."""

    ecosystem_id: int
    device: str
    subject: str | None
    """RFC 4514 string."""
    san: tuple[str, ...]
    """``dns:…``, ``ip:…``, ``uri:…``, ``email:…`` as in a profile."""


class Conflict(Exception):
    """Somebody else applied a newer version, or a label leads to another ecosystem; nothing was changed."""


class Store(Protocol):
    """See the module for what holds of every method."""

    # --- issuance ------------------------------------------------------------------------------------------------
    async def reserve_intents(self, intents: Sequence[Intent]) -> list[Outcome]:
        """Commit all intents in one transaction, in one round trip; answers in order.

        Of several intents with one request key, or several spending one code, exactly one is RESERVED; the others leave
        no trace, and an intent that is not RESERVED spends no code. Repeating an identical intent (same issuer and
        serial) answers RESERVED again as long as it has no result and is not closed.

        Raises:
            Broken: a serial of the issuer was chosen before, for another request key. (The rest of the batch may be
                reserved: repeat it without that intent.)
        """

    async def find_issuances(self, request_keys: Sequence[bytes]) -> dict[bytes, Issuance]:
        """The open intent of each request key, with its certificate if it was issued, and whether that was revoked."""

    async def record_issued(self, issued: Sequence[Issued]) -> None:
        """Commit the results of intents, and their audit events, in one transaction. Repeats are ignored.

        The result of an intent that was closed meanwhile is recorded all the same: what was signed must be known. Its
        event says so (``late``).

        Raises:
            Broken: a serial has no intent, or has a different certificate already. (The rest of the batch is recorded.)
        """

    async def close_intent(self, issuer_id: int, serial: bytes, closing: Closing) -> bool:
        """Free the request key. VOID and ORPHAN only apply to an intent without result, SUPERSEDED only to one with.

        False when the intent does not exist, is closed already, or its result forbids this closing.
        """

    async def find_open_intents(self, before: datetime, limit: int) -> list[Intent]:
        """Intents without result that were created before that time, oldest first."""

    async def find_unintended(self, keys: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Those among these (issuer, serial) that have no intent, in order."""

    async def restore_intents(self, intents: Sequence[Intent], closing: Closing) -> None:
        """Commit intents that were lost and do not hold their request key any more; those that exist are left alone."""

    async def find_newest_marks(self, limit: int) -> list[str]:
        """Marks of signers' journals, as stored with the newest certificates and with everything unresolved."""

    async def find_certificate(self, issuer_id: int, serial: bytes) -> StoredCertificate | None:
        """One certificate by issuer and serial."""

    async def find_certificates(
        self, ecosystem_id: int | None, device: str | None, limit: int
    ) -> list[StoredCertificate]:
        """The newest certificates, of one ecosystem and one device if given."""

    async def record_revocation(self, revocation: Revocation, event: Event) -> RevocationOutcome:
        """Revoke once, and record the event. Followers are told (`subscribe`).

        Of a serial that was revoked before only the reason changes, and only to `KEY_COMPROMISE`, with the event; its
        date stays that of the first time. Where nothing changes there is no event, and nobody is told.

        The serial's certificate need not be known: an orphaned intent can be revoked.
        """

    async def find_revocations(self) -> list[Revocation]:
        """Every revocation of an unexpired certificate, or of one that is not known."""

    async def find_compromised_keys(self) -> list[tuple[int, bytes]]:
        """Ecosystem and SHA-256 of the SubjectPublicKeyInfo of every key with a serial that was revoked for
        `KEY_COMPROMISE`, once each, however long ago."""

    # --- ecosystems ----------------------------------------------------------------------------------------------
    async def find_ecosystems(self) -> list[EcosystemRecord]:
        """The newest version of every ecosystem."""

    async def record_versions(self, versions: Sequence[NewVersion]) -> list[EcosystemRecord]:
        """Apply new versions of different ecosystems, all or none, and tell followers; the records in order.

        A label, of an ecosystem or of one of its profiles, leads to one ecosystem, whoever applies what at the same moment.
        Applying once more what made the present versions changes nothing and answers with them.

        Raises:
            Conflict: a current version is not the expected one, one of the new issuers exists, or a label leads elsewhere.
            Broken: a label is not in its one spelling, or a parent does not exist.
        """

    async def record_ecosystem(
        self,
        label: str,
        document: Mapping[str, Any],
        new_issuers: Sequence[NewIssuer],
        expected_version: int,
        applied_by: str,
        event: Event,
    ) -> EcosystemRecord:
        """Apply one new version: see `record_versions` and `NewVersion`."""

    async def count_certificates(self, ecosystem_id: int, profiles: Sequence[str], within: int) -> dict[str, int]:
        """Profile → its certificates that have neither expired nor been revoked, of these profiles and among the newest
        `within` certificates of the ecosystem; a profile without any is left out.
        """

    async def find_nodes(self) -> list[Node]:
        """The whole tree."""

    # --- credentials and inventory ---------------------------------------------------------------------------------
    async def record_codes(self, codes: Sequence[EnrollmentCode]) -> list[EnrollmentCode]:
        """Store new codes (their `code_id` is ignored and assigned), and answer with them in order.

        A code that is stored already, same device and secret, is answered as it is.
        """

    async def find_codes(self, ecosystem_id: int, device: str) -> list[EnrollmentCode]:
        """All codes of a device, spent ones included, newest first."""

    async def list_codes(
        self, ecosystem_id: int, limit: int, working_at: datetime | None = None
    ) -> list[EnrollmentCode]:
        """Codes of an ecosystem, newest first: all, or those that are neither spent nor expired at that time."""

    async def revoke_codes(
        self, ecosystem_id: int, devices: Sequence[str] | None, at: datetime, event: Event
    ) -> list[str]:
        """Let codes that have not expired expire now, and record the event.

        Of these devices all of them, spent ones included, whose retries are refused from now on; with None those of the
        ecosystem that are not spent. Answers with the devices whose codes they were, in order, once for each code; with
        none there is no event. Repeated after `Unavailable` it may find nothing left to do.
        """

    async def record_devices(self, devices: Sequence[Device]) -> None:
        """Insert or replace inventory rows; of several for one device the last counts."""

    async def find_device(self, ecosystem_id: int, device: str) -> Device | None:
        """One inventory row."""

    async def list_devices(self, ecosystem_id: int, after: str, limit: int) -> list[Device]:
        """Inventory rows by name, those whose name comes after `after`."""

    async def remove_devices(self, ecosystem_id: int, devices: Sequence[str], event: Event) -> list[str]:
        """Take inventory rows out and record the event; the names of those that were there, without any no event.

        Repeated after `Unavailable` it may find nothing left to do.
        """

    # --- audit and life --------------------------------------------------------------------------------------------
    async def record_events(self, events: Sequence[Event]) -> None:
        """Commit audit events.

        Repeated after `Unavailable` they may be stored twice: an audit trail may repeat itself but not forget.
        Characters that cannot be stored (NUL, lone surrogates) are replaced, here and in other methods' events.
        """

    async def find_events(
        self, ecosystem_id: int | None, limit: int, *, outcome: str | None = None, request_id: str | None = None
    ) -> list[Event]:
        """The newest audit events of an ecosystem or of all; with that outcome, of that request, where they are given."""

    async def find_links(self, link_ids: Sequence[int]) -> dict[int, bytes]:
        """The digests of these links of the audit trail's chain, of those that exist."""

    async def find_lost_links(self) -> list[tuple[int, int]]:
        """Ranges of links that reconciliations said were lost with an older database: after the first, up to the second."""

    async def find_newest_link(self) -> tuple[int, bytes] | None:
        """The newest link of the audit trail's chain, and its digest."""

    async def subscribe(self, follower: Callable[[str], Awaitable[None]]) -> None:
        """Call `follower` with ``ecosystems`` or ``revocations`` after each such change, within a second.

        Also called with ``resync`` whenever the connection that listens was lost and is back, and when the first
        attempt to listen failed and a later one succeeds: then everything may have changed. Calls come one at a time; a
        follower that raises is called with ``resync`` after a pause, until it returns.
        """

    async def check(self) -> None:
        """Raise `Unavailable` unless the database answers and its schema is the expected one."""

    async def close(self) -> None:
        """Give all connections back."""
