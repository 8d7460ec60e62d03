"""``estd issuer``: CA certificates, to look at and to hand to whoever has to trust them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.app.access import find_visible, get_ecosystem, open_store
from estd.asn1.spki import key_type
from estd.ca.ecosystem import load_issuers
from estd.cli.loop import run_async
from estd.cli.options import PATH, ecosystem_option, json_option, server_options
from estd.cli.output import note, save, write_facts, write_json, write_table, write_time
from estd.cli.rules import InForce, get_rules, note_unread, read_rules
from estd.config import Config
from estd.device.answers import serial_text, write_pem
from estd.errors import Invalid, Problem
from estd.names import fingerprint, read_name
from estd.store.contract import IssuerRecord


@click.group(short_help="Look at CA certificates and export them.")
def issuer() -> None:
    """Look at issuers: the CA certificates of an ecosystem, and export them for those who have to trust them.

    \b
      estd issuer list --dir lab
      estd issuer show root --ecosystem campus-north --dir lab
      estd issuer export --ecosystem campus-north --out ca.pem --dir lab

    They are made and replaced through the ecosystem's document, with `estd apply FILE`. Their keys never leave estd.
    """


@dataclass(frozen=True, slots=True)
class _Issuer:
    """An issuer as it is in the store, and what its certificate says."""

    label: str
    record: IssuerRecord
    certificate: x509.Certificate
    parent: str | None
    active: bool
    """The newest of its name, and the document in force names it."""
    rules: InForce

    @property
    def subject(self) -> str:
        return read_name(self.certificate.subject.public_bytes()).text

    @property
    def key_type(self) -> str:
        return key_type(self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @property
    def starts(self) -> datetime:
        return self.certificate.not_valid_before_utc

    @property
    def ends(self) -> datetime:
        return self.certificate.not_valid_after_utc

    @property
    def validity(self) -> str:
        """By the clock of this machine."""
        now = datetime.now(UTC)
        return "expired" if now > self.ends else "not yet valid" if now < self.starts else "valid"

    def as_json(self) -> dict[str, object]:
        return {
            "ecosystem": self.label,
            "name": self.record.name,
            "active": self.active,
            "parent": self.parent,
            "subject": self.subject,
            "serial": serial_text(self.certificate),
            "key_type": self.key_type,
            "not_before": self.starts,
            "not_after": self.ends,
            "validity": self.validity,
            "sha256": fingerprint(self.record.certificate),
            "has_key": self.record.sealed_key is not None,
            "rules": self.rules.as_json(),
        }


@issuer.command("list")
@click.option("--ecosystem", "label", metavar="LABEL", help="Only of this ecosystem.")
@click.option("--all", "with_old", is_flag=True, help="Also those that were replaced.")
@server_options
@json_option
def list_issuers(label: str | None, with_old: bool, config: Config, as_json: bool) -> None:
    """List issuers."""
    found = [one for one in run_async(_find(config, label)) if one.active or with_old]
    if as_json:
        write_json([one.as_json() for one in found])
        return
    write_table(
        ("issuer", "ecosystem", "subject", "under", "key", "until", "state"),
        [
            (
                one.record.name,
                one.label,
                one.subject,
                one.parent or "(root)",
                one.key_type,
                write_time(one.ends),
                _state(one),
            )
            for one in found
        ],
        "There is no issuer yet. It comes with its ecosystem: estd apply FILE",
    )


@issuer.command()
@click.argument("name")
@ecosystem_option
@server_options
@json_option
def show(name: str, label: str, config: Config, as_json: bool) -> None:
    """Show one issuer."""
    one = _get(run_async(_find(config, label)), name, label)
    if as_json:
        write_json({**one.as_json(), "pem": write_pem([one.certificate]).decode()})
        return
    write_facts(
        f"{name} in {label}",
        [
            ("subject", one.subject),
            ("under", one.parent or "nothing: it is a root"),
            ("key", one.key_type),
            (
                "valid",
                f"{write_time(one.certificate.not_valid_before_utc)} to {write_time(one.ends)}",
            ),
            ("serial", serial_text(one.certificate)),
            ("SHA-256", fingerprint(one.record.certificate)),
            ("private key", "sealed in the database" if one.record.sealed_key is not None else "not here"),
            ("state", _state(one)),
        ],
    )


@issuer.command()
@ecosystem_option
@click.option("--name", metavar="NAME", help="Only this issuer (default: all active ones, roots first).")
@click.option("--roots", is_flag=True, help="Only the roots: what others need to trust this ecosystem's devices.")
@click.option("--out", metavar="FILE", type=PATH, help="Write here instead of standard output.")
@server_options
@json_option
def export(label: str, name: str | None, roots: bool, out: Path | None, config: Config, as_json: bool) -> None:
    """Export CA certificates in PEM."""
    found = [one for one in run_async(_find(config, label)) if one.active]
    if name is not None:
        found = [_get(found, name, label)]
    else:
        _check_named(found)
    chosen = sorted((one for one in found if not (roots and one.parent)), key=lambda one: one.parent is not None)
    if not chosen:
        what = f"is no root of {label!r}" if name else "has no issuer with a certificate yet"
        where = f"issuer {name!r}" if name else f"ecosystem {label!r}"
        raise Invalid([Problem(where, what, "Leave out --roots to export what is under it.")])
    pem = write_pem([one.certificate for one in chosen])
    if out is not None:
        save(out, pem, 0o644)
    if as_json:
        write_json([{**one.as_json(), "pem": write_pem([one.certificate]).decode()} for one in chosen])
    elif out is None:
        click.echo(pem, nl=False)
    else:
        note(f"{out}: {', '.join(one.record.name for one in chosen)}")


def _state(one: _Issuer) -> str:
    if not one.active:
        return "replaced"
    if one.validity != "valid":
        return one.validity
    if one.rules.rules is None:
        return f"rules cannot be read: {one.rules.why}"
    return "signs" if one.record.sealed_key is not None else "certificate only"


def _get(found: Iterable[_Issuer], name: str, label: str) -> _Issuer:
    by_name = {one.record.name: one for one in found}
    if name not in by_name:
        raise Invalid(
            [Problem(f"issuer {name!r}", f"does not exist in {label!r}", f"Known there: {', '.join(by_name)}.")]
        )
    return by_name[name]


def _check_named(found: Iterable[_Issuer]) -> None:
    """Nobody is to trust a CA because it could not be told that it is gone."""
    for record in {one.label: one.rules.record for one in found}.values():
        try:
            load_issuers(record.document)
        except Invalid:
            get_rules(record)


async def _find(config: Config, label: str | None) -> list[_Issuer]:
    async with open_store(config) as store:
        records = await find_visible(store) if label is None else [await get_ecosystem(store, label)]
    found = [read_rules(record) for record in records]
    note_unread(found)
    return [issuer for one in found for issuer in _read(one)]


def _read(rules: InForce) -> list[_Issuer]:
    record = rules.record
    try:
        named = {spec.name for spec in load_issuers(record.document)}
    except Invalid:
        named = {one.name for one in record.issuers}  # which of them are gone cannot be told
    newest = {one.name: one.issuer_id for one in record.issuers}
    names = {one.issuer_id: one.name for one in record.issuers}
    return [
        _Issuer(
            record.label,
            one,
            x509.load_der_x509_certificate(one.certificate),
            None if one.parent_id is None else names[one.parent_id],
            one.name in named and newest[one.name] == one.issuer_id,
            rules,
        )
        for one in record.issuers
    ]
