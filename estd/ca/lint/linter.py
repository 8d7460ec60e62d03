"""The last look at the exact bytes that are about to be signed.

`Linter.lint` walks a TBSCertificate and returns what is wrong with it by RFC 5280 §4.1 and §4.2, by the algorithms'
own standards, against the issuing certificate and against the profile; an empty list means that it may be signed. The
judgement takes nothing from whoever built the bytes: it reads the issuing certificate itself and has its own DER walk.
Only whether a name is inside a name constraint is asked of `estd.ca.constraints`, which builds no leaf certificates.

What is the same in every certificate of a profile is judged once: the verdict on a run of extensions, on what they mean
together for one family of keys, and on issuer and dates of one batch, is kept beside their very octets, so whatever
differs by one bit is judged anew. Serial number, subject, key, key identifier and subjectAltName are judged each time.

Must not import `estd.asn1.der`, `estd.ca.template` or anything of the floors above; no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from estd.asn1.oids import NAMES
from estd.ca.constraints import find_violation
from estd.ca.lint.extensions import AIA, AKI, BC, CDP, CP, EKU, KU, NC, SAN, SKI, Judged, judge_extension
from estd.ca.lint.findings import Finding
from estd.ca.lint.issuing import read_issuing_certificate
from estd.ca.lint.keys import Key, follows_from_key, read_key
from estd.ca.lint.names import judge_name
from estd.ca.lint.walk import Malformed, dotted, element, expect, read_time
from estd.ca.profile import Profile
from estd.ca.vocabulary import NOT_FOR_KEY, USAGES_FOR_PURPOSE
from estd.errors import Refused


class Linter:
    """Judges what one issuer is about to sign: leaves of one profile, or CA certificates when there is none.

    Args:
        issuer: the issuing certificate, DER; None for a certificate that signs itself.
        profile: the rules the certificate has to keep; None for a CA certificate.
        above: CA certificates above the issuer, DER, whose name constraints count too.
        signature_max_bytes: how long the signature may become, for the size limit.
    """

    def __init__(
        self, issuer: bytes | None, profile: Profile | None, above: Sequence[bytes] = (), signature_max_bytes: int = 0
    ) -> None:
        self._issuer = None if issuer is None else read_issuing_certificate(issuer)
        self._profile = profile
        self._extras: Mapping[str, tuple[bool, bytes]] = (
            {} if profile is None else {extra.oid: (extra.critical, extra.value) for extra in profile.extensions}
        )
        self._expected = _CA_EXPECTS if profile is None else _decide_expected(profile)
        authorities = () if self._issuer is None else (self._issuer, *(read_issuing_certificate(der) for der in above))
        self._constraints = [one.name_constraints for one in authorities if one.name_constraints is not None]
        self._signature_max_bytes = signature_max_bytes
        # The extensions that come before subjectKeyIdentifier and subjectAltName, as last seen, and the verdict on them.
        self._run = b""
        self._run_judged: dict[bytes, Judged] = {}
        self._run_found: list[str] = []
        # What that run means with what follows it, by all of the rest that this depends on.
        self._together: dict[tuple[str | None, bool, bool, bool | None], list[str]] = {}
        # Algorithm, issuer and dates as they were last found right: beneath an issuer they hang on nothing else.
        self._signed = b""
        self._algorithm_bytes = 0

    def lint(self, tbs: bytes) -> list[Finding]:
        """What is wrong with these bytes; nothing when they may be signed."""
        try:
            found = self._lint(tbs)
            return [Finding(code) for code in dict.fromkeys(found)] if found else []
        except Malformed:
            return [Finding("x690.10.1.malformed")]

    def _lint(self, tbs: bytes) -> list[str]:
        end = len(tbs)
        at, stop = expect(tbs, 0, end, 0x30)
        if stop != end:
            raise Malformed
        found: list[str] = []
        tag, start, after = element(tbs, at, end)
        if tag == 0xA0:
            at = after
        if tag != 0xA0 or tbs[start:after] != b"\x02\x01\x02":
            found.append("rfc5280.4.1.2.1.version_not_3")
        start, serial_end = expect(tbs, at, end, 0x02)
        self._judge_serial(tbs[start:serial_end], found)
        algorithm_bytes, subject_at = self._skip_signed(tbs, serial_end, end)
        subject_start, subject_end = expect(tbs, subject_at, end, 0x30)
        _, spki_end = expect(tbs, subject_end, end, 0x30)
        subject = tbs[subject_at:subject_end]

        key = read_key(tbs[subject_end:spki_end])
        if key is None:
            found.append("rfc5280.4.1.2.7.key_malformed")
        signed = tbs[serial_end:subject_at]
        if signed != self._signed:
            found += self._judge_signed(signed, subject, key)
        found += judge_name(tbs[subject_start:subject_end])

        extensions = self._read_extensions(tbs, spki_end, end, found)
        self._judge_key_ids(extensions, key, found)
        found += self._find_together(extensions, subject_start == subject_end, key, is_clean=not found)
        self._judge_names(subject, extensions.get(SAN), found)
        self._judge_size(end, algorithm_bytes, found)
        return found

    def _judge_serial(self, serial: bytes, found: list[str]) -> None:
        if not serial or (len(serial) > 1 and serial[0] == 0 and serial[1] < 0x80):
            raise Malformed
        if serial[0] >= 0x80 or not any(serial):
            found.append("rfc5280.4.1.2.2.serial_not_positive")
        if len(serial) > _SERIAL_MAX_BYTES:
            found.append("rfc5280.4.1.2.2.serial_too_long")
        elif len(serial) < _SERIAL_MIN_BYTES or (
            self._profile is not None and len(serial) != self._profile.serial_bytes
        ):
            found.append("estd.serial_too_short")

    def _skip_signed(self, tbs: bytes, at: int, end: int) -> tuple[int, int]:
        """How long the algorithm that stands there is, and where issuer and dates behind it end."""
        if self._signed and tbs.startswith(self._signed, at):
            return self._algorithm_bytes, at + len(self._signed)
        _, algorithm_end = expect(tbs, at, end, 0x30)
        _, issuer_end = expect(tbs, algorithm_end, end, 0x30)
        _, validity_end = expect(tbs, issuer_end, end, 0x30)
        return algorithm_end - at, validity_end

    def _judge_signed(self, signed: bytes, subject: bytes, key: Key | None) -> list[str]:
        """Judge algorithm, issuer and dates; kept where they are right and hang on nothing else."""
        found: list[str] = []
        end = len(signed)
        _, algorithm_end = expect(signed, 0, end, 0x30)
        issuer_start, issuer_end = expect(signed, algorithm_end, end, 0x30)
        validity_start, validity_end = expect(signed, issuer_end, end, 0x30)
        self._judge_signer(signed[:algorithm_end], signed[algorithm_end:issuer_end], subject, key, found)
        if issuer_start == issuer_end:
            found.append("rfc5280.4.1.2.4.issuer_empty")
        found += self._judge_validity(signed[validity_start:validity_end])
        if self._issuer is not None and not found:
            self._signed, self._algorithm_bytes = signed, algorithm_end
        return found

    def _judge_signer(self, algorithm: bytes, issuer: bytes, subject: bytes, key: Key | None, found: list[str]) -> None:
        if self._issuer is None:
            signs_with = frozenset() if key is None else key.signs_with
            expected = subject
        else:
            signs_with, expected = self._issuer.key.signs_with, self._issuer.subject
        if algorithm not in signs_with:
            found.append("rfc5280.4.1.1.2.algorithm_differs")
        if issuer != expected:
            found.append("rfc5280.4.1.2.4.issuer_differs")

    def _judge_validity(self, validity: bytes) -> list[str]:
        tag, start, stop = element(validity, 0, len(validity))
        not_before, wrong_before = read_time(tag, validity[start:stop])
        tag, start, end = element(validity, stop, len(validity))
        not_after, wrong_after = read_time(tag, validity[start:end])
        if end != len(validity):
            raise Malformed
        found = [wrong for wrong in (wrong_before, wrong_after) if wrong is not None]
        if not_before is not None and not_after is not None:
            if not_before >= not_after:
                found.append("rfc5280.4.1.2.5.ends_before_start")
            if self._issuer is not None and not self._issuer.starts <= not_before <= not_after <= self._issuer.ends:
                found.append("estd.outside_issuer")
            if self._profile is not None and _is_too_long(self._profile, not_before, not_after):
                found.append("estd.validity_too_long")
        return found

    def _read_extensions(self, tbs: bytes, at: int, end: int, found: list[str]) -> dict[bytes, Judged]:
        while at < end and tbs[at] in (0x81, 0x82):
            found.append("rfc5280.4.1.2.8.unique_id_present")
            at = element(tbs, at, end)[2]
        if at == end:
            found.append("rfc5280.4.1.2.9.extensions_missing")
            return {}
        start, stop = expect(tbs, at, end, 0xA3)
        first, after = expect(tbs, start, stop, 0x30)
        if stop != end or after != end:
            raise Malformed
        if first == end:
            found.append("rfc5280.4.1.2.9.extensions_missing")
        if self._run and tbs.startswith(self._run, first):
            extensions = dict(self._run_judged)
            found += self._run_found
            _judge_extensions(tbs, first + len(self._run), end, extensions, found)
            return extensions
        extensions = {}
        run_end = _judge_extensions(tbs, first, end, extensions, found)
        # Kept under these octets only, and judged again from them so that nothing of this certificate mixes in.
        self._run, self._run_judged, self._run_found, self._together = tbs[first:run_end], {}, [], {}
        _judge_extensions(self._run, 0, len(self._run), self._run_judged, self._run_found)
        return extensions

    def _find_together(
        self, extensions: dict[bytes, Judged], subject_empty: bool, key: Key | None, is_clean: bool
    ) -> list[str]:
        """What `_judge_together` finds, or found for the same run."""
        names = extensions.get(SAN)
        has_key_id = SKI in extensions
        follows = has_key_id + (names is not None)
        # Other extensions behind the run, one that is there twice, or a key identifier that the profile has the octets
        # of: then it is not the run that decides.
        if (
            not is_clean
            or len(extensions) != len(self._run_judged) + follows
            or (has_key_id and SKI not in self._expected)
        ):
            return self._judge_together(extensions, subject_empty, key)
        what = (
            None if key is None else key.family,
            subject_empty,
            has_key_id,
            None if names is None else names.critical,
        )
        found = self._together.get(what)
        if found is None:
            found = self._together[what] = self._judge_together(extensions, subject_empty, key)
        return found

    def _judge_together(self, extensions: dict[bytes, Judged], subject_empty: bool, key: Key | None) -> list[str]:
        found: list[str] = []
        usage, purposes, policies = extensions.get(KU), extensions.get(EKU), extensions.get(CP)
        usages = frozenset[str]() if usage is None else usage.usages
        if key is not None and not usages.isdisjoint(NOT_FOR_KEY[key.family][1]):
            found.append("rfc5280.4.2.1.3.key_usage_unfit")
        named = () if purposes is None else purposes.oids
        if usages:
            serving = [USAGES_FOR_PURPOSE.get(NAMES.get(purpose, ""), usages) for purpose in named]
            if any(usages.isdisjoint(fit) for fit in serving):
                found.append("rfc5280.4.2.1.12.purpose_without_usage")
        names = extensions.get(SAN)
        if subject_empty:
            if names is None:
                found.append("rfc5280.4.2.1.6.san_missing")
            elif not names.critical:
                found.append("rfc5280.4.2.1.6.san_not_critical")
        if names is None and _SERVER_AUTH in named:
            found.append("rfc9525.6.3.server_without_san")
        if self._profile is None:
            self._judge_authority(extensions, usages, subject_empty, found)
        else:
            self._judge_leaf(self._profile, extensions, usages, named, policies, found)
        self._judge_presence(extensions, found)
        return found

    def _judge_presence(self, extensions: dict[bytes, Judged], found: list[str]) -> None:
        extras = 0
        for oid, judged in extensions.items():
            if oid in self._expected:
                critical = self._expected[oid]
                if critical is not None and critical is not judged.critical:
                    found.append("estd.extension_unexpected")
                continue
            if self._extras.get(dotted(oid)) == (judged.critical, judged.value):
                extras += 1
                continue
            found.append("estd.extension_unexpected")
            if judged.critical and oid not in _VERIFIERS_KNOW:
                found.append("rfc5280.4.2.critical_unknown")
        if extras != len(self._extras):
            found.append("estd.extension_unexpected")

    def _judge_key_ids(self, extensions: dict[bytes, Judged], key: Key | None, found: list[str]) -> None:
        own, authority = extensions.get(SKI), extensions.get(AKI)
        if own is None:
            if self._profile is None or self._profile.subject_key_id:
                found.append("rfc5280.4.2.1.2.subject_key_id_missing")
        elif key is not None and (own.key_id is None or not follows_from_key(own.key_id, key.octets)):
            found.append("rfc5280.4.2.1.2.subject_key_id_differs")
        if self._issuer is not None:
            expected: bytes | None = self._issuer.key_id
        else:
            expected = None if own is None else own.key_id
        if authority is None:
            # RFC 5280 §4.2.1.1: only a certificate that signs itself may do without.
            if self._issuer is not None:
                found.append("rfc5280.4.2.1.1.authority_key_id_missing")
        elif authority.key_id is None or authority.key_id != expected:
            found.append("rfc5280.4.2.1.1.authority_key_id_differs")

    def _judge_authority(
        self, extensions: dict[bytes, Judged], usages: frozenset[str], subject_empty: bool, found: list[str]
    ) -> None:
        if subject_empty:
            found.append("rfc5280.4.1.2.6.ca_subject_empty")
        constraints = extensions.get(BC)
        if constraints is None or not constraints.ca:
            found.append("rfc5280.4.2.1.9.basic_constraints_missing")
        if "keyCertSign" not in usages:
            found.append("rfc5280.4.2.1.3.ca_without_key_cert_sign")
        if self._issuer is not None and self._issuer.path_length == 0:
            found.append("rfc5280.4.2.1.9.path_length_exceeded")
        names = extensions.get(NC)
        if names is not None and not names.critical:
            found.append("rfc5280.4.2.1.10.name_constraints_misplaced")

    def _judge_leaf(
        self,
        profile: Profile,
        extensions: dict[bytes, Judged],
        usages: frozenset[str],
        purposes: tuple[str, ...],
        policies: Judged | None,
        found: list[str],
    ) -> None:
        constraints = extensions.get(BC)
        if constraints is not None and constraints.ca:
            found.append("rfc5280.4.2.1.9.unexpected_ca")
        if "keyCertSign" in usages:
            found.append("rfc5280.4.2.1.3.key_cert_sign_without_ca")
        if NC in extensions:
            found.append("rfc5280.4.2.1.10.name_constraints_misplaced")
        if usages != frozenset(profile.key_usage):
            found.append("estd.key_usage_differs")
        if purposes != profile.extended_key_usage:
            found.append("estd.purposes_differ")
        if (() if policies is None else policies.oids) != profile.policies:
            found.append("estd.policies_differ")
        if profile.basic_constraints and constraints is None:
            found.append("estd.extension_unexpected")

    def _judge_names(self, subject: bytes, names: Judged | None, found: list[str]) -> None:
        if not self._constraints:
            return
        try:
            violation = find_violation(self._constraints, subject, None if names is None else names.value)
        except Refused:
            violation = "unreadable"
        if violation is not None:
            found.append("rfc5280.4.2.1.10.name_outside")

    def _judge_size(self, tbs_bytes: int, algorithm_bytes: int, found: list[str]) -> None:
        if self._profile is None or self._profile.max_der_bytes is None:
            return
        # Four octets of header around all, four and the count of unused bits around the signature.
        if tbs_bytes + algorithm_bytes + self._signature_max_bytes + 9 > self._profile.max_der_bytes:
            found.append("estd.too_large")


# --- private ---------------------------------------------------------------------------------------------------------

_SERIAL_MAX_BYTES: Final = 20
# 64 random bits and the octet that keeps the number positive.
_SERIAL_MIN_BYTES: Final = 9
_SERVER_AUTH: Final = "1.3.6.1.5.5.7.3.1"
_DIFFERENT_EACH_TIME: Final = frozenset({SKI, SAN})
_VERIFIERS_KNOW: Final = frozenset({KU, SAN, BC, EKU, CP, NC})
# None: criticality is judged with the extension itself, or is free.
_CA_EXPECTS: Final[Mapping[bytes, bool | None]] = dict.fromkeys((BC, KU, SKI, AKI, NC, CDP, AIA))


def _judge_extensions(data: bytes, at: int, end: int, extensions: dict[bytes, Judged], found: list[str]) -> int:
    """Judge the extensions in a range; where the first of those stands that differ in each certificate."""
    run_end = -1
    while at < end:
        _, after = expect(data, at, end, 0x30)
        judged = judge_extension(data[at:after])
        if judged.oid in extensions:
            found.append("rfc5280.4.2.extension_repeated")
        if judged.oid in _DIFFERENT_EACH_TIME and run_end < 0:
            run_end = at
        found += judged.findings
        extensions[judged.oid] = judged
        at = after
    return end if run_end < 0 else run_end


def _decide_expected(profile: Profile) -> dict[bytes, bool | None]:
    expected: dict[bytes, bool | None] = {AKI: None, SAN: None}
    if profile.basic_constraints:
        expected[BC] = profile.basic_constraints_critical
    if profile.key_usage:
        expected[KU] = profile.key_usage_critical
    if profile.extended_key_usage:
        expected[EKU] = profile.extended_key_usage_critical
    if profile.policies:
        expected[CP] = profile.policies_critical
    if profile.subject_key_id:
        expected[SKI] = None
    if profile.cdp:
        expected[CDP] = None
    if profile.aia:
        expected[AIA] = None
    return expected


def _is_too_long(profile: Profile, not_before: datetime, not_after: datetime) -> bool:
    if profile.align == "issuer":
        return False
    if profile.validity.duration is not None:
        # Both ends count (RFC 5280 §4.1.2.5), so one second more than the difference.
        return not_after - not_before + timedelta(seconds=1) > profile.validity.duration
    return profile.validity.until is not None and not_after > profile.validity.until
