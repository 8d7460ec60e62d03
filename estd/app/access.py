"""A store for the time of one command, whether or not a server is running.

Where the settings name no database, the private PostgreSQL is joined if it runs and started for the command's time if it
does not; the last to leave stops it (`estd.store.private`).
"""

from __future__ import annotations

import asyncio
import errno
import getpass
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from estd.config import Config
from estd.errors import Invalid, Problem, Unavailable
from estd.ra.directory import INTERNAL_LABEL
from estd.store.contract import EcosystemRecord, Store
from estd.store.migrator import migrate
from estd.store.postgres import PostgresStore
from estd.store.private import PrivatePostgres

_POOL_SIZE: Final = 2


@asynccontextmanager
async def open_store(config: Config) -> AsyncIterator[Store]:
    """The store of the server with these settings, its schema brought up to date.

    Raises:
        Invalid: the data directory cannot be used.
        Unavailable: the database cannot be reached or started.
    """
    async with open_database(config) as url, AsyncExitStack() as stack:
        try:
            await migrate(url)
            store = await PostgresStore.connect(url, pool_size=_POOL_SIZE)
        except Unavailable as reason:
            if config.database_url is None:
                raise
            where = _without_secrets(config.database_url)
            raise Unavailable(
                reason.code, f"database.url {where}: {reason.detail}", reason.retry_after_seconds
            ) from None
        stack.push_async_callback(store.close)
        yield store


@asynccontextmanager
async def open_database(config: Config) -> AsyncIterator[str]:
    """The URL of the database of the server with these settings, as it is; a private one runs for that time.

    Raises:
        Invalid: the data directory cannot be used.
        Unavailable: the private database cannot be started.
    """
    if config.database_url is not None:
        yield config.database_url
        return
    make_data_directory(config.data_directory)
    private = PrivatePostgres(config.data_directory / "postgres")
    try:
        yield await asyncio.to_thread(private.start)
    finally:
        await asyncio.to_thread(private.stop)


def make_data_directory(path: Path) -> None:
    """The data directory, made when it is missing; others may pass through it and see nothing.

    Raises:
        Invalid: it cannot be made, or not be used.
    """
    try:
        if not path.is_dir():
            path.mkdir(parents=True)
            path.chmod(0o711)
        if not os.access(path, os.X_OK):
            what = f"cannot be used ({os.strerror(errno.EACCES)})"
            remedy = f"Run estd as the user who owns it, or give it to {find_user()}."
            raise Invalid([Problem(str(path), what, remedy)])
    except OSError as error:
        problem = Problem(str(path), f"cannot be made ({error.strerror})", "Choose a data_directory of your own.")
        raise Invalid([problem]) from None


async def find_visible(store: Store) -> list[EcosystemRecord]:
    """The newest version of every ecosystem but the server's own, by label."""
    records = await store.find_ecosystems()
    return sorted((one for one in records if one.label != INTERNAL_LABEL), key=lambda one: one.label)


async def get_ecosystem(store: Store, label: str) -> EcosystemRecord:
    """The newest version of one ecosystem.

    Raises:
        Invalid: there is none with this label.
    """
    records = {record.label: record for record in await store.find_ecosystems()}
    if label in records:
        return records[label]
    known = sorted(name for name in records if name != INTERNAL_LABEL)
    remedy = f"Known here: {', '.join(known)}." if known else "Apply one first: estd apply FILE."
    raise Invalid([Problem(f"ecosystem {label!r}", "does not exist", remedy)])


def find_user() -> str:
    """Who runs this command, for the audit trail."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"  # a container's user often has no name


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
