"""Brings a database that was set back up to the signers' journals: for one command, and for a server that meets it.

The work itself is `estd.ra.reconciliation`'s; here it gets the store, a signer for each journal, and the keys.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from estd.app.access import open_store
from estd.app.checking import is_running
from estd.app.children import Child
from estd.app.signers import SignerControl
from estd.config import Config, read_key_encryption_key
from estd.errors import Broken, Invalid, Problem
from estd.ra.enrollment import Enrollment
from estd.ra.reconciliation import Reconciliation, Report, find_slots
from estd.signer.client import SignerPool
from estd.signer.server import SignerSettings
from estd.store.contract import Store

Advance = Callable[[str, int], None]

_START_SECONDS: Final = 60.0
_INDEX_ENTRIES: Final = 5_000_000
"""More than any reconciliation needs: what the index does not hold cannot be signed again."""


async def reconcile(
    config: Config, journals: Sequence[Path], user: str, *, dry_run: bool, partial: bool, advance: Advance
) -> Report:
    """Reconcile the database of a server that does not run; `partial` as `Reconciliation` takes it.

    Raises:
        Invalid: a server runs, the journals are not whole, or they are older than the database or another system's.
        Unavailable: the database or a signer does not answer.
    """
    if is_running(config) and not dry_run:
        remedy = "Stop it first, or let it be: a server that finds its database set back reconciles it by itself."
        raise Invalid([Problem(str(config.data_directory), "is in use by a running estd", remedy)])
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(config))
        # Read first, with no signer in the way: a journal that must not be used is left as it is.
        survey = Reconciliation(store, None, journals, _now, advance, partial=partial)
        report = await survey.survey()
        if dry_run or not report.missing:
            if not dry_run:
                await survey.record(report, user)
            return report
        pool = await stack.enter_async_context(_start_signers(config, store, journals))
        enrollment = Enrollment(store, pool, _now, _ignore)
        work = Reconciliation(store, enrollment, journals, _now, advance)
        report = await work.restore(report)
        await work.record(report, user)
        return report


@asynccontextmanager
async def _start_signers(config: Config, store: Store, journals: Sequence[Path]) -> AsyncIterator[SignerPool]:
    """A signer for each journal, unlocked and loaded, until the end of the block."""
    kek = read_key_encryption_key(config)
    records = await store.find_ecosystems()
    async with AsyncExitStack() as stack:
        runtime = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="estd-")))
        children: list[Child] = []
        sockets: list[str] = []

        controls: list[SignerControl] = []

        async def greet(end: socket.socket) -> SignerControl:
            control = await SignerControl.open(end)
            controls.append(control)  # an end that nobody holds is closed
            await control.unlock(kek)
            if refused := await control.load(records):
                # What its keys signed could not be restored, and half of it is not what was asked for.
                raise Broken("; ".join(f"{one.record.label}: {one.detail}" for one in refused))
            return control

        for directory in journals:
            for slot in find_slots(directory):
                path = str(runtime / f"signer-{len(children)}.sock")
                settings = SignerSettings(
                    slot=slot,
                    socket_path=path,
                    journal_directory=str(directory),
                    allowed_uids=[os.getuid()],
                    log_level=config.log_level,
                    # Nothing is prepared, only looked up: the clock may say what it likes.
                    clock_tolerance_seconds=float("1e12"),
                    index_entries=_INDEX_ENTRIES,
                )
                settings_fd = os.memfd_create("signer-settings")
                stack.callback(os.close, settings_fd)
                os.write(settings_fd, msgspec.json.encode(settings))
                child = Child(f"signer-{slot}", ["-m", "estd.signer.server"], [settings_fd], greet)
                children.append(child)
                sockets.append(path)
                child.start()
                stack.push_async_callback(child.stop)
        for child in children:
            if not await child.wait_ready(_START_SECONDS):
                what = "did not start"
                raise Invalid(
                    [Problem(child.name, what, "Look at its last lines above; docs/signer.md explains them.")]
                )
        pool = SignerPool(sockets)
        stack.push_async_callback(pool.close)
        await pool.find_newest()  # so that all of them are connected
        yield pool


async def is_behind(store: Store, pool: SignerPool) -> bool:
    """Whether the signers know of certificates that the database does not.

    Raises:
        Unavailable: the database does not answer.
    """
    newest = await pool.find_newest()
    return bool(newest and await store.find_unintended(newest))


async def catch_up(store: Store, enrollment: Enrollment, journals: Path, user: str) -> Report:
    """Reconcile below a server that runs, with its own signers.

    Raises:
        Invalid: it must not be done, or not by a running server; a person has to look.
        Unavailable: the database or a signer does not answer.
    """
    # Other nodes' journals are on other nodes.
    work = Reconciliation(store, enrollment, [journals], _now, lambda _what, _count: None, partial=True)
    report = await work.survey()
    if report.missing > _WHILE_SERVING:
        remedy = "Stop the server and run: estd audit reconcile."
        raise Invalid([Problem("the database", f"lacks {report.missing} certificates of the journals", remedy)])
    report = await work.restore(report)
    await work.record(report, user)
    return report


_WHILE_SERVING: Final = 100_000
"""No more than what a serving signer's index surely holds."""


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _ignore(_what: str, _value: float) -> None:
    """What is restored is not counted among what was issued."""
