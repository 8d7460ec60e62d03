"""``estd apply``: an operator's documents become the rules in force."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from estd.app.access import find_user, open_store
from estd.app.apply import apply_documents, replace_own_issuer
from estd.app.identity import ensure_ecosystem
from estd.app.plan import Applied
from estd.app.submitted import read_submitted
from estd.cli.loop import run_async
from estd.cli.options import PATH, json_option, server_options
from estd.cli.output import note, write_json, write_line
from estd.config import Config, read_key_encryption_key
from estd.errors import Invalid, Unavailable
from estd.store.contract import Store

_HELP = """\
Put the rules of an ecosystem into force. FILE is a TOML document; the first time it makes the ecosystem with its CA.

\b
  estd apply plant.toml --config estd.toml --dry-run     see what would change
  estd apply plant.toml --config estd.toml
  estd apply ecosystems/*.toml --dir lab

Nothing is applied unless every file is right; all that is wrong is reported at once. All files are applied together or
none. Certificates that were issued stay as they are. A running server follows within a second.
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
    applied = run_async(_apply(config, files, dry_run, new_key))
    if as_json:
        write_json(
            [
                {
                    "ecosystem": one.label,
                    "version": one.version,
                    "changed": one.changed,
                    "changes": one.changes,
                    "warnings": one.warnings,
                }
                for one in applied
            ]
        )
        return
    for one in applied:
        for warning in one.warnings:
            note(f"warning: {one.label}: {warning}")
        if not one.changed:
            write_line(f"{one.label}: no change, version {one.version} stays in force")
            continue
        what = "would become" if dry_run else "is now"
        write_line(f"{one.label} {what} version {one.version}", style="bold")
        for change in one.changes:
            write_line(f"  {change}")
    if dry_run and any(one.changed for one in applied):
        write_line("Nothing was changed: leave out --dry-run to apply.", style="dim")


async def _apply(config: Config, files: Sequence[Path], dry_run: bool, new_key: bool) -> list[Applied]:
    documents = read_submitted(files, note)
    problems = [problem for document in documents for problem in document.problems]
    if problems and config.database_url is None and not (config.data_directory / "postgres").exists():
        raise Invalid(problems)  # there is nothing to hold them against, and no reason to make it now
    try:
        kek = read_key_encryption_key(config)
    except Invalid as invalid:
        raise Invalid([*problems, *invalid.problems]) from None
    try:
        async with open_store(config) as store:
            user = find_user()
            applied = await apply_documents(store, kek, documents, user, dry_run=dry_run, new_key=new_key)
            if not dry_run:
                await _complete(store, kek, user, new_key)
            return applied
    except Unavailable:
        if problems:
            raise Invalid(problems) from None
        raise


async def _complete(store: Store, kek: bytes, user: str, new_key: bool) -> None:
    """What the server needs besides, and comes with the first rules or another key."""
    try:
        # A server whose signers run on their own has no key to make it with at its first start.
        await ensure_ecosystem(store, kek)
        if new_key:
            await replace_own_issuer(store, kek, user)
    except Unavailable as reason:
        detail = f"All files are applied, but not the server's own ecosystem; apply them again. {reason.detail}"
        raise Unavailable(reason.code, detail, reason.retry_after_seconds) from None
