"""Which names the certificate will carry: subject and SAN, each from the source that the profile names.

A request may only ever narrow or repeat what its credential, the inventory or the profile's patterns allow; it cannot add
a name (the patterns themselves are checked by the signer, `estd.ca.issuer`). Where it repeats a name, the certificate gets
the octets of the source and not the request's: names that compare equal need not look alike (RFC 4518 §2.2 overlooks
invisible characters).
"""

from __future__ import annotations

from estd.errors import Code, Refused
from estd.names import same_name, same_san, write_name, write_san
from estd.ra.admission import Admitted, Purpose
from estd.wire.pkcs10 import CertificationRequest

_EMPTY_NAME = b"\x30\x00"


def decide_names(admitted: Admitted, request: CertificationRequest) -> tuple[bytes, bytes | None]:
    """Subject (DER Name) and SAN (DER GeneralNames, or None for no SAN) of the certificate to be issued.

    Raises:
        Refused: IDENTITY_MISMATCH, RENEWAL_REFUSED, SUBJECT_REFUSED or SAN_REFUSED.
    """
    if admitted.purpose is Purpose.REENROLL:
        return _keep_names(admitted, request)
    return _decide_subject(admitted, request), _decide_san(admitted, request)


def _keep_names(admitted: Admitted, request: CertificationRequest) -> tuple[bytes, bytes | None]:
    # RFC 7030 §4.2.2: subject and SAN of the request are those of the current certificate. Equality is that of
    # RFC 5280 §7.1; comparing bytes would refuse a stack that writes PrintableString where we wrote UTF8String.
    credential, profile = admitted.credential, admitted.place.profile
    if request.change_subject_name is not None:
        raise Refused(Code.IDENTITY_MISMATCH, "this profile does not let a renewal change names", "RFC 6402 §2.8")
    if not same_name(request.subject, credential.subject):
        raise Refused(
            Code.IDENTITY_MISMATCH, "the subject asked for is not that of the current certificate", "RFC 7030 §4.2.2"
        )
    if not same_san(request.san, credential.san):
        raise Refused(
            Code.IDENTITY_MISMATCH,
            "the subjectAltName asked for is not that of the current certificate",
            "RFC 7030 §4.2.2",
        )
    assert credential.spki_sha256 is not None
    same_key = request.spki_sha256 == credential.spki_sha256
    if same_key and profile.renew == "rekey":
        raise Refused(Code.RENEWAL_REFUSED, "this profile wants a new key for each renewal", "RFC 7030 §4.2.2")
    if not same_key and profile.renew == "same-key":
        raise Refused(Code.RENEWAL_REFUSED, "this profile renews with the same key only", "RFC 7030 §4.2.2")
    return credential.subject, credential.san


def _decide_subject(admitted: Admitted, request: CertificationRequest) -> bytes:
    profile, credential = admitted.place.profile, admitted.credential
    match profile.subject:
        case "request":
            return request.subject
        case "credential":
            allowed, source = credential.subject, "credential"
        case "inventory":
            assert admitted.inventory is not None
            allowed, source = write_name(admitted.inventory.subject or ""), "inventory"
        case "fixed":
            return profile.fixed_subject
        case _:
            return _EMPTY_NAME
    if request.subject != _EMPTY_NAME and not same_name(request.subject, allowed):
        raise Refused(
            Code.SUBJECT_REFUSED,
            f"the subject asked for is not the one of this device's {source}; leave it empty to get that one",
            "RFC 7030 §4.2.1",
        )
    return allowed


def _decide_san(admitted: Admitted, request: CertificationRequest) -> bytes | None:
    profile, credential = admitted.place.profile, admitted.credential
    match profile.san:
        case "request":
            return request.san
        case "credential":
            allowed, source = credential.san, "credential"
        case "inventory":
            assert admitted.inventory is not None
            san = admitted.inventory.san
            allowed, source = write_san(san) if san else None, "inventory"
        case _:
            allowed, source = None, "profile"
    if request.san is not None and not same_san(request.san, allowed):
        raise Refused(
            Code.SAN_REFUSED,
            f"the subjectAltName asked for is not the one its {source} allows; leave it out",
            "RFC 7030 §4.2.1",
        )
    return allowed
