"""Builds a worker from its settings: one readable place where every part meets every other.

Imported only after the process decided where its metrics live (`estd.app.worker`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from estd.app.worker import WorkerSettings
from estd.audit import Event
from estd.errors import Invalid, Unavailable
from estd.est import messages
from estd.est.operations import Est, takes_stream
from estd.ra.admission import Admission
from estd.ra.bulk import Bulk
from estd.ra.directory import Directory
from estd.ra.enrollment import Enrollment
from estd.ra.limits import Quotas
from estd.ra.pace import Pace, Turnstile
from estd.ra.refusals import Refusals
from estd.ra.trail import Trail
from estd.signer.client import SignerPool
from estd.store.contract import Store
from estd.store.postgres import PostgresStore
from estd.web import metrics
from estd.web.site import Site
from estd.web.tls import Gate, Limits, TlsServerProtocol, Watch, build_context

_log = logging.getLogger(__name__)

_POOL_SIZE: Final = 4
_RELOAD_PAUSE_SECONDS: Final = 1.0
_OTHER_FILES: Final = 512
"""Besides connections: the database's, the signers', logs, and connections that are being closed."""


class Worker:
    """Everything one worker process is made of."""

    def __init__(self, settings: WorkerSettings, store: Store, signers: SignerPool, directory: Directory) -> None:
        self._settings = settings
        self._store = store
        self._signers = signers
        self._enrollment = Enrollment(store, signers, _now, metrics.observe_issuance)
        self._trail = Trail(store)
        self._bulk = Bulk(store, signers, self._enrollment, self._trail, _now, metrics.observe_issuance)
        self._quotas = Quotas(time.monotonic, metrics.count_turned_away, settings.workers)
        self._refusals = Refusals(time.monotonic)
        loop = asyncio.get_running_loop()
        self._limits = _fit_limits()
        pace = Pace(self._limits.crowd_share, self._limits.crowd_wait_seconds)
        self._est = Est(
            directory,
            Admission(store),
            self._enrollment,
            self._trail,
            _count_tolerance,
            self._quotas,
            Turnstile(pace),
            self._bulk,
            self._refusals,
        )
        self._site = Site(self._est.answer, messages.write_refusal, takes_stream, self._est.note_refusal)
        self._gate = Gate(self._limits, soon=loop.call_soon, pace=pace, later=loop.call_later)
        self._watch = Watch(self._limits.look_seconds, self._gate.press)
        self._context = build_context(settings.tls_chain.encode(), settings.tls_key.encode())
        self._reload = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def build(cls, settings: WorkerSettings) -> Worker:
        """Connect to the store and the signers, and read the ecosystems.

        Raises:
            Unavailable: the store does not answer.
        """
        signers = SignerPool(settings.signer_sockets, home=settings.slot)
        url = settings.database_url
        store = await PostgresStore.connect(url, pool_size=_POOL_SIZE, witness=signers.find_newest)
        directory = await _read_directory(store, settings.default_ecosystem)
        worker = cls(settings, store, signers, directory)
        worker._trail.start()
        worker._follower = asyncio.get_running_loop().create_task(worker._follow())
        await store.subscribe(worker._notice)
        return worker

    def accept(self) -> asyncio.Protocol:
        """The protocol of one new connection."""
        return TlsServerProtocol(
            lambda: self._context, self._site.http, self._limits, self._gate, self._watch, metrics.count_tls
        )

    def use_certificate(self, chain: bytes, key: bytes) -> None:
        """Show another server certificate to connections from now on."""
        try:
            self._context = build_context(chain, key)
        except Invalid as invalid:
            _log.error("server certificate not replaced", extra={"problems": [str(item) for item in invalid.problems]})
            return
        _log.info("server certificate replaced")

    def refresh_gauges(self) -> None:
        """Bring what the worker shows of itself up to date."""
        metrics.WAITING.set(self._enrollment.waiting)
        metrics.CONNECTIONS.set(self._gate.connections)
        metrics.AUDIT_LOST.set(self._trail.lost)
        metrics.publish()

    async def report_limits(self) -> None:
        """Say which limits turned requests away, and which refusals there were too many of: one audit event for many."""
        await self._trail.record_all(self._refusals.sum_up(_now()))
        for report in self._quotas.take_reports():
            facts = {"limit": report.limit.value, "count": report.count}
            _log.warning(
                "requests were turned away", extra={"ecosystem": report.ecosystem, **facts, "remedy": report.remedy}
            )
            await self._trail.record(
                Event(
                    at=_now(),
                    kind="ecosystem.limit",
                    outcome="refused",
                    ecosystem=report.ecosystem,
                    ecosystem_id=report.ecosystem_id,
                    code=report.limit.code.value,
                    detail=f"{report.count} requests met the limit {report.limit.value}",
                    extra=facts,
                )
            )

    async def drain(self, seconds: float, grace_seconds: float) -> None:
        """Answer what is in hand or about to come, then let go of everything."""
        await self._site.drain(seconds, grace_seconds, lambda: not self._gate.active)
        await self._bulk.drain()
        await self._enrollment.drain()
        if self._follower is not None:
            self._follower.cancel()
        await self._trail.record_all(self._refusals.sum_up(_now(), is_last=True))
        await self._trail.stop()
        await self._signers.close()
        await self._store.close()
        metrics.publish()

    async def _notice(self, _change: str) -> None:
        self._reload.set()

    async def _follow(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                self._est.directory = await _read_directory(
                    self._store, self._settings.default_ecosystem, self._est.directory
                )
                continue
            except Unavailable as reason:
                _log.warning("ecosystems could not be read again", extra={"detail": reason.detail})
            except Exception:  # noqa: BLE001 - a worker that stops here would go on serving what is revoked from now on
                _log.exception("ecosystems could not be read again for a fault of ours")
            # The old rules stay in force until the new ones can be read; asking again is all that helps.
            self._reload.set()
            await asyncio.sleep(_RELOAD_PAUSE_SECONDS)


def _fit_limits() -> Limits:
    """As many connections as the operating system lets this process have, and a few files besides."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limits = Limits()
    if hard == resource.RLIM_INFINITY:
        return limits
    return replace(limits, connections_in_all=min(limits.connections_in_all, max(16, hard - _OTHER_FILES)))


async def _read_directory(store: Store, default: str | None, before: Directory | None = None) -> Directory:
    ecosystems, revocations = await store.find_ecosystems(), await store.find_revocations()
    return Directory(ecosystems, revocations, default, await store.find_compromised_keys(), before)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _count_tolerance(ecosystem: str, tolerance: str) -> None:
    metrics.TOLERANCES.labels(ecosystem, tolerance).inc()
