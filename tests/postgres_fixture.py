"""One private PostgreSQL for the whole run, and an empty, migrated database for each test that asks for one.

Registered by ``tests/conftest.py``. A test takes `database` (empty, migrated), `store` (a store on such a one), or
`bare_database` (without even a schema, and dropped afterwards). Making and dropping a database costs two checkpoints, so
migrated databases are made from a template once, swept after each test, and handed out again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from estd.store.cluster import SUPERUSER
from estd.store.migrator import migrate
from estd.store.postgres import PostgresStore
from estd.store.private import PrivatePostgres, url_of

NOW = datetime(2030, 1, 1, tzinfo=UTC)
"""What the clock of every store in the tests says."""

_TEMPLATE = "estd_template"


@dataclass(frozen=True)
class Database:
    """A database of a test, and a way to look behind the store's back."""

    url: str
    superuser_url: str
    name: str
    socket: str
    """The server's Unix socket."""

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the database itself, as its superuser."""
        connection = await asyncpg.connect(self.superuser_url)
        try:
            yield connection
        finally:
            await connection.close()

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Ask the database itself, as its superuser."""
        async with self.session() as connection:
            return await connection.fetch(sql, *arguments)


class PostgresServer:
    """The server of this run and its databases."""

    def __init__(self, socket_directory: str) -> None:
        self._socket_directory = socket_directory
        self._numbers = itertools.count(1)
        self._swept: list[Database] = []

    async def take(self) -> Database:
        """An empty, migrated database."""
        return self._swept.pop() if self._swept else await self.create(_TEMPLATE)

    async def give_back(self, database: Database) -> None:
        """Empty it for the next test."""
        await asyncpg_execute(database.superuser_url, _SWEEP)
        self._swept.append(database)

    async def create(self, template: str) -> Database:
        """A database like the template."""
        name = f"test_{next(self._numbers)}"
        await self._administer(f"CREATE DATABASE {name} TEMPLATE {template} OWNER estd")
        return self._database(name)

    async def drop(self, database: Database) -> None:
        """Drop it, whoever is still connected."""
        await self._administer(f"DROP DATABASE {database.name} WITH (FORCE)")

    async def make_template(self) -> None:
        """Migrate the template that `take` copies."""
        await self._administer(f"CREATE DATABASE {_TEMPLATE} OWNER estd")
        await migrate(self._database(_TEMPLATE).url)

    async def _administer(self, sql: str) -> None:
        await asyncpg_execute(url_of(self._socket_directory, role=SUPERUSER, database=SUPERUSER), sql)

    def _database(self, name: str) -> Database:
        return Database(
            url=url_of(self._socket_directory, database=name),
            superuser_url=url_of(self._socket_directory, role=SUPERUSER, database=name),
            name=name,
            socket=f"{self._socket_directory}/.s.PGSQL.5432",
        )


async def asyncpg_execute(url: str, sql: str) -> None:
    """Run statements on a connection of their own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The server of this run."""
    private = PrivatePostgres(tmp_path_factory.mktemp("postgres"))
    url = private.start()
    try:
        server = PostgresServer(url.partition("?host=")[2])
        _run(server.make_template())
        yield server
    finally:
        private.stop()


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """An empty, migrated database."""
    database = _run(postgres_server.take())
    yield database
    _run(postgres_server.give_back(database))


@pytest.fixture
def bare_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A database without a schema."""
    database = _run(postgres_server.create("template0"))
    yield database
    _run(postgres_server.drop(database))


@pytest.fixture
async def store(database: Database) -> AsyncIterator[PostgresStore]:
    """A store on an empty database, with the time standing at `NOW`."""
    store = await PostgresStore.connect(database.url, clock=lambda: NOW)
    try:
        yield store
    finally:
        await store.close()


# Triggers that keep history are off for this session; whoever a test left connected is sent away.
_SWEEP = """
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
SET session_replication_role = replica;
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migration' LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
    FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
        PERFORM setval(name::regclass, 1, false);
    END LOOP;
END $$;
"""


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end in a thread of its own: a synchronous fixture may be set up while a test's loop exists."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
