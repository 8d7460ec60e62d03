"""What goes into a journal in tests, and a journal as a crash would leave it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from estd.signer.blocks import Entry


def entry(number: int, size: int = 300) -> Entry:
    serial = hashlib.sha256(b"serial %d" % number).digest()[:20]
    return Entry(7, serial, hashlib.sha256(b"key %d" % number).digest(), b"%d." % number * (size // 4))


def crash(directory: Path, to: Path) -> Path:
    """The files as they would be found if the signer died now."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(directory, to)
    return to
