"""``estd code``: enrollment codes, made once, shown once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from estd.app.access import find_user, get_ecosystem, open_store
from estd.app.playground import write_codes
from estd.audit import Event
from estd.ca.document import DURATION_REMEDY, read_duration
from estd.ca.profile import Profile
from estd.cli.loop import run_async
from estd.cli.options import PATH, ecosystem_option, json_option, may_ask, read_device, server_options
from estd.cli.output import note, save, write_count, write_json, write_table, write_time
from estd.cli.rules import get_rules
from estd.config import Config
from estd.errors import Invalid, Problem, Refused
from estd.ra.admission import write_code_subject
from estd.ra.codes import NewCode, make_code
from estd.store.contract import EcosystemRecord, EnrollmentCode

_AT_ONCE: Final = 5000
_AT_MOST: Final = 1_000_000
_DETAIL_AT_MOST: Final = 2000


@click.group(short_help="Make enrollment codes and see which are used.")
def code() -> None:
    """Make enrollment codes: a device that has no certificate yet shows one to get its first.

    \b
      estd code create --ecosystem plant --device pump-17 --config estd.toml
      estd code create --ecosystem plant --devices-file pumps.csv --expires 30d --out codes.csv
      estd code list --ecosystem plant --unused
      estd code revoke pump-17 --ecosystem plant

    A code is good for one device and, unless --reusable, for one certificate: a device that did not get its answer may
    repeat the same request within the profile's retry_window. estd keeps only the code's hash: whoever loses a code gets a
    new one.
    """


@code.command()
@ecosystem_option
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Name of a device; may be repeated.")
@click.option(
    "--devices-file",
    metavar="FILE",
    type=PATH,
    help="Names from a CSV file with a column `device`, or one on each line.",
)
@click.option("--count", type=click.IntRange(1, _AT_MOST), metavar="N", help="Make N numbered names instead.")
@click.option("--prefix", metavar="TEXT", help="Begin numbered names with this (default: the ecosystem's label).")
@click.option("--profile", metavar="NAME", help="Good for this profile only (default: any that takes codes).")
@click.option("--reusable", is_flag=True, help="Good for any number of certificates of that device.")
@click.option("--expires", metavar="TIME", help="Good for this long, such as 30d (default: until it is used).")
@click.option(
    "--out",
    metavar="FILE",
    type=PATH,
    help="Write device,code here, readable by you alone (default: standard output).",
)
@server_options
@json_option
def create(
    label: str,
    devices: tuple[str, ...],
    devices_file: Path | None,
    count: int | None,
    prefix: str | None,
    profile: str | None,
    reusable: bool,
    expires: str | None,
    out: Path | None,
    config: Config,
    as_json: bool,
) -> None:
    """Make codes. Each is shown now and never again.

    \b
      estd code create --ecosystem plant --device pump-17
      estd code create --ecosystem plant --count 500 --prefix pump --out codes.csv
      estd code create --ecosystem plant --devices-file pumps.csv --expires 30d --out codes.csv
    """
    if sum((bool(devices), devices_file is not None, count is not None)) != 1:
        raise click.UsageError("Say for which devices: --device NAME, --devices-file FILE, or --count N.")
    if prefix is not None and count is None:
        raise click.UsageError("--prefix goes with --count.")
    if devices_file is not None:
        names = _read_names(devices_file)
    elif count is not None:
        names = [f"{prefix or label}-{number:0{max(3, len(str(count)))}d}" for number in range(1, count + 1)]
    else:
        names = list(devices)
    _check_names(names)
    now = _now()
    expires_at = _read_expiry(expires, now)
    with _reserved(out):
        made = run_async(_create(config, label, names, profile, reusable, expires_at, now, out))
    rows = [(name, one.secret) for name, one in zip(names, made, strict=True)]
    if as_json:
        write_json(
            [
                {"device": name, **({} if out else {"code": secret}), "expires_at": one.row.expires_at}
                for (name, secret), one in zip(rows, made, strict=True)
            ]
        )
    elif out is None:
        _write_csv(rows)
    else:
        note(f"{out}: {len(rows)} {'code' if len(rows) == 1 else 'codes'} for {label}")


@code.command("list")
@ecosystem_option
@click.option("--device", metavar="NAME", help="Only of this device.")
@click.option("--unused", is_flag=True, help="Only those that still work.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="N", help="How many at most."
)
@server_options
@json_option
def list_codes(label: str, device: str | None, unused: bool, limit: int, config: Config, as_json: bool) -> None:
    """List codes, newest first; the codes themselves are not known any more."""
    now = _now()
    found = run_async(_find(config, label, device, limit, now if unused else None))
    if as_json:
        write_json(
            [
                {
                    "device": one.device,
                    "state": _state(one, now),
                    "single_use": one.single_use,
                    "profile": one.profile,
                    "created_at": one.created_at,
                    "expires_at": one.expires_at,
                    "spent_at": one.spent_at,
                }
                for one in found
            ]
        )
        return
    write_table(
        ("device", "state", "made", "used", "expires", "good for", "profile"),
        [
            (
                one.device,
                _state(one, now),
                write_time(one.created_at),
                write_time(one.spent_at),
                write_time(one.expires_at),
                "one certificate" if one.single_use else "any number",
                one.profile or "any",
            )
            for one in found
        ],
        f"No code here. Make one: estd code create --ecosystem {label} --device NAME",
    )


@code.command()
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@ecosystem_option
@click.option("--all", "everything", is_flag=True, help="All codes of the ecosystem that are not used yet.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_options
@json_option
def revoke(devices: tuple[str, ...], label: str, everything: bool, yes: bool, config: Config, as_json: bool) -> None:
    """End codes, for example because they were lost. Certificates that came of them stay valid.

    Of the devices you name, a used code ends as well: not even a repeated request gets its certificate again.

    \b
      estd code revoke pump-17 pump-18 --ecosystem plant
      estd code revoke --all --ecosystem plant

    Before --all you are asked. Where there is nobody to ask, say --yes; with --json it is done without asking.
    """
    if bool(devices) == everything:
        raise click.UsageError("Name the devices whose codes shall end, or say --all.")
    names = None if everything else [read_device(name) for name in devices]
    if everything and may_ask(yes=yes, as_json=as_json):
        click.confirm(f"End every code of {label} that is not used yet?", abort=True)
    ended = run_async(_revoke(config, label, names))
    if not ended:
        where = f"ecosystem {label!r}" if names is None else ", ".join(f"device {name!r}" for name in names)
        remedy = f"See which do: estd code list --ecosystem {label} --unused"
        raise Invalid([Problem(where, "has no code that still works", remedy)])
    if as_json:
        write_json([{"device": device} for device in ended])
    else:
        note(f"{len(ended)} {'code' if len(ended) == 1 else 'codes'} of {label} ended")


# --- private -------------------------------------------------------------------------------------------------------


@contextmanager
def _reserved(out: Path | None) -> Iterator[None]:
    """The file is there before any code is made; it goes when they could not be stored."""
    if out is not None:
        if out.exists():
            raise Invalid([Problem(str(out), "exists already", "Name a new file, so that no code is lost.")])
        save(out, b"", 0o600)
    try:
        yield
    except BaseException:
        if out is not None:
            out.unlink(missing_ok=True)
        raise


def _read_names(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Invalid([Problem(str(path), f"cannot be read ({error.strerror})", "Name a readable file.")]) from None
    except UnicodeDecodeError:
        raise Invalid([Problem(str(path), "is not text", "Write it in UTF-8.")]) from None
    lines = [line for line in text.splitlines() if line.strip()]
    header = [cell.strip().lower() for cell in next(csv.reader(lines[:1]), [])]
    if len(header) == 1 and ";" in header[0] and "device" in header[0].split(";"):
        remedy = "Save it as CSV with commas; a spreadsheet asks for the separator when it exports."
        raise Invalid([Problem(str(path), "has semicolons where CSV has commas", remedy)])
    if "device" in header:
        column = header.index("device")
        rows = [row for row in csv.reader(lines[1:]) if len(row) > column]
        return [row[column].strip() for row in rows]
    if len(header) > 1:
        problem = Problem(str(path), "has no column `device`", "Let its first line name the columns: device,…")
        raise Invalid([problem])
    return [line.strip() for line in lines]


def _check_names(names: Sequence[str]) -> None:
    problems = [
        # RFC 7617 §2: a user-id with a colon cannot be told from its password.
        Problem(f"device {name!r}", "holds a colon, which HTTP Basic cannot carry", "Give it another name.")
        for name in names
        if ":" in name
    ]
    if not names:
        problems.append(Problem("The list of devices", "is empty", "Name at least one."))
    seen: set[str] = set()
    for name in names:
        if name in seen:
            problems.append(Problem(f"device {name!r}", "is there twice", "Keep one of them."))
        seen.add(name)
    if problems:
        raise Invalid(problems)


def _read_expiry(text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    length = read_duration(text)
    if not length or length > timedelta(days=36_500):
        raise Invalid([Problem(f"--expires {text!r}", "is not a length of time", DURATION_REMEDY)])
    return now + length


async def _create(
    config: Config,
    label: str,
    names: Sequence[str],
    profile: str | None,
    reusable: bool,
    expires_at: datetime | None,
    now: datetime,
    out: Path | None,
) -> list[NewCode]:
    async with open_store(config) as store:
        record = await get_ecosystem(store, label)
        taking = _check_profile(record, profile)
        made = _make_all(record, names, profile, reusable, expires_at, now)
        _check_common_names(made, taking)
        if out is not None:
            # On disk before they are stored: on a full disk there would be codes that nobody can tell.
            _write_out(out, [(name, one.secret) for name, one in zip(names, made, strict=True)])
        for at in range(0, len(made), _AT_ONCE):
            await store.record_codes([one.row for one in made[at : at + _AT_ONCE]])
        detail = f"{write_count(len(made), 'code')}, the first for {names[0]}"
        await store.record_events([_write_event(record, "code.create", detail, now)])
    return made


def _make_all(
    record: EcosystemRecord,
    names: Sequence[str],
    profile: str | None,
    reusable: bool,
    expires_at: datetime | None,
    now: datetime,
) -> list[NewCode]:
    made: list[NewCode] = []
    problems: list[Problem] = []
    for name in names:
        try:
            made.append(
                make_code(
                    record.ecosystem_id,
                    name,
                    single_use=not reusable,
                    profile=profile,
                    expires_at=expires_at,
                    now=now,
                )
            )
        except Refused as refused:
            problems.append(Problem(f"device {name!r}", f"is no name: {refused.detail}", "Give it another name."))
    if problems:
        raise Invalid(problems)
    return made


def _check_profile(record: EcosystemRecord, profile: str | None) -> list[Profile]:
    """The profiles that such a code is good for."""
    profiles = get_rules(record).profiles.values()
    taking = {one.name: one for one in profiles if "code" in one.enroll}
    if not taking:
        what = "has no profile that takes codes"
        raise Invalid([Problem(f"ecosystem {record.label!r}", what, 'Add "code" to the enroll list of one.')])
    if profile is not None and profile not in taking:
        where = f"profile {profile!r}"
        raise Invalid([Problem(where, "takes no codes or does not exist", f"Those that do: {', '.join(taking)}.")])
    return list(taking.values()) if profile is None else [taking[profile]]


def _check_common_names(made: Sequence[NewCode], profiles: Sequence[Profile]) -> None:
    """A code that could never bring a certificate is not made: its device's name becomes the common name."""
    if any(profile.subject != "credential" for profile in profiles):
        return
    problems: list[Problem] = []
    for one in made:
        try:
            write_code_subject(one.row.device)
        except Refused as refused:
            remedy = "Give it a shorter name, or let a profile take the subject from elsewhere."
            problems.append(Problem(f"device {one.row.device!r}", f"cannot be certified: {refused.detail}", remedy))
    if problems:
        raise Invalid(problems)


def _write_out(out: Path, rows: Sequence[tuple[str, str]]) -> None:
    try:
        write_codes(out, rows)
    except OSError as error:
        remedy = "No code was made. Name a file in a directory of yours, where there is room."
        raise Invalid([Problem(str(out), f"cannot be written ({error.strerror})", remedy)]) from None


def _write_csv(rows: Sequence[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("device", "code"))
    writer.writerows(rows)
    click.echo(text.getvalue(), nl=False)


def _state(one: EnrollmentCode, now: datetime) -> str:
    if one.spent_at is not None:
        return "used"
    return "expired" if one.expires_at is not None and one.expires_at <= now else "unused"


async def _find(
    config: Config, label: str, device: str | None, limit: int, working_at: datetime | None
) -> list[EnrollmentCode]:
    async with open_store(config) as store:
        record = await get_ecosystem(store, label)
        if device is None:
            return await store.list_codes(record.ecosystem_id, limit, working_at)
        found = await store.find_codes(record.ecosystem_id, read_device(device))
    return [one for one in found if working_at is None or _state(one, working_at) == "unused"][:limit]


async def _revoke(config: Config, label: str, devices: Sequence[str] | None) -> list[str]:
    now = _now()
    async with open_store(config) as store:
        record = await get_ecosystem(store, label)
        whose = "all codes that were not used" if devices is None else f"codes of {', '.join(devices)}"
        event = _write_event(record, "code.revoke", whose[:_DETAIL_AT_MOST], now)
        return await store.revoke_codes(record.ecosystem_id, devices, now, event)


def _write_event(record: EcosystemRecord, kind: str, detail: str, now: datetime) -> Event:
    return Event(
        at=now,
        kind=kind,
        outcome="granted",
        ecosystem=record.label,
        ecosystem_id=record.ecosystem_id,
        identity=find_user(),
        detail=detail,
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
