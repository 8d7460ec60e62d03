"""What becomes of a connection, in words that metrics carry and that do not change."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

Observe = Callable[[str], None]
"""Hears of each `Event` and each `estd.web.place.Refusal` once."""


class Event(enum.StrEnum):
    """One thing that happened to a connection."""

    HANDSHAKE_OK = "handshake-ok"
    # the handshake did not come to its end, through the peer's doing
    FAILED_PLAIN_HTTP = "handshake-failed-plain-http"
    FAILED_NOT_TLS = "handshake-failed-not-tls"
    FAILED_VERSION = "handshake-failed-version"
    FAILED_NOTHING_IN_COMMON = "handshake-failed-nothing-in-common"
    FAILED_APPLICATION_PROTOCOL = "handshake-failed-application-protocol"
    FAILED_POSSESSION = "handshake-failed-possession"
    FAILED_CERTIFICATES_TOO_BIG = "handshake-failed-certificates-too-big"
    FAILED_TOO_MUCH = "handshake-failed-too-much"
    FAILED_PEER_ALERT = "handshake-failed-peer-alert"
    FAILED_PROTOCOL = "handshake-failed-protocol"
    FAILED_GONE = "handshake-failed-gone"
    # we ended it
    EVICTED_HANDSHAKE = "evicted-handshake"
    EVICTED_FOR_ROOM = "evicted-for-room"
    EVICTED_IDLE_FOR_ROOM = "evicted-idle-for-room"
    EVICTED_HEADER = "evicted-header"
    EVICTED_IDLE = "evicted-idle"
    EVICTED_WRITE_STALL = "evicted-write-stall"
    EVICTED_SILENT_FLOOD = "evicted-silent-flood"
    EVICTED_BROKEN_RECORD = "evicted-broken-record"
    EVICTED_INTERNAL = "evicted-internal"
    # the peer ended it, and not by close_notify
    PEER_ALERT = "peer-alert"
    TRUNCATED = "truncated"


def read_failure(reasons: str) -> Event:
    """Which event OpenSSL's words for a failed handshake are."""
    for part, event in _FAILURES:
        if part in reasons:
            return event
    return Event.FAILED_PROTOCOL


_FAILURES: Final = (
    (" alert ", Event.FAILED_PEER_ALERT),
    ("no application protocol", Event.FAILED_APPLICATION_PROTOCOL),
    ("unsupported protocol", Event.FAILED_VERSION),
    ("no shared cipher", Event.FAILED_NOTHING_IN_COMMON),
    ("no suitable", Event.FAILED_NOTHING_IN_COMMON),
    ("no shared signature", Event.FAILED_NOTHING_IN_COMMON),
    ("bad signature", Event.FAILED_POSSESSION),
)
