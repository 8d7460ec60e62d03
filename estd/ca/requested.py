"""What a request asks for beyond names, held against the profile.

The profile alone decides what a certificate says; a request may ask. What it asks for and will not get is ignored, as
RFC 7030 §4.2.1 allows a CA to do, with two exceptions: a request to become a CA, and a critical extension that the
certificate will not carry, are refused. A strict profile refuses every difference.

Must not import anything of the floors above; no clock, no I/O.
"""

from __future__ import annotations

from typing import Final

from estd.asn1 import der
from estd.asn1.oids import NAMES, OIDS
from estd.ca.profile import Profile
from estd.ca.vocabulary import KEY_USAGES
from estd.errors import Code, Refused
from estd.names import EMPTY_NAME, same_name, same_san
from estd.wire.pkcs10 import CertificationRequest


def check_requested(profile: Profile, request: CertificationRequest, subject: bytes, san: bytes | None) -> None:
    """Refuse a request that asks for what this profile never gives.

    Args:
        profile: the rules.
        request: what the device sent.
        subject: DER Name the certificate will have.
        san: DER GeneralNames the certificate will have, or None.
    """
    if profile.subject == "request" and not same_name(subject, request.subject):
        # The names of such a profile come from the request and from nowhere else.
        raise Refused(Code.SUBJECT_REFUSED, "the decided subject is not the one asked for")
    if profile.san == "request" and not same_san(san, request.san):
        raise Refused(Code.SAN_REFUSED, "the decided subjectAltName is not the one asked for")
    if profile.strict:
        _check_names(request, subject, san)
    if not request.extensions:
        return
    carried = _CARRIED | {extra.oid for extra in profile.extensions}
    for oid, extension in request.extensions.items():
        if oid == _BASIC_CONSTRAINTS and _asks_for_ca(extension.value):
            raise _refused("a device cannot become a certification authority here", "RFC 5280 §4.2.1.9")
        if extension.critical and oid not in carried:
            raise _refused(f"the critical extension {NAMES.get(oid, oid)} is not one this profile issues")
        if profile.strict:
            _check_strictly(profile, oid, extension.value)


# --- private ---------------------------------------------------------------------------------------------------------

_BASIC_CONSTRAINTS: Final = OIDS["basicConstraints"]
_KEY_USAGE: Final = OIDS["keyUsage"]
_EXTENDED_KEY_USAGE: Final = OIDS["extKeyUsage"]
_SUBJECT_ALT_NAME: Final = OIDS["subjectAltName"]
_CARRIED: Final = frozenset({_BASIC_CONSTRAINTS, _KEY_USAGE, _EXTENDED_KEY_USAGE, _SUBJECT_ALT_NAME})


def _check_names(request: CertificationRequest, subject: bytes, san: bytes | None) -> None:
    if request.subject != EMPTY_NAME and not same_name(request.subject, subject):
        raise Refused(Code.SUBJECT_REFUSED, "the subject asked for is not the one this profile gives")
    if request.san is not None and not same_san(request.san, san):
        raise Refused(Code.SAN_REFUSED, "the subjectAltName asked for is not the one this profile gives")


def _check_strictly(profile: Profile, oid: str, value: bytes) -> None:
    if oid == _KEY_USAGE:
        surplus = set(_read_usages(value)) - frozenset(profile.key_usage)
    elif oid == _EXTENDED_KEY_USAGE:
        surplus = {
            NAMES.get(purpose, purpose) for purpose in _read_purposes(value) - frozenset(profile.extended_key_usage)
        }
    elif oid in (_BASIC_CONSTRAINTS, _SUBJECT_ALT_NAME):
        return
    else:
        surplus = set()
        if value not in [extra.value for extra in profile.extensions if extra.oid == oid]:
            raise _refused(f"the extension {NAMES.get(oid, oid)} is not one this profile issues so")
    if surplus:
        raise _refused(f"{', '.join(sorted(surplus))} is more than this profile gives")


def _asks_for_ca(value: bytes) -> bool:
    start, stop = _whole(value, der.SEQUENCE)
    members = der.read_members(value, start, stop)
    return bool(members) and members[0][0] == der.BOOLEAN and der.read_boolean(value, members[0][2], members[0][3])


def _read_usages(value: bytes) -> frozenset[str]:
    start, stop = _whole(value, der.BIT_STRING)
    bits = "".join(f"{octet:08b}" for octet in value[start + 1 : stop])
    return frozenset(name for name, bit in zip(KEY_USAGES, bits, strict=False) if bit == "1")


def _read_purposes(value: bytes) -> frozenset[str]:
    start, stop = _whole(value, der.SEQUENCE)
    return frozenset(der.read_oid(value[inner:after]) for _, _, inner, after in der.read_members(value, start, stop))


def _whole(value: bytes, tag: int) -> tuple[int, int]:
    try:
        return der.read_whole(value, tag)
    except Refused as refusal:
        raise Refused(Code.CSR_MALFORMED, refusal.detail, refusal.clause) from None


def _refused(detail: str, clause: str = "RFC 7030 §4.2.1") -> Refused:
    return Refused(Code.EXTENSION_REFUSED, detail, clause)
