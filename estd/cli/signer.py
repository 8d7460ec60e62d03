"""``estd signer``: one signer in the foreground, as a service of its own under a user of its own.

Must not import the store or the web floor: the process that holds issuer keys has no use for them.
"""

from __future__ import annotations

import json
import os
import pwd
from functools import partial
from pathlib import Path

import click

from estd.cli.options import find_settings, json_option, settings_options
from estd.config import Config, check_blocklist, read_config, read_key_encryption_key
from estd.errors import Invalid, Problem
from estd.signer.engine import IssuanceEngine
from estd.signer.server import SignerSettings, run_alone
from estd.signer.settings import find_control_path

_HELP = """\
Run one signer in the foreground until SIGTERM, under a user of its own and apart from the server.

\b
  estd signer --config /etc/estd/signer.toml --slot 0
  estd signer --config signer.toml --slot 0 --check     look, but do not start

It needs settings of its own, which the server's user need not be able to read:

\b
  data_directory = "/var/lib/estd-signer"       its journal, below journal/
  [keys]
  credential = "estd-kek"                       or file, or environment
  [signers]
  sockets = ["/run/estd-signer/0.sock", "/run/estd-signer/1.sock"]
  users = ["estd"]                              who may call

Slot N listens at the Nth socket; beside it, at the same name with .control, it waits for the server to bring the rules.
The server's settings name the same sockets and no key: estd serve then starts no signer. Without --config the rest is as
for estd serve.
"""


@click.command(help=_HELP, short_help="Run a signer on its own.")
@settings_options
@click.option(
    "--slot", type=click.IntRange(0, 255), required=True, metavar="N", help="Which of the sockets is its own."
)
@click.option("--check", is_flag=True, help="Check settings and key, then exit.")
@json_option
def signer(config_file: Path | None, directory: Path | None, slot: int, check: bool, as_json: bool) -> int:
    """See `_HELP`."""
    path = find_settings(config_file, directory)
    config = read_config(path)
    settings = read_settings(config, path, slot)
    check_blocklist(config)
    if check:
        read_key_encryption_key(config)
    facts = {"slot": slot, "socket": settings.socket_path, "journal": settings.journal_directory}
    # Not by `estd.cli.output`, which knows how to draw more than this process should know.
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(f"signer {slot}: {settings.socket_path}, journal in {settings.journal_directory}", err=True)
    if check:
        return 0
    Path(settings.journal_directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    return run_alone(settings, partial(read_key_encryption_key, config), IssuanceEngine())


def read_settings(config: Config, path: Path, slot: int) -> SignerSettings:
    """What the signer of that slot is told.

    Raises:
        Invalid: there is no such slot, or no such user.
    """
    problems: list[Problem] = []
    if slot >= len(config.signer_sockets):
        named = len(config.signer_sockets)
        remedy = f"Name a socket for each slot; {named} {'is' if named == 1 else 'are'} named."
        problems.append(Problem(f"{path}: signers.sockets", f"has none for slot {slot}", remedy))
    users: list[int] = []
    for name in config.signer_users:
        uid = find_uid(name)
        if uid is None:
            remedy = "Name users of this system, or their numbers."
            problems.append(Problem(f"{path}: signers.users", f"{name!r} does not exist", remedy))
        else:
            users.append(uid)
    if problems:
        raise Invalid(problems)
    where = config.signer_sockets[slot]
    return SignerSettings(
        slot=slot,
        socket_path=str(where),
        control_path=str(find_control_path(where)),
        # The owner alone where the caller is the owner; by group where it is somebody else.
        socket_mode=0o600 if users == [os.getuid()] else 0o660,
        journal_directory=str(config.data_directory / "journal"),
        allowed_uids=users,
        log_level=config.log_level,
        blocklist_path=None if config.blocklist is None else str(config.blocklist),
    )


def find_uid(name: str) -> int | None:
    """The number of a user, given by name or by number."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None
