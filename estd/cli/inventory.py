"""``estd inventory``: what the operator knows of the devices, before the devices say anything."""

from __future__ import annotations

import csv
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from estd.app.access import find_user, get_ecosystem, open_store
from estd.audit import Event
from estd.cli.loop import run_async
from estd.cli.options import PATH, ecosystem_option, json_option, read_device, server_options
from estd.cli.output import note, write_count, write_facts, write_json, write_table
from estd.config import Config
from estd.errors import Invalid, Problem, Refused
from estd.names import normalise_device, write_name, write_san
from estd.store.contract import Device, EcosystemRecord

_AT_ONCE: Final = 5000
_COLUMNS: Final = ("device", "subject", "san")
_SHOWN_AT_MOST: Final = 50
_DETAIL_AT_MOST: Final = 2000


@click.group(short_help="Say which names the devices get.")
def inventory() -> None:
    """Say which names the devices get, in profiles with subject = "inventory" or san = "inventory".

    \b
      estd inventory import devices.csv --ecosystem plant --config estd.toml
      estd inventory list --ecosystem plant --config estd.toml
      estd inventory show pump-17 --ecosystem plant --config estd.toml
      estd inventory remove pump-17 --ecosystem plant --config estd.toml

    \b
    The file names its columns in the first line; alternative names are separated by spaces:
      device,subject,san
      pump-17,"CN=pump-17,O=Harbour",dns:pump-17.plant.example ip:192.0.2.17
    """


@inventory.command("import")
@click.argument("file", type=PATH, metavar="FILE")
@ecosystem_option
@click.option("--dry-run", is_flag=True, help="Check the file, and change nothing.")
@server_options
@json_option
def import_devices(file: Path, label: str, dry_run: bool, config: Config, as_json: bool) -> None:
    """Add devices from a CSV file; those that are there already are replaced."""
    rows = _read(file)
    if not dry_run:
        run_async(_import(config, label, rows))
    if as_json:
        write_json({"ecosystem": label, "devices": len(rows), "imported": not dry_run})
    else:
        note(f"{write_count(len(rows), 'device')} {'would be imported' if dry_run else 'imported'} into {label}")


@inventory.command("list")
@ecosystem_option
@click.option("--after", default="", metavar="NAME", help="Begin behind this device.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, metavar="N", help="How many at most."
)
@server_options
@json_option
def list_devices(label: str, after: str, limit: int, config: Config, as_json: bool) -> None:
    """List devices by name."""
    found = run_async(_list(config, label, after, limit + 1))
    shown = found[:limit]
    if as_json:
        write_json([_write_device(one) for one in shown])
        return
    empty = f"No device here. Import some: estd inventory import FILE --ecosystem {label}"
    write_table(
        ("device", "subject", "alternative names"),
        [(one.device, one.subject or "none", " ".join(one.san) or "none") for one in shown],
        empty if not after else f"There is no device behind {after}.",
    )
    if len(found) > limit:
        note(f"there are more: --after {shlex.quote(shown[-1].device)}")


@inventory.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...")
@ecosystem_option
@server_options
@json_option
def remove(names: tuple[str, ...], label: str, config: Config, as_json: bool) -> None:
    """Take devices out: those that have no certificate yet get none. What others have stays valid, and renews.

    To end a device, revoke its certificates: estd cert revoke --device NAME --ecosystem LABEL
    """
    wanted = [read_device(name) for name in names]
    removed = run_async(_remove(config, label, wanted))
    missing = [name for name in wanted if name not in removed]
    if as_json:
        write_json([{"device": name, "removed": name in removed} for name in wanted])
    else:
        note(f"{len(removed)} of {len(wanted)} devices taken out of {label}")
    if missing:
        raise Invalid([_not_there(name, label) for name in missing])


@inventory.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...")
@ecosystem_option
@server_options
@json_option
def show(names: tuple[str, ...], label: str, config: Config, as_json: bool) -> None:
    """Show what is known of devices."""
    found = run_async(_find(config, label, [read_device(name) for name in names]))
    missing = [name for name, device in zip(names, found, strict=True) if device is None]
    if missing:
        raise Invalid([_not_there(name, label) for name in missing])
    devices = [device for device in found if device is not None]
    if as_json:
        write_json([_write_device(one) for one in devices])
        return
    for one in devices:
        write_facts(
            one.device, [("subject", one.subject or "none"), ("alternative names", "\n".join(one.san) or "none")]
        )


# --- private -------------------------------------------------------------------------------------------------------

_Row = tuple[str, str | None, tuple[str, ...]]


def _write_device(one: Device) -> dict[str, object]:
    return {"device": one.device, "subject": one.subject, "san": one.san}


def _not_there(name: str, label: str) -> Problem:
    remedy = f"Import it: estd inventory import FILE --ecosystem {label}"
    return Problem(f"device {name!r}", f"is not in the inventory of {label!r}", remedy)


def _read(path: Path) -> list[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Invalid([Problem(str(path), f"cannot be read ({error.strerror})", "Name a readable file.")]) from None
    except UnicodeDecodeError:
        raise Invalid([Problem(str(path), "is not text", "Write it in UTF-8.")]) from None
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = reader.fieldnames or []
    if "device" not in columns or set(columns) - set(_COLUMNS):
        remedy = f"Let its first line be {','.join(_COLUMNS)}; the last two may be left out."
        raise Invalid([Problem(str(path), f"has the columns {', '.join(columns) or 'none'}", remedy)])
    rows: list[_Row] = []
    problems: list[Problem] = []
    for row in reader:
        where = f"{path.name}, line {reader.line_num}"
        if None in row:
            remedy = 'Put names with commas into quotes: "CN=pump-17,O=Harbour".'
            problems.append(Problem(where, "has more values than columns", remedy))
            continue
        try:
            rows.append(_read_row(row))
        except Refused as refused:
            problems.append(Problem(where, f"is wrong: {refused.detail}", "Mend that line; nothing was imported."))
    if not rows and not problems:
        problems.append(Problem(str(path), "names no device", "Add a line for each."))
    if problems:
        more = len(problems) - _SHOWN_AT_MOST
        if more > 0:
            problems[_SHOWN_AT_MOST:] = [Problem(path.name, f"has {more} more lines like that", "Mend these first.")]
        raise Invalid(problems)
    return rows


def _read_row(row: dict[str, str | None]) -> _Row:
    subject = (row.get("subject") or "").strip()
    san = tuple((row.get("san") or "").split())
    write_name(subject)
    if san:
        write_san(san)
    return normalise_device(row["device"] or ""), subject or None, san


async def _import(config: Config, label: str, rows: list[_Row]) -> None:
    async with open_store(config) as store:
        record = await get_ecosystem(store, label)
        devices = [Device(record.ecosystem_id, name, subject, san) for name, subject, san in rows]
        for at in range(0, len(devices), _AT_ONCE):
            await store.record_devices(devices[at : at + _AT_ONCE])
        await store.record_events([_write_event(record, "inventory.import", f"{len(devices)} devices")])


async def _find(config: Config, label: str, names: list[str]) -> list[Device | None]:
    async with open_store(config) as store:
        record = await get_ecosystem(store, label)
        return [await store.find_device(record.ecosystem_id, name) for name in names]


async def _list(config: Config, label: str, after: str, limit: int) -> list[Device]:
    async with open_store(config) as store:
        record = await get_ecosystem(store, label)
        return await store.list_devices(record.ecosystem_id, after, limit)


async def _remove(config: Config, label: str, names: list[str]) -> list[str]:
    async with open_store(config) as store:
        record = await get_ecosystem(store, label)
        event = _write_event(record, "inventory.remove", ", ".join(names)[:_DETAIL_AT_MOST])
        return await store.remove_devices(record.ecosystem_id, names, event)


def _write_event(record: EcosystemRecord, kind: str, detail: str) -> Event:
    return Event(
        at=datetime.now(UTC).replace(microsecond=0),
        kind=kind,
        outcome="granted",
        ecosystem=record.label,
        ecosystem_id=record.ecosystem_id,
        identity=find_user(),
        detail=detail,
    )
