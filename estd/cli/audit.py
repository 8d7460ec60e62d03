"""``estd audit``: every decision, refusals included."""

from __future__ import annotations

import click

from estd.app.access import get_ecosystem, open_store
from estd.audit import Event, write_event
from estd.cli.loop import run_async
from estd.cli.options import json_option, server_options
from estd.cli.output import write_json, write_table
from estd.config import Config


@click.group(short_help="See what was asked and what was decided.")
def audit() -> None:
    """See what was asked and what was decided, refusals included.

    \b
      estd audit list --dir lab
      estd audit list --ecosystem campus-south --outcome refused --dir lab
      estd audit list --json --limit 10000 --dir lab > audit.json
    """


@audit.command("list")
@click.option("--ecosystem", "label", metavar="LABEL", help="Only of this ecosystem.")
@click.option(
    "--outcome", type=click.Choice(("granted", "refused", "failed", "pending")), help="Only with this outcome."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=50,
    show_default=True,
    metavar="N",
    help="How many to look through.",
)
@server_options
@json_option
def list_events(label: str | None, outcome: str | None, limit: int, config: Config, as_json: bool) -> None:
    """List decisions, newest first."""
    found, labels = run_async(_find(config, label, limit))
    events = [event for event in found if outcome in (None, event.outcome)]
    if as_json:
        write_json([{**write_event(event), "ecosystem": _label(event, labels)} for event in events])
        return
    write_table(
        ("time", "what", "outcome", "ecosystem", "who", "why", "request"),
        [
            (
                f"{event.at:%Y-%m-%d %H:%M:%S}Z",
                event.kind,
                event.outcome,
                _label(event, labels) or "",
                _who(event),
                _why(event),
                event.request_id,
            )
            for event in events
        ],
        "Nothing happened here yet.",
    )


def _label(event: Event, labels: dict[int, str]) -> str | None:
    return event.ecosystem or labels.get(event.ecosystem_id or 0)


def _who(event: Event) -> str:
    device = event.extra.get("device")
    if isinstance(device, str):
        return device
    kind, colon, rest = event.identity.partition(":")
    return f"{kind}:{rest[:12]}…" if colon and len(rest) > 40 else event.identity or event.address


def _why(event: Event) -> str:
    if event.code:
        return f"{event.code}: {event.detail}" if event.detail else event.code
    if event.detail:
        return event.detail
    facts = {name: value for name, value in event.extra.items() if name in ("profile", "reason", "version")}
    return ", ".join(f"{name} {value}" for name, value in facts.items())


async def _find(config: Config, label: str | None, limit: int) -> tuple[list[Event], dict[int, str]]:
    async with open_store(config) as store:
        labels = {record.ecosystem_id: record.label for record in await store.find_ecosystems()}
        wanted = None if label is None else (await get_ecosystem(store, label)).ecosystem_id
        return await store.find_events(wanted, limit), labels
