"""What a process sets aside at its start is resident, and stays so through rushes that need no more."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from estd.heap import HEADROOM_BYTES, TUNABLES

_PROGRAM = """
import json
import os
from estd.heap import keep_headroom

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

seen = [resident()]
if {is_kept}:
    keep_headroom()
seen.append(resident())
for _ in range(3):
    rush = [b"x" * size for size in range(1_000, 80_000, 1_000)]
    seen.append(resident())
    del rush
    seen.append(resident())
print(json.dumps(seen))
"""
_RUSH_BYTES = sum(range(1_000, 80_000, 1_000))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_rush_within_the_headroom_changes_nothing(is_kept: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM.format(is_kept=is_kept)],
        env={**os.environ, **TUNABLES},
        capture_output=True,
        timeout=60,
        check=True,
    )
    before, ready, *during = json.loads(done.stdout)
    assert _RUSH_BYTES < HEADROOM_BYTES
    if is_kept:
        assert ready - before >= HEADROOM_BYTES - (1 << 18)
        # Lists and integers of the test itself are in Python's own arenas.
        assert max(during) - ready < 1 << 18
        assert min(during) >= ready
    else:
        assert max(during) - ready > _RUSH_BYTES // 2
