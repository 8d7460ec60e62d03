"""What workers that ended had counted stays counted, in as many files as there are kinds of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from estd.app import totals
from estd.app.totals import fold

WORKER = """
import sys
from estd.web import metrics
number = int(sys.argv[1])
for step in range(number):
    metrics.count_request("simpleenroll", "ok", 0.1 * (step + 1))
    metrics.observe_issuance("seal_seconds", 0.0007 * (step + 1))
    metrics.observe_issuance("group_size", number)
metrics.count_request("cacerts", "only-%d" % number)
metrics.CONNECTIONS.set(number)
metrics.publish()
"""
GAUGES = {"estd_connections", "estd_waiting_requests", "estd_audit_events_in_log_only"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def count(directory: Path, number: int) -> int:
    """A process that counts as a worker does, and ends; its id."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(number)], env=environment)
    assert worker.wait(60) == 0
    return worker.pid


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The files of some workers that ended, to be copied; their ids."""
    directory = tmp_path_factory.mktemp("counted")
    return directory, [count(directory, number) for number in range(3, 9)]


@pytest.fixture
def ended(counted: tuple[Path, list[int]], tmp_path: Path) -> tuple[Path, list[int]]:
    for path in counted[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, counted[1]


def scrape(directory: Path) -> Samples:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]  # it has none
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def without_gauges(samples: Samples) -> Samples:
    return {key: value for key, value in samples.items() if key[0] not in GAUGES}


def test_what_was_counted_is_the_same_before_and_after(ended: tuple[Path, list[int]]) -> None:
    directory, pids = ended
    before = scrape(directory)
    assert before["estd_connections", ()] == sum(range(3, 9))
    assert before["estd_requests_total", (("operation", "simpleenroll"), ("outcome", "ok"))] == sum(range(3, 9))
    for left, pid in enumerate(pids[::-1]):
        fold(directory, pid)
        after = scrape(directory)
        assert without_gauges(after) == without_gauges(before)  # to the last bit
        assert after.get(("estd_connections", ()), 0) == sum(range(3, 8 - left))
    assert {path.name for path in directory.iterdir()} == {"counter_ended.db", "histogram_ended.db"}


def test_the_same_process_id_may_come_again(ended: tuple[Path, list[int]]) -> None:
    directory, pids = ended
    before = scrape(directory)
    kept = [(path, path.read_bytes()) for path in directory.glob(f"*_{pids[0]}.db")]
    fold(directory, pids[0])
    fold(directory, pids[0])  # has no files any more
    assert without_gauges(scrape(directory)) == without_gauges(before)
    for path, content in kept:
        path.write_bytes(content)
    fold(directory, pids[0])
    key = ("estd_requests_total", (("operation", "cacerts"), ("outcome", "only-3")))
    assert (before[key], scrape(directory)[key]) == (1, 2)


@pytest.mark.parametrize("call", ["posix_fallocate", "rename", "replace"])
def test_what_cannot_be_added_stays_where_it_is(
    ended: tuple[Path, list[int]], call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory, pids = ended
    fold(directory, pids[0])
    before = scrape(directory)

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*(totals.os, call) if call == "posix_fallocate" else (Path, call), fail)
        fold(directory, pids[1])
    assert [record.message for record in caplog.records] == ["a process's counters stay in a file of their own"]
    assert without_gauges(scrape(directory)) == without_gauges(before)
    fold(directory, pids[1])
    assert without_gauges(scrape(directory)) == without_gauges(before)
    assert not list(directory.glob(f"*_{pids[1]}.*"))


def test_there_is_room_for_many_names(tmp_path: Path) -> None:
    path = tmp_path / "counter_ended.db"
    sums = {f"{number:04}" * (1 + number % 40): float(number) for number in range(3_000)}
    totals._write(path, sums)
    read = totals.MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]  # it has none
    assert {name: value for name, value, _, _ in read} == sums
    assert path.stat().st_size < 1_000_000
