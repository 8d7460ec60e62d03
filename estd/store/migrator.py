"""Brings a database to the schema this version of estd expects, and refuses one it does not understand.

Migrations are files ``migrations/NNN_{pre,post}_name.sql``, applied in the order of their numbers, each in one
transaction, and recorded with the SHA-256 of their text. A *pre* migration adds: it is safe while the previous version
still runs, so it is applied before the new version starts. A *post* migration removes what only the previous version
needed, so it is applied when that one is gone. Any number of processes may migrate at once; an advisory lock lets one
at a time through.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import asyncpg

from estd.errors import Broken, Code, Invalid, Problem, Unavailable
from estd.store.pool import unavailable
from estd.store.queries import sql_of


class Phase(enum.Enum):
    """When a migration may be applied, relative to a change of version."""

    PRE = "pre"
    POST = "post"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    phase: Phase
    name: str
    sql: str

    @property
    def sha256(self) -> bytes:
        """What an edit of the text would change."""
        return hashlib.sha256(self.sql.encode()).digest()

    def __str__(self) -> str:
        return f"{self.number:03d}_{self.phase.value}_{self.name}"


def load_migrations() -> tuple[Migration, ...]:
    """The migrations of this version, in order."""
    found = []
    for file in resources.files("estd.store").joinpath("migrations").iterdir():
        if (match := re.fullmatch(r"(\d{3})_(pre|post)_([a-z0-9_]+)\.sql", file.name)) is None:
            raise Broken(f"{file.name} is not named NNN_pre_name.sql or NNN_post_name.sql")
        number, phase, name = match.groups()
        found.append(Migration(int(number), Phase(phase), name, file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise Broken("the numbers of the migrations do not run from 001 without gap or repeat")
    return tuple(found)


MIGRATIONS = load_migrations()


async def migrate(
    url: str, *, include_post: bool = True, migrations: Sequence[Migration] = MIGRATIONS
) -> list[Migration]:
    """Apply what is missing and return it.

    Args:
        url: the database, as its owner.
        include_post: False while the previous version still runs.
        migrations: for tests.

    Raises:
        Invalid: that is no URL.
        Unavailable: the database cannot be reached, or its schema is not one this version can start from.
    """
    try:
        connection = await _connect(url)
        try:
            async with connection.transaction():
                await connection.execute(sql_of("lock_migrations"))
                # Asked first: a role that may not create anything can still find that there is nothing to do.
                if not await connection.fetchval(sql_of("has_migration_table")):
                    await connection.execute(sql_of("create_migration_table"))
            applied = []
            while (migration := await _apply_next(connection, migrations, include_post)) is not None:
                applied.append(migration)
            return applied
        finally:
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise unavailable(error) from error


async def check_schema(connection: asyncpg.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Whether this version can work on the schema.

    A *pre* migration of a newer version is no obstacle (the two run side by side during an upgrade), a *post* migration
    not yet applied is none either.

    Raises:
        Unavailable: it cannot; the detail says what to do.
    """
    if not await connection.fetchval(sql_of("has_migration_table")):
        raise _refusal("The database is empty: `estd serve` makes its tables, and so does `estd ecosystem list`.")
    done = await _read_applied(connection, migrations)
    for number, phase, name in done.unknown:
        if phase is Phase.POST:
            raise _refusal(f"A newer version of estd applied {number:03d}_{phase.value}_{name}: upgrade this one.")
    for migration in migrations:
        if migration.number not in done.known and migration.phase is Phase.PRE:
            raise _refusal(f"The database lacks {migration}: start `estd serve` of this version, which adds it.")


async def _connect(url: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(url, timeout=10, command_timeout=600)
    except asyncpg.ClientConfigurationError as error:
        what = f"cannot be used: {error}"
    except ValueError:
        what = "cannot be read"  # by which part of it is not told: that may be a piece of the password
    remedy = (
        "Write it like postgresql://estd:PASSWORD@db.example:5432/estd; in a password %2F, %40 and %3A stand for / @ :."
    )
    raise Invalid([Problem("database.url", what, remedy)])


@dataclass(frozen=True, slots=True)
class _Applied:
    known: frozenset[int]
    unknown: tuple[tuple[int, Phase, str], ...]


async def _read_applied(connection: asyncpg.Connection, migrations: Sequence[Migration]) -> _Applied:
    ours = {migration.number: migration for migration in migrations}
    known, unknown = set(), []
    for number, phase, name, sha256 in await connection.fetch(sql_of("find_migrations")):
        if (migration := ours.get(number)) is None:
            unknown.append((number, Phase(phase), name))
        elif (migration.phase.value, migration.name, migration.sha256) != (phase, name, sha256):
            raise _refusal(
                f"The database was migrated by {number:03d}_{phase}_{name} with another text than this version has "
                f"as {migration}: one of them was edited after release. Use the version that migrated it."
            )
        else:
            known.add(number)
    return _Applied(frozenset(known), tuple(unknown))


async def _apply_next(
    connection: asyncpg.Connection, migrations: Sequence[Migration], include_post: bool
) -> Migration | None:
    async with connection.transaction():
        await connection.execute(sql_of("lock_migrations"))
        done = await _read_applied(connection, migrations)
        if done.unknown:
            number, phase, name = done.unknown[0]
            raise _refusal(
                f"The database is newer than this version of estd ({number:03d}_{phase.value}_{name} is unknown here): "
                "upgrade this one."
            )
        pending = [migration for migration in migrations if migration.number not in done.known]
        if not pending:
            return None
        migration = pending[0]
        if migration.phase is Phase.POST and not include_post:
            if any(later.phase is Phase.PRE for later in pending):
                raise _refusal(f"The upgrade before this one is not finished: {migration} comes first.")
            return None
        # A lock that running workers do not release soon must not make them queue up behind the migration.
        await connection.execute("SET LOCAL lock_timeout = '10s'")
        await connection.execute(migration.sql)
        phase_name = migration.phase.value
        await connection.execute(
            sql_of("insert_migration"), migration.number, phase_name, migration.name, migration.sha256
        )
        return migration


def _refusal(detail: str) -> Unavailable:
    return Unavailable(Code.STORE_UNAVAILABLE, detail, retry_after_seconds=60)
