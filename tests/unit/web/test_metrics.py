"""What is counted, under which names, and that several processes add up. Names are stable: dashboards carry them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from estd.est.operations import ROUTES
from estd.web import metrics
from estd.web.tls_events import Event

DOCS = Path(__file__).parents[3] / "docs" / "operations.md"
WORKER = """
import os, sys
from estd.web import metrics
metrics.REQUESTS.labels("simpleenroll", "ok").inc(int(sys.argv[1]))
metrics.CONNECTIONS.set(int(sys.argv[1]))
metrics.observe_issuance("group_size", float(sys.argv[1]))
if len(sys.argv) > 2:
    sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
"""


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_names_and_labels() -> None:
    families = {
        family.name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in REGISTRY.collect()
        if family.name.startswith("estd_")
    }
    assert set(families) == {
        *("estd_requests", "estd_request_seconds", "estd_tolerances", "estd_tls", "estd_connections"),
        *("estd_group_size", "estd_issuance_step_seconds", "estd_waiting_requests", "estd_repeated_answers"),
        *("estd_audit_events_in_log_only", "estd_turned_away", "estd_ready"),
    }


def test_each_metric_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for family in REGISTRY.collect():
        if family.name.startswith("estd_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert f"`{name}`" in text, name


@pytest.mark.parametrize("step", ["prepare", "reserve", "seal", "record"])
def test_steps_are_seconds_by_step(step: str) -> None:
    before = value("estd_issuance_step_seconds_count", step=step), value("estd_issuance_step_seconds_sum", step=step)
    metrics.observe_issuance(f"{step}_seconds", 0.25)
    assert value("estd_issuance_step_seconds_count", step=step) == before[0] + 1
    assert value("estd_issuance_step_seconds_sum", step=step) == pytest.approx(before[1] + 0.25)


def test_groups_and_repeats() -> None:
    before = value("estd_group_size_sum"), value("estd_group_size_count"), value("estd_repeated_answers_total")
    metrics.observe_issuance("group_size", 64)
    metrics.observe_issuance("repeated", 1)
    assert value("estd_group_size_sum") == before[0] + 64
    assert value("estd_group_size_count") == before[1] + 1
    assert value("estd_repeated_answers_total") == before[2] + 1


def test_what_was_counted_is_shown_once_it_is_published() -> None:
    metrics.publish()
    seconds = {"operation": "cacerts"}
    before = value("estd_request_seconds_sum", **seconds), value("estd_request_seconds_bucket", le="0.01", **seconds)
    for took in (0.002, 0.003, 0.01, 0.25, 99.0):
        metrics.count_request("cacerts", "ok", took)
    metrics.count_request("cacerts", "malformed-request")
    metrics.count_tls("handshake-ok")
    metrics.count_turned_away("campus", "rate")
    names = {
        "estd_requests_total": {"operation": "cacerts", "outcome": "ok"},
        "estd_tls_total": {"event": "handshake-ok"},
        "estd_turned_away_total": {"ecosystem": "campus", "limit": "rate"},
    }
    shown = {name: value(name, **labels) for name, labels in names.items()}
    metrics.publish()
    metrics.publish()
    assert {name: value(name, **labels) - shown[name] for name, labels in names.items()} == {
        "estd_requests_total": 5,
        "estd_tls_total": 1,
        "estd_turned_away_total": 1,
    }
    assert value("estd_request_seconds_sum", **seconds) == pytest.approx(before[0] + 99.265)
    # As `observe` has it: an upper bound belongs to its bucket.
    assert value("estd_request_seconds_bucket", le="0.01", **seconds) == before[1] + 3
    assert value("estd_request_seconds_bucket", le="+Inf", **seconds) == value("estd_request_seconds_count", **seconds)


def test_what_alerts_count_is_there_from_the_start(tmp_path: Path) -> None:
    """`increase` and `rate` see nothing of the first step of a series that appears with it."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import estd.web.metrics"], env=environment, check=True, timeout=60)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]  # it has none
    for operation in (*(route.operation for route in ROUTES), "unknown"):
        for outcome in ("internal-error", "store-unavailable", "signer-unavailable", "overloaded"):
            labels = {"operation": operation, "outcome": outcome}
            assert registry.get_sample_value("estd_requests_total", labels) == 0
    assert registry.get_sample_value("estd_tls_total", {"event": str(Event.EVICTED_INTERNAL)}) == 0


def test_readiness_is_told_by_part_and_by_the_supervisor_alone(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(metrics.READY)
    metrics.show_missing({"database": "it does not answer"})
    shown = {part: registry.get_sample_value("estd_ready", {"part": part}) for part in metrics.PARTS}
    assert shown == {"database": 0, "signers": 1, "workers": 1, "server": 1}
    metrics.show_missing({})
    assert {registry.get_sample_value("estd_ready", {"part": part}) for part in metrics.PARTS} == {1}
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import estd.web.metrics"], env=environment, check=True, timeout=60)
    workers = CollectorRegistry()
    MultiProcessCollector(workers, path=str(tmp_path))  # type: ignore[no-untyped-call]  # it has none
    assert "estd_ready" not in generate_latest(workers).decode()


def test_processes_add_up_and_a_dead_ones_counters_stay(tmp_path: Path) -> None:
    """What was counted stays; what was open goes when the process is known to be dead."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WORKER]
    dead = subprocess.Popen([*command, "3"], env=environment)
    assert dead.wait(60) == 0
    living = subprocess.Popen(
        [*command, "4", "stay"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert living.stdout is not None
    assert living.stdout.readline() == "ready\n"
    try:
        mark_process_dead(dead.pid, str(tmp_path))  # type: ignore[no-untyped-call]  # it has none
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]  # it has none
        text = generate_latest(registry).decode()
    finally:
        living.communicate("go\n", timeout=30)
    assert re.search(r'^estd_requests_total\{operation="simpleenroll",outcome="ok"\} 7\.0$', text, re.MULTILINE)
    assert re.search(r"^estd_group_size_sum 7\.0$", text, re.MULTILINE)
    assert re.search(r"^estd_connections 4\.0$", text, re.MULTILINE)
