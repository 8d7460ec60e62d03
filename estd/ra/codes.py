"""Enrollment codes: one-time secrets that an operator hands to a device, shown once and stored as a hash.

A code is 100 bits from `secrets`, written as 20 characters of Crockford's base32 (no I, L, O, U) in groups of five, so
that it survives being read over a telephone. What is stored of it is `estd.ra.admission.hash_secret`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from estd.names import normalise_device
from estd.ra.admission import hash_secret
from estd.store.contract import EnrollmentCode

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_BITS: Final = 100
_CHARACTERS: Final = 20
_GROUP: Final = 5


@dataclass(frozen=True, slots=True)
class NewCode:
    """A code as it is made: what to store, and the secret that nobody can read again later."""

    row: EnrollmentCode
    secret: str = field(repr=False)


def generate_code() -> str:
    """A new secret, such as ``7F3KQ-0V9XW-M2C8T-HJ5RB``."""
    number = secrets.randbits(CODE_BITS)
    text = "".join(ALPHABET[number >> 5 * place & 31] for place in range(_CHARACTERS))
    return "-".join(text[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP))


def make_code(
    ecosystem_id: int,
    device: str,
    *,
    single_use: bool,
    profile: str | None,
    expires_at: datetime | None,
    now: datetime,
) -> NewCode:
    """A code for one device of one ecosystem, not stored yet.

    Raises:
        Refused: that is no name for a device.
    """
    secret = generate_code()
    row = EnrollmentCode(
        code_id=0,
        ecosystem_id=ecosystem_id,
        device=normalise_device(device),
        secret_sha256=hash_secret(secret),
        single_use=single_use,
        profile=profile,
        expires_at=expires_at,
        created_at=now,
        spent_at=None,
    )
    return NewCode(row, secret)
