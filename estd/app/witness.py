"""Keeps database and signers' journals in step: each bears witness to the other.

* Every ten seconds, and at an orderly stop, the signers are told how far the audit trail has come: what the journals hold
  then cannot be cut off the database unseen. They are told all at once and each for a few seconds, and nothing else waits
  for that: one that hangs holds up neither the others nor the next line.
* When the server starts, and whenever the database was lost and is back, it is asked whether it holds what the signers
  signed last. One that was set back is reconciled before devices are served from it; workers refuse to use it until then
  (`estd.store.postgres.PostgresStore`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from estd.app.reconciling import catch_up, is_behind
from estd.app.signers import SignerControl
from estd.app.tasks import keep_doing, start_task
from estd.errors import Broken, Invalid, Unavailable
from estd.ra.enrollment import Enrollment
from estd.signer.client import SignerPool
from estd.store.contract import Store

_log = logging.getLogger(__name__)

_ANCHOR_EVERY_SECONDS: Final = 10.0
_ANCHOR_SECONDS: Final = 3.0
"""For a signer to take one; who needs longer is told again in the next round, which does no harm."""
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
        self._anchoring: asyncio.Task[None] | None = None
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
        try:
            await keep_doing("witness", self._attend)
        finally:
            if self._anchoring is not None:
                self._anchoring.cancel()

    async def _attend(self) -> None:
        try:
            async with asyncio.timeout(_ANCHOR_EVERY_SECONDS):
                await self._doubtful.wait()
        except TimeoutError:
            if self._anchoring is None or self._anchoring.done():
                self._anchoring = start_task(self.anchor())
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

    async def anchor(self, hung: Collection[str] = ()) -> None:
        """Have every signer keep how far the audit trail has come, unless it was told.

        Args:
            hung: those known not to answer, by name; they are not asked.
        """
        try:
            newest = await self._store.find_newest_link()
        except (Unavailable, Broken):
            return  # there is another time in ten seconds
        if newest is None:
            return
        await asyncio.gather(
            *(
                self._tell(name, control, *newest)
                for name, control in self._controls.items()
                if name not in hung and self._anchored.get(name) != (control, newest[0])
            )
        )

    async def _tell(self, name: str, control: SignerControl, link_id: int, digest: bytes) -> None:
        try:
            async with asyncio.timeout(_ANCHOR_SECONDS):
                await control.anchor(link_id, digest)
        except (Broken, OSError, TimeoutError) as fault:
            detail = str(fault) or "it did not answer in time"
            _log.warning("a signer did not take an anchor", extra={"child": name, "detail": detail})
        else:
            self._anchored[name] = (control, link_id)
