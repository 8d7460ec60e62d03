"""Who is asking, and may they: a peer and a credential become an `Admitted`, or a refusal.

TLS proved only that the client holds the key of its certificate. Whether that certificate means anything is decided here,
per request and for the one ecosystem the label leads to: the path to that ecosystem's anchors (RFC 5280 §6.1, kept for
the connection and ecosystem version), then time, revocation and role each time anew. An HTTP Basic credential
(RFC 7030 §3.2.3) is an enrollment code of that ecosystem.

An `Admitted` is made only by `Admission`; `estd.ra.enrollment` accepts nothing else.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final

import msgspec
from cryptography import x509

from estd.asn1.oids import OIDS
from estd.errors import Code, Refused, Unavailable
from estd.names import EMPTY_NAME, device_name, normalise_device, write_rdns
from estd.ra.directory import Directory, LiveEcosystem, Place
from estd.ra.paths import Leaf, Path, check_window, read_leaf, validate_path, write_own_path
from estd.store.contract import Device, EnrollmentCode, Store, StoredCertificate
from estd.wire.exchange import Peer

_FAILURES_BEFORE_PAUSE: Final = 10
_FAILURE_PAUSE_SECONDS: Final = 300
_FAILURES_REMEMBERED: Final = 10_000


class Purpose(enum.Enum):
    """What the caller wants to be admitted for."""

    ENROLL = "simpleenroll"
    REENROLL = "simplereenroll"
    BATCH = "batch"


class Credential(msgspec.Struct, frozen=True):
    """A checked credential of one ecosystem.

    `identity` names the credential itself (``x509:SHA256`` of the certificate, ``code:DEVICE``), `device` is what an
    operator calls its bearer. `subject` and `san` are DER (Name; GeneralNames or None).
    """

    kind: str
    """``anchor`` (a maker's IDevID), ``issued`` (a certificate of ours) or ``code``."""
    identity: str
    device: str
    subject: bytes
    san: bytes | None
    spki_sha256: bytes | None = None
    """Of the certificate's key; None for a code."""
    anchor: str | None = None
    issued: StoredCertificate | None = None
    code: EnrollmentCode | None = None


_SEAL = object()


class Admitted(msgspec.Struct, frozen=True, eq=False):
    """A credential that may ask for a certificate under `place.profile` now. Only `Admission` makes one."""

    credential: Credential
    place: Place
    purpose: Purpose
    inventory: Device | None
    """Present when the profile takes a name from the inventory."""
    _seal: object

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("an Admitted is made by Admission only")


class Admission:
    """Admits callers against the ecosystem their label leads to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failures: OrderedDict[tuple[int, str], tuple[int, datetime]] = OrderedDict()

    async def admit(
        self, directory: Directory, place: Place, purpose: Purpose, peer: Peer, authorization: str | None, now: datetime
    ) -> Admitted:
        """Check whatever credential the caller brought, and whether it may use the profile.

        Raises:
            Refused: CREDENTIAL_MISSING or CREDENTIAL_INVALID (401), or why the certificate does not do (403).
            Unavailable: the store could not be asked.
        """
        if authorization is not None and purpose is Purpose.ENROLL:
            # A code is shown on purpose, a TLS certificate often is not (RFC 7030 §3.2.3): the code decides.
            credential = await self._admit_code(place, authorization, now)
        elif peer.certificates:
            credential = await self._admit_certificate(directory, place, peer, now)
        else:
            raise Refused(Code.CREDENTIAL_MISSING, _MISSING[purpose], "RFC 7030 §3.2.3")
        if purpose is Purpose.ENROLL and _renews_instead(place, credential):
            purpose = Purpose.REENROLL
        if purpose is Purpose.BATCH:
            _check_registration_authority(place, credential, peer)
            return Admitted(credential, place, purpose, None, _SEAL)
        _check_role(place, purpose, credential)
        inventory = None
        if "inventory" in (place.profile.subject, place.profile.san) and purpose is Purpose.ENROLL:
            inventory = await self._store.find_device(place.ecosystem.ecosystem_id, credential.device)
            if inventory is None:
                raise Refused(Code.NOT_AUTHORIZED, "this device is not in the ecosystem's inventory")
        return Admitted(credential, place, purpose, inventory, _SEAL)

    # --- certificates --------------------------------------------------------------------------------------------

    async def _admit_certificate(self, directory: Directory, place: Place, peer: Peer, now: datetime) -> Credential:
        ecosystem = place.ecosystem
        key = (ecosystem.ecosystem_id, ecosystem.version)
        path: Path | None = peer.memo.get(key)
        if path is None:
            path = peer.memo[key] = await self._find_path(ecosystem, peer, now)
        try:
            check_window(path, now)
        except Refused:
            _doubt_clock(place, now)
            raise
        if path.issuer is not None and (path.issuer.record.issuer_id, path.leaf.serial) in directory.revoked:
            raise _revoked()
        credential: Credential = peer.memo[path]
        if credential.issued is not None and credential.issued.revoked_at is not None:
            raise _revoked()
        return credential

    async def _find_path(self, ecosystem: LiveEcosystem, peer: Peer, now: datetime) -> Path:
        """Why the certificate is believed; its credential is in `peer.memo` then.

        One that names an issuer of ours has to be on record, whole: not only issuer and serial are compared
        (CVE-2024-2048 came from less). Its signature would tell nothing beyond that. A maker that has the very name of
        an issuer of ours is asked for as well.
        """
        leaf = read_leaf(peer)
        ours = [issuer for issuer in ecosystem.issuers if issuer.subject == leaf.issuer]
        for issuer in ours:
            stored = await self._store.find_certificate(issuer.record.issuer_id, leaf.serial)
            if stored is not None and hmac.compare_digest(stored.certificate, leaf.der):
                path = write_own_path(leaf, issuer)
                peer.memo[path] = _write_credential(path, stored)
                return path
        looked_for = ("path", ecosystem.ecosystem_id, ecosystem.version)
        known: Refused | None = peer.memo.get(looked_for)
        if known is not None:
            raise Refused(known.code, known.detail, known.clause)
        try:
            path = validate_path(ecosystem, leaf, peer, now)
        except Refused as refused:
            # It is missing for the whole connection: looking for one costs more than most requests, and a stranger nothing.
            peer.memo[looked_for] = refused
            if ours:
                raise Refused(Code.CERTIFICATE_UNTRUSTED, "this server has no record of this certificate") from None
            raise
        peer.memo[path] = _write_credential(path, None)
        return path

    # --- enrollment codes ------------------------------------------------------------------------------------------

    async def _admit_code(self, place: Place, authorization: str, now: datetime) -> Credential:
        user, secret = _read_basic(authorization)
        ecosystem = place.ecosystem
        try:
            device = normalise_device(user)
        except Refused:
            # Without the reason: it would quote what was typed, and a code is sometimes typed into the wrong field.
            raise Refused(Code.CREDENTIAL_INVALID, "the user name is no device name", "RFC 7030 §3.2.3") from None
        self._check_pause(ecosystem.ecosystem_id, device, now)
        codes = await self._store.find_codes(ecosystem.ecosystem_id, device)
        presented = hash_secret(secret)
        # Every stored hash is compared, and an unknown device costs one comparison too, so that the time taken does
        # not tell whether a device exists.
        match: EnrollmentCode | None = None
        for code in codes or [_NO_CODE]:
            if hmac.compare_digest(code.secret_sha256, presented) and code is not _NO_CODE:
                match = code
        if match is None:
            self._count_failure(ecosystem.ecosystem_id, device, now)
            raise Refused(Code.CREDENTIAL_INVALID, "unknown device or wrong enrollment code", "RFC 7030 §3.2.3")
        if match.expires_at is not None and match.expires_at <= now:
            _doubt_clock(place, now)
            raise Refused(Code.CREDENTIAL_INVALID, "this enrollment code has expired", "RFC 7030 §3.2.3")
        if match.profile is not None and match.profile != place.profile.name:
            raise Refused(Code.NOT_AUTHORIZED, "this enrollment code is for another profile")
        self._failures.pop((ecosystem.ecosystem_id, device), None)
        return Credential(
            kind="code",
            identity=f"code:{match.code_id}:{device}",
            device=device,
            subject=write_code_subject(_spell(user, device)) if place.profile.subject == "credential" else EMPTY_NAME,
            san=None,
            code=match,
        )

    def _check_pause(self, ecosystem_id: int, device: str, now: datetime) -> None:
        failures, last = self._failures.get((ecosystem_id, device), (0, now))
        waited = (now - last).total_seconds()
        # A clock that was set back ends the pause: nobody has to wait until it is there again.
        if failures >= _FAILURES_BEFORE_PAUSE and 0 <= waited < _FAILURE_PAUSE_SECONDS:
            raise Unavailable(
                Code.RATE_LIMITED,
                "too many wrong enrollment codes for this device",
                max(1, int(_FAILURE_PAUSE_SECONDS - waited)),
            )

    def _count_failure(self, ecosystem_id: int, device: str, now: datetime) -> None:
        failures, _ = self._failures.pop((ecosystem_id, device), (0, now))
        self._failures[(ecosystem_id, device)] = (failures + 1, now)
        while len(self._failures) > _FAILURES_REMEMBERED:
            self._failures.popitem(last=False)


def hash_secret(secret: str) -> bytes:
    """What is stored of an enrollment code.

    A plain hash is enough because codes are generated with 100 bits of entropy and never chosen by people
    (`estd.ra.codes`); a slow hash would only give an attacker a lever on the server's CPU.
    """
    return hashlib.sha256(b"estd enrollment code\x00" + secret.encode("utf-8", "surrogateescape")).digest()


def write_code_subject(device: str) -> bytes:
    """The subject (DER Name) that a code stands for.

    Raises:
        Refused: SUBJECT_REFUSED, the name is longer than the 64 characters of a common name.
    """
    return write_rdns([("commonName", device)])


def read_user(authorization: str | None) -> str | None:
    """The device name that HTTP Basic credentials claim, normalised; None when there is none to read."""
    if authorization is None:
        return None
    try:
        return normalise_device(_read_basic(authorization)[0])
    except Refused:
        return None


# --- private -------------------------------------------------------------------------------------------------------


def _spell(user: str, device: str) -> str:
    """The device's name on record, with capital and small letters as typed: a record has small ones alone."""
    typed = " ".join(user.split())
    return typed if typed.isascii() and typed.lower() == device else device


def _write_credential(path: Path, stored: StoredCertificate | None) -> Credential:
    leaf = path.leaf
    return Credential(
        kind="anchor" if stored is None else "issued",
        identity="x509:" + hashlib.sha256(leaf.der).hexdigest(),
        device=_name_device(leaf) if stored is None else stored.device,
        subject=leaf.subject,
        san=leaf.san,
        spki_sha256=leaf.spki_sha256,
        anchor=path.anchor,
        issued=stored,
    )


_CLOCK_RETRY_SECONDS: Final = 60
_CMC_RA: Final = x509.ObjectIdentifier(OIDS["cmcRA"])
_MISSING: Final = {
    Purpose.ENROLL: "show a TLS client certificate or an enrollment code by HTTP Basic",
    Purpose.REENROLL: "renewal needs the TLS client certificate that is to be renewed",
    Purpose.BATCH: "a batch needs the TLS client certificate of a registration authority",
}
_NO_CODE = EnrollmentCode(0, 0, "", bytes(32), True, None, None, datetime.fromtimestamp(0, UTC), None)


def _read_basic(authorization: str) -> tuple[str, str]:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise Refused(Code.CREDENTIAL_INVALID, "only the Basic scheme is understood", "RFC 7030 §3.2.3")
    try:
        text = base64.b64decode(value.strip(), validate=True).decode("utf-8")
    except ValueError:  # what is no base64, what is no UTF-8, and a header that is not even ASCII
        raise Refused(Code.CREDENTIAL_INVALID, "the Basic credentials are not base64 of UTF-8 text") from None
    user, colon, secret = text.partition(":")
    if not colon:
        raise Refused(Code.CREDENTIAL_INVALID, "the Basic credentials hold no colon (RFC 7617 §2)")
    return user, secret


def _doubt_clock(place: Place, now: datetime) -> None:
    """Before a credential is refused for its dates: is it our clock that is wrong?

    Where the issuer itself would not be valid now, nothing can be issued anyway, and "come back" does a device no harm
    while a 403 may make it give up.
    """
    named = [issuer for issuer in place.ecosystem.issuers if issuer.record.name == place.profile.issuer]
    if named and not named[-1].certificate.not_valid_before_utc <= now <= named[-1].certificate.not_valid_after_utc:
        raise Unavailable(Code.ISSUER_NOT_VALID, "the issuer is not valid now", _CLOCK_RETRY_SECONDS)


def _revoked() -> Refused:
    return Refused(Code.CERTIFICATE_REVOKED, "this certificate was revoked", "RFC 5280 §6.1.3")


def _name_device(leaf: Leaf) -> str:
    try:
        return device_name(leaf.subject)
    except Refused as reason:
        raise Refused(
            Code.CERTIFICATE_UNFIT, f"the client certificate names no device: {reason.detail}", reason.clause
        ) from None


def _renews_instead(place: Place, credential: Credential) -> bool:
    # Some fleets renew through simpleenroll with the certificate they hold; a profile may say so.
    return (
        place.profile.treat_as_reenroll
        and credential.issued is not None
        and credential.issued.profile == place.profile.name
    )


def _check_registration_authority(place: Place, credential: Credential, peer: Peer) -> None:
    """RFC 7030 §3.7: who may ask for others. The key purpose alone says nothing: its issuer has to be named here."""
    source = f"anchor:{credential.anchor}" if credential.issued is None else f"issued:{credential.issued.profile}"
    if source not in place.profile.registration_authorities:
        raise Refused(
            Code.NOT_AUTHORIZED,
            "this certificate is not that of a registration authority of this profile",
            "RFC 7030 §3.7",
        )
    key = (_CMC_RA, peer.certificates[0])
    if key not in peer.memo:
        extensions = x509.load_der_x509_certificate(peer.certificates[0]).extensions
        peer.memo[key] = any(
            _CMC_RA in extension.value for extension in extensions if isinstance(extension.value, x509.ExtendedKeyUsage)
        )
    if not peer.memo[key]:
        raise Refused(
            Code.NOT_AUTHORIZED, "its extended key usage lacks id-kp-cmcRA (1.3.6.1.5.5.7.3.28)", "RFC 6402 §2.10"
        )


def _check_role(place: Place, purpose: Purpose, credential: Credential) -> None:
    profile = place.profile
    if purpose is Purpose.REENROLL:
        if credential.issued is None:
            raise Refused(
                Code.NOT_AUTHORIZED, "only a certificate issued by this ecosystem can be renewed", "RFC 7030 §4.2.2"
            )
        if credential.issued.profile != profile.name:
            raise Refused(Code.NOT_AUTHORIZED, "this certificate was issued under another profile", "RFC 7030 §4.2.2")
        if profile.renew == "never":
            raise Refused(Code.RENEWAL_REFUSED, "this profile does not renew; enroll again", "RFC 7030 §4.2.2")
        return
    if credential.kind == "anchor":
        wanted = f"anchor:{credential.anchor}"
    elif credential.issued is not None:
        wanted = f"issued:{credential.issued.profile}"
    else:
        wanted = "code"
    if wanted not in profile.enroll:
        raise Refused(Code.NOT_AUTHORIZED, "this credential may not enroll under this profile", "RFC 7030 §3.7")
