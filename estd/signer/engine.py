"""The issuance engine of a signer: ecosystems as loaded, their issuers and keys, and `estd.ca` between request and bytes.

* A worker that still follows the version before the current one is served for `KEPT_SECONDS`; any other version is
  "not now", so that the worker asks again when both have caught up.
* The CSR's signature and the key are checked here, by the process that signs, whatever the worker checked.
* Keys are opened here, with the key-encryption key that came over the control channel, and are never written anywhere.
* Bytes from the journal are signed again only if they still pass the lint of one of the issuer's profiles, so a forged
  journal cannot make this process sign what no profile allows.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from estd.ca.authority import read_authority
from estd.ca.blocklist import PUBLISHED
from estd.ca.ecosystem import Ecosystem, load_document
from estd.ca.issuer import RANDOM_BYTES, Approved, Issuer
from estd.ca.profile import Profile
from estd.errors import Broken, Code, Invalid, Problem, Refused, Unavailable
from estd.keys.contract import SigningKey
from estd.keys.software import unseal
from estd.signer.frames import Load, LoadedIssuer, PrepareItem
from estd.wire.pkcs10 import VerifiedRequest, read_request_again, verify_request

_log = logging.getLogger(__name__)

KEPT_SECONDS: Final = 60.0
"""How long a version is served after a newer one was loaded."""


class IssuanceEngine:
    """See `estd.signer.service.Engine` for what each method promises."""

    def __init__(self) -> None:
        self._blocked = PUBLISHED
        self._kek = b""
        self._ecosystems: dict[int, dict[int, _Version]] = {}
        self._keys: dict[int, SigningKey] = {}
        self._read: dict[bytes, VerifiedRequest | Refused] = {}
        """Requests that `read_all` has read and `prepare` has not asked for."""
        self._told: set[tuple[int, str, str]] = set()
        """Issuer, profile and why it signs nothing, where the log says so already."""
        self._randomness = b""
        """For the serials of the requests that come next; what is taken is taken once."""

    def unlock(self, kek: bytes) -> None:
        """Take the key-encryption key."""
        self._kek = kek

    def load(self, load: Load, at: float) -> None:
        """Make one version of an ecosystem ready; loading it again, or an older one, changes nothing.

        Raises:
            Invalid: it cannot be used; the versions that were ready still are.
        """
        versions = self._ecosystems.get(load.ecosystem_id, {})
        if load.version in versions or load.version < max(versions, default=0):
            return
        version = self._build(load)
        for older in versions.values():
            older.replaced_at = at if older.replaced_at is None else older.replaced_at
        self._ecosystems.setdefault(load.ecosystem_id, versions)[load.version] = version

    def drop(self, ecosystem_id: int) -> None:
        """Forget an ecosystem and its keys."""
        for version in self._ecosystems.pop(ecosystem_id, {}).values():
            for issuer_id in version.records:
                self._keys.pop(issuer_id, None)

    def expire(self, at: float) -> None:
        """Forget versions that were replaced long enough ago."""
        for versions in self._ecosystems.values():
            for number, version in list(versions.items()):
                if version.replaced_at is not None and at - version.replaced_at >= KEPT_SECONDS:
                    del versions[number]

    def versions(self) -> dict[int, list[int]]:
        """Ecosystem → versions that can be prepared for."""
        return {ecosystem_id: sorted(versions) for ecosystem_id, versions in self._ecosystems.items()}

    def block(self, keys: frozenset[bytes]) -> None:
        """Refuse these keys too, by the SHA-256 of their SubjectPublicKeyInfo."""
        self._blocked = PUBLISHED | keys

    def read_all(self, items: Sequence[PrepareItem]) -> None:
        """Read these requests and check their signatures, ahead of `prepare`.

        All of them in one go cost a sixth less than each between other work, for which the processor's caches are too
        small to hold both.
        """
        self._read.clear()
        self._randomness = secrets.token_bytes(len(items) * RANDOM_BYTES)
        for item in items:
            try:
                self._read[item.csr] = verify_request(read_request_again(item.csr))
            except Refused as refused:
                self._read[item.csr] = refused
            except Exception:  # noqa: BLE001 - `prepare` meets it again, where it costs this one request and no other
                self._read.pop(item.csr, None)

    def prepare(self, item: PrepareItem, now: datetime) -> Approved:
        """Check a request and build its certificate up to the signature."""
        version = self._ecosystems.get(item.ecosystem_id, _NO_VERSIONS).get(item.version)
        if version is None:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "this version of the ecosystem is not loaded here", 1)
        profile = version.ecosystem.profiles.get(item.profile)
        if profile is None:
            # Both read the same document, so this worker is not what it should be.
            raise Refused(Code.NOT_AUTHORIZED, f"the ecosystem has no profile {item.profile}")
        issuer = version.active.get(profile.issuer)
        if issuer is None:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, f"the key of issuer {profile.issuer} is not here", 60)
        # RFC 7030 §4.2.1: the CA verifies the signature over the CSR, whatever a registration authority says of it.
        verified = self._read.pop(item.csr, None) or verify_request(read_request_again(item.csr))
        if isinstance(verified, Refused):
            raise verified
        try:
            return issuer.prepare(
                item.profile, verified, item.subject, item.san, now, self._draw(), self._blocked.__contains__
            )
        except Unavailable as reason:
            self._tell(version.ecosystem.label, profile, issuer.issuer_id, reason)
            raise

    def seal(self, approved: Sequence[Approved]) -> list[bytes | Refused | Unavailable]:
        """Sign each, in order, with one call to each issuer's key."""
        groups: dict[Issuer, list[int]] = {}
        for at, one in enumerate(approved):
            groups.setdefault(one.issuer, []).append(at)
        results: list[bytes | Refused | Unavailable] = [_NOT_SIGNED] * len(approved)
        for issuer, places in groups.items():
            try:
                certificates = issuer.seal_many([approved[at] for at in places])
            except Unavailable as reason:
                for at in places:
                    results[at] = reason
            else:
                for at, certificate in zip(places, certificates, strict=True):
                    results[at] = certificate
        return results

    def is_repeatable(self, issuer_id: int) -> bool | None:
        """Whether this issuer's key makes the same signature again; None while the issuer is not known."""
        key = self._keys.get(issuer_id)
        if key is None:
            issuer = next(self._find(issuer_id), None)
            return None if issuer is None else issuer.key.deterministic
        return key.deterministic

    def repeat(self, issuer_id: int, tbs: bytes) -> bytes:
        """Sign journaled bytes again, if any version that is loaded would still allow them."""
        refusal: Refused | None = None
        for issuer in self._find(issuer_id):
            try:
                return issuer.repeat(tbs)
            except Refused as reason:
                refusal = reason
        raise refusal or Unavailable(Code.SIGNER_UNAVAILABLE, "the issuer is not loaded")

    # --- private -----------------------------------------------------------------------------------------------------

    def _tell(self, label: str, profile: Profile, issuer_id: int, reason: Unavailable) -> None:
        """Say once that an issuer signs nothing under a profile: no request mends that."""
        if (issuer_id, profile.name, reason.detail) not in self._told:
            self._told.add((issuer_id, profile.name, reason.detail))
            facts = {"ecosystem": label, "issuer": profile.issuer, "profile": profile.name, "why": reason.detail}
            _log.error("nothing can be issued under a profile", extra=facts)

    def _draw(self) -> bytes:
        """Randomness for one serial; a group's is asked of the system at once."""
        rest = self._randomness or secrets.token_bytes(RANDOM_BYTES)
        self._randomness = rest[RANDOM_BYTES:]
        return rest[:RANDOM_BYTES]

    def _build(self, load: Load) -> _Version:
        version = _Version(load_document(load.document), {issuer.issuer_id: issuer for issuer in load.issuers})
        newest = {issuer.name: issuer for issuer in load.issuers}
        used = {profile.issuer for profile in version.ecosystem.profiles.values()}
        for name, record in newest.items():
            if name in used and record.sealed_key is not None:
                version.active[name] = version.built[record.issuer_id] = self._build_issuer(version, record)
        return version

    def _build_issuer(self, version: _Version, record: LoadedIssuer) -> Issuer:
        """One issuer with the profiles that name it, and its key opened.

        Raises:
            Invalid: its row is damaged, or its key does not open.
        """
        try:
            return self._open_issuer(version, record)
        except (Broken, Refused, ValueError) as fault:
            raise Invalid([Problem(f"issuer {record.name}", str(fault), "Restore its row from a backup.")]) from fault

    def _open_issuer(self, version: _Version, record: LoadedIssuer) -> Issuer:
        specs = {spec.name: spec for spec in version.ecosystem.issuers}
        spec = specs.get(record.name)
        urls = (None, None, None) if spec is None else (spec.crl_url, spec.ocsp_url, spec.ca_issuers_url)
        authority = read_authority(record.certificate, *urls)
        profiles = [profile for profile in version.ecosystem.profiles.values() if profile.issuer == record.name]
        key = self._keys.get(record.issuer_id)
        if key is None:
            if record.sealed_key is None:
                raise Invalid(
                    [Problem(f"issuer {record.name}", "has no key here", "Import its key, or make it offline.")]
                )
            # The issuer's own public key is the context: a sealed key moved to another row does not open.
            key = unseal(record.sealed_key, self._kek, authority.spki)
        issuer = Issuer(record.issuer_id, authority, key, profiles, _chain_above(version.records, record))
        self._keys[record.issuer_id] = key
        return issuer

    def _find(self, issuer_id: int) -> Iterator[Issuer]:
        """This issuer as each loaded version has it, newest first; also one that a newer certificate replaced."""
        for versions in self._ecosystems.values():
            for _, version in sorted(versions.items(), reverse=True):
                record = version.records.get(issuer_id)
                if record is None or record.sealed_key is None:
                    continue
                issuer = version.built.get(issuer_id)
                if issuer is None:
                    try:
                        issuer = version.built[issuer_id] = self._build_issuer(version, record)
                    except Invalid as reason:
                        _log.error("a former issuer cannot be used: %s", reason, extra={"issuer_id": issuer_id})
                        continue
                yield issuer


@dataclass(slots=True)
class _Version:
    ecosystem: Ecosystem
    records: Mapping[int, LoadedIssuer]
    active: dict[str, Issuer] = field(default_factory=dict)
    """Name → the newest issuer of that name, where a profile uses it and its key is here."""
    built: dict[int, Issuer] = field(default_factory=dict)
    replaced_at: float | None = None
    """When a newer version was loaded, monotonic seconds."""


_NO_VERSIONS: Final[Mapping[int, _Version]] = {}
_NOT_SIGNED: Final = Unavailable(Code.SIGNER_UNAVAILABLE, "the issuer's key did not answer")


def _chain_above(records: Mapping[int, LoadedIssuer], record: LoadedIssuer) -> list[bytes]:
    """The CA certificates above an issuer, nearest first."""
    above: list[bytes] = []
    parent = record.parent_id
    while parent is not None and parent in records and len(above) < len(records):
        above.append(records[parent].certificate)
        parent = records[parent].parent_id
    return above
