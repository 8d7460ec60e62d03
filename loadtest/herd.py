"""A herd, for Locust: a whole fleet that renews in the same second, once, and a run that ends when all are served.

`make load HERD=N` runs it. Every device is ready with its key, certificate and request before the first one asks.
"""

from __future__ import annotations

from typing import ClassVar

import devices
import pool
from gevent.event import Event
from locust import LoadTestShape, task
from locust.exception import StopUser

_FLEET = len(devices.waiting[pool.RENEWING])
_ready = Event()


class HerdDevice(devices.Renewing):
    """Waits for the others, renews, leaves."""

    prepared: ClassVar[int] = 0
    done: ClassVar[int] = 0

    def on_start(self) -> None:
        """Be ready; the last one opens the gate."""
        super().on_start()
        HerdDevice.prepared += 1
        if HerdDevice.prepared == _FLEET:
            _ready.set()

    @task
    def once(self) -> None:
        """The one renewal."""
        _ready.wait()
        try:
            self.renew()
        finally:
            HerdDevice.done += 1
        raise StopUser


class AllAtOnce(LoadTestShape):
    """Everybody at once, until everybody is done or the time is over."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """So many users, or the end."""
        assert self.runner is not None
        limit = self.runner.environment.parsed_options.run_time or 600
        return None if HerdDevice.done >= _FLEET or self.get_run_time() > limit else (_FLEET, _FLEET)
