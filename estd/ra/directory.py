"""The ecosystems as a worker sees them now, and where a label leads.

A `Directory` is replaced as a whole whenever the store says that something changed; a request takes its `Place` once and
uses nothing else, so it never sees half of an old rule and half of a new one. No I/O happens here: the worker hands in
what it read from the store.

Records are read one by one: of an ecosystem that cannot be read the version before stays in force, and neither the others
nor the revocations wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from cryptography import x509
from cryptography.x509 import verification

from estd.ca.ecosystem import Anchor, Ecosystem, load_document, peek_labels
from estd.ca.profile import Profile
from estd.errors import Code, Invalid, Refused, Unavailable
from estd.store.contract import EcosystemRecord, IssuerRecord, Revocation

_log = logging.getLogger(__name__)

INTERNAL_LABEL: Final = "estd-server"
"""The server's own ecosystem; no path leads to it."""
_CLOSED_SECONDS: Final = 60
"""When to ask again for an ecosystem whose rules an operator has to mend first."""

# IDevIDs carry neither the SAN nor the EKU that the default policy wants (IEEE 802.1AR §8); what a leaf must and must
# not say is checked by `estd.ra.paths`; of CA certificates RFC 5280 §6.1.4 (k) and (n) are what it wants.
_MAXIMUM_CHAIN_DEPTH: Final = 5
_LEAF_POLICY = verification.ExtensionPolicy.permit_all()


def _check_key_usage(_policy: verification.Policy, _issuer: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the key of a CA on the path must not sign certificates")


_CA_POLICY = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _check_key_usage)
)


@dataclass(frozen=True, slots=True)
class LiveIssuer:
    """One of our issuers, parsed once."""

    record: IssuerRecord
    certificate: x509.Certificate
    subject: bytes
    """DER of the Name, as it stands in the issuer field of what it signed."""


@dataclass(frozen=True, slots=True)
class LiveEcosystem:
    """One version of one ecosystem, ready to use."""

    ecosystem_id: int
    node_id: int
    version: int
    rules: Ecosystem
    issuers: tuple[LiveIssuer, ...]
    policy: verification.PolicyBuilder | None
    """Path validation against the makers' anchors; None when the ecosystem has none."""
    anchor_names: Mapping[x509.Certificate, Anchor]
    """An anchor's certificate → the anchor it belongs to."""
    cacerts: tuple[bytes, ...]
    """What `GET cacerts` tells: the root and intermediates of every active issuer (RFC 7030 §4.1.3), roots first."""
    compromised_keys: frozenset[bytes]
    """SHA-256 of the SubjectPublicKeyInfo of keys that a certificate of this ecosystem had when it was revoked for
    keyCompromise."""

    @property
    def label(self) -> str:
        """The EST label of the ecosystem itself."""
        return self.rules.label

    def check_key(self, spki_sha256: bytes) -> None:
        """Whether a key may get a certificate, by the hash of its SubjectPublicKeyInfo.

        Raises:
            Refused: KEY_REVOKED.
        """
        if spki_sha256 in self.compromised_keys:
            raise Refused(
                Code.KEY_REVOKED,
                "a certificate of this key was revoked because the key is compromised; make a new key",
                "RFC 5280 §5.3.1",
            )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a label leads: an ecosystem and the profile that is used there."""

    ecosystem: LiveEcosystem
    profile: Profile


class Directory:
    """All ecosystems by label, and the revoked serials of all issuers.

    Args:
        records: the newest version of every ecosystem.
        revocations: all that are in force.
        default: the label that a path without one means.
        compromised: (ecosystem_id, SHA-256 of a SubjectPublicKeyInfo) of keys that get no certificate any more.
        before: the directory that this one takes the place of.
    """

    def __init__(
        self,
        records: Iterable[EcosystemRecord],
        revocations: Iterable[Revocation],
        default: str | None,
        compromised: Iterable[tuple[int, bytes]] = (),
        before: Directory | None = None,
    ) -> None:
        self._places: dict[str, Place] = {}
        self._contested: set[str] = set()
        self._closed: set[str] = set()
        """Labels of ecosystems of which no version could be read."""
        self._default = default
        self.ecosystems: dict[int, LiveEcosystem] = {}
        self.unread: dict[int, int] = {}
        """Ecosystem → its newest version, which could not be read."""
        keys: dict[int, list[bytes]] = {}
        for ecosystem_id, spki_sha256 in compromised:
            keys.setdefault(ecosystem_id, []).append(spki_sha256)
        for record in records:
            live = self._read(record, frozenset(keys.get(record.ecosystem_id, ())), before)
            if live is None:
                if record.label != INTERNAL_LABEL:
                    self._closed |= {record.label, *peek_labels(record.document)}
                continue
            self.ecosystems[live.ecosystem_id] = live
            rules = live.rules
            if rules.label == INTERNAL_LABEL:
                continue
            for profile in rules.profiles.values():
                if profile.label is not None:
                    self._claim(profile.label, Place(live, profile))
            if rules.default_profile is not None:
                self._claim(rules.label, Place(live, rules.profiles[rules.default_profile]))
        for label in self._contested:
            _log.error("two ecosystems claim one label; it leads nowhere", extra={"label": label})
            del self._places[label]
        for label in self._closed & self._places.keys():
            _log.error("two ecosystems claim one label; it leads nowhere", extra={"label": label})
            del self._places[label]
        self.revoked = {(revocation.issuer_id, revocation.serial) for revocation in revocations}

    def find_place(self, label: str | None) -> Place:
        """Where a path with that label, or with none, leads.

        Raises:
            Refused: LABEL_UNKNOWN.
            Unavailable: STORE_UNAVAILABLE, while the rules of that ecosystem cannot be read.
        """
        if label is None:
            # RFC 7030 §3.2.2 leaves the path without a label to the server; the operator names what it means.
            if self._default is None or not (self._default in self._places or self._default in self._closed):
                raise Refused(
                    Code.LABEL_UNKNOWN,
                    "this server has no default ecosystem: put your ecosystem's label into the path, "
                    "/.well-known/est/LABEL/OPERATION",
                    "RFC 7030 §3.2.2",
                )
            label = self._default
        place = self._places.get(label)
        if place is not None:
            return place
        if label in self._closed:
            raise Unavailable(Code.STORE_UNAVAILABLE, "the rules of this ecosystem cannot be read now", _CLOSED_SECONDS)
        raise Refused(Code.LABEL_UNKNOWN, "no ecosystem or profile has this label", "RFC 7030 §3.2.2")

    def _read(
        self, record: EcosystemRecord, compromised_keys: frozenset[bytes], before: Directory | None
    ) -> LiveEcosystem | None:
        """The version on record; if that cannot be read the one before, if there is one."""
        try:
            return _read_ecosystem(record, compromised_keys)
        except Exception as fault:  # noqa: BLE001 - whatever is wrong with one must not keep the others away
            kept = None if before is None else before.ecosystems.get(record.ecosystem_id)
            self.unread[record.ecosystem_id] = record.version
            if before is None or before.unread.get(record.ecosystem_id) != record.version:
                facts = {
                    "ecosystem": record.label,
                    "version": record.version,
                    "kept_version": None if kept is None else kept.version,
                    "detail": str(fault),
                    "remedy": "If a newer estd wrote it, finish the upgrade; otherwise apply it again or restore its rows.",
                }
                _log.error("an ecosystem cannot be read", extra=facts, exc_info=not isinstance(fault, Invalid))
            return None if kept is None else replace(kept, compromised_keys=compromised_keys)

    def _claim(self, label: str, place: Place) -> None:
        # The store lets one ecosystem have a label; a database that something else wrote to may know better.
        if label in self._places:
            self._contested.add(label)
        self._places[label] = place

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that leads somewhere."""
        return tuple(sorted(self._places))


def _read_ecosystem(record: EcosystemRecord, compromised_keys: frozenset[bytes]) -> LiveEcosystem:
    rules = load_document(record.document)
    issuers = tuple(_read_issuer(issuer) for issuer in record.issuers)
    anchors: dict[x509.Certificate, Anchor] = {}
    for anchor in rules.anchors:
        for der in anchor.certificates:
            anchors[x509.load_der_x509_certificate(der)] = anchor
    policy = None
    if anchors:
        policy = (
            verification.PolicyBuilder()
            .store(verification.Store(list(anchors)))
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
            .max_chain_depth(_MAXIMUM_CHAIN_DEPTH)
        )
    return LiveEcosystem(
        ecosystem_id=record.ecosystem_id,
        node_id=record.node_id,
        version=record.version,
        rules=rules,
        issuers=issuers,
        policy=policy,
        anchor_names=anchors,
        cacerts=_choose_cacerts(rules, issuers),
        compromised_keys=compromised_keys,
    )


def _read_issuer(record: IssuerRecord) -> LiveIssuer:
    certificate = x509.load_der_x509_certificate(record.certificate)
    return LiveIssuer(record, certificate, certificate.subject.public_bytes())


def _choose_cacerts(rules: Ecosystem, issuers: tuple[LiveIssuer, ...]) -> tuple[bytes, ...]:
    named = {spec.name for spec in rules.issuers}
    active: dict[str, LiveIssuer] = {}
    for issuer in issuers:
        if issuer.record.name in named:
            active[issuer.record.name] = issuer
    ordered = sorted(active.values(), key=lambda issuer: (issuer.record.parent_id is not None, issuer.record.issuer_id))
    return tuple(issuer.record.certificate for issuer in ordered)
