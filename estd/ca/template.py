"""To-be-signed bytes: one template for each issuer and profile, with holes for what differs between certificates.

Everything that is the same in each certificate of a profile is encoded once; `Template.fill` puts serial number, dates,
subject, key, key identifier and subjectAltName between. The result is the exact TBSCertificate (RFC 5280 §4.1) that
any kind of key can sign; `write_certificate` joins it with the signature.

Order of extensions, always: basicConstraints, keyUsage, extendedKeyUsage, certificatePolicies, nameConstraints,
authorityKeyIdentifier, cRLDistributionPoints, authorityInfoAccess, the profile's own, subjectKeyIdentifier,
subjectAltName. Whether the bytes are right is judged by `estd.ca.lint`, which shares nothing with this module.

Must not import anything of the floors above; no clock, no randomness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from estd.asn1 import der
from estd.asn1.spki import read_spki
from estd.ca.authority import Authority
from estd.ca.constraints import write_name_constraints
from estd.ca.hierarchy import IssuerSpec
from estd.ca.profile import Profile
from estd.ca.vocabulary import KEY_USAGES
from estd.errors import Broken
from estd.keys.contract import ALGORITHMS, Algorithm
from estd.names import EMPTY_NAME


class Template:
    """The constant parts of one profile's certificates under one issuer."""

    __slots__ = (
        "_constant",
        "_dates",
        "_identify",
        "_issuer",
        "_key_id",
        "_san_critical",
        "_validity",
        "key_id_method",
    )

    def __init__(self, profile: Profile, issuer: Authority) -> None:
        self.key_id_method = profile.key_id if profile.subject_key_id else None
        self._identify = None if self.key_id_method is None else KEY_IDS[self.key_id_method]
        self._issuer = issuer.algorithm.identifier + issuer.subject
        self._constant = _leaf_extensions(profile, issuer)
        self._key_id = b""
        if self._identify is not None:
            # All identifiers of one method are equally long, so all but the identifier itself is the same each time.
            length = len(self._identify(b""))
            self._key_id = write_extension(_SUBJECT_KEY_ID, False, der.octet_string(bytes(length)))[:-length]
        self._san_critical = profile.san_rule.critical
        self._dates: tuple[datetime, datetime] | None = None
        self._validity = b""

    def fill(
        self,
        serial: bytes,
        not_before: datetime,
        not_after: datetime,
        subject: bytes,
        spki: bytes,
        san: bytes | None,
    ) -> bytes:
        """DER TBSCertificate.

        Args:
            serial: content octets of the serial number.
            not_before: first second of validity.
            not_after: last second of validity.
            subject: DER Name.
            spki: DER SubjectPublicKeyInfo.
            san: DER GeneralNames, or None for no subjectAltName.
        """
        if self._dates != (not_before, not_after):
            # A batch is made in one second, so its dates are encoded once.
            self._validity = der.sequence(der.time(not_before), der.time(not_after))
            self._dates = (not_before, not_after)
        extensions = self._constant
        if self._identify is not None:
            extensions += self._key_id + self._identify(read_spki(spki)[1])
        if san is not None:
            # RFC 5280 §4.2.1.6: critical whenever the subject is empty.
            extensions += write_extension(_SUBJECT_ALT_NAME, self._san_critical or subject == EMPTY_NAME, san)
        return _tbs(serial, self._issuer, self._validity, subject, spki, extensions)


def write_ca_tbs(
    spec: IssuerSpec,
    spki: bytes,
    key_type: str,
    parent: Authority | None,
    serial: bytes,
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """DER TBSCertificate of an issuer: signed by `parent`, or by itself when that is None."""
    extensions = _constraints_extension(spec.path_length)
    extensions += write_extension("keyUsage", True, _key_usage(("keyCertSign", "cRLSign")))
    if spec.name_constraints is not None:
        # RFC 5280 §4.2.1.10: conforming CAs MUST mark it critical.
        extensions += write_extension("nameConstraints", True, write_name_constraints(spec.name_constraints))
    if parent is not None:
        extensions += _authority_key_id(parent) + _crl_points(parent) + _access(parent)
    key_id = KEY_IDS[spec.key_id](read_spki(spki)[1])
    extensions += write_extension(_SUBJECT_KEY_ID, False, der.octet_string(key_id))
    issuer, algorithm = (spec.subject, ALGORITHMS[key_type]) if parent is None else (parent.subject, parent.algorithm)
    validity = der.sequence(der.time(not_before), der.time(not_after))
    return _tbs(serial, algorithm.identifier + issuer, validity, spec.subject, spki, extensions)


def write_certificate(tbs: bytes, algorithm: Algorithm, signature: bytes) -> bytes:
    """DER Certificate."""
    rest = algorithm.identifier + der.header(der.BIT_STRING, len(signature) + 1) + b"\0" + signature
    return der.header(der.SEQUENCE, len(tbs) + len(rest)) + tbs + rest


def write_extension(name: str, critical: bool, value: bytes) -> bytes:
    """One Extension, by a name of `estd.asn1.oids` or in numbers; critical FALSE is its default and not encoded."""
    return der.sequence(der.oid(name), der.boolean(True) if critical else b"", der.octet_string(value))


KEY_IDS: Final[dict[str, Callable[[bytes], bytes]]] = {
    # RFC 7093 §2 method 1, RFC 5280 §4.2.1.2 methods 1 and 2; over the octets of the subjectPublicKey BIT STRING.
    "sha256-160": lambda octets: hashlib.sha256(octets).digest()[:20],
    "sha1-160": lambda octets: hashlib.sha1(octets, usedforsecurity=False).digest(),
    "sha1-64": lambda octets: _low_60_bits(hashlib.sha1(octets, usedforsecurity=False).digest()),
}
"""How each method of `estd.ca.profile.KEY_ID_METHODS` makes a key identifier."""


# --- private ---------------------------------------------------------------------------------------------------------

_SUBJECT_KEY_ID: Final = "subjectKeyIdentifier"
_SUBJECT_ALT_NAME: Final = "subjectAltName"
_VERSION_3: Final = der.explicit(0, der.integer(2))


def _tbs(serial: bytes, after_serial: bytes, validity: bytes, subject: bytes, spki: bytes, extensions: bytes) -> bytes:
    if not 1 <= len(serial) <= _SERIAL_MAX_BYTES:
        raise Broken("a serial number has 1 to 20 octets")
    start = der.header(der.SEQUENCE, len(extensions))
    wrapped = der.header(0xA3, len(start) + len(extensions)) + start
    number = _VERSION_3 + der.header(der.INTEGER, len(serial)) + serial
    parts = (number, after_serial, validity, subject, spki, wrapped, extensions)
    return der.header(der.SEQUENCE, sum(map(len, parts))) + b"".join(parts)


_SERIAL_MAX_BYTES: Final = 20


def _leaf_extensions(profile: Profile, issuer: Authority) -> bytes:
    parts = []
    if profile.basic_constraints:
        # cA is FALSE by default and pathLenConstraint needs cA TRUE (RFC 5280 §4.2.1.9): the value is empty.
        parts.append(write_extension("basicConstraints", profile.basic_constraints_critical, der.sequence()))
    if profile.key_usage:
        parts.append(write_extension("keyUsage", profile.key_usage_critical, _key_usage(profile.key_usage)))
    if profile.extended_key_usage:
        purposes = der.sequence(*(der.oid(purpose) for purpose in profile.extended_key_usage))
        parts.append(write_extension("extKeyUsage", profile.extended_key_usage_critical, purposes))
    if profile.policies:
        policies = der.sequence(*(der.sequence(der.oid(policy)) for policy in profile.policies))
        parts.append(write_extension("certificatePolicies", profile.policies_critical, policies))
    parts.append(_authority_key_id(issuer))
    if profile.cdp:
        parts.append(_crl_points(issuer))
    if profile.aia:
        parts.append(_access(issuer))
    parts += [write_extension(extra.oid, extra.critical, extra.value) for extra in profile.extensions]
    return b"".join(parts)


def _key_usage(usages: Sequence[str]) -> bytes:
    return der.named_bits(KEY_USAGES.index(usage) for usage in usages)


def _constraints_extension(path_length: int | None) -> bytes:
    limit = b"" if path_length is None else der.integer(path_length)
    return write_extension("basicConstraints", True, der.sequence(der.boolean(True), limit))


def _authority_key_id(issuer: Authority) -> bytes:
    return write_extension("authorityKeyIdentifier", False, der.sequence(der.tlv(0x80, issuer.key_id)))


def _crl_points(issuer: Authority) -> bytes:
    """RFC 5280 §4.2.1.13: one DistributionPoint whose fullName is the URL."""
    if issuer.crl_url is None:
        return b""
    full_name = der.tlv(0xA0, der.tlv(0x86, issuer.crl_url.encode("ascii")))
    return write_extension("cRLDistributionPoints", False, der.sequence(der.sequence(der.tlv(0xA0, full_name))))


def _access(issuer: Authority) -> bytes:
    """RFC 5280 §4.2.2.1."""
    methods = [
        der.sequence(der.oid(method), der.tlv(0x86, url.encode("ascii")))
        for method, url in (("ocsp", issuer.ocsp_url), ("caIssuers", issuer.ca_issuers_url))
        if url is not None
    ]
    return write_extension("authorityInfoAccess", False, der.sequence(*methods)) if methods else b""


def _low_60_bits(digest: bytes) -> bytes:
    """RFC 5280 §4.2.1.2 (2): 0100 and the least significant 60 bits."""
    return bytes((0x40 | digest[12] & 0x0F,)) + digest[13:]
