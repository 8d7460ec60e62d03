"""``estd profile``: what certificates look like, and who may ask for them."""

from __future__ import annotations

from collections.abc import Sequence

import click

from estd.app.access import find_visible, get_ecosystem, open_store
from estd.asn1.oids import NAMES
from estd.ca.document import write_duration
from estd.ca.ecosystem import Ecosystem, peek_profiles
from estd.ca.ecosystems import READY
from estd.ca.profile import Profile, write_profile
from estd.ca.validity import write_validity
from estd.cli.loop import run_async
from estd.cli.options import json_option, server_options
from estd.cli.output import write_facts, write_json, write_table
from estd.cli.rules import InForce, get_rules, note_unread, read_rules
from estd.config import Config
from estd.errors import Invalid, Problem
from estd.store.contract import EcosystemRecord


@click.group(short_help="Look at the rules for certificates.")
def profile() -> None:
    """Look at profiles: the rules of each kind of certificate, as they are in force.

    \b
      estd profile list --dir lab
      estd profile show device --ecosystem campus-north --dir lab
      estd profile ready                  ready-made ones to build on

    They are changed in the ecosystem's document, with `estd apply FILE`.
    """


@profile.command("list")
@click.option("--ecosystem", "label", metavar="LABEL", help="Only of this ecosystem.")
@server_options
@json_option
def list_profiles(label: str | None, config: Config, as_json: bool) -> None:
    """List profiles."""
    found = [read_rules(record) for record in run_async(_find(config, label))]
    note_unread(found)
    if as_json:
        write_json([row for one in found for row in _write_json(one)])
        return
    write_table(
        ("profile", "ecosystem", "path", "who may enroll", "renewal", "keys", "validity", "state"),
        [row for one in found for row in _write_rows(one)],
        "There is no profile yet. Write one into an ecosystem's document: estd apply FILE",
    )


@profile.command()
@click.argument("name")
@click.option("--ecosystem", "label", metavar="LABEL", required=True, help="Label of its ecosystem.")
@server_options
@json_option
def show(name: str, label: str, config: Config, as_json: bool) -> None:
    """Show one profile in full."""
    [record] = run_async(_find(config, label))
    rules = get_rules(record)
    if name not in rules.profiles:
        remedy = f"Known there: {', '.join(rules.profiles)}."
        raise Invalid([Problem(f"profile {name!r}", f"does not exist in {label!r}", remedy)])
    one = rules.profiles[name]
    if as_json:
        write_json({"ecosystem": label, "profile": name, **write_profile(one)})
        return
    write_facts(
        f"{name} in {rules.name} ({label})",
        [
            ("path", _path(rules, one) or "none: the ecosystem's default is another profile"),
            ("issuer", one.issuer),
            ("who may enroll", ", ".join(one.enroll) or "nobody"),
            ("renewal", _RENEWALS[one.renew]),
            ("keys", ", ".join(one.keys)),
            ("subject", _SUBJECTS[one.subject]),
            ("alternative names", _SANS[one.san]),
            ("key usage", ", ".join(one.key_usage)),
            ("purposes", ", ".join(NAMES.get(oid, oid) for oid in one.extended_key_usage)),
            ("validity", f"{write_validity(one.validity)}, from {write_duration(one.backdate)} before issue"),
            ("retry window", write_duration(one.retry_window)),
            ("channel binding", "required" if one.require_binding else ""),
            ("strict", "yes" if one.strict else ""),
        ],
    )


@profile.command()
@json_option
def ready(as_json: bool) -> None:
    """List ready-made profiles that a document can name as `base`."""
    if as_json:
        write_json(READY)
        return
    write_table(
        ("base", "sets"), [(name, ", ".join(keys)) for name, keys in READY.items()], "There is no ready-made profile."
    )


_RENEWALS = {
    "either": "with a new key or the old one",
    "rekey": "with a new key",
    "same-key": "with the same key",
    "never": "never; the device enrolls again",
}
_SUBJECTS = {
    "credential": "the name in the device's credential",
    "request": "what the device asks for, within the profile's patterns",
    "inventory": "what the inventory says",
    "fixed": "the same for all",
    "empty": "none",
}
_SANS = {
    "none": "none",
    "credential": "those in the device's credential",
    "request": "what the device asks for, within the profile's patterns",
    "inventory": "what the inventory says",
}


def _path(rules: Ecosystem, one: Profile) -> str:
    if one.label is not None:
        return f"/.well-known/est/{one.label}/"
    return f"/.well-known/est/{rules.label}/" if one.name == rules.default_profile else ""


def _write_json(found: InForce) -> list[dict[str, object]]:
    label, rules = found.record.label, found.rules
    if rules is None:
        return [{"ecosystem": label, "profile": name, **found.as_json()} for name in _names_of(found)]
    return [
        {"ecosystem": label, "profile": one.name, **write_profile(one), **found.as_json()}
        for one in rules.profiles.values()
    ]


def _write_rows(found: InForce) -> list[tuple[str, ...]]:
    label, rules = found.record.label, found.rules
    if rules is None:
        return [(name or "(unknown)", label, "", "", "", "", "", found.told) for name in _names_of(found)]
    return [
        (
            one.name,
            label,
            _path(rules, one),
            ", ".join(one.enroll),
            one.renew,
            ", ".join(one.keys),
            write_validity(one.validity),
            found.told,
        )
        for one in rules.profiles.values()
    ]


def _names_of(found: InForce) -> Sequence[str | None]:
    """The names of profiles in rules that cannot be read; one that is none where not even those can."""
    return sorted(peek_profiles(found.record.document)) or [None]


async def _find(config: Config, label: str | None) -> list[EcosystemRecord]:
    async with open_store(config) as store:
        return await find_visible(store) if label is None else [await get_ecosystem(store, label)]
