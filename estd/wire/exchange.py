"""The neutral request and answer that every protocol speaks.

A protocol package receives an `Exchange` and returns a `Reply`; it never sees a socket, so a second transport (EST over
CoAP, RFC 9148) is an adapter beside `estd.web` and not a fork of the protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

HOME: Final = "home"
"""In `Peer.memo`: the id of the ecosystem that last admitted this peer. The web floor tells crowds apart by it."""

IDENTITY: Final = "identity"
"""In `Peer.memo`: who that was, as audit events say it."""


class Channel(Protocol):
    """The secured channel a request came over, as far as a protocol may look at it."""

    @property
    def version(self) -> str:
        """``TLSv1.2`` or ``TLSv1.3``."""

    def channel_binding(self, kind: str) -> bytes | None:
        """The channel's binding of that kind, or None where the channel cannot give it.

        Kinds: ``tls-unique`` (RFC 5929 §3, TLS 1.2 only), ``tls-exporter`` (RFC 9266 §4.2).
        """


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: an address, and the certificates whose key it proved to hold.

    Nothing here is trusted yet: the handshake proves possession of the leaf's key, and `estd.ra.admission` decides
    what that is worth in the ecosystem asked for.
    """

    address: str
    certificates: tuple[bytes, ...] = ()
    """DER, leaf first, as presented; empty when the client sent none."""
    channel: Channel | None = None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Lives as long as the connection; admission keeps validated paths here."""


class Incoming(Protocol):
    """A request's body that is still on its way, for operations that take one of any length."""

    async def read(self) -> bytes:
        """More of it; empty at its end, and when this server wants to stop.

        Raises:
            Refused: it does not come (REQUEST_TIMEOUT), or is no body.
            ConnectionError: the client left.
        """

    @property
    def is_stopping(self) -> bool:
        """Whether the end that `read` told was this server's wish."""


class Exchange(msgspec.Struct, frozen=True):
    """One request: a header is found by its name in lower case, `body` is complete and capped, `at` is aware UTC.

    What is made for each request is a `msgspec.Struct` here and in other modules: it costs a tenth of a frozen dataclass.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    peer: Peer
    request_id: str
    at: datetime
    incoming: Incoming | None = None
    """In place of `body`, where the protocol asked for that."""


class Reply(msgspec.Struct, frozen=True):
    """One answer. `headers` holds what the protocol adds; length, date and connection belong to the transport.

    `stream`, if there is one, takes the place of `body`: the transport sends what it yields as fast as the client takes
    it, and closes it whatever happens.
    """

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    stream: AsyncGenerator[bytes, None] | None = None
