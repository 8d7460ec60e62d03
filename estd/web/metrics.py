"""The counters of one worker, in the shared-memory files that the supervisor adds up for ``/metrics``.

`prometheus_client` decides at import time where its values live, so the process that wants shared files must set
``PROMETHEUS_MULTIPROC_DIR`` before it imports this module (`estd.app.worker` does), and must not fork afterwards.
What happens on each connection and each request is counted by the functions here, which look a label up once: both
`prometheus_client`'s own look-up and its question after the process id cost more than the counting.
"""

from __future__ import annotations

import os

from prometheus_client import Counter, Gauge, Histogram, values

if values.ValueClass is not values.MutexValue:
    _PROCESS = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: _PROCESS)  # type: ignore[no-untyped-call]  # it has none

_REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

REQUESTS = Counter("estd_requests", "EST requests by operation, ecosystem and outcome", ["operation", "outcome"])
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

_TLS: dict[str, Counter] = {}
_TURNED_AWAY: dict[tuple[str, str], Counter] = {}
_REQUESTS: dict[tuple[str, str], Counter] = {}
_REQUEST_SECONDS: dict[str, Histogram] = {}


def count_tls(event: str) -> None:
    """What `estd.web.tls` observes."""
    counter = _TLS.get(event)
    if counter is None:
        counter = _TLS[event] = TLS.labels(event)
    counter.inc()


def count_request(operation: str, outcome: str, seconds: float) -> None:
    """One answered request."""
    counter = _REQUESTS.get((operation, outcome))
    if counter is None:
        counter = _REQUESTS[operation, outcome] = REQUESTS.labels(operation, outcome)
    counter.inc()
    histogram = _REQUEST_SECONDS.get(operation)
    if histogram is None:
        histogram = _REQUEST_SECONDS[operation] = REQUEST_SECONDS.labels(operation)
    histogram.observe(seconds)


def count_turned_away(ecosystem: str, limit: str) -> None:
    """What `estd.ra.limits` observes."""
    counter = _TURNED_AWAY.get((ecosystem, limit))
    if counter is None:
        counter = _TURNED_AWAY[ecosystem, limit] = TURNED_AWAY.labels(ecosystem, limit)
    counter.inc()


def observe_issuance(what: str, value: float) -> None:
    """What `estd.ra.enrollment` reports: ``group_size``, ``repeated``, or ``STEP_seconds``."""
    if what == "group_size":
        GROUP_SIZE.observe(value)
    elif what == "repeated":
        REPEATED.inc(value)
    else:
        STEP_SECONDS.labels(what.removesuffix("_seconds")).observe(value)
