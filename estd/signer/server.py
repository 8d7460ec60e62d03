"""The signer process: one Unix socket, one journal, no network and no SQL.

Started as ``python -m estd.signer.server SETTINGS_FD CONTROL_FD``: settings are JSON in an inherited file, secrets come
over the inherited control channel (`estd.signer.frames.Unlock`, the first message) and nowhere else. Its life: harden →
take the journal over → listen → be unlocked and loaded → serve (`estd.signer.loop`) → drain → close the journal → exit
with 0, 75 (try again later), 78 (an operator has to look) or 70 (a fault of its own).

`run_alone` is the same process as a service of its own, under a user of its own (``estd signer``): it reads the
key-encryption key itself, waits for the supervisor on a second Unix socket to be loaded, and outlives it.

Must not import asyncio, a network or a database module.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from estd.ca.blocklist import read_blocklist
from estd.errors import Broken, Invalid, Problem, Unavailable
from estd.logs import set_up_logs
from estd.signer.engine import IssuanceEngine
from estd.signer.journal import Journal
from estd.signer.loop import Loop, read_clock
from estd.signer.process import harden
from estd.signer.service import Engine, Signer
from estd.signer.settings import SignerSettings

__all__ = ["SignerSettings", "main", "run_alone", "run_process", "run_signer"]

_log = logging.getLogger("estd.signer")


def run_signer(
    settings: SignerSettings,
    control: socket.socket | None,
    engine: Engine[Any],
    open_journal: Callable[..., Journal] = Journal.open,
) -> None:
    """Serve until drained.

    Raises:
        Invalid: the journal or the socket cannot be used.
        Unavailable: there is no room to begin.
        Broken: the journal failed; the process must not go on.
    """
    journal = open_journal(
        Path(settings.journal_directory),
        settings.slot,
        read_clock(),
        segment_bytes=settings.segment_bytes,
        index_entries=settings.index_entries,
        marks=settings.marks,
    )
    if journal.counters.cut_bytes:
        _log.warning("an interrupted write was cut off", extra={"cut_bytes": journal.counters.cut_bytes})
    try:
        service = Signer(
            engine,
            journal,
            settings.prepared_limit,
            settings.prepared_seconds,
            settings.clock_tolerance_seconds,
        )
        loop = Loop(settings, service, control, _listen(settings), _listen_for_control(settings))
        _log.info("signer ready", extra={"journal": journal.name, "mark": journal.mark})
        try:
            loop.run()
        finally:
            loop.close()
    finally:
        journal.close(read_clock())
    _log.info("signer stopped", extra={"mark": journal.mark})


def main() -> None:
    """Entry point: ``python -m estd.signer.server SETTINGS_FD CONTROL_FD``."""
    settings_fd, control_fd = (int(number) for number in sys.argv[1:3])
    sys.exit(run_process(settings_fd, control_fd, IssuanceEngine()))


def run_process(
    settings_fd: int, control_fd: int, engine: Engine[Any], open_journal: Callable[..., Journal] = Journal.open
) -> int:
    """Make this process a signer; the status it should exit with."""
    refused = harden()
    control = socket.socket(fileno=control_fd)
    # The file may be handed to one process after the other, so its position is not relied on.
    settings = msgspec.json.decode(os.pread(settings_fd, _SETTINGS_MAX_BYTES, 0), type=SignerSettings)
    os.close(settings_fd)
    return _run(settings, refused, control, engine, open_journal)


def run_alone(settings: SignerSettings, read_kek: Callable[[], bytes], engine: Engine[Any]) -> int:
    """Make this process a signer that nobody started; the status it should exit with.

    Args:
        settings: with a `control_path`.
        read_kek: reads the key-encryption key; called once the process is hardened.
        engine: not unlocked yet.

    Raises:
        Invalid: the key-encryption key cannot be read.
    """
    refused = harden()
    # There is no supervisor that would decide what Ctrl-C means.
    signal.signal(signal.SIGINT, lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
    engine.unlock(read_kek())
    return _run(settings, refused, None, engine, Journal.open)


# --- private -----------------------------------------------------------------------------------------------------------


def _run(
    settings: SignerSettings,
    refused: list[str],
    control: socket.socket | None,
    engine: Engine[Any],
    open_journal: Callable[..., Journal],
) -> int:
    set_up_logs(f"signer-{settings.slot}", settings.log_level)
    if refused:
        _log.warning("the system refused a protection", extra={"refused": refused})
    try:
        if settings.blocklist_path is not None:
            path = Path(settings.blocklist_path)
            engine.block(read_blocklist(path.read_text(encoding="ascii"), str(path)))
        run_signer(settings, control, engine, open_journal)
    except Invalid as error:
        for problem in error.problems:
            _log.error("cannot start: %s", problem)
        return _EXIT_CONFIG
    except Unavailable as error:
        _log.error("cannot start: %s", error.detail)
        return _EXIT_TEMPORARY
    except OSError as error:
        _log.error("cannot go on: %s", error, exc_info=True)
        return _EXIT_TEMPORARY
    except Broken as error:
        _log.error("stopped at once: %s", error, exc_info=True)
        return _EXIT_SOFTWARE
    return 0


_SETTINGS_MAX_BYTES: Final = 64 * 1024
_BACKLOG: Final = 128
# sysexits.h: what a supervisor or an operator's unit file can tell apart.
_EXIT_SOFTWARE: Final = 70
_EXIT_TEMPORARY: Final = 75
_EXIT_CONFIG: Final = 78


def _listen(settings: SignerSettings) -> socket.socket:
    if settings.listen_fd is not None:
        listener = socket.socket(fileno=settings.listen_fd)
        listener.setblocking(False)
        return listener
    return _listen_at(Path(settings.socket_path or ""), settings.socket_mode)


def _listen_for_control(settings: SignerSettings) -> socket.socket | None:
    return None if settings.control_path is None else _listen_at(Path(settings.control_path), settings.socket_mode)


def _listen_at(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~mode)
    try:
        # The journal's lock is held, so a socket found there was left by a signer that is gone.
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise Invalid(
            [Problem(str(path), f"cannot be listened on: {error}", "Name a short path in a directory of its own.")]
        ) from None
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


if __name__ == "__main__":
    main()
