"""What a signer is told at its start: how it travels, and what stands for nothing said."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from estd.signer.journal import INDEX_ENTRIES, SEGMENT_BYTES
from estd.signer.settings import SignerSettings, find_control_path

LEAST = SignerSettings(slot=3, journal_directory="/var/lib/estd/journal", allowed_uids=[997])


def read(text: bytes) -> SignerSettings:
    """As the signer's process reads them."""
    return msgspec.json.decode(text, type=SignerSettings)


def test_what_is_written_is_read_again() -> None:
    for settings in (
        LEAST,
        msgspec.structs.replace(
            LEAST, listen_fd=5, socket_mode=0o660, blocklist_path="/etc/estd/blocked", marks=["1-00.5.00"]
        ),
        msgspec.structs.replace(LEAST, clock_tolerance_seconds=float("1e12"), index_entries=5_000_000),
    ):
        assert read(msgspec.json.encode(settings)) == settings


@pytest.mark.parametrize("missing", ["slot", "journal_directory", "allowed_uids"])
def test_nothing_that_matters_has_a_value_of_its_own(missing: str) -> None:
    told = msgspec.to_builtins(LEAST)
    del told[missing]
    with pytest.raises(msgspec.ValidationError, match=missing):
        read(msgspec.json.encode(told))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_uid", [0]),  # a word that another version has, or a slip: it would fail open
        ("allowed_uids", "997"),
        ("allowed_uids", ["root"]),
        ("slot", "3"),
        ("slot", None),
        ("socket_mode", "0600"),
        ("marks", None),
    ],
)
def test_what_is_not_understood_is_refused(name: str, value: object) -> None:
    told = msgspec.to_builtins(LEAST) | {name: value}
    with pytest.raises(msgspec.ValidationError):
        read(msgspec.json.encode(told))


def test_where_nothing_is_said_nobody_else_is_let_in() -> None:
    assert LEAST.socket_mode == 0o600
    assert (LEAST.socket_path, LEAST.listen_fd, LEAST.control_path) == (None, None, None)
    assert (LEAST.segment_bytes, LEAST.index_entries) == (SEGMENT_BYTES, INDEX_ENTRIES)
    assert LEAST.marks == []
    other = SignerSettings(slot=4, journal_directory="/x", allowed_uids=[])
    other.marks.append("a mark")
    assert LEAST.marks == []


def test_settings_stay_what_they_were() -> None:
    with pytest.raises(AttributeError):
        LEAST.allowed_uids = [0]  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("socket", "control"),
    [
        ("/run/estd-signer/0.sock", "/run/estd-signer/0.sock.control"),
        ("/run/estd-signer/signer", "/run/estd-signer/signer.control"),
        ("signer.a.b", "signer.a.b.control"),
    ],
)
def test_the_control_socket_stands_beside_the_other(socket: str, control: str) -> None:
    assert find_control_path(Path(socket)) == Path(control)


def test_no_two_signers_of_a_directory_meet_in_one_control_socket() -> None:
    sockets = [Path("/run/x") / name for name in ("0", "1", "0.sock", "0.other", "1.sock")]
    found = {find_control_path(path) for path in sockets}
    assert len(found) == len(sockets)
    assert not found & set(sockets)
