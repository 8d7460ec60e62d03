"""CPU is counted where it was spent, also when who spent it is gone."""

from __future__ import annotations

import os
import subprocess
import sys

import clocks

_BURN = "import time\nwhile time.process_time() < 0.2: pass\n"
_PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {_BURN!r}], check=True)
print("done", flush=True)
sys.stdin.read()
"""


def test_a_child_that_ended_counts_in_its_parents_role():
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "done\n"
        spent = clocks.read_roles([parent.pid], lambda command: "python" if "python" in command else "other")
        alone = clocks.read_clock(parent.pid)
        parent.stdin.close()
        parent.wait(10)
    assert set(spent) == {"python"}
    assert spent["python"] - alone >= 0.18  # a tick is 10 ms


def test_a_clock_counts_finer_than_a_tick():
    pid = os.getpid()
    first = clocks.read_clock(pid)
    second = clocks.read_clock(pid)
    assert 0 < second - first < 0.01


def test_a_process_that_is_gone_has_no_clock():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(10)
    assert clocks.read_clock(child.pid) == 0.0
    assert clocks.find_tree([child.pid]) == {}
    assert clocks.read_rss(child.pid) == 0
