"""``estd ecosystem``: which trust domains there are."""

from __future__ import annotations

import click

from estd.app.access import find_visible, get_ecosystem, open_store
from estd.ca.ecosystem import Ecosystem, peek_profiles
from estd.cli.loop import run_async
from estd.cli.options import json_option, server_options
from estd.cli.output import write_facts, write_json, write_table, write_time
from estd.cli.rules import InForce, get_rules, note_unread, read_rules
from estd.config import Config
from estd.store.contract import EcosystemRecord


@click.group(short_help="Look at ecosystems.")
def ecosystem() -> None:
    """Look at ecosystems: trust domains, each with its own CA, devices and rules.

    \b
      estd ecosystem list --dir lab
      estd ecosystem show campus-north --dir lab

    They are made and changed with `estd apply FILE`.
    """


@ecosystem.command("list")
@server_options
@json_option
def list_ecosystems(config: Config, as_json: bool) -> None:
    """List the ecosystems of a server."""
    found = [read_rules(record) for record in run_async(_find(config))]
    note_unread(found)
    if as_json:
        write_json([_as_json(one) for one in found])
        return
    write_table(
        ("label", "name", "version", "profiles", "makers", "applied", "by", "state"),
        [_write_row(one) for one in found],
        "There is no ecosystem yet. Make one: estd apply FILE",
    )


@ecosystem.command()
@click.argument("label")
@server_options
@json_option
def show(label: str, config: Config, as_json: bool) -> None:
    """Show the rules in force in one ecosystem."""
    record = run_async(_get(config, label))
    rules = get_rules(record)
    if as_json:
        write_json({**_as_json(InForce(record, rules)), "document": record.document})
        return
    write_facts(
        f"{rules.name} ({label})",
        [
            ("version", f"{record.version}, applied {write_time(record.applied_at)} by {record.applied_by}"),
            ("organization", rules.organization or ""),
            ("path", f"/.well-known/est/{label}/"),
            ("default profile", rules.default_profile or "none: each profile has a label of its own"),
            ("issuers", "\n".join(_describe_issuer(rules, name) for name in (spec.name for spec in rules.issuers))),
            ("makers", "\n".join(f"{anchor.name} ({len(anchor.certificates)} CA)" for anchor in rules.anchors)),
            ("profiles", "\n".join(_describe_profile(rules, name) for name in rules.profiles)),
        ],
    )


def _describe_issuer(rules: Ecosystem, name: str) -> str:
    spec = rules.get_issuer(name)
    return f"{name}: {spec.key}, {f'under {spec.parent}' if spec.parent else 'root'}"


def _describe_profile(rules: Ecosystem, name: str) -> str:
    profile = rules.profiles[name]
    path = profile.label or (rules.label if name == rules.default_profile else "")
    return f"{name}: at {path or 'no label'}, for {', '.join(profile.enroll) or 'nobody'}"


def _write_row(one: InForce) -> tuple[str, ...]:
    record, rules = one.record, one.rules
    return (
        record.label,
        "" if rules is None else rules.name,
        str(record.version),
        ", ".join(sorted(peek_profiles(record.document)) if rules is None else rules.profiles),
        "" if rules is None else ", ".join(anchor.name for anchor in rules.anchors),
        write_time(record.applied_at),
        record.applied_by,
        one.told,
    )


def _as_json(one: InForce) -> dict[str, object]:
    record, rules = one.record, one.rules
    of_record = {"label": record.label, "version": record.version}
    applied = {"applied_at": record.applied_at, "applied_by": record.applied_by}
    if rules is None:
        return {**of_record, "profiles": sorted(peek_profiles(record.document)), **applied, **one.as_json()}
    return {
        **of_record,
        "name": rules.name,
        "default_profile": rules.default_profile,
        "profiles": list(rules.profiles),
        "issuers": [spec.name for spec in rules.issuers],
        "anchors": [anchor.name for anchor in rules.anchors],
        **applied,
        **one.as_json(),
    }


async def _find(config: Config) -> list[EcosystemRecord]:
    async with open_store(config) as store:
        return await find_visible(store)


async def _get(config: Config, label: str) -> EcosystemRecord:
    async with open_store(config) as store:
        return await get_ecosystem(store, label)
