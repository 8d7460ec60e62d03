"""What processes that ended had counted, in one file for all of them.

`prometheus_client` gives each process a file for its counters and one for its histograms, and every scrape reads all of
them. A reload replaces every worker, so there would be more and more of them for as long as the server runs. What a process
had counted is added to the totals when it has ended, and its files go.

A counter that went back would be taken for a restart and be counted twice. So what a process counted is either in a file
that is read or in the totals, whatever fails: the totals are exchanged as a whole, and the sums are exact
(`estd.web.metrics`).
Nothing here may run beside a scrape: both are called in the supervisor's loop, and neither waits in the middle.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import defaultdict
from pathlib import Path
from typing import Final

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

_log = logging.getLogger(__name__)

_KINDS: Final = ("counter", "histogram")
_ENTRY_BYTES: Final = 28
"""At most, besides its name: the length of that, up to eight octets of padding, value and time."""
_HEAD_BYTES: Final = 8


def fold(directory: Path, pid: int) -> None:
    """A process ended: what its gauges said is gone, and what it counted belongs to the totals.

    Args:
        directory: where all processes have their files.
        pid: one that has been waited for.
    """
    try:
        mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]  # it has none
        for kind in _KINDS:
            _fold_one(directory / f"{kind}_{pid}.db", directory / f"{kind}_ended.db")
    except (OSError, RuntimeError, ValueError, struct.error) as fault:
        # Its file is read with each scrape until the server is started again; nothing else is wrong.
        _log.warning("a process's counters stay in a file of their own", extra={"pid": pid, "detail": str(fault)})


def _fold_one(counted: Path, totals: Path) -> None:
    if not counted.exists():
        return
    sums: defaultdict[str, float] = defaultdict(float)
    for path in (totals, counted):
        if path.exists():
            for name, value, _, _ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]  # it has none
                sums[name] += value
    fresh = totals.with_suffix(".new")  # a scrape reads what ends with .db
    _write(fresh, sums)
    aside = counted.with_suffix(".ended")
    counted.rename(aside)
    try:
        fresh.replace(totals)
    except OSError:
        aside.rename(counted)
        raise
    aside.unlink()


def _write(path: Path, sums: dict[str, float]) -> None:
    with path.open("wb") as file:
        # It is written through memory, where a full disk would be the end of the process.
        os.posix_fallocate(file.fileno(), 0, _HEAD_BYTES + sum(len(name.encode()) + _ENTRY_BYTES for name in sums))
    written = MmapedDict(str(path))  # type: ignore[no-untyped-call]  # it has none
    try:
        for name, value in sums.items():
            written.write_value(name, value, 0.0)  # type: ignore[no-untyped-call]  # it has none
    finally:
        written.close()  # type: ignore[no-untyped-call]  # it has none
