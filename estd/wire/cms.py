"""Cryptographic Message Syntax (RFC 5652): the certs-only SignedData that EST hands certificates over in.

Promises that what is written is DER of the degenerate form every client knows (RFC 7030 §4.1.3, §4.2.3; RFC 5272 §4.1
"simple PKI response"; RFC 8551 §3.8): version 1, no digest algorithms, content type id-data without content, no signers,
the certificates as a SET in DER order. Reading is for our own client and takes what other servers send, BER included.
"""

from __future__ import annotations

from collections.abc import Iterable

from asn1crypto import cms

from estd.asn1 import der
from estd.errors import Code, Refused

MAX_BYTES = 1024 * 1024
MAX_CERTIFICATES = 256


def write_certs_only(certificates: Iterable[bytes]) -> bytes:
    """The ContentInfo that holds these certificates (DER) and nothing else. Their order is lost, as in any SET."""
    signed_data = der.tlv(der.SEQUENCE, _BEFORE + der.set_of(certificates, 0xA0) + _AFTER)
    return der.tlv(der.SEQUENCE, _SIGNED_DATA + der.tlv(0xA0, signed_data))


def read_certs_only(data: bytes) -> list[bytes]:
    """The certificates (DER) of a certs-only message, in the order they stand there.

    Signers, content and revocation lists are ignored: nothing in a certs-only message is signed by it.
    """
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes are more than the {MAX_BYTES} we read")
    try:
        message = cms.ContentInfo.load(data)
        if message["content_type"].native != "signed_data":
            raise _malformed("it is not SignedData")
        choices = message["content"]["certificates"]
        certificates = [choice.chosen.dump() for choice in choices if choice.name == "certificate"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise _malformed(f"it cannot be read: {error}") from None
    if not 1 <= len(certificates) <= MAX_CERTIFICATES:
        raise _malformed(f"it holds {len(certificates)} certificates; there must be 1 to {MAX_CERTIFICATES}")
    return certificates


# --- private ---------------------------------------------------------------------------------------------------------

_SIGNED_DATA = der.oid("signedData")
# version CMSVersion 1, digestAlgorithms SET OF nothing, encapContentInfo id-data without eContent
_BEFORE = der.integer(1) + der.set_of(()) + der.sequence(der.oid("data"))
# signerInfos SET OF nothing
_AFTER = der.set_of(())


def _malformed(detail: str) -> Refused:
    return Refused(Code.MALFORMED_REQUEST, f"this is not a certs-only message: {detail}", "RFC 7030 §4.1.3")
