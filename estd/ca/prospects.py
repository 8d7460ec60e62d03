"""Whether what an ecosystem's rules promise can come true: is there a certificate that each profile could issue now?

Reading a document (`estd.ca.ecosystem`) finds what is wrong in itself. Here it is held against its issuers' certificates and
the time: issuers that have expired or are not valid yet, ends that have passed, a subject that no issuer above allows, a
size that nothing fits into, a profile that no path leads to. Each of these refuses every device for as long as it stands.

Only what is certain is found: what hangs on the request is judged when there is one. Pure; the time is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from estd.asn1 import der
from estd.asn1.spki import ALGORITHMS as KEY_ALGORITHMS
from estd.asn1.spki import RSA
from estd.ca.authority import Authority, read_authority
from estd.ca.constraints import NameConstraints, find_violation
from estd.ca.ecosystem import Ecosystem
from estd.ca.hierarchy import IssuerSpec
from estd.ca.lint.issuing import read_issuing_certificate
from estd.ca.profile import Profile
from estd.ca.template import Template
from estd.ca.validity import decide_dates
from estd.errors import Refused, Unavailable
from estd.names import EMPTY_NAME


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why something in the rules cannot work."""

    path: str
    """Where it stands in the document."""
    what: str
    remedy: str


def find_hindrances(
    rules: Ecosystem, certificates: Mapping[str, bytes], new: Collection[str], now: datetime
) -> list[Hindrance]:
    """Everything in these rules that cannot work now.

    Args:
        rules: what is to be in force.
        certificates: issuer → its certificate, DER; what hangs on one that is not there is not judged.
        new: the issuers that come with these rules. Of the others those that no profile names are left alone.
        now: aware UTC.
    """
    authorities = {name: read_authority(certificate) for name, certificate in certificates.items()}
    used = {profile.issuer for profile in rules.profiles.values()}
    found: list[Hindrance] = []
    for issuer in rules.issuers:
        if issuer.name in authorities and (issuer.name in used or issuer.name in new):
            found += _judge_issuer(issuer, authorities[issuer.name], now)
    over = {hindrance.path for hindrance in found}
    for profile in rules.profiles.values():
        path = f"profile.{profile.name}"
        if not is_reachable(rules, profile):
            what = "cannot be reached: it has no label and is not the default_profile"
            remedy = f'Give it a label of its own, or set default_profile = "{profile.name}" under [ecosystem].'
            found.append(Hindrance(path, what, remedy))
        authority = authorities.get(profile.issuer)
        if authority is not None:
            if _path_of(rules.get_issuer(profile.issuer)) not in over:
                found += _judge_dates(path, profile, authority, now)
            found += _judge_subject(path, profile, list(_read_constraints(rules, authorities, profile.issuer)))
            found += _judge_size(path, profile, authority, now)
    return found


def is_reachable(rules: Ecosystem, profile: Profile) -> bool:
    """Whether a path leads to a profile, or another one goes by the certificates that were issued under it."""
    source = f"issued:{profile.name}"
    return (
        profile.label is not None
        or rules.default_profile == profile.name
        or any(source in (*other.enroll, *other.registration_authorities) for other in rules.profiles.values())
    )


# --- private ---------------------------------------------------------------------------------------------------------


def _path_of(issuer: IssuerSpec) -> str:
    path = f"issuer[{issuer.name}]"
    return path if issuer.imported is None else f"{path}.import.certificate"


def _judge_issuer(issuer: IssuerSpec, authority: Authority, now: datetime) -> Iterator[Hindrance]:
    renew = "Raise its generation, so that it gets a new key and certificate."
    if issuer.imported is not None:
        renew = "Import one that is valid."
    if now > authority.ends:
        yield Hindrance(_path_of(issuer), f"expired on {_write_time(authority.ends)}", renew)
    elif now < authority.starts:
        what = f"is not valid before {_write_time(authority.starts)}"
        yield Hindrance(
            _path_of(issuer), what, "Apply this again when it is, import one that is valid, or set the clock."
        )


def _judge_dates(path: str, profile: Profile, authority: Authority, now: datetime) -> Iterator[Hindrance]:
    try:
        decide_dates(profile.validity, profile.backdate, profile.align, now, authority.starts, authority.ends)
    except Unavailable as reason:
        remedy = 'Write a length such as "90d", or an end that is to come and not after the issuer\'s.'
        yield Hindrance(f"{path}.validity", f"allows no certificate: {reason.detail}", remedy)


def _read_constraints(
    rules: Ecosystem, authorities: Mapping[str, Authority], issuer: str | None
) -> Iterator[NameConstraints]:
    """Those of an issuer and of all above it."""
    while issuer is not None and issuer in authorities:
        constraints = read_issuing_certificate(authorities[issuer].certificate).name_constraints
        if constraints is not None:
            yield constraints
        issuer = rules.get_issuer(issuer).parent


def _judge_subject(path: str, profile: Profile, constraints: list[NameConstraints]) -> Iterator[Hindrance]:
    if profile.subject != "fixed":
        return
    try:
        violation = find_violation(constraints, profile.fixed_subject, None)
    except Refused as refused:
        violation = refused.detail
    if violation is not None:
        what = f"is fixed, and outside the name constraints of its issuer {profile.issuer!r}: {violation}"
        remedy = "Change the values of its subject_attribute tables, or name an issuer that allows them."
        yield Hindrance(f"{path}.subject", what, remedy)


def _judge_size(path: str, profile: Profile, authority: Authority, now: datetime) -> Iterator[Hindrance]:
    """Nothing is smaller than the certificate for the smallest key with no name but those that are always there."""
    if profile.max_der_bytes is None or not profile.keys:
        return
    smallest = min((_write_blank(name) for name in profile.keys), key=len)
    subject = profile.fixed_subject if profile.subject == "fixed" else EMPTY_NAME
    serial = b"\x01" + bytes(profile.serial_bytes - 1)
    tbs = Template(profile, authority).fill(serial, now, now, subject, smallest, None)
    signature = authority.algorithm
    # As `estd.ca.lint` reckons: the headers around all and around the signature are nine octets.
    least = len(tbs) + len(signature.identifier) + signature.signature_max_bytes + 9
    if least > profile.max_der_bytes:
        what = f"is {profile.max_der_bytes}, and no certificate of this profile has less than {least} octets"
        yield Hindrance(f"{path}.max_der_bytes", what, "Raise it, or use smaller keys for device and issuer.")


def _write_blank(key_type: str) -> bytes:
    """A SubjectPublicKeyInfo as long as the shortest one with a key of that type."""
    return der.sequence(KEY_ALGORITHMS.get(key_type, RSA), der.bit_string(bytes(_KEY_BYTES[key_type])))


def _write_time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


_KEY_BYTES: Final[Mapping[str, int]] = {
    # The modulus and the exponent 65537, an uncompressed point, FIPS 204 §4.
    "rsa-2048": 270,
    "rsa-3072": 398,
    "rsa-4096": 526,
    "ec-p256": 65,
    "ec-p384": 97,
    "ec-p521": 133,
    "ed25519": 32,
    "ml-dsa-44": 1312,
    "ml-dsa-65": 1952,
    "ml-dsa-87": 2592,
}
"""Octets of a public key inside its SubjectPublicKeyInfo."""
