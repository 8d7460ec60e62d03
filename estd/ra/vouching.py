"""What a registration authority asks for on behalf of one device (RFC 7030 §3.7), and how far its word is taken.

The authority vouches for the names it asks for, and for the link between request and device that RFC 7030 §3.5 is
about, since it saw the device and this server did not. What it asks for has to pass the profile all the same: a name that
the profile takes from elsewhere is that one, whatever a request says.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from estd.ca.profile import Profile
from estd.errors import Code, Refused
from estd.names import EMPTY_NAME, device_name, normalise_device, same_name, same_san, write_name, write_san
from estd.ra.admission import Admitted, Purpose
from estd.ra.order import Order, write_batch_key
from estd.store.contract import Device, Store
from estd.wire.pkcs10 import read_asked


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a batch: what the authority calls it, and its PKCS #10 (DER, unread; empty when there was none)."""

    name: str
    csr: bytes


async def decide_order(store: Store, admitted: Admitted, request: Request, address: str, request_id: str) -> Order:
    """What exactly is to be issued for one request of a batch; `address` and `request_id` are the batch's.

    Raises:
        Refused: MALFORMED_REQUEST, CSR_MALFORMED, SUBJECT_REFUSED, SAN_REFUSED or KEY_REVOKED; NOT_AUTHORIZED for a device
            that is not in the inventory from which the profile takes names.
        Unavailable: the inventory could not be asked.
    """
    if not request.csr:
        raise Refused(Code.MALFORMED_REQUEST, "the line holds no PKCS #10 request in base64", "RFC 8951 §3.1")
    # The signer reads all of it, and refuses what is wrong; here it is about names, and whether the key is compromised.
    try:
        asked, asked_san, spki = read_asked(request.csr)
    except Refused as refused:
        raise Refused(Code.CSR_MALFORMED, refused.detail, refused.clause) from None
    ecosystem, profile = admitted.place.ecosystem, admitted.place.profile
    if asked != EMPTY_NAME:
        device = device_name(asked)
    elif request.name:
        device = normalise_device(request.name)
    else:
        raise Refused(Code.SUBJECT_REFUSED, "neither the request nor its line says which device it is for")
    row = None
    if "inventory" in (profile.subject, profile.san):
        row = await store.find_device(ecosystem.ecosystem_id, device)
        if row is None:
            raise Refused(Code.NOT_AUTHORIZED, "this device is not in the ecosystem's inventory")
    subject, san = _decide_names(profile, asked, asked_san, row)
    ecosystem.check_key(hashlib.sha256(spki).digest())
    csr_sha256 = hashlib.sha256(request.csr).digest()
    return Order(
        request_key=write_batch_key(ecosystem.ecosystem_id, profile.name, csr_sha256),
        ecosystem_id=ecosystem.ecosystem_id,
        ecosystem_version=ecosystem.version,
        node_id=ecosystem.node_id,
        ecosystem=ecosystem.label,
        profile=profile.name,
        retry_window=profile.retry_window,  # of no account in a batch, whose certificates are repeated until their end
        operation=Purpose.BATCH.value,
        identity=admitted.credential.identity,
        device=device,
        csr=request.csr,
        csr_sha256=csr_sha256,
        subject=subject,
        san=san,
        code_id=None,
        address=address,
        request_id=request_id,
    )


def _decide_names(
    profile: Profile, subject: bytes, san: bytes | None, row: Device | None
) -> tuple[bytes, bytes | None]:
    """Subject and SAN of one certificate: where a profile trusts a credential's names, the authority's word counts."""
    if profile.subject == "credential" and subject == EMPTY_NAME:
        raise Refused(Code.SUBJECT_REFUSED, "the request names no subject, and this profile wants one")
    if profile.subject == "inventory":
        assert row is not None
        allowed = write_name(row.subject or "")
        if subject != EMPTY_NAME and not same_name(subject, allowed):
            raise Refused(Code.SUBJECT_REFUSED, "the subject asked for is not the one in the inventory")
        subject = allowed  # its own octets: names that compare equal need not look alike
    elif profile.subject == "fixed":
        subject = profile.fixed_subject
    elif profile.subject == "empty":
        subject = EMPTY_NAME
    if profile.san in ("none", "inventory"):
        allowed_san = write_san(row.san) if profile.san == "inventory" and row is not None and row.san else None
        if san is not None and not same_san(san, allowed_san):
            raise Refused(Code.SAN_REFUSED, f"the subjectAltName asked for is not what its {profile.san} allows")
        san = allowed_san
    return subject, san
