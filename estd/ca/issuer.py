"""From a verified request to a certificate, in two steps that cannot be taken apart.

`Issuer.prepare` holds a request against key rules and profile, chooses serial number and dates, builds the exact bytes
to be signed and has them linted; what comes out is an `Approved`. `Issuer.seal` signs an `Approved`, once, with the key
it was made for. There is no other way to a signature on a device's certificate: an `Approved` is made by `prepare`
alone, is spent by the first `seal`, and is refused by any other issuer.

Serial numbers are 20 octets unless a profile says less: 01, five octets of time since 2020 in 256ths of a second (so that
new numbers are added at the end of an index, where its pages are at hand), and 112 random bits (RFC 5280 §4.1.2.2 wants at
most 20 octets, positive and unique).

The time and the randomness are arguments. Must not import anything of the floors above.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from estd.ca.authority import Authority, read_authority
from estd.ca.document import INFINITE
from estd.ca.hierarchy import IssuerSpec
from estd.ca.keyrules import check_key
from estd.ca.lint.findings import Finding
from estd.ca.lint.linter import Linter
from estd.ca.namerules import check_san, check_subject
from estd.ca.profile import SERIAL_MIN_BYTES, Profile
from estd.ca.requested import check_requested
from estd.ca.template import Template, write_ca_tbs, write_certificate
from estd.ca.validity import decide_dates
from estd.errors import Broken, Code, Refused
from estd.keys.contract import SigningKey
from estd.wire.pkcs10 import VerifiedRequest

RANDOM_BYTES: Final = 19
"""How much randomness one certificate needs."""

_PREPARED: Final = object()


class Approved:
    """A certificate that is checked, built and linted and lacks nothing but its signature. Only `prepare` makes one."""

    __slots__ = (
        "_spent",
        "issuer",
        "issuer_id",
        "not_after",
        "not_before",
        "profile",
        "serial",
        "spki_sha256",
        "tbs",
        "tbs_sha256",
    )

    def __init__(
        self,
        maker: object,
        issuer: Issuer,
        profile: str,
        serial: bytes,
        not_before: datetime,
        not_after: datetime,
        spki_sha256: bytes,
        tbs: bytes,
    ) -> None:
        if maker is not _PREPARED:
            raise Broken("an Approved was made without preparing it")
        self.issuer = issuer
        self._spent = False
        self.issuer_id = issuer.issuer_id
        self.profile = profile
        self.serial = serial
        self.not_before = not_before
        self.not_after = not_after
        self.spki_sha256 = spki_sha256
        self.tbs = tbs
        self.tbs_sha256 = hashlib.sha256(tbs).digest()

    def __repr__(self) -> str:
        state = "spent" if self._spent else "ready"
        return f"Approved(issuer {self.issuer_id}, {self.profile}, serial {self.serial.hex()}, {state})"

    def spend(self, issuer: Issuer) -> bytes:
        """The bytes to be signed, once, for the issuer they were prepared for."""
        if self.issuer is not issuer:
            raise Broken("an Approved was shown to another issuer")
        if self._spent:
            raise Broken("an Approved was spent twice")
        self._spent = True
        return self.tbs


class Issuer:
    """One CA certificate, its key, and the profiles it issues under.

    Args:
        issuer_id: its number in the store.
        authority: its certificate, as `estd.ca.authority.read_authority` reads it.
        key: its key.
        profiles: what it issues.
        above: the CA certificates above it, DER, whose name constraints bind it too.
    """

    def __init__(
        self,
        issuer_id: int,
        authority: Authority,
        key: SigningKey,
        profiles: Iterable[Profile],
        above: Sequence[bytes] = (),
    ) -> None:
        if key.spki != authority.spki:
            raise Broken("an issuer's key is not that of its certificate")
        self.issuer_id = issuer_id
        self.authority = authority
        self.key = key
        self._ready = {
            profile.name: _Ready(
                profile,
                Template(profile, authority),
                Linter(authority.certificate, profile, above, key.algorithm.signature_max_bytes),
            )
            for profile in profiles
        }

    def prepare(
        self,
        profile_name: str,
        verified: VerifiedRequest,
        subject: bytes,
        san: bytes | None,
        now: datetime,
        randomness: bytes,
        is_blocked: Callable[[bytes], bool] | None = None,
    ) -> Approved:
        """Check everything and build everything, up to the signature.

        Args:
            profile_name: which of its profiles.
            verified: the request, whose signature was checked.
            subject: DER Name the certificate is to have, as the registration authority decided.
            san: DER GeneralNames it is to have, or None.
            now: aware UTC; dates are to its second, the serial to a fraction of it.
            randomness: `RANDOM_BYTES` octets that nobody can foretell.
            is_blocked: whether the key with that SPKI hash is known to be compromised.

        Raises:
            Refused: the key, the names, the extensions or the finished bytes are not allowed.
            Unavailable: the issuer is not valid now.
        """
        ready = self._ready[profile_name]
        profile, request = ready.profile, verified.request
        check_key(request.spki, profile.keys, is_blocked, request.spki_sha256)
        check_requested(profile, request, subject, san)
        check_subject(profile, subject)
        check_san(profile, subject, san)
        if ready.now != now:
            # A group is made at one time, so its dates are decided once.
            authority, second = self.authority, now.replace(microsecond=0)
            ready.dates = decide_dates(
                profile.validity, profile.backdate, profile.align, second, authority.starts, authority.ends
            )
            ready.now = now
        not_before, not_after = ready.dates
        serial = decide_serial(now, randomness, profile.serial_bytes)
        tbs = ready.template.fill(serial, not_before, not_after, subject, request.spki, san)
        findings = ready.linter.lint(tbs)
        if findings:
            _check_findings(findings)
        return Approved(_PREPARED, self, profile.name, serial, not_before, not_after, request.spki_sha256, tbs)

    def seal(self, approved: Approved) -> bytes:
        """Sign one. See `seal_many`."""
        return self.seal_many([approved])[0]

    def seal_many(self, approved: Sequence[Approved]) -> list[bytes]:
        """Sign each, in order: DER certificates. What is given here is spent, whether or not the key answers.

        Raises:
            Unavailable: the key cannot be reached; what it signed, if anything, is unknown.
        """
        return self._sign([one.spend(self) for one in approved])

    def repeat(self, tbs: bytes) -> bytes:
        """Sign journaled bytes again; a deterministic key makes the same certificate of them.

        Raises:
            Refused: LINT, these are not bytes this issuer would sign.
            Unavailable: the key cannot be reached.
        """
        if not self.key.deterministic:
            raise Broken("nothing is signed twice with a key that is not deterministic")
        if all(ready.linter.lint(tbs) for ready in self._ready.values()):
            raise Refused(Code.LINT, "the journaled bytes are not a certificate of this issuer")
        return self._sign([tbs])[0]

    def _sign(self, messages: list[bytes]) -> list[bytes]:
        algorithm = self.key.algorithm
        signatures = self.key.sign_many(messages)
        return [
            write_certificate(tbs, algorithm, signature) for tbs, signature in zip(messages, signatures, strict=True)
        ]


def decide_serial(now: datetime, randomness: bytes, size: int) -> bytes:
    """Content octets of a new serial number of that many octets: positive, and unique by its randomness."""
    if not SERIAL_MIN_BYTES <= size <= _SERIAL_MAX_BYTES or len(randomness) < RANDOM_BYTES:
        raise Broken("a serial number has 9 to 20 octets and needs randomness for all of them")
    if size < _SERIAL_BYTES_WITH_TIME:
        return b"\x01" + randomness[: size - 1]
    return _write_time(now) + randomness[: size - 6]


def issue_authority(
    spec: IssuerSpec,
    key: SigningKey,
    parent: Authority | None,
    parent_key: SigningKey | None,
    now: datetime,
    randomness: bytes,
) -> bytes:
    """A new CA certificate (DER) for that key, signed by its parent, or by itself when there is none.

    Raises:
        Refused: LINT, for example where a name constraint above forbids the subject.
        Unavailable: the parent is not valid now.
    """
    starts, ends = (_FIRST, INFINITE) if parent is None else (parent.starts, parent.ends)
    not_before, not_after = decide_dates(spec.validity, _CA_BACKDATE, "clamp", now, starts, ends)
    serial = decide_serial(now, randomness, _SERIAL_MAX_BYTES)
    signer = key if parent_key is None else parent_key
    if (parent is None) is not (parent_key is None) or (parent is not None and parent.spki != signer.spki):
        raise Broken("an issuer's parent and the parent's key do not belong together")
    tbs = write_ca_tbs(spec, key.spki, key.key_type, parent, serial, not_before, not_after)
    _check_findings(Linter(None if parent is None else parent.certificate, None).lint(tbs))
    certificate = write_certificate(tbs, signer.algorithm, signer.sign_many([tbs])[0])
    read_authority(certificate)
    return certificate


# --- private ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ready:
    """One profile as it is issued under one issuer, and the dates of the last group."""

    profile: Profile
    template: Template
    linter: Linter
    now: datetime | None = None
    dates: tuple[datetime, datetime] = (INFINITE, INFINITE)


@lru_cache(maxsize=1)
def _write_time(now: datetime) -> bytes:
    """How a serial number begins. Kept: a group is made at one time."""
    microseconds = max(0, (now - _EPOCH) // timedelta(microseconds=1))
    return b"\x01" + (microseconds * 256 // 1_000_000 % (1 << 40)).to_bytes(5, "big")


_SERIAL_MAX_BYTES: Final = 20
# Below this length there is no room for the time beside 64 random bits.
_SERIAL_BYTES_WITH_TIME: Final = 14
_EPOCH: Final = datetime(2020, 1, 1, tzinfo=UTC)
_CA_BACKDATE: Final = timedelta(hours=1)
_FIRST: Final = datetime(1950, 1, 1, tzinfo=UTC)


def _check_findings(findings: list[Finding]) -> None:
    if findings:
        first = findings[0]
        raise Refused(Code.LINT, f"the certificate would be wrong: {', '.join(map(str, findings))}", first.clause)
