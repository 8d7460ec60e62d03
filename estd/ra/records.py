"""What an order is to the signer and to the store: the item to prepare, the intent, the result with its audit event.

Written in one place for the one road, for batches, and for what is settled later, so that whichever way a certificate came
the same is on record of it. Promises: what is kept in the signer's journal, in the intent and in the event says the same;
no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from estd.audit import Event
from estd.ra.notes import write_note
from estd.ra.order import Order
from estd.signer.frames import PreparedItem, PrepareItem, SealItem
from estd.store.contract import Intent, Issued


def write_item(order: Order) -> PrepareItem:
    """What a signer is asked to prepare, with the note that its journal will keep."""
    note = write_note(
        order.ecosystem_id, order.ecosystem_version, order.node_id, order.profile, order.operation, order.identity,
        order.device, order.csr_sha256, order.code_id,
    )  # fmt: skip
    return PrepareItem(
        request_key=order.request_key,
        ecosystem_id=order.ecosystem_id,
        version=order.ecosystem_version,
        profile=order.profile,
        csr=order.csr,
        subject=order.subject,
        san=order.san,
        note=note,
    )


def write_seals(items: Sequence[PreparedItem]) -> list[SealItem]:
    """What was prepared, as a signer is told to seal it or to forget it."""
    return [SealItem(item.issuer_id, item.serial) for item in items]


def write_intent(order: Order, item: PreparedItem, journal: str, now: datetime) -> Intent:
    """The intent to be committed before anything is signed; `journal` is the mark that came with the prepared item."""
    return Intent(
        request_key=order.request_key,
        issuer_id=item.issuer_id,
        serial=item.serial,
        ecosystem_id=order.ecosystem_id,
        ecosystem_version=order.ecosystem_version,
        node_id=order.node_id,
        profile=order.profile,
        operation=order.operation,
        identity=order.identity,
        device=order.device,
        csr_sha256=order.csr_sha256,
        spki_sha256=item.spki_sha256,
        tbs_sha256=item.tbs_sha256,
        journal=journal,
        code_id=order.code_id,
        created_at=now,
    )


def write_issued(
    order: Order, intent: Intent, item: PreparedItem, certificate: bytes, now: datetime, authority: str | None = None
) -> Issued:
    """The result of an intent; `authority` names the registration authority that asked on behalf of the device, if any."""
    return Issued(
        issuer_id=intent.issuer_id,
        serial=intent.serial,
        certificate=certificate,
        not_before=item.not_before,
        not_after=item.not_after,
        issued_at=now,
        event=_write_event(intent, now, order.ecosystem, order.address, order.request_id, authority),
    )


def write_settled(intent: Intent, certificate: bytes, now: datetime) -> Issued:
    """As `write_issued`, when all that is left of the request is its intent."""
    parsed = x509.load_der_x509_certificate(certificate)
    return Issued(
        issuer_id=intent.issuer_id,
        serial=intent.serial,
        certificate=certificate,
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
        issued_at=now,
        event=_write_event(intent, now, None, "", "", None, is_settled=True),
    )


def _write_event(
    intent: Intent,
    now: datetime,
    ecosystem: str | None,
    address: str,
    request_id: str,
    authority: str | None,
    *,
    is_settled: bool = False,
) -> Event:
    extra: dict[str, str | bool] = {"device": intent.device, "profile": intent.profile}
    if is_settled:
        extra["settled"] = True
    if authority is not None:
        extra["registration_authority"] = authority
    return Event(
        at=now,
        kind=f"est.{intent.operation}",
        outcome="granted",
        ecosystem=ecosystem,
        ecosystem_id=intent.ecosystem_id,
        identity=intent.identity,
        address=address,
        request_id=request_id,
        issuer_id=intent.issuer_id,
        serial=intent.serial.hex(),
        extra=extra,
    )
