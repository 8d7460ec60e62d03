"""CPU time of process trees, by role, from the kernel's own clocks.

`/proc/PID/stat` counts in ticks of 10 ms, which is a whole certificate or ten. The CPU-time clock of a process
(clock_getcpuclockid(3)) counts nanoseconds, for all its threads, those that ended included. Children that ended and were
waited for are added from their parent's `stat`, whose total is exact but for one tick a parent; PostgreSQL's backends
come and go. What a child spent therefore counts where it was spent, whether it still runs or not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def read_clock(pid: int) -> float:
    """CPU seconds of one process, all threads; 0.0 when it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) answers on Linux
    except OSError:
        return 0.0


def find_tree(roots: Iterable[int]) -> dict[int, float]:
    """These processes and everything below them: process id → CPU seconds of its children that ended."""
    children: dict[int, list[int]] = {}
    ended: dict[int, float] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        pid = int(status.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ended[pid] = (int(fields[13]) + int(fields[14])) / _TICKS
    tree: dict[int, float] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid in ended and pid not in tree:
            tree[pid] = ended[pid]
            waiting.extend(children.get(pid, ()))
    return tree


def read_command(pid: int) -> str:
    """A process's command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def read_roles(roots: Iterable[int], role_of: Callable[[str], str]) -> dict[str, float]:
    """CPU seconds so far of these trees by role; `role_of` names the role of a command line."""
    spent: dict[str, float] = {}
    for pid, ended in find_tree(roots).items():
        role = role_of(read_command(pid))
        spent[role] = spent.get(role, 0.0) + read_clock(pid) + ended
    return spent


def read_rss(pid: int) -> int:
    """Resident memory in bytes; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
