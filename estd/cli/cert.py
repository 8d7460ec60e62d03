"""``estd cert``: what was issued, and the end of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import click
from cryptography import x509

from estd.app.access import find_user, get_ecosystem, open_store
from estd.asn1.oids import OIDS
from estd.audit import Event
from estd.cli.loop import run_async
from estd.cli.options import json_option, read_device, server_options
from estd.cli.output import write_facts, write_json, write_line, write_span, write_table, write_time
from estd.config import Config
from estd.device.answers import write_pem
from estd.errors import Invalid, Problem, Refused
from estd.names import fingerprint, read_name, read_san, read_serial, write_serial
from estd.ra.directory import INTERNAL_LABEL
from estd.store.contract import (
    KEY_COMPROMISE,
    EcosystemRecord,
    Revocation,
    RevocationOutcome,
    Store,
    StoredCertificate,
)

REASONS: Final = (
    # RFC 5280 §5.3.1, without those for CAs, for CRLs, and the one that can be taken back.
    "unspecified",
    KEY_COMPROMISE,
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)
_OF_ONE_DEVICE: Final = 1000
_OUTCOMES: Final = {
    RevocationOutcome.REVOKED: "revoked",
    RevocationOutcome.RAISED: "was revoked before; the reason is {reason} now",
    RevocationOutcome.UNCHANGED: "was revoked before",
}


@click.group(short_help="Find certificates and revoke them.")
def cert() -> None:
    """Find certificates and revoke them.

    \b
      estd cert list --ecosystem plant --device pump-17 --config estd.toml
      estd cert show 0f3a… --config estd.toml
      estd cert revoke 0f3a… --reason keyCompromise --config estd.toml
      estd cert revoke --device pump-17 --ecosystem plant --config estd.toml

    Revoking is final; only the reason may still rise to keyCompromise. The device is refused from its next request on,
    renewal included.
    """


@dataclass(frozen=True, slots=True)
class _Found:
    """A certificate and where it belongs."""

    label: str
    stored: StoredCertificate

    @property
    def serial(self) -> str:
        return write_serial(self.stored.serial)

    def state(self, now: datetime) -> str:
        if self.stored.revoked_at is not None:
            return "revoked"
        return "expired" if self.stored.not_after < now else "valid"

    def describe(self, now: datetime) -> str:
        """What there is of it to revoke."""
        if self.stored.revoked_at is not None:
            return f"revoked {write_time(self.stored.revoked_at)}"
        return f"{'expired' if self.stored.not_after < now else 'until'} {write_time(self.stored.not_after)}"

    def as_json(self, now: datetime) -> dict[str, object]:
        stored = self.stored
        return {
            "ecosystem": self.label,
            "device": stored.device,
            "profile": stored.profile,
            "serial": self.serial,
            "state": self.state(now),
            "issued_at": stored.issued_at,
            "not_before": stored.not_before,
            "not_after": stored.not_after,
            "revoked_at": stored.revoked_at,
            "identity": stored.identity,
            "sha256": fingerprint(stored.certificate),
        }


@cert.command("list")
@click.option("--ecosystem", "label", metavar="LABEL", help="Only of this ecosystem.")
@click.option("--device", metavar="NAME", help="Only of this device.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, metavar="N", help="How many at most."
)
@server_options
@json_option
def list_certificates(label: str | None, device: str | None, limit: int, config: Config, as_json: bool) -> None:
    """List certificates, newest first."""
    name = None if device is None else read_device(device)
    found = run_async(_find(config, label, name, limit))
    now = _now()
    if as_json:
        write_json([one.as_json(now) for one in found])
        return
    write_table(
        ("serial", "device", "ecosystem", "profile", "state", "issued", "until"),
        [
            (
                one.serial,
                one.stored.device,
                one.label,
                one.stored.profile,
                one.state(now),
                write_time(one.stored.issued_at),
                write_time(one.stored.not_after),
            )
            for one in found
        ],
        "No certificate was issued here yet." if device is None else f"No certificate of device {device!r} here.",
    )


@cert.command()
@click.argument("serial")
@server_options
@json_option
def show(serial: str, config: Config, as_json: bool) -> None:
    """Show one certificate."""
    found = run_async(_get(config, serial))
    now = _now()
    certificate = x509.load_der_x509_certificate(found.stored.certificate)
    pem = write_pem([certificate]).decode()
    subject = read_name(certificate.subject.public_bytes()).text
    names = [
        name.text
        for extension in certificate.extensions
        if extension.oid.dotted_string == OIDS["subjectAltName"]
        for name in read_san(extension.value.public_bytes())
    ]
    if as_json:
        write_json({**found.as_json(now), "subject": subject, "san": names, "pem": pem})
        return
    stored = found.stored
    left = f" ({write_span(stored.not_after - now)} left)" if found.state(now) == "valid" else ""
    write_facts(
        subject or stored.device,
        [
            ("state", found.state(now) + (f" {write_time(stored.revoked_at)}" if stored.revoked_at else "")),
            ("device", stored.device),
            ("ecosystem", found.label),
            ("profile", stored.profile),
            ("alternative names", "\n".join(names)),
            ("valid", f"{write_time(stored.not_before)} to {write_time(stored.not_after)}{left}"),
            ("issued", write_time(stored.issued_at)),
            ("asked for by", stored.identity),
            ("serial", found.serial),
            ("SHA-256", fingerprint(stored.certificate)),
        ],
    )
    click.echo(pem, nl=False)


@cert.command()
@click.argument("serials", nargs=-1, metavar="[SERIAL]...")
@click.option(
    "--device", metavar="NAME", help="All valid certificates of this device; for keyCompromise all it ever had."
)
@click.option("--ecosystem", "label", metavar="LABEL", help="Ecosystem of that device.")
@click.option(
    "--reason", type=click.Choice(REASONS), default=REASONS[0], metavar="WHY", help=f"One of {', '.join(REASONS)}."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_options
@json_option
def revoke(
    serials: tuple[str, ...],
    device: str | None,
    label: str | None,
    reason: str,
    yes: bool,
    config: Config,
    as_json: bool,
) -> None:
    """Revoke certificates, for good.

    \b
      estd cert revoke 0f3a… --reason keyCompromise
      estd cert revoke --device pump-17 --ecosystem plant --yes

    For keyCompromise the key gets no certificate any more, whoever asks. A device's certificates that have ended or were
    revoked for another reason are taken with the others then: who has their keys might ask for new ones.

    At a terminal you are asked first, unless you say --yes or --json.
    """
    if bool(serials) == (device is not None) or (device is None) != (label is None):
        raise click.UsageError("Name serial numbers, or --device with its --ecosystem.")
    found = run_async(_choose(config, serials, device, label, reason))
    now = _now()
    if not yes and not as_json and sys.stdin.isatty():  # what a script names one by one it means
        for one in found:
            write_line(f"{one.serial}  {one.stored.device}  {one.label}  {one.describe(now)}")
        what = "this certificate" if len(found) == 1 else f"these {len(found)} certificates"
        click.confirm(f"Revoke {what} for good?", abort=True)
    revoked = run_async(_revoke(config, found, reason))
    if as_json:
        write_json(
            [
                {
                    "serial": one.serial,
                    "device": one.stored.device,
                    "revoked": outcome is RevocationOutcome.REVOKED,
                    "outcome": outcome.value,
                    "not_after": one.stored.not_after,
                }
                for one, outcome in revoked
            ]
        )
        return
    for one, outcome in revoked:
        ended = " (it had expired)" if one.stored.not_after < now else ""
        write_line(f"{one.serial}  {one.stored.device}  {_OUTCOMES[outcome].format(reason=reason)}{ended}")


# --- private -------------------------------------------------------------------------------------------------------


async def _find(config: Config, label: str | None, device: str | None, limit: int) -> list[_Found]:
    async with open_store(config) as store:
        if label is not None:
            record = await get_ecosystem(store, label)
            found = await store.find_certificates(record.ecosystem_id, device, limit)
            return [_Found(label, stored) for stored in found]
        labels = {record.ecosystem_id: record.label for record in await store.find_ecosystems()}
        found = await store.find_certificates(None, device, limit)
    return [
        _Found(labels[stored.ecosystem_id], stored)
        for stored in found
        if labels[stored.ecosystem_id] != INTERNAL_LABEL  # the server's own are not devices'
    ]


async def _get(config: Config, serial: str) -> _Found:
    async with open_store(config) as store:
        return await _look_up(store, await store.find_ecosystems(), serial)


async def _look_up(store: Store, records: Sequence[EcosystemRecord], text: str) -> _Found:
    try:
        serial = read_serial(text)
    except Refused as refused:
        raise Invalid([Problem("serial", refused.detail, "`estd cert list` shows serial numbers.")]) from None
    for record in records:
        for issuer in record.issuers:
            # A serial with its high bit set is written with a zero octet before it (X.690 §8.3), or typed without.
            for octets in (serial, b"\0" + serial):
                stored = await store.find_certificate(issuer.issuer_id, octets)
                if stored is not None:
                    return _Found(record.label, stored)
    raise Invalid([Problem(f"serial {text}", "is not known here", "`estd cert list` shows serial numbers.")])


async def _choose(
    config: Config, serials: Sequence[str], device: str | None, label: str | None, reason: str
) -> list[_Found]:
    async with open_store(config) as store:
        if device is None or label is None:
            records = await store.find_ecosystems()
            return [await _look_up(store, records, text) for text in serials]
        record = await get_ecosystem(store, label)
        limit = _OF_ONE_DEVICE
        while len(stored := await store.find_certificates(record.ecosystem_id, read_device(device), limit)) == limit:
            limit *= 4  # every one of them, however often the device was renewed
    now, takes_all = _now(), reason == KEY_COMPROMISE
    found = [one for one in (_Found(label, each) for each in stored) if takes_all or one.state(now) == "valid"]
    if not found:
        what = "never had a certificate there" if takes_all else "has no valid certificate there"
        remedy = f"See: estd cert list --ecosystem {label} --device {device}"
        raise Invalid([Problem(f"device {device!r}", what, remedy)])
    return found


async def _revoke(config: Config, found: Sequence[_Found], reason: str) -> list[tuple[_Found, RevocationOutcome]]:
    async with open_store(config) as store:
        return [(one, await _revoke_one(store, one, reason)) for one in found]


async def _revoke_one(store: Store, found: _Found, reason: str) -> RevocationOutcome:
    now, stored = _now(), found.stored
    event = Event(
        at=now,
        kind="certificate.revoke",
        outcome="granted",
        ecosystem=found.label,
        ecosystem_id=stored.ecosystem_id,
        identity=find_user(),
        issuer_id=stored.issuer_id,
        serial=found.serial,
        extra={"device": stored.device, "reason": reason},
    )
    return await store.record_revocation(Revocation(stored.issuer_id, stored.serial, reason, now), event)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
