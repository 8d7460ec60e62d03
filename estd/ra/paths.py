"""Whose certificate is it: the path from a client certificate to an anchor or an issuer of one ecosystem.

A maker's certificate is believed by path validation (RFC 5280 §6.1), carried out by `cryptography` with policies of our
own, because IDevIDs carry neither the SAN nor the key purpose that its defaults want (IEEE 802.1AR §8). A certificate of
ours is believed because it is on record octet by octet (`estd.ra.admission`), which says more than its signature would. A
path is worth keeping for as long as the connection and the ecosystem's version last; its window of time is compared anew
for every request (`check_window`).

Revocation of what makers issued is not checked here: see ``rfc-notes/divergences.md``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from estd.asn1.certificate import read_fields
from estd.asn1.foreign import Unreadable, read_certificate, read_extensions, reading
from estd.errors import Code, Refused
from estd.ra.directory import LiveEcosystem, LiveIssuer
from estd.wire.exchange import Peer


class Leaf(msgspec.Struct, frozen=True, eq=False):
    """A client certificate that may act as a client, whoever issued it; nothing is known of that yet."""

    der: bytes
    certificate: x509.Certificate
    serial: bytes
    """Content octets of the serial INTEGER."""
    issuer: bytes
    """DER Name."""
    subject: bytes
    """DER Name."""
    san: bytes | None
    """DER GeneralNames."""
    spki_sha256: bytes
    starts: datetime
    ends: datetime


class Path(msgspec.Struct, frozen=True, eq=False):
    """A leaf that this ecosystem believes. The window is the intersection of all the path's certificates' validity."""

    leaf: Leaf
    anchor: str | None
    """Name of the maker's anchor it ends at; None for a certificate of ours."""
    issuer: LiveIssuer | None
    """Which of our issuers signed it; None for a maker's."""
    starts: datetime
    ends: datetime
    ignore_expiry: bool


def read_leaf(peer: Peer) -> Leaf:
    """The certificate the peer holds the key of.

    Raises:
        Refused: CERTIFICATE_UNFIT when it cannot be read or must not act as a client.
    """
    der = peer.certificates[0]
    try:
        certificate = read_certificate(der)
        extensions = {extension.oid: extension.value for extension in read_extensions(certificate)}
        san = extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        fields = read_fields(der)
        with reading():
            starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            san_der = None if san is None else san.public_bytes()
    except (Unreadable, Refused):
        raise Refused(Code.CERTIFICATE_UNFIT, "the client certificate cannot be read", "RFC 5280 §4.1") from None
    _check_purpose(extensions)
    return Leaf(
        der=der,
        certificate=certificate,
        serial=fields.serial,
        issuer=fields.issuer,
        subject=fields.subject,
        san=san_der,
        spki_sha256=hashlib.sha256(fields.spki).digest(),
        starts=starts,
        ends=ends,
    )


def write_own_path(leaf: Leaf, issuer: LiveIssuer) -> Path:
    """The path of a leaf that is on record, octet by octet, as issued by that issuer of ours."""
    return Path(leaf, None, issuer, leaf.starts, leaf.ends, ignore_expiry=False)


def validate_path(ecosystem: LiveEcosystem, leaf: Leaf, peer: Peer, now: datetime) -> Path:
    """The path from a leaf to a maker's anchor.

    Raises:
        Refused: CERTIFICATE_UNTRUSTED when there is none; CERTIFICATE_UNFIT when what came along is no certificate.
    """
    if ecosystem.policy is None:
        raise _untrusted()
    try:
        rest = [read_certificate(other) for other in peer.certificates[1:]]
    except Unreadable:
        raise Refused(
            Code.CERTIFICATE_UNFIT, "a certificate that came along with the client's cannot be read", "RFC 5280 §4.1"
        ) from None
    chain = _find_chain(ecosystem, leaf, rest, now)
    maker = ecosystem.anchor_names[chain[-1]]
    starts, ends = leaf.starts, leaf.ends
    for above in chain[1:]:
        since, until = _read_window(above)
        starts, ends = max(starts, since), min(ends, until)
    return Path(leaf, maker.name, None, starts, ends, maker.ignore_expiry)


def check_window(path: Path, now: datetime) -> None:
    """Refuse a path that is not valid at this time; both ends of the window belong to it (RFC 5280 §4.1.2.5).

    Raises:
        Refused: CERTIFICATE_NOT_YET_VALID or CERTIFICATE_EXPIRED, with both clocks in the text, because it is often the
            device's clock that is wrong.
    """
    if now < path.starts:
        which = _CLIENTS if path.starts == path.leaf.starts else _ABOVE
        raise Refused(
            Code.CERTIFICATE_NOT_YET_VALID,
            f"{which} is not valid before {path.starts:%Y-%m-%dT%H:%M:%SZ}; here it is {now:%Y-%m-%dT%H:%M:%SZ}",
            "RFC 5280 §6.1.3",
        )
    # RFC 8995 §2.6.2: the operator may excuse a maker's expired birth certificates.
    if now > path.ends and not path.ignore_expiry:
        which = _CLIENTS if path.ends == path.leaf.ends else _ABOVE
        raise Refused(
            Code.CERTIFICATE_EXPIRED,
            f"{which} expired at {path.ends:%Y-%m-%dT%H:%M:%SZ}; here it is {now:%Y-%m-%dT%H:%M:%SZ}",
            "RFC 5280 §6.1.3",
        )


# --- private -------------------------------------------------------------------------------------------------------

_CLIENTS: Final = "the client certificate"
_ABOVE: Final = "a CA certificate above the client certificate"
_SIGNATURES_AT_MOST: Final = 12
"""How many signatures are verified in search of a path; one of a maker has two or three."""


def _find_chain(
    ecosystem: LiveEcosystem, leaf: Leaf, rest: list[x509.Certificate], now: datetime
) -> list[x509.Certificate]:
    """The leaf's path, leaf first, at a time when all of it is valid: now, or else another such time.

    The real time is compared with the whole path's window on every request (`check_window`), so that "expired" and
    "unknown maker" are told apart and a kept connection outlives neither.

    Raises:
        Refused: CERTIFICATE_UNTRUSTED.
    """
    assert ecosystem.policy is not None
    judged = min(max(now, leaf.starts), leaf.ends)
    try:
        chain = _verify(ecosystem.policy, leaf, rest, judged)
        if chain is None:
            other = _find_time(leaf, rest, ecosystem.anchor_names, judged)
            chain = None if other is None else _verify(ecosystem.policy, leaf, rest, other)
    except Unreadable:
        chain = None
    if chain is None:
        raise _untrusted()
    return chain


def _verify(
    policy: verification.PolicyBuilder, leaf: Leaf, rest: list[x509.Certificate], judged: datetime
) -> list[x509.Certificate] | None:
    verifier = _make_verifier(policy, judged)
    try:
        with reading():
            return verifier.verify(leaf.certificate, rest).chain
    except (Unreadable, verification.VerificationError):
        return None


def _find_time(
    leaf: Leaf, rest: list[x509.Certificate], anchors: Collection[x509.Certificate], judged: datetime
) -> datetime | None:
    """When a path to an anchor was last valid, or else when one first will be; None where time is not what is missing.

    What has ended comes first, because that can be excused. Paths that are valid when judged failed for another reason.
    """
    windows = list(_find_windows(leaf, rest, anchors))
    ended = [last for _, last in windows if last < judged]
    coming = [first for first, _ in windows if judged < first]
    return max(ended) if ended else min(coming, default=None)


def _find_windows(
    leaf: Leaf, rest: list[x509.Certificate], anchors: Collection[x509.Certificate]
) -> Iterator[tuple[datetime, datetime]]:
    """From when until when each path to an anchor is valid, as far as some signatures lead.

    Paths are followed by their signatures, because names and dates cost a stranger nothing: whoever has none from a maker
    is looked at once more and not again.
    """
    known = set(anchors)
    named: dict[bytes, list[x509.Certificate]] = {}
    for one in (*rest, *anchors):  # not `known`, whose order is another one in each process
        try:
            named.setdefault(_read_names(one)[0], []).append(one)
        except Unreadable:
            continue  # nothing that can be read was issued by that name, and what else came along may do
    ways = [(leaf.certificate, leaf.issuer, leaf.starts, leaf.ends)]
    verified = 0
    while ways:
        below, issuer, starts, ends = ways.pop()
        for above in named.get(issuer, ()):
            since, until = _read_window(above)
            first, last = max(starts, since), min(ends, until)
            if first > last or above is below:
                continue
            if verified == _SIGNATURES_AT_MOST:
                return
            verified += 1
            if not _is_signed(below, above):
                continue
            if above in known:
                yield first, last
            else:
                ways.append((above, _read_names(above)[1], first, last))


def _is_signed(below: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        with reading():
            below.verify_directly_issued_by(above)
    except (Unreadable, InvalidSignature):
        return False
    return True


@functools.lru_cache(maxsize=64)
def _make_verifier(policy: verification.PolicyBuilder, judged: datetime) -> verification.ClientVerifier:
    """Kept: most leaves of a second are judged at that second."""
    return policy.time(judged).build_client_verifier()


@functools.lru_cache(maxsize=256)
def _read_window(certificate: x509.Certificate) -> tuple[datetime, datetime]:
    """Kept: a fleet has few makers."""
    with reading():
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc


@functools.lru_cache(maxsize=256)
def _read_names(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """DER of its subject and of its issuer."""
    with reading():
        return certificate.subject.public_bytes(), certificate.issuer.public_bytes()


def _untrusted() -> Refused:
    return Refused(
        Code.CERTIFICATE_UNTRUSTED,
        "no path from this client certificate to a trust anchor of this ecosystem",
        "RFC 5280 §6.1",
    )


def _check_purpose(extensions: Mapping[x509.ObjectIdentifier, x509.ExtensionType]) -> None:
    """Refuse certificates that must not act as a client, whoever signed them."""
    constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise Refused(Code.CERTIFICATE_UNFIT, "a CA certificate cannot act as a device", "RFC 5280 §4.2.1.9")
    usage = extensions.get(ExtensionOID.KEY_USAGE)
    if isinstance(usage, x509.KeyUsage) and not usage.digital_signature:
        raise Refused(Code.CERTIFICATE_UNFIT, "its key usage does not allow digitalSignature", "RFC 5280 §4.2.1.3")
    purposes = extensions.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if isinstance(purposes, x509.ExtendedKeyUsage) and not (
        ExtendedKeyUsageOID.CLIENT_AUTH in purposes or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in purposes
    ):
        raise Refused(Code.CERTIFICATE_UNFIT, "its extended key usage lacks clientAuth", "RFC 5280 §4.2.1.12")
