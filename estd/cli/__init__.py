"""The command line: thin, patient, and the only place that speaks to a person.

Commands live in one module each and are loaded when they are called, so that ``estd --help`` answers at once. Every
failure leaves through `estd.cli.failures` with a remedy and an exit status; ``--json`` makes every answer machine-readable.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import click

from estd import __version__
from estd.cli.failures import report

_HELP: Final = """\
estd gives connected devices their certificates.

\b
  estd demo                       a fleet enrolls before your eyes
  estd quickstart --dir lab       a server to play with, here and now
  estd enroll --help              get a certificate as a device does

\b
With a server of your own:
  estd serve --config estd.toml
  estd apply plant.toml --config estd.toml
  estd code create --ecosystem plant --device pump-17 --config estd.toml

An ecosystem is a trust domain: its own CA, its own devices, its own rules. Every command takes --json, and --help shows
examples first.
"""

_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    # Command → where it is, and what it does in one line.
    "demo": ("estd.cli.demo:demo", "Watch a fleet of devices enroll, renew and be refused."),
    "quickstart": ("estd.cli.quickstart:quickstart", "Run a server to play with; makes everything it needs."),
    "serve": ("estd.cli.serve:serve", "Run a server."),
    "signer": ("estd.cli.signer:signer", "Run a signer on its own, apart from the server."),
    "apply": ("estd.cli.apply:apply", "Put the rules of an ecosystem into force."),
    "enroll": ("estd.cli.enroll:enroll", "Get or renew this device's certificate."),
    "batch": ("estd.cli.batch:batch", "Get certificates for many devices at once, as a factory line does."),
    "ecosystem": ("estd.cli.ecosystem:ecosystem", "Look at ecosystems."),
    "issuer": ("estd.cli.issuer:issuer", "Look at CA certificates and export them."),
    "profile": ("estd.cli.profile:profile", "Look at the rules for certificates."),
    "code": ("estd.cli.code:code", "Make enrollment codes and see which are used."),
    "cert": ("estd.cli.cert:cert", "Find certificates and revoke them."),
    "inventory": ("estd.cli.inventory:inventory", "Say which names the devices get."),
    "audit": ("estd.cli.audit:audit", "See what was asked and what was decided."),
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(
    cls=_Lazy,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 refused or failed, 2 the command or a file is wrong, 75 try again later, 130 or 143 "
    "stopped by a signal.",
)
@click.version_option(__version__, prog_name="estd", message="%(prog)s %(version)s")
def estd() -> None:
    """Get called before each command."""


def run(arguments: Sequence[str]) -> int:
    """One command from start to end; the exit status."""
    as_json = "--json" in arguments
    try:
        status = estd.main(list(arguments), prog_name="estd", standalone_mode=False)
    except BaseException as fault:  # noqa: BLE001  # the last resort of a program: nobody is shown a traceback
        return report(fault, as_json=as_json)
    return status if isinstance(status, int) else 0


def main() -> None:
    """Entry point of the program."""
    sys.exit(run(sys.argv[1:]))
