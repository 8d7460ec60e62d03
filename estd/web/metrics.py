"""The counters of one worker, in the shared-memory files that the supervisor adds up for ``/metrics``.

`prometheus_client` decides at import time where its values live, so the process that wants shared files must set
``PROMETHEUS_MULTIPROC_DIR`` before it imports this module (`estd.app.worker` does), and must not fork afterwards.
What happens on each connection and each request is counted by the functions here in plain numbers, and `publish` puts
them into those files some times a second: `prometheus_client` writes there at each step of each number, which for three
numbers a request costs more than to parse it. A worker that is killed takes a fraction of a second's counts with it.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, values

from estd.errors import Code
from estd.web.tls_events import Event

if values.ValueClass is not values.MutexValue:
    _PROCESS = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: _PROCESS)  # type: ignore[no-untyped-call]  # it has none

_FRACTION = 2**20
_REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

REQUESTS = Counter("estd_requests", "EST requests by operation and outcome", ["operation", "outcome"])
REQUEST_SECONDS = Histogram(
    "estd_request_seconds", "Time from a complete head to the answer", ["operation"], buckets=_REQUEST_BUCKETS
)
TOLERANCES = Counter(
    "estd_tolerances", "Deviations from the RFCs that a request got away with", ["ecosystem", "tolerance"]
)
TURNED_AWAY = Counter("estd_turned_away", "Requests that met a limit, by ecosystem and limit", ["ecosystem", "limit"])
TLS = Counter("estd_tls", "TLS connections by what became of them", ["event"])
CONNECTIONS = Gauge("estd_connections", "Open TLS connections", multiprocess_mode="livesum")
GROUP_SIZE = Histogram("estd_group_size", "Certificates issued per group", buckets=_GROUP_BUCKETS)
STEP_SECONDS = Histogram(
    "estd_issuance_step_seconds",
    "Time of each step of a group: prepare, reserve, seal, record",
    ["step"],
    buckets=_STEP_BUCKETS,
)
WAITING = Gauge("estd_waiting_requests", "Requests that no group has taken yet", multiprocess_mode="livesum")
REPEATED = Counter("estd_repeated_answers", "Retries that were answered with the stored certificate")
AUDIT_LOST = Gauge("estd_audit_events_in_log_only", "Audit events the store never took", multiprocess_mode="livesum")
READY = Gauge("estd_ready", "Whether a part that enrolling needs is there; the supervisor's alone", ["part"])
PARTS: Final = ("database", "signers", "workers", "server")
"""What ``/readyz`` may find missing."""

# A counter that appears with its first event has no increase, and nobody would be told of the first fault.
for _operation in ("cacerts", "csrattrs", "simpleenroll", "simplereenroll", "batch", "unknown"):
    for _outcome in (
        Code.INTERNAL,
        Code.STORE_UNAVAILABLE,
        Code.SIGNER_UNAVAILABLE,
        Code.ISSUER_NOT_VALID,
        Code.OVERLOADED,
    ):
        REQUESTS.labels(_operation, _outcome.value)
TLS.labels(Event.EVICTED_INTERNAL.value)

_tls: defaultdict[str, int] = defaultdict(int)
_turned_away: defaultdict[tuple[str, str], int] = defaultdict(int)
_requests: defaultdict[tuple[str, str], int] = defaultdict(int)
_request_seconds: defaultdict[str, list[float]] = defaultdict(list)


def count_tls(event: str) -> None:
    """What `estd.web.tls` observes."""
    _tls[event] += 1


def count_request(operation: str, outcome: str, seconds: float | None = None) -> None:
    """One answered request, and how long it took if it was one."""
    _requests[operation, outcome] += 1
    if seconds is not None:
        _request_seconds[operation].append(seconds)


def count_turned_away(ecosystem: str, limit: str) -> None:
    """What `estd.ra.limits` observes."""
    _turned_away[ecosystem, limit] += 1


def observe_issuance(what: str, value: float) -> None:
    """What `estd.ra.enrollment` reports: ``group_size``, ``repeated``, or ``STEP_seconds``."""
    if what == "group_size":
        GROUP_SIZE.observe(value)
    elif what == "repeated":
        REPEATED.inc(value)
    else:
        STEP_SECONDS.labels(what.removesuffix("_seconds")).observe(_round(value))


def show_missing(missing: Collection[str]) -> None:
    """Which of the parts are missing, as the supervisor reports it."""
    for part in PARTS:
        READY.labels(part).set(part not in missing)


def publish() -> None:
    """Show what was counted since the last time."""
    for event, count in _tls.items():
        TLS.labels(event).inc(count)
    _tls.clear()
    for turned_away, count in _turned_away.items():
        TURNED_AWAY.labels(*turned_away).inc(count)
    _turned_away.clear()
    for request, count in _requests.items():
        REQUESTS.labels(*request).inc(count)
    _requests.clear()
    for operation, seconds in _request_seconds.items():
        _observe_all(REQUEST_SECONDS.labels(operation), seconds)
    _request_seconds.clear()


def _observe_all(histogram: Histogram, values: list[float]) -> None:
    """As `observe` for each of them, but with one write a bucket; it has no public way to add more than one."""
    counts: defaultdict[int, int] = defaultdict(int)
    for value in values:
        counts[bisect_left(histogram._upper_bounds, value)] += 1
    for bucket, count in counts.items():
        histogram._buckets[bucket].inc(count)
    histogram._sum.inc(_round(sum(values)))


def _round(seconds: float) -> float:
    """To a microsecond or so, as a binary fraction.

    Sums of such numbers are exact for 272 years, so they are the same in whatever order the files of several processes are
    added up. Another order's rounding could make a sum smaller than it was, which is how a restart looks to Prometheus.
    """
    return round(seconds * _FRACTION) / _FRACTION
