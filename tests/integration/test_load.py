"""`make load` and `make bench` at their shortest: they run, they end, and their files say what happened."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import bench
import cfssl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from live_server import judge
from ours import Server

LOAD = Path(__file__).parents[2] / "loadtest" / "load.py"


def run_load(*arguments: str, out: Path) -> dict[str, dict[str, str]]:
    """The rows of Locust's table, by name."""
    finished = subprocess.run(
        [sys.executable, str(LOAD), *arguments, "--out", str(out)], capture_output=True, text=True, timeout=110
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    with (out / "estd_stats.csv").open(newline="") as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


@pytest.fixture
def server(tmp_path: Path):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)  # the account that PostgreSQL runs under has to get through
    running = Server(tmp_path)
    yield running
    running.stop()


def test_a_mixed_fleet_is_served_and_its_troublemakers_refused(tmp_path: Path):
    rows = run_load("--users", "20", "--seconds", "14", out=tmp_path)
    assert rows["Aggregated"]["Failure Count"] == "0"
    for name in ("simpleenroll by IDevID", "simpleenroll by code", "simplereenroll"):
        assert int(rows[name]["Request Count"]) > 0
    assert {"a CSR with a wrong signature", "the wrong ecosystem", "a body that never ends"} & set(rows)
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_a_herd_is_served_to_the_last(tmp_path: Path):
    rows = run_load("--herd", "25", "--seconds", "60", out=tmp_path)
    assert rows["simplereenroll"]["Failure Count"] == "0"
    assert int(rows["simplereenroll"]["Request Count"]) == 25


def refusal(*arguments: object) -> str:
    """The last line of what `make load` says when it cannot begin."""
    finished = subprocess.run(
        [sys.executable, str(LOAD), *map(str, arguments)], capture_output=True, text=True, timeout=30
    )
    assert finished.returncode == 2, finished.stderr
    return finished.stderr.splitlines()[-1]


def test_a_host_needs_devices_that_it_trusts():
    assert "--maker" in refusal("--host", "https://localhost:1")


def test_what_keeps_a_run_from_its_host_is_said(server: Server, tmp_path: Path):
    port = server.address[1]
    host, maker = ("--host", f"https://127.0.0.1:{port}"), ("--maker", server.maker, "--maker-key", server.maker_key)
    trust = tmp_path / "trust.pem"
    trust.write_bytes(server.trust.public_bytes(Encoding.PEM))
    well = ("--trust", trust, *maker)
    assert "Connection refused" in refusal("--host", "https://127.0.0.1:1", *well)
    assert "EST is spoken over https://" in refusal("--host", f"http://127.0.0.1:{port}", *well)
    assert "does not verify its certificate" in refusal(*host, "--trust", server.maker, *maker)
    assert "No such file or directory" in refusal(*host, "--trust", tmp_path / "nothing", *maker)
    assert "answers 404: label-unknown" in refusal(*host, "--label", "nowhere", *well)
    assert "--maker-key" in refusal(*host, "--trust", trust, "--maker", server.maker, "--maker-key", server.maker)
    assert "`device,code` at its head" in refusal(*host, *well, "--codes", trust)


def test_a_row_for_each_workload_and_every_certificate_on_record(server: Server):
    table = bench.Table(server, None, bench.Sizes(fresh=16, in_flight=4))
    table.run_round(peer_first=False, count_commits=False)
    table.set_floor(1000.0, 100.0)
    rows = {row["workload"]: row for row in table.write_rows()}
    assert list(rows) == [
        "fresh simpleenroll",
        "fresh simplereenroll",
        "kept connection",
        "bulk",
        "kept, one at a time",
        "cacerts",
    ]
    for name, row in rows.items():
        assert row["failures"] == {}, name
        assert row["rows"] == (0 if name == "cacerts" else row["certificates"]), name
        assert row["cpu_us"]["worker"] > 0
    assert rows["bulk"]["certificates"] == 64
    assert rows["fresh simplereenroll"]["certificates"] == 16
    assert (rows["fresh simpleenroll"]["floor_us"], rows["bulk"]["floor_us"], rows["cacerts"]["floor_us"]) == (
        1000.0,
        100.0,
        None,
    )


@pytest.mark.interop
def test_the_peer_does_the_same_work(server: Server, tmp_path: Path):
    judge("cfssl")
    peer = cfssl.Peer(tmp_path / "peer", server.maker)
    try:
        table = bench.Table(server, peer, bench.Sizes(fresh=16, in_flight=4))
        table.run_round(peer_first=True, count_commits=False)
        table.set_floor(1000.0, 100.0)
    finally:
        peer.stop()
    compared = {row["workload"]: row["peer"] for row in table.write_rows() if row["peer"] is not None}
    assert set(compared) == {"fresh simpleenroll", "kept connection"}
    for one in compared.values():
        assert one["name"] == "cfssl"
        assert one["rows"] == one["certificates"] > 0
        assert set(one["cpu_us_by_role"]) == {"cfssl", "postgres"}
