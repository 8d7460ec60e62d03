"""EST bodies and answers: bytes to the vocabulary inside and back (RFC 7030 §4, RFC 8951), pure.

Reading promises the widest set of forms that real clients send (`read_enroll_body`) and names every departure from the
RFCs, so that an operator can count them or, with `strict`, refuse them. Writing promises the largest common set of what
real clients accept: base64 with Content-Transfer-Encoding, unwrapped but for libest, full media types, empty 401.

`STATUS` is the one table from `Code` to HTTP status; nothing else in estd knows a status of EST.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from estd.errors import Code, Refused, Unavailable
from estd.ra.limits import TurnedAway, add_jitter
from estd.wire.cms import write_certs_only
from estd.wire.exchange import Reply

STATUS: Final[Mapping[Code, int]] = MappingProxyType(
    {
        Code.MALFORMED_REQUEST: 400,
        Code.MEDIA_TYPE: 415,
        Code.CONTENT_ENCODING: 415,
        Code.BODY_TOO_LARGE: 413,
        Code.REQUEST_TIMEOUT: 408,
        Code.METHOD_NOT_ALLOWED: 405,
        Code.PATH_UNKNOWN: 404,
        Code.LABEL_UNKNOWN: 404,
        Code.NOT_STRICT: 400,
        # 401 asks for other credentials; 403 says that these are known and will not do (RFC 9110 §15.5).
        Code.CREDENTIAL_MISSING: 401,
        Code.CREDENTIAL_INVALID: 401,
        Code.CODE_SPENT: 403,
        Code.CERTIFICATE_UNTRUSTED: 403,
        Code.CERTIFICATE_EXPIRED: 403,
        Code.CERTIFICATE_NOT_YET_VALID: 403,
        Code.CERTIFICATE_REVOKED: 403,
        Code.CERTIFICATE_UNFIT: 403,
        Code.NOT_AUTHORIZED: 403,
        Code.REQUEST_REVOKED: 403,
        # RFC 7030 §4.2.3 leaves the 4xx to the server; 400 is the one that every client has words for.
        Code.CSR_MALFORMED: 400,
        Code.CSR_SIGNATURE: 400,
        Code.KEY_REFUSED: 400,
        Code.KEY_WEAK: 400,
        Code.KEY_REVOKED: 400,
        Code.SUBJECT_REFUSED: 400,
        Code.SAN_REFUSED: 400,
        Code.EXTENSION_REFUSED: 400,
        Code.IDENTITY_MISMATCH: 400,
        Code.RENEWAL_REFUSED: 400,
        Code.BINDING_REFUSED: 400,
        Code.LINT: 400,
        Code.RATE_LIMITED: 429,
        Code.OVERLOADED: 503,
        Code.STORE_UNAVAILABLE: 503,
        Code.SIGNER_UNAVAILABLE: 503,
        Code.ISSUER_NOT_VALID: 503,
        Code.INTERNAL: 500,
    }
)

TOLERANCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "content-type-missing": "the request has no Content-Type",
        "content-type-parameters": "its Content-Type has parameters",
        "raw-der": "its body is DER without base64",
        "pem-armour": "its body is PEM, not plain base64",
        "trailing-slash": "its path ends with a slash",
    }
)
"""Every departure from the RFCs that is tolerated, by the name metrics carry."""

WRAP_COLUMNS: Final = 64


def read_enroll_body(content_type: str | None, body: bytes, *, strict: bool = False) -> tuple[bytes, tuple[str, ...]]:
    """The PKCS #10 request (DER, unread) in an enrollment body, and the names of the tolerances it took to find it.

    Any Content-Transfer-Encoding is ignored (RFC 8951 §3.1) and white space in base64 is allowed (RFC 8951 §3.1), so
    neither counts as a tolerance.

    Args:
        content_type: the header's value, None where there is none.
        body: as received.
        strict: refuse (`Code.NOT_STRICT`) what would otherwise be tolerated.
    """
    tolerances: list[str] = []
    media_type, _, parameters = (content_type or "").partition(";")
    media_type = media_type.strip().lower()
    if not media_type:
        tolerances.append("content-type-missing")
    elif media_type != "application/pkcs10":
        raise Refused(
            Code.MEDIA_TYPE, f"an enrollment request is application/pkcs10, not {media_type[:80]!r}", "RFC 7030 §4.2.1"
        )
    elif parameters.strip():
        tolerances.append("content-type-parameters")
    if len(body) > 1 and body[0] == 0x30 and body[1] & 0x80:
        # A SEQUENCE with a long length; base64 would go on with another printable character.
        tolerances.append("raw-der")
        request = bytes(body)
    else:
        armour = _ARMOUR.fullmatch(body)
        if armour is not None:
            tolerances.append("pem-armour")
        request = _read_base64(body if armour is None else armour[1])
    if strict and tolerances:
        departures = " and ".join(TOLERANCES[name] for name in tolerances)
        raise Refused(Code.NOT_STRICT, f"this profile is strict, and {departures}", "RFC 8951 §3.1")
    return request, tuple(tolerances)


def write_cacerts(certificates: Iterable[bytes], user_agent: str = "", wrap: str = "auto") -> Reply:
    """RFC 7030 §4.1.3: the CA certificates (DER).

    Args:
        certificates: in any order; they are a SET on the wire.
        user_agent: the request's header, for ``auto``.
        wrap: ``always``, ``never``, or ``auto``: wrapped for libest, which reads nothing else, and for nobody else,
            since others read only the unwrapped form (RFC 8951 §3.1 has receivers take both).
    """
    wrapped = wrap == "always" or (wrap == "auto" and user_agent.startswith("libest"))
    return _write_cacerts(tuple(certificates), wrapped)


def write_certificate(certificate: bytes) -> Reply:
    """RFC 7030 §4.2.3: only the certificate (DER) that was issued."""
    return Reply(
        200,
        binascii.b2a_base64(write_certs_only((certificate,)), newline=False),
        "application/pkcs7-mime; smime-type=certs-only",
        _BASE64,
    )


def write_csrattrs(csrattrs: bytes | None) -> Reply:
    """RFC 7030 §4.5.2: CsrAttrs (DER); none, or the empty SEQUENCE which says the same, is 204."""
    if csrattrs is None or csrattrs == b"\x30\x00":
        return Reply(204)
    return Reply(200, binascii.b2a_base64(csrattrs, newline=False), "application/csrattrs", _BASE64)


def write_binding(binding: bytes) -> str:
    """RFC 7030 §3.5: a channel binding as it stands in challengePassword."""
    return binascii.b2a_base64(binding, newline=False).decode("ascii")


def write_refusal(error: Refused | Unavailable, request_id: str, allow: str = "GET, HEAD, POST") -> Reply:
    """The answer to what was refused or cannot be done now (RFC 7030 §4.2.3: text for a human may go with it).

    Args:
        error: the reason; of `Code.INTERNAL` nothing but the code is told.
        request_id: leads to the log and the audit trail.
        allow: the methods the resource has, for 405 (RFC 9110 §15.5.6).
    """
    status = STATUS[error.code]
    headers = [("X-Request-Id", request_id)]
    if status == 401:
        # Bouncy Castle fails on a 401 with a body, libest on a second challenge.
        headers.append(("WWW-Authenticate", 'Basic realm="estd"'))
        return Reply(401, headers=tuple(headers))
    if status == 405:
        headers.append(("Allow", allow))
    if status in (429, 503):
        seconds = error.retry_after_seconds if isinstance(error, Unavailable) else _RETRY_AFTER_SECONDS
        if not isinstance(error, TurnedAway):
            seconds = add_jitter(seconds)  # who was refused in the same second need not return in the same second
        headers.append(("Retry-After", str(seconds)))
    detail = "estd is at fault; its log has this request" if status == 500 else _plain(error.detail)
    body = f"{error.code.value}: {detail} (request {request_id})\n"
    return Reply(status, body.encode(), "text/plain; charset=utf-8", tuple(headers))


# --- private ---------------------------------------------------------------------------------------------------------

# RFC 8951 §3.1 makes the header meaningless; Bouncy Castle and GlobalSign's client still insist on it.
_BASE64 = (("Content-Transfer-Encoding", "base64"),)
_RETRY_AFTER_SECONDS = 5
_MAX_DETAIL_CHARACTERS = 500

_ARMOUR = re.compile(
    rb"\s*-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----[ \t]*\r?\n"
    rb"([A-Za-z0-9+/=\s]*)-----END (?:NEW )?CERTIFICATE REQUEST-----\s*"
)


def _read_base64(text: bytes) -> bytes:
    compact = text.translate(None, b" \t\r\n")
    if not compact:
        raise Refused(Code.MALFORMED_REQUEST, "the body is empty; it should hold a PKCS #10 request", "RFC 7030 §4.2.1")
    try:
        if compact.endswith(b"==="):
            raise binascii.Error("Excess padding")  # which the strict mode overlooks
        return binascii.a2b_base64(compact, strict_mode=True)
    except binascii.Error as error:
        raise Refused(Code.MALFORMED_REQUEST, f"the body is not base64: {error}", "RFC 8951 §3.1") from None


@lru_cache(maxsize=256)
def _write_cacerts(certificates: tuple[bytes, ...], wrapped: bool) -> Reply:
    """Kept: the same few answers go to the whole fleet.

    The media type is the bare one of RFC 7030 §4.1.3; the smime-type parameter belongs to enrollment answers.
    """
    body = binascii.b2a_base64(write_certs_only(certificates), newline=False)
    if wrapped:
        body = b"".join(body[at : at + WRAP_COLUMNS] + b"\n" for at in range(0, len(body), WRAP_COLUMNS))
    return Reply(200, body, "application/pkcs7-mime", _BASE64)


def _plain(text: str) -> str:
    """One line that prints: a detail may quote what the device sent."""
    text = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return text if len(text) <= _MAX_DETAIL_CHARACTERS else text[: _MAX_DETAIL_CHARACTERS - 1] + "…"
