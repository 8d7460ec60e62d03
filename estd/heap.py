"""The heap of a process that serves for months: large pages, pieces at hand, and room that is there from the start.

OpenSSL and whatever is longer than 512 octets live in the C library's heap (Python's small objects have their own). What
is set here is set by ``GLIBC_TUNABLES`` at a process's start, so whoever sets that variable for the server decides
otherwise; another libc than glibc ignores it.
"""

from __future__ import annotations

from typing import Final

HEADROOM_BYTES: Final = 8 << 20
TUNABLES: Final = {
    "GLIBC_TUNABLES": ":".join(
        (
            # A process of many small objects misses the processor's cache of page addresses all the time, which is dear in
            # a virtual machine, where each miss is looked up twice.
            "glibc.malloc.hugetlb=1",
            # A handshake allocates and frees hundreds of pieces; seven of each size are kept at hand by default.
            "glibc.malloc.tcache_count=100",
            # What a rush needed is kept for the next one; without this each large page is given back and faulted in anew.
            f"glibc.malloc.mmap_threshold={2 * HEADROOM_BYTES}",
            f"glibc.malloc.trim_threshold={4 * HEADROOM_BYTES}",
        )
    )
}
"""For the environment of a worker or signer."""


def keep_headroom() -> None:
    """Have the kernel give this process `HEADROOM_BYTES` of heap now, beyond what it holds for good.

    A heap's highest point creeps up by a few octets for days, as rare coincidences become rarer, and a large page that is
    touched at all is resident whole: what an operator sees would grow in steps of two mebibytes, of nothing.
    """
    touched = b"\xff" * HEADROOM_BYTES
    del touched
