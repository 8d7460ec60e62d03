"""``estd demo``: a whole demonstration, and one that is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from program import ESTD, ask, estd


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    keep = tmp_path / "lab"
    done = estd("demo", "--devices", "9", "--keep", keep, "--json", seconds=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["good"], told["certificates"], told["failures"]) == (True, 18, [])
    assert {one["count"] for one in told["operations"].values()} == {9}
    proof = told["proof"]
    assert (proof["cryptography"], proof["in_database"], proof["accepted_by_neighbour"]) == (18, 18, 0)
    assert proof["openssl"] in (18, None)
    neighbour = told["neighbour"]
    assert (neighbour["status"], neighbour["certificates"]) == (403, 0)
    assert neighbour["audit"]["code"] == "certificate-untrusted"
    assert neighbour["audit"]["ecosystem"] == neighbour["ecosystem"]
    assert len(ask("cert", "list", "--dir", keep)) == 18
    keys = list(keep.rglob("*.key"))
    assert len(keys) > 18
    assert [path for path in keys if path.stat().st_mode & 0o077] == []


@pytest.mark.slow
def test_an_interrupted_demonstration_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    tmp_path.chmod(0o755)
    process = subprocess.Popen(
        [str(ESTD), "demo", "--devices", "2000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Enrolling" in line:
            break
    pids = [int(path.read_text().split()[0]) for path in tmp_path.rglob("postmaster.pid")]
    assert pids
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
