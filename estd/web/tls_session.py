"""What a finished handshake tells the floors above: version, suite, group, certificates, channel bindings.

Promises: the certificates are the DER bytes as presented, leaf first, read once; a channel binding is given only where
its RFC defines it (RFC 5929 §3 for TLS 1.2, RFC 9266 §4.2), and None otherwise. Knows neither sockets nor HTTP.
"""

from __future__ import annotations

from typing import Final

from estd.web.openssl import Connection

_EXPORTER_LABEL: Final = b"EXPORTER-Channel-Binding"
_EXPORTER_BYTES: Final = 32


class TlsSession:
    """The secured channel of one connection; implements `estd.wire.exchange.Channel`."""

    __slots__ = ("_bindings", "_connection", "certificates", "version")

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._bindings: dict[str, bytes | None] = {}
        self.version = connection.version()
        """``TLSv1.2`` or ``TLSv1.3``."""
        self.certificates = connection.certificates()
        """DER, leaf first, as the peer presented them; empty when it presented none."""

    @property
    def cipher(self) -> str:
        """OpenSSL's name of the cipher suite, or nothing once the connection is closed."""
        return "" if self._connection is None else self._connection.cipher()

    @property
    def group(self) -> str:
        """OpenSSL's name of the key exchange group, such as ``X25519MLKEM768``, or nothing once it is closed."""
        return "" if self._connection is None else self._connection.group()

    def channel_binding(self, kind: str) -> bytes | None:
        """The binding of that kind, or None where this channel cannot give it or is already closed."""
        if kind not in self._bindings:
            self._bindings[kind] = self._read_binding(kind)
        return self._bindings[kind]

    def release(self) -> None:
        """The connection is over: let go of it. Bindings that were asked for stay."""
        self._connection = None

    def _read_binding(self, kind: str) -> bytes | None:
        connection = self._connection
        if connection is None:
            return None
        if kind == "tls-exporter":
            # RFC 9266 §4.2: below TLS 1.3 only with the extended master secret (RFC 7627). The context is empty but
            # present, which is the same as absent in TLS 1.3 and is not in TLS 1.2 (RFC 5705 §4).
            if self.version != "TLSv1.3" and not connection.has_extended_master_secret():
                return None
            return connection.export(_EXPORTER_LABEL, _EXPORTER_BYTES)
        if kind == "tls-unique" and self.version == "TLSv1.2":
            # RFC 5929 §3.1: the first Finished of the latest handshake. Every handshake here is full and none is
            # repeated, so that is the client's, and the triple-handshake attack on it finds no resumption to use.
            return connection.peer_finished()
        return None
