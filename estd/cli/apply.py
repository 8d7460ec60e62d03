"""``estd apply``: an operator's documents become the rules in force."""

from __future__ import annotations

from pathlib import Path

import click

from estd.app.access import find_user, open_store
from estd.app.apply import Applied, apply_document, replace_own_issuer
from estd.app.identity import ensure_ecosystem
from estd.app.quickstart import read_ecosystem
from estd.ca.ecosystem import Ecosystem
from estd.cli.loop import run_async
from estd.cli.options import PATH, json_option, server_options
from estd.cli.output import note, write_json, write_line
from estd.config import Config, read_key_encryption_key
from estd.errors import Invalid, Problem

_HELP = """\
Put the rules of an ecosystem into force. FILE is a TOML document; the first time it makes the ecosystem with its CA.

\b
  estd apply plant.toml --config estd.toml --dry-run     see what would change
  estd apply plant.toml --config estd.toml
  estd apply ecosystems/*.toml --dir lab

Nothing is applied unless every file is right; all that is wrong is reported at once. Certificates that were issued stay
as they are. A running server follows within a second.
"""


@click.command(help=_HELP, short_help="Put the rules of an ecosystem into force.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=PATH)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option(
    "--new-key",
    is_flag=True,
    help="The key-encryption key is another one than before, which was lost or stolen; every issuer has to be new.",
)
@server_options
@json_option
def apply(files: tuple[Path, ...], dry_run: bool, new_key: bool, config: Config, as_json: bool) -> None:
    """See `_HELP`."""
    applied = run_async(_apply(config, _read_all(files), dry_run, new_key))
    if as_json:
        write_json(
            [
                {"ecosystem": one.label, "version": one.version, "changed": one.changed, "changes": one.changes}
                for one in applied
            ]
        )
        return
    for one in applied:
        if not one.changed:
            write_line(f"{one.label}: no change, version {one.version} stays in force")
            continue
        what = "would become" if dry_run else "is now"
        write_line(f"{one.label} {what} version {one.version}", style="bold")
        for change in one.changes:
            write_line(f"  {change}")
    if dry_run and any(one.changed for one in applied):
        write_line("Nothing was changed: leave out --dry-run to apply.", style="dim")


def _read_all(files: tuple[Path, ...]) -> list[Ecosystem]:
    problems: list[Problem] = []
    documents: list[Ecosystem] = []
    for file in files:
        try:
            documents.append(read_ecosystem(file, note))
        except Invalid as invalid:
            problems += invalid.problems
        except OSError as error:
            problems.append(Problem(str(file), f"cannot be read ({error.strerror})", "Name a readable file."))
        except UnicodeDecodeError:
            problems.append(Problem(str(file), "is not text", "Write it in UTF-8."))
    labels = [document.label for document in documents]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(Problem(f"ecosystem {label!r}", "is in two of these files", "Apply one of them."))
    if problems:
        raise Invalid(problems)
    return documents


async def _apply(config: Config, documents: list[Ecosystem], dry_run: bool, new_key: bool) -> list[Applied]:
    kek = read_key_encryption_key(config)
    async with open_store(config) as store:
        # All are tried before the first is applied: rules that do not fit what exists must not leave half of it done.
        user = find_user()
        tried = [await apply_document(store, kek, one, user, dry_run=True, new_key=new_key) for one in documents]
        if dry_run:
            return tried
        # A server whose signers run on their own has no key to make it with at its first start.
        await ensure_ecosystem(store, kek)
        if new_key:
            await replace_own_issuer(store, kek, user)
        return [await apply_document(store, kek, one, user, new_key=new_key) for one in documents]
