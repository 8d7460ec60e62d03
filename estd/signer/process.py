"""What the signer's process does to itself before it holds a key, and how it logs.

Core dumps are off and the process is not dumpable, so that neither a crash nor another process of the same user shows
the memory in which keys are. Each step is best effort: where the kernel refuses one, the log says so.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Final


def harden() -> list[str]:
    """Take away what this process will never need; the names of the steps that the system refused."""
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # reaches the whole foreground group; the supervisor decides
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    refused: list[str] = []
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        refused.append("RLIMIT_CORE")
    for name, option, value in (
        ("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0),
        ("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1),
    ):
        try:
            outcome = ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
        except (OSError, AttributeError):
            outcome = -1
        if outcome != 0:
            refused.append(name)
    return refused


_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
