"""A web worker: TLS, HTTP and EST on the inherited listening socket. It holds no issuer key.

Started by `estd.app.worker_crew` as ``python -m estd.app.worker LISTEN_FD CONTROL_FD``; its settings, the first message on
the control channel, hold everything else. It stops when told to, and when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from typing import Any, Final

import msgspec
import uvloop

from estd.app.control import Control
from estd.app.tasks import keep_doing
from estd.errors import Unavailable
from estd.heap import keep_headroom
from estd.logs import set_up_logs
from estd.web.door import Door
from estd.web.readiness import Readiness

_log = logging.getLogger("estd.worker")

DRAIN_SECONDS: Final = 20.0
_GAUGE_SECONDS: Final = 0.25
_COLLECT_AFTER: Final = 20_000


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told at its start."""

    name: str
    slot: int
    workers: int = 1
    """How many share the load, and so the limits."""
    database_url: str
    """May hold a password: what a log or a traceback shows leaves it out, and `tls_key` too."""
    signer_sockets: list[str]
    tls_chain: str
    tls_key: str
    metrics_directory: str
    log_level: str
    default_ecosystem: str | None = None

    def __repr__(self) -> str:
        return f"WorkerSettings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in _SECRET]


_SECRET: Final = frozenset({"database_url", "tls_key"})


def main() -> None:
    """Entry point of the process."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    control = socket.socket(fileno=int(sys.argv[2]))
    # Ctrl-C reaches the whole foreground group; only the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(_serve(listener, control))


async def _serve(listener: socket.socket, control_end: socket.socket) -> None:
    control = await Control.open(control_end)
    first = await control.receive()
    if first is None:
        return
    settings = msgspec.convert(first, WorkerSettings)
    set_up_logs(settings.name, settings.log_level)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = settings.metrics_directory
    # Imported now because prometheus_client reads that variable at import.
    from estd.app.wiring import Worker

    worker = await Worker.build(settings)
    keep_headroom()
    # What was loaded so far lives as long as the process; without it each full collection walks it again.
    gc.collect()
    gc.freeze()
    # A connection lets go of everything by reference count (docs/tls.md), so a collection finds next to nothing; the
    # default threshold would have one every few connections.
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    readiness = Readiness()
    door = Door(listener, readiness, worker.accept)
    door.open()
    control.send({"ready": True})
    _log.info("ready")
    gauges = asyncio.get_running_loop().create_task(_refresh(worker))
    grace = 0.0
    try:
        grace = await _obey(control, worker)
    finally:
        gauges.cancel()
        door.close()
        await worker.drain(DRAIN_SECONDS, grace)
        readiness.close()
    _log.info("stopped")


async def _obey(control: Control, worker: Any) -> float:
    """Until told to drain, or until the supervisor is gone; for how many seconds idle connections are still served."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    stop = asyncio.get_running_loop().create_task(terminated.wait())
    while True:
        message = asyncio.get_running_loop().create_task(control.receive())
        await asyncio.wait({message, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not message.done():
            message.cancel()
            return 0.0
        order = message.result()
        if order is None or "drain" in order:
            stop.cancel()
            return 0.0 if order is None else float(order["drain"])
        if "tls_chain" in order:
            worker.use_certificate(order["tls_chain"].encode(), order["tls_key"].encode())
        if "ping" in order:
            control.send({"pong": order["ping"]})


async def _refresh(worker: Any) -> None:
    async def show() -> None:
        worker.refresh_gauges()
        await worker.report_limits()
        await asyncio.sleep(_GAUGE_SECONDS)

    await keep_doing("metrics", show)


if __name__ == "__main__":
    try:
        main()
    except Unavailable as reason:
        _log.error("cannot start", extra={"code": reason.code.value, "detail": reason.detail})
        sys.exit(1)
