"""The ops port: liveness, readiness and metrics over plain HTTP, for the machine's own network only.

``/healthz`` answers as long as the supervisor turns (a database that is away must not get a server killed), ``/readyz``
says which part is missing, ``/metrics`` adds up what all workers counted, and tells the same as ``/readyz`` for alerts. An
ecosystem that cannot be served, or a child that hangs while others do its work, makes nothing unready; ``/readyz`` names it.

A database that hangs makes ``/readyz`` slow, and that is an answer too. A scrape must not fail with it, since all else that
the metrics tell would be missing just then: it waits a second, and has what was found last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from estd.app import own_certificate, troubles
from estd.app.listening import explain_port
from estd.app.tasks import start_task
from estd.app.totals import fold
from estd.errors import Invalid
from estd.web import metrics

_SCRAPE_SECONDS: Final = 1.0
"""Prometheus gives a scrape up after ten, or what its settings say."""
Report = Callable[[], Awaitable[dict[str, str]]]


class OpsServer:
    """Serves the three paths until stopped."""

    def __init__(self, report: Report, metrics_directory: Path, impaired: Callable[[], dict[str, str]] = dict) -> None:
        """`report` says what is missing, and `impaired` what is wrong although devices can enroll."""
        self._report = report
        self._impaired = impaired
        self._metrics_directory = metrics_directory
        self._runner: web.AppRunner | None = None
        self._found: dict[str, str] = {}
        """What was missing last; a server opens this port when nothing is."""
        self._look: asyncio.Task[None] | None = None

    async def start(self, address: str, port: int) -> int:
        """Listen; the port actually taken.

        Raises:
            Invalid: it cannot be opened.
        """
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, address, port)
        try:
            await site.start()
        except OSError as error:
            raise Invalid([explain_port("ops.port", address, port, error)]) from None
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._look is not None:
            self._look.cancel()

    def forget(self, pid: int) -> None:
        """A worker ended: its gauges count no more, its counters still do."""
        fold(self._metrics_directory, pid)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        missing, ecosystems, impaired = await self._report(), troubles.find(), self._impaired()
        answer: dict[str, object] = {"status": "not ready" if missing else "ready", "missing": missing}
        if ecosystems:
            answer["ecosystems"] = ecosystems
        if impaired:
            answer["impaired"] = impaired
        if missing:
            return web.json_response(answer, status=503, headers={"Retry-After": "5"})
        return web.json_response(answer)

    async def _metrics(self, _request: web.Request) -> web.Response:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._metrics_directory))  # type: ignore[no-untyped-call]  # it has none
        metrics.show_missing(await self._find_missing())
        registry.register(metrics.READY)
        registries = (registry, troubles.REGISTRY, own_certificate.REGISTRY)
        body = b"".join(generate_latest(one) for one in registries)
        return web.Response(body=body, content_type="text/plain", charset="utf-8")

    async def _find_missing(self) -> dict[str, str]:
        """What is missing, or was when that was found out last; the look goes on, and the next scrape has what it finds."""
        if self._look is None or self._look.done():
            self._look = start_task(self._look_once())
        await asyncio.wait({self._look}, timeout=_SCRAPE_SECONDS)
        if self._look.done():
            self._look.result()  # a fault of ours fails the scrape, and is seen
        return self._found

    async def _look_once(self) -> None:
        self._found = await self._report()
