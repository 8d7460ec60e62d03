"""The issuing certificate, read by the linter itself from its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from estd.ca.constraints import NameConstraints, read_name_constraints
from estd.ca.lint.extensions import BC, NC, SKI, judge_extension
from estd.ca.lint.keys import Key, read_key
from estd.ca.lint.walk import element, expect, only, read_time
from estd.errors import Broken


@dataclass(frozen=True, slots=True)
class IssuingCertificate:
    """What the issuing certificate says, read by this module."""

    subject: bytes
    key: Key
    key_id: bytes | None
    starts: datetime
    ends: datetime
    path_length: int | None
    name_constraints: NameConstraints | None


def read_issuing_certificate(certificate: bytes) -> IssuingCertificate:
    """Read a CA certificate, DER."""
    start, end = only(certificate, 0x30)
    tbs_start, tbs_end = expect(certificate, start, end, 0x30)
    at = tbs_start
    parts: list[tuple[int, int, int, int]] = []
    while at < tbs_end:
        tag, inner, after = element(certificate, at, tbs_end)
        parts.append((tag, at, inner, after))
        at = after
    # [0] version, serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, …, [3] extensions
    _, _, validity, validity_end = parts[4]
    subject, subject_end = parts[5][1], parts[5][3]
    key = read_key(certificate[parts[6][1] : parts[6][3]])
    tag, inner, middle = element(certificate, validity, validity_end)
    starts, _ = read_time(tag, certificate[inner:middle])
    tag, inner, last = element(certificate, middle, validity_end)
    ends, _ = read_time(tag, certificate[inner:last])
    if key is None or starts is None or ends is None or parts[-1][0] != 0xA3:
        raise Broken("an issuer's certificate cannot be read")
    extensions = {}
    inner, stop = only(certificate[parts[-1][2] : parts[-1][3]], 0x30)
    block = certificate[parts[-1][2] : parts[-1][3]]
    while inner < stop:
        _, _, after = element(block, inner, stop)
        judged = judge_extension(block[inner:after])
        extensions[judged.oid] = judged
        inner = after
    names = extensions.get(NC)
    return IssuingCertificate(
        subject=certificate[subject:subject_end],
        key=key,
        key_id=extensions[SKI].key_id if SKI in extensions else None,
        starts=starts,
        ends=ends,
        path_length=extensions[BC].path_length if BC in extensions else None,
        name_constraints=None if names is None else read_name_constraints(names.value),
    )
