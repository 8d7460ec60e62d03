"""Keeps database and signers' journals in step: each bears witness to the other.

* Every ten seconds, and at an orderly stop, the signers are told how far the audit trail has come: what the journals hold
  then cannot be cut off the database unseen.
* When the server starts, and whenever the database was lost and is back, it is asked whether it holds what the signers
  signed last. One that was set back is reconciled before devices are served from it; workers refuse to use it until then
  (`estd.store.postgres.PostgresStore`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from estd.app.reconciling import catch_up, is_behind
from estd.app.signers import SignerControl
from estd.app.tasks import keep_doing
from estd.errors import Broken, Invalid, Unavailable
from estd.ra.enrollment import Enrollment
from estd.signer.client import SignerPool
from estd.store.contract import Store

_log = logging.getLogger(__name__)

_ANCHOR_EVERY_SECONDS: Final = 10.0
_SOON_SECONDS: Final = 1.0


class Witness:
    """See the module. `controls` are the signers' control channels, by name, as they come and go."""

    def __init__(
        self,
        store: Store,
        pool: SignerPool,
        enrollment: Enrollment,
        journals: Path,
        controls: Mapping[str, SignerControl],
    ) -> None:
        self._store = store
        self._pool = pool
        self._enrollment = enrollment
        self._journals = journals
        self._controls = controls
        self._anchored: dict[str, tuple[SignerControl, int]] = {}
        self._doubtful = asyncio.Event()
        self.problem: str | None = None
        """Why devices cannot be served from this database."""

    async def check(self) -> None:
        """Reconcile the database if it was set back.

        Raises:
            Invalid: a person has to do it, or has to find out what is wrong.
            Unavailable: the database or a signer does not answer.
        """
        if not await is_behind(self._store, self._pool):
            self.problem = None
            return
        self.problem = "it is at an older state than the signers' journals, and is being reconciled"
        _log.error("the database was set back; what the journals hold is restored")
        try:
            report = await catch_up(self._store, self._enrollment, self._journals, "estd serve")
        except Invalid as invalid:
            self.problem = "; ".join(f"{problem.where} {problem.what}" for problem in invalid.problems)
            raise
        facts = report.write()
        counts = {name: len(value) if isinstance(value, list) else value for name, value in facts.items()}
        _log.warning("the database was reconciled", extra=counts)
        self.problem = None

    def notice(self, change: str) -> None:
        """A follower's: the database was lost and is back, so it may be another one."""
        if change == "resync":
            self._doubtful.set()

    async def run(self) -> None:
        """Anchor the audit trail now and then, and look at a database that came back."""
        await keep_doing("witness", self._attend)

    async def _attend(self) -> None:
        try:
            async with asyncio.timeout(_ANCHOR_EVERY_SECONDS):
                await self._doubtful.wait()
        except TimeoutError:
            await self.anchor()
            if self.problem is None:
                return
        self._doubtful.clear()
        try:
            await self.check()
        except (Invalid, Unavailable, Broken) as fault:
            _log.error("the database could not be reconciled", extra={"detail": str(fault)})
            if self.problem is None:  # not found out: again, soon
                await asyncio.sleep(_SOON_SECONDS)
                self._doubtful.set()
        except Exception:
            self._doubtful.set()  # whatever it failed with, the question is still open
            raise

    async def anchor(self) -> None:
        """Have every signer keep how far the audit trail has come, unless it was told."""
        try:
            newest = await self._store.find_newest_link()
        except (Unavailable, Broken):
            return  # there is another time in ten seconds
        if newest is None:
            return
        for name, control in list(self._controls.items()):
            if self._anchored.get(name) == (control, newest[0]):
                continue
            try:
                await control.anchor(*newest)
            except (Broken, OSError, TimeoutError) as fault:
                detail = str(fault) or "it did not answer in time"
                _log.warning("a signer did not take an anchor", extra={"child": name, "detail": detail})
            else:
                self._anchored[name] = (control, newest[0])
