"""What a signer is told at its start; plain values, nothing secret.

Must not import anything of the signer but constants.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from estd.signer.journal import INDEX_ENTRIES, SEGMENT_BYTES


def find_control_path(socket_path: Path) -> Path:
    """Where a signer that runs on its own, and listens at `socket_path`, waits for its supervisor."""
    return socket_path.with_name(f"{socket_path.name}.control")


class SignerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a signer is told at its start. Nothing here is secret."""

    slot: int
    """Which journal of the directory is its own."""
    journal_directory: str
    allowed_uids: list[int]
    """Users whose processes may call."""
    socket_path: str | None = None
    """Where to listen; or else `listen_fd`."""
    listen_fd: int | None = None
    """An inherited socket that listens already."""
    control_path: str | None = None
    """Where a signer that was not started by its supervisor waits for it."""
    socket_mode: int = 0o600
    """Mode of both sockets; 0660 lets another user in by group, where `allowed_uids` is asked."""
    blocklist_path: str | None = None
    """Keys that are never certified, besides those that standards published; see `estd.ca.blocklist`."""
    log_level: str = "info"
    prepared_limit: int = 2048
    """How many items may be prepared and not sealed."""
    prepared_seconds: float = 60.0
    """How long they may."""
    connections_max: int = 256
    stall_seconds: float = 10.0
    """How long half a frame may wait for its other half."""
    drain_seconds: float = 10.0
    clock_tolerance_seconds: float = 3600.0
    """How far the clock may be behind the newest journal record before nothing more is prepared."""
    segment_bytes: int = SEGMENT_BYTES
    index_entries: int = INDEX_ENTRIES
    marks: list[str] = []
    """How far the journals had come when the database's newest certificates were begun; its own has to bear that out."""
