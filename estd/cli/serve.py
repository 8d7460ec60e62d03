"""``estd serve``: a server, in the foreground, as a service manager wants it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from estd.app.checking import check_server
from estd.app.running import serve as carry_out
from estd.app.supervisor import Supervisor
from estd.cli.loop import run_async
from estd.cli.options import PATH, find_settings, json_option, settings_options
from estd.cli.output import save, write_facts, write_json
from estd.config import read_config

_HELP = """\
Run a server in the foreground until SIGTERM or Ctrl-C; then it answers what is in hand and stops.

\b
  estd serve --config /etc/estd/estd.toml
  estd serve --config estd.toml --check     look, but do not start

The smallest settings file has one line, data_directory = "/var/lib/estd", and needs a key beside it,
which the user that runs the server has to be able to read:

\b
  (umask 077; set -C; openssl rand -hex 32 > /var/lib/estd/key-encryption.key)
  chown estd /var/lib/estd/key-encryption.key

SIGHUP reads the settings again and replaces the workers without refusing a connection. The log goes to standard error,
one JSON object a line; /healthz, /readyz and /metrics answer on the ops port.
"""


@click.command(help=_HELP, short_help="Run a server.")
@settings_options
@click.option("--check", is_flag=True, help="Check settings, key, database and ports, then exit.")
@click.option(
    "--ready-file",
    metavar="FILE",
    type=PATH,
    help="Write the ports here (JSON) once devices can enroll.",
)
@json_option
def serve(
    config_file: Path | None, directory: Path | None, check: bool, ready_file: Path | None, as_json: bool
) -> None:
    """See `_HELP`."""
    settings = find_settings(config_file, directory)
    config = read_config(settings)
    if check:
        facts = run_async(check_server(config))
        if as_json:
            write_json(facts)
        else:
            none = "none yet; apply one: estd apply FILE"
            running = "yes" if facts["running"] else "no"
            shown = {**facts, "running": running, "ecosystems": ", ".join(facts["ecosystems"]) or none}
            warnings = shown.pop("warnings")
            shown["warning"] = "\n".join(warnings)
            title = "nothing is wrong" if not warnings else "it can start; see the warning"
            write_facts(f"{settings}: {title}", [(name, str(value)) for name, value in shown.items()])
        return

    async def say(supervisor: Supervisor) -> None:
        facts = {"port": supervisor.port, "ops_port": supervisor.ops_port, "pid": os.getpid()}
        if ready_file is not None:
            save(ready_file, (json.dumps(facts) + "\n").encode(), 0o644)
        if as_json:
            write_json(facts)
        else:
            # On standard output: on the other one is the log, where a program reads every line as JSON.
            click.echo(f"estd serves on port {supervisor.port}, ops on port {supervisor.ops_port}")

    try:
        run_async(carry_out(config, settings, say))
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
