"""What is asked for, once it is decided who asks and which names the certificate will carry.

An `Order` is all that `estd.ra.enrollment` and `estd.ra.bulk` need; its request key is what makes a retry a retry.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

import msgspec


class Order(msgspec.Struct, frozen=True):
    """A request that is admitted and whose names are decided; all that a signer and the store need to know of it."""

    request_key: bytes
    ecosystem_id: int
    ecosystem_version: int
    node_id: int
    ecosystem: str
    profile: str
    retry_window: timedelta
    operation: str
    identity: str
    device: str
    csr: bytes
    csr_sha256: bytes
    subject: bytes
    san: bytes | None
    code_id: int | None
    address: str
    request_id: str


def write_request_key(ecosystem_id: int, identity: str, operation: str, csr_sha256: bytes) -> bytes:
    """What makes a retry a retry: 32 bytes that are equal for equal requests of one identity in one ecosystem."""
    parts = f"estd request\x00{ecosystem_id}\x00{identity}\x00{operation}\x00".encode()
    return hashlib.sha256(parts + csr_sha256).digest()


def write_batch_key(ecosystem_id: int, profile: str, csr_sha256: bytes) -> bytes:
    """The same for what a registration authority asks for on behalf of devices.

    The profile stands in the place of the identity: whichever authority of the ecosystem sends a request, and with
    whichever certificate of its own, one request under one profile has one certificate.
    """
    return write_request_key(ecosystem_id, f"profile:{profile}", "batch", csr_sha256)
