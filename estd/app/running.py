"""A server in this process, from its start until a signal ends it.

Must be called in the main thread: signals are handled here while the server starts, and by the supervisor from then on.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from estd.app.checking import check_room
from estd.app.handover import accept_signals
from estd.app.supervisor import Supervisor
from estd.config import Config, read_config
from estd.logs import set_up_logs


async def serve(
    config: Config, settings: Path | None, when_ready: Callable[[Supervisor], Awaitable[None]] | None = None
) -> None:
    """Start everything, tell `when_ready`, serve until SIGINT or SIGTERM, drain.

    Args:
        config: the settings.
        settings: the file that SIGHUP reads again; None: SIGHUP only replaces the workers.
        when_ready: called once devices can enroll.

    Raises:
        Invalid, Unavailable, Broken: it cannot start; what was started is stopped again.
    """
    check_room(config)
    set_up_logs("supervisor", config.log_level)
    supervisor = Supervisor(config, None if settings is None else lambda: read_config(settings))
    # Until the supervisor takes the signals, one lets the start come to its end, some seconds at most, and then
    # everything stops: half a start is hard to take back.
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    for number in (signal.SIGHUP, signal.SIGUSR2):
        asyncio.get_running_loop().add_signal_handler(number, _nothing_to_do)
    accept_signals()
    try:
        await supervisor.start()
        if when_ready is not None and not signalled.is_set():
            await when_ready(supervisor)
    except BaseException:
        await supervisor.stop()
        raise
    if signalled.is_set():
        await supervisor.stop()
    else:
        await supervisor.run()


def _nothing_to_do() -> None:
    """A server that starts reads its settings and its program in any case."""
