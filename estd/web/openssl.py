"""One connection's end of TLS in OpenSSL, over two memory buffers; every name that pyOpenSSL does not offer is here.

pyOpenSSL builds the context. A connection goes around its `Connection`, through the same binding: that one allocates,
looks things up and raises exceptions on the ordinary way too, which cost a fifth of a handshake, and it lacks three calls
that are wanted here.

Promises: an error is raised with OpenSSL's reasons and leaves none behind in its queue, where the next call would take it
for its own; waiting for the peer is no error; what OpenSSL allocated is freed with the object. Knows neither sockets nor
HTTP, nor what the settings ought to be (`estd.web.tls_context`).
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

LIB: Final[Any] = Binding.lib
"""The OpenSSL inside the `cryptography` wheel, as pyOpenSSL calls it."""
_FFI: Final[Any] = Binding.ffi

RECORD_BYTES: Final = 16_384
"""RFC 8446 §5.1: the most plaintext one record holds."""
OUTPUT_BYTES: Final = 2 * RECORD_BYTES
"""The most that `Connection.take` gives at once."""

_BUFFER: Final[Any] = _FFI.new_allocator(should_clear_after_alloc=False)("char[]", OUTPUT_BYTES)
"""Where OpenSSL puts what `take` and `read` copy out at once. One for all connections, which share a thread: an allocation
of this size goes past the allocator's caches, and through all that it holds of smaller pieces."""
_MEMORY: Final[Any] = LIB.BIO_s_mem()
_SCRATCH: Final[Any] = LIB.BIO_new(_MEMORY)
"""Where OpenSSL writes what it knows no other way to write; empty between two calls, and kept for the same reason."""
_WANT_READ: Final[int] = LIB.SSL_ERROR_WANT_READ
_ALPN_OK: Final[int] = LIB.SSL_TLSEXT_ERR_OK
_ALPN_FATAL: Final[int] = LIB.SSL_TLSEXT_ERR_ALERT_FATAL
_ZERO_RETURN: Final[int] = LIB.SSL_ERROR_ZERO_RETURN
_VERSIONS: Final = {SSL.TLS1_3_VERSION: "TLSv1.3", SSL.TLS1_2_VERSION: "TLSv1.2"}


class TlsError(Exception):
    """The handshake or the stream is broken beyond repair."""

    def __init__(self, reasons: str) -> None:
        super().__init__(reasons)
        self.reasons = reasons
        """OpenSSL's own words, joined."""


class Connection:
    """A server's end. Each call does what it can with the bytes given so far and never waits."""

    __slots__ = ("__weakref__", "_from_peer", "_ssl", "_to_peer")

    def __init__(self, context: SSL.Context) -> None:
        self._ssl = ssl = _FFI.gc(LIB.SSL_new(context._context), LIB.SSL_free)
        from_peer, to_peer = LIB.BIO_new(_MEMORY), LIB.BIO_new(_MEMORY)
        if not (ssl and from_peer and to_peer):
            raise MemoryError("OpenSSL cannot make another connection")
        LIB.SSL_set_bio(ssl, from_peer, to_peer)  # from here they are freed with it
        LIB.SSL_set_accept_state(ssl)
        self._from_peer = from_peer
        self._to_peer = to_peer

    # --- records ----------------------------------------------------------------------------------------------------

    def feed(self, data: bytes | memoryview) -> None:
        """Bytes from the peer, for the next `handshake` or `read`."""
        source = data if type(data) is bytes else _FFI.from_buffer(data)
        if LIB.BIO_write(self._from_peer, source, len(data)) != len(data):
            raise MemoryError("OpenSSL cannot hold what the peer sent")

    def take(self) -> bytes:
        """What there is to be sent to the peer, `OUTPUT_BYTES` at most; empty when there is nothing."""
        size = LIB.BIO_read(self._to_peer, _BUFFER, OUTPUT_BYTES)
        output: bytes = _FFI.unpack(_BUFFER, size) if size > 0 else b""
        return output

    def handshake(self) -> bool:
        """Whether the handshake is finished.

        Raises:
            TlsError: it never will be; `take` may hold the alert that says why.
        """
        result = LIB.SSL_do_handshake(self._ssl)
        if result == 1:
            return True
        if LIB.SSL_get_error(self._ssl, result) != _WANT_READ:
            raise TlsError(_read_reasons())
        return False

    def read(self) -> bytes | None:
        """The plaintext of one record at most: None when no record is complete, empty after the peer's close_notify.

        Raises:
            TlsError: a fatal alert, or bytes that are no record of this connection.
        """
        size = LIB.SSL_read(self._ssl, _BUFFER, RECORD_BYTES)
        if size > 0:
            plaintext: bytes = _FFI.unpack(_BUFFER, size)
            return plaintext
        error = LIB.SSL_get_error(self._ssl, size)
        if error == _WANT_READ:
            return None
        if error == _ZERO_RETURN:
            return b""
        raise TlsError(_read_reasons())

    def has_input(self) -> bool:
        """Whether there is more for `read` than what it waits for; cheaper than to ask it."""
        return bool(LIB.BIO_get_mem_data(self._from_peer, _FFI.NULL))

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt plaintext for `take`; how much of it that was.

        Raises:
            TlsError: the connection is broken.
        """
        source = data if type(data) is bytes else _FFI.from_buffer(data)
        size: int = LIB.SSL_write(self._ssl, source, len(data))
        if size <= 0:
            raise TlsError(_read_reasons())
        return size

    def shut_down(self) -> None:
        """Put close_notify where `take` finds it.

        Raises:
            TlsError: OpenSSL has already given the connection up.
        """
        if LIB.SSL_shutdown(self._ssl) < 0:
            raise TlsError(_read_reasons())

    # --- what the handshake agreed on -------------------------------------------------------------------------------

    def version(self) -> str:
        """``TLSv1.2`` or ``TLSv1.3``."""
        return _VERSIONS[LIB.SSL_version(self._ssl)]

    def cipher(self) -> str:
        """OpenSSL's name of the cipher suite."""
        return _read_text(LIB.SSL_CIPHER_get_name(LIB.SSL_get_current_cipher(self._ssl)))

    def group(self) -> str:
        """OpenSSL's name of the key exchange group, such as ``X25519MLKEM768``."""
        return _read_text(LIB.SSL_get0_group_name(self._ssl))

    def certificates(self) -> tuple[bytes, ...]:
        """DER, leaf first, as the peer presented them; empty when it presented none."""
        leaf = LIB.SSL_get_peer_certificate(self._ssl)
        if not leaf:
            return ()
        try:
            # On the server's side OpenSSL keeps the leaf apart from the rest of the chain, which stays its own.
            rest = LIB.SSL_get_peer_cert_chain(self._ssl)
            return (
                _write_der(leaf),
                *[_write_der(LIB.sk_X509_value(rest, index)) for index in range(LIB.sk_X509_num(rest))],
            )
        finally:
            LIB.X509_free(leaf)

    def has_extended_master_secret(self) -> bool:
        """RFC 7627; meaningless in TLS 1.3."""
        return bool(LIB.SSL_get_extms_support(self._ssl) == 1)

    def export(self, label: bytes, size: int) -> bytes:
        """Keying material for an empty context that is present (RFC 5705 §4)."""
        buffer = _FFI.new("unsigned char[]", size)
        if LIB.SSL_export_keying_material(self._ssl, buffer, size, label, len(label), b"", 0, 1) != 1:
            raise TlsError(_read_reasons())
        return bytes(_FFI.buffer(buffer))

    def peer_finished(self) -> bytes:
        """The peer's latest Finished message."""
        buffer = _FFI.new("char[]", LIB.EVP_MAX_MD_SIZE)
        finished: bytes = _FFI.unpack(buffer, LIB.SSL_get_peer_finished(self._ssl, buffer, LIB.EVP_MAX_MD_SIZE))
        return finished


# --- settings of a context --------------------------------------------------------------------------------------------


def use_groups(context: SSL.Context, names: bytes) -> bool:
    """Whether OpenSSL knows these key exchange groups, which are offered from now on."""
    if LIB.SSL_CTX_set1_curves_list(context._context, names) == 1:
        return True
    LIB.ERR_clear_error()
    return False


def ask_for_certificate(context: SSL.Context) -> None:
    """Ask the client for a certificate, and take any whose key it proves to hold, or none."""
    LIB.SSL_CTX_set_verify(context._context, SSL.VERIFY_PEER, _ACCEPT)


def make_chooser(protocols: tuple[bytes, ...]) -> Any:
    """For `use_chooser`: picks the first of these that the client offers by ALPN, and fails where it offers others alone.

    Whoever makes it keeps it for as long as there are connections.
    """
    choices = [(protocol, _FFI.new("unsigned char[]", protocol)) for protocol in protocols]

    def choose(_ssl: object, out: Any, out_size: Any, given: Any, given_size: int, _argument: object) -> int:
        offered: list[bytes] = []
        rest = bytes(_FFI.buffer(given, given_size))
        while rest:
            end = 1 + rest[0]
            offered.append(rest[1:end])
            rest = rest[end:]
        for protocol, buffer in choices:
            if protocol in offered:
                out[0], out_size[0] = buffer, len(protocol)
                return _ALPN_OK
        return _ALPN_FATAL

    signature = "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)"
    return _FFI.callback(signature, choose, error=_ALPN_FATAL)


def use_chooser(context: SSL.Context, chooser: Any) -> None:
    """Choose the application protocol (RFC 7301) so; a client that sends no ALPN is never asked."""
    LIB.SSL_CTX_set_alpn_select_cb(context._context, chooser, _FFI.NULL)


def _accept(_ok: int, _store: object) -> int:
    return 1


# OpenSSL calls this three times a handshake, so it goes around pyOpenSSL's wrapper and the objects that it makes.
_ACCEPT: Final[Any] = _FFI.callback("int (*)(int, X509_STORE_CTX *)", _accept)


# --- reading what OpenSSL holds ---------------------------------------------------------------------------------------


def _write_der(certificate: Any) -> bytes:
    is_whole = LIB.i2d_X509_bio(_SCRATCH, certificate) == 1
    der = b""
    while (size := LIB.BIO_read(_SCRATCH, _BUFFER, OUTPUT_BYTES)) > 0:
        der += _FFI.unpack(_BUFFER, size)
        if size < OUTPUT_BYTES:
            break
    if not is_whole:
        raise TlsError(_read_reasons())
    return der


def _read_reasons() -> str:
    """What went wrong; the queue is empty afterwards."""
    reasons: list[str] = []
    while error := LIB.ERR_get_error():
        reasons.append(_read_text(LIB.ERR_reason_error_string(error)))
    return "; ".join(filter(None, reasons))


def _read_text(text: Any) -> str:
    return _FFI.string(text).decode() if text else ""
