"""Put on PYTHONPATH by ``test_failpoints.py``: processes of a real server that kill themselves at a chosen point, once.

The point is the content of the file that ``ESTD_TEST_TRAP`` names; whoever reaches it removes the file and gets SIGKILL. So
one server serves all tests, and what comes after the kill finds no trap. Nothing in estd knows of this.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ARMED = Path(os.environ["ESTD_TEST_TRAP"])


def _reach(point: str) -> None:
    try:
        if _ARMED.read_text() != point:
            return
        _ARMED.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _trap_coroutine(owner: Any, name: str, who: str) -> None:
    plain = getattr(owner, name)

    @functools.wraps(plain)
    async def trapped(*args: Any, **kwargs: Any) -> Any:
        _reach(f"{who}: before {name}")
        result = await plain(*args, **kwargs)
        _reach(f"{who}: after {name}")
        return result

    setattr(owner, name, trapped)


def _trap_function(owner: Any, name: str, who: str) -> None:
    plain: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(plain)
    def trapped(*args: Any, **kwargs: Any) -> Any:
        _reach(f"{who}: before {name}")
        result = plain(*args, **kwargs)
        _reach(f"{who}: after {name}")
        return result

    setattr(owner, name, trapped)


if "estd.app.worker" in sys.orig_argv:
    from estd.signer.client import SignerPool
    from estd.store.postgres import PostgresStore

    _trap_coroutine(PostgresStore, "reserve_intents", "worker")
    _trap_coroutine(SignerPool, "seal", "worker")
    _trap_coroutine(PostgresStore, "record_issued", "worker")
elif "estd.signer.server" in sys.orig_argv:
    from estd.signer.engine import IssuanceEngine
    from estd.signer.journal import Journal
    from estd.signer.service import Signer

    _trap_function(Signer, "prepare", "signer")
    _trap_function(Journal, "record_entries", "signer")
    _trap_function(IssuanceEngine, "seal", "signer")
    _trap_function(Signer, "seal", "signer")
