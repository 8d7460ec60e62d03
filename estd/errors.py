"""The one vocabulary of refusals inside estd.

Every floor raises these three and nothing else on purpose; each protocol keeps one table that turns a `Code` into its
own answer (`estd.est.messages` for EST), and a test walks the enum so that no code is without a row.
"""

from __future__ import annotations

import enum


class Code(enum.Enum):
    """Why a request was refused. The value is stable: devices, logs, metrics and audit events carry it."""

    # the request's form
    MALFORMED_REQUEST = "malformed-request"
    MEDIA_TYPE = "media-type-unsupported"
    CONTENT_ENCODING = "content-encoding-refused"
    BODY_TOO_LARGE = "body-too-large"
    REQUEST_TIMEOUT = "request-timeout"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    PATH_UNKNOWN = "path-unknown"
    LABEL_UNKNOWN = "label-unknown"
    NOT_STRICT = "not-strict"
    # who asks
    CREDENTIAL_MISSING = "credential-missing"
    CREDENTIAL_INVALID = "credential-invalid"
    CODE_SPENT = "code-spent"
    CERTIFICATE_UNTRUSTED = "certificate-untrusted"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_YET_VALID = "certificate-not-yet-valid"
    CERTIFICATE_REVOKED = "certificate-revoked"
    CERTIFICATE_UNFIT = "certificate-unfit"
    NOT_AUTHORIZED = "not-authorized"
    REQUEST_REVOKED = "request-revoked"
    # what is asked
    CSR_MALFORMED = "csr-malformed"
    CSR_SIGNATURE = "csr-signature-invalid"
    KEY_REFUSED = "key-refused"
    KEY_WEAK = "key-weak"
    KEY_REVOKED = "key-revoked"
    SUBJECT_REFUSED = "subject-refused"
    SAN_REFUSED = "san-refused"
    EXTENSION_REFUSED = "extension-refused"
    IDENTITY_MISMATCH = "identity-mismatch"
    RENEWAL_REFUSED = "renewal-refused"
    BINDING_REFUSED = "channel-binding-refused"
    LINT = "lint-failed"
    # whether it can be done now
    RATE_LIMITED = "rate-limited"
    OVERLOADED = "overloaded"
    STORE_UNAVAILABLE = "store-unavailable"
    SIGNER_UNAVAILABLE = "signer-unavailable"
    ISSUER_NOT_VALID = "issuer-not-valid"
    # our fault
    INTERNAL = "internal-error"


class Refused(Exception):
    """The request is understood and the answer is no; repeating it unchanged will not help.

    Args:
        code: the stable reason.
        detail: one plain sentence for the person at the device; never holds a secret or another ecosystem's data.
        clause: the clause obeyed, spelled ``RFC 7030 §4.2.2``.
    """

    def __init__(self, code: Code, detail: str, clause: str | None = None) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail
        self.clause = clause


class Unavailable(Exception):
    """The request may well be granted later; nothing was signed for it, or what was signed will be found again.

    Args:
        code: the stable reason.
        detail: one plain sentence.
        retry_after_seconds: what the Retry-After header says.
    """

    def __init__(self, code: Code, detail: str, retry_after_seconds: int = 5) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


class Broken(Exception):
    """estd itself is at fault: an invariant does not hold. Answered as an opaque 500 and logged with a traceback."""


class Problem:
    """One thing wrong with a file an operator wrote: where it stands, what is wrong, what to do."""

    __slots__ = ("remedy", "what", "where")

    def __init__(self, where: str, what: str, remedy: str) -> None:
        self.where = where
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.remedy}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class Invalid(Exception):
    """An operator's file is refused, with all its problems at once and nothing applied."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
