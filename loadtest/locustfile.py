"""A day at the server, for Locust: first enrollments by IDevID and by code, renewals, and a few that misbehave.

`make load` runs it (`loadtest/load.py --help`). By hand, with a fleet that `loadtest/pool.py` prepared:

    ESTD_LOAD_POOL=pool locust -f loadtest/locustfile.py --headless -u 50 -r 10 -t 60s
"""

from __future__ import annotations

import devices
from locust import task


class FirstByIDevID(devices.FirstByIDevID):
    """Four of ten."""

    weight = 4

    @task
    def first(self) -> None:
        """Enroll."""
        self.enroll()


class FirstByCode(devices.FirstByCode):
    """One of ten."""

    weight = 1

    @task
    def first(self) -> None:
        """Enroll."""
        self.enroll()


class Renewing(devices.Renewing):
    """Four of ten."""

    weight = 4

    @task
    def again(self) -> None:
        """Renew."""
        self.renew()


class Misbehaving(devices.Misbehaving):
    """One of ten."""

    weight = 1

    @task(4)
    def bad_request(self) -> None:
        """Be refused."""
        self.send_bad_request()

    @task(4)
    def next_door(self) -> None:
        """Be refused."""
        self.ask_next_door()

    @task(1)
    def slowly(self) -> None:
        """Be cut off."""
        self.send_slowly()
