"""What a finished handshake tells the floors above: version, suite, group, certificates, channel bindings.

Promises: the certificates are the DER bytes as presented, leaf first, read once; a channel binding is given only where
its RFC defines it (RFC 5929 §3 for TLS 1.2, RFC 9266 §4.2), and None otherwise. Knows neither sockets nor HTTP.
"""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, dump_certificate

from estd.web.tls_context import LIB

_EXPORTER_LABEL: Final = b"EXPORTER-Channel-Binding"
_EXPORTER_BYTES: Final = 32


class TlsSession:
    """The secured channel of one connection; implements `estd.wire.exchange.Channel`."""

    __slots__ = ("_bindings", "_connection", "certificates", "cipher", "group", "version")

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection: SSL.Connection | None = connection
        self._bindings: dict[str, bytes | None] = {}
        self.version = connection.get_protocol_version_name()
        """``TLSv1.2`` or ``TLSv1.3``."""
        self.cipher = connection.get_cipher_name() or ""
        self.group = connection.get_group_name() or ""
        """OpenSSL's name of the key exchange group, such as ``X25519MLKEM768``."""
        self.certificates = _read_certificates(connection)
        """DER, leaf first, as the peer presented them; empty when it presented none."""

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
            if self.version != "TLSv1.3" and LIB.SSL_get_extms_support(connection._ssl) != 1:
                return None
            return connection.export_keying_material(_EXPORTER_LABEL, _EXPORTER_BYTES, b"")
        if kind == "tls-unique" and self.version == "TLSv1.2":
            # RFC 5929 §3.1: the first Finished of the latest handshake. Every handshake here is full and none is
            # repeated, so that is the client's, and the triple-handshake attack on it finds no resumption to use.
            return connection.get_peer_finished()
        return None


def _read_certificates(connection: SSL.Connection) -> tuple[bytes, ...]:
    leaf = connection.get_peer_certificate()
    if leaf is None:
        return ()
    # On the server's side OpenSSL keeps the leaf apart from the rest of the chain.
    rest = connection.get_peer_cert_chain() or ()
    return tuple(dump_certificate(FILETYPE_ASN1, certificate) for certificate in (leaf, *rest))
