"""The TLS settings of every connection: which versions, suites and groups, and what a client certificate proves.

Promises (RFC 9325, RFC 7030 §3.3): TLS 1.2 or later, forward-secret AEAD suites alone, no renegotiation, compression,
tickets, session cache or early data. A client certificate is asked for and proves possession of its key, nothing more:
no path is built from it and no date or name is looked at, because the ecosystem asked for decides that
(`estd.ra.admission`). Knows neither sockets nor HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from estd.errors import Invalid, Problem
from estd.web import openssl

# Our order decides, but for a client that puts ChaCha20 first because its chip has no AES: AES-128 with SHA-256 is the
# cheapest for both sides, and many stacks put AES-256 with SHA-384 first out of habit. All of these are recommended or,
# for CCM (RFC 7251), what the smallest stacks carry. CCM_8 is left out for its 64-bit tag.
_SUITES_1_3: Final = (
    b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_CCM_SHA256"
)
_SUITES_1_2: Final = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:"
    b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305:"
    b"ECDHE-ECDSA-AES128-CCM:ECDHE-ECDSA-AES256-CCM:@SECLEVEL=2"
)
# One tuple, so that any key share the client already sent is taken and nobody pays a HelloRetryRequest for a better
# one. No finite-field groups: a single ffdhe3072 key share costs five times the whole P-256 handshake.
_GROUPS: Final = b"X25519MLKEM768:X25519:P-256:SecP256r1MLKEM768:P-384:P-521"

# From OpenSSL's ssl.h; neither pyOpenSSL nor `cryptography` names it.
_OP_PRIORITIZE_CHACHA: Final = 1 << 21

# Below zero, OpenSSL looks at the leaf alone. At zero or above it would verify links of the presented chain, which is
# work of the peer's choosing (an RSA-16384 intermediate, say) for an answer that nobody here reads.
_NO_PATH: Final = -2

# RFC 7301 §3.2: HTTP/1 where the client offers it, the alert no_application_protocol where it offers others alone. A
# client that sends no ALPN, as older firmware does, speaks HTTP/1.1 unasked.
_CHOOSER: Final[Any] = openssl.make_chooser((b"http/1.1", b"http/1.0"))


def build_context(chain_pem: bytes, key_pem: bytes) -> SSL.Context:
    """Everything a connection needs to know, for the server certificate given leaf first.

    Raises:
        Invalid: the chain or the key cannot be read, or they do not belong together.
    """
    chain = _read_chain(chain_pem)
    key = _read_key(key_pem)
    if key.public_key() != chain[0].public_key():
        raise Invalid(
            [
                Problem(
                    "server certificate",
                    "its first certificate is not for the private key given",
                    "Put the server's own certificate first, and its own key beside it.",
                )
            ]
        )
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)  # RFC 9325 §3.1.1
    context.set_options(
        SSL.OP_NO_COMPRESSION
        # A resumed session would outlive a revocation and cross ecosystems; see also openssl.cnf beside this module.
        | SSL.OP_NO_TICKET
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_CIPHER_SERVER_PREFERENCE
        | _OP_PRIORITIZE_CHACHA
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    try:
        context.set_cipher_list(_SUITES_1_2)
        context.set_tls13_ciphersuites(_SUITES_1_3)
        context.use_certificate(chain[0])
        for certificate in chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)
        context.check_privatekey()
    except SSL.Error as error:
        raise Invalid(
            [
                Problem(
                    "server certificate",
                    f"OpenSSL does not take it ({_read_reasons(error) or 'no reason given'})",
                    "Use a P-256 key, or RSA with at least 2048 bits, and a SHA-256 signature.",
                )
            ]
        ) from None
    if not openssl.use_groups(context, _GROUPS):
        raise Invalid(
            [Problem("TLS", "this OpenSSL lacks a key exchange group", "Install the cryptography package's own wheel.")]
        )
    openssl.ask_for_certificate(context)
    context.set_verify_depth(_NO_PATH)
    # No client-CA list is set, so none is sent (RFC 5246 §7.4.4, RFC 8446 §4.2.4): a list of one ecosystem's anchors
    # would lock out the others, and one of all of them would tell each who the others are.
    openssl.use_chooser(context, _CHOOSER)
    return context


def _read_reasons(error: SSL.Error) -> str:
    """OpenSSL's own words for what went wrong, joined."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[2] for entry in entries if entry[2])


def _read_chain(chain_pem: bytes) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(chain_pem)
    except ValueError:
        raise Invalid(
            [
                Problem(
                    "server certificate",
                    "holds no readable PEM certificate",
                    "Give the server's certificate first, then its intermediates, each as a PEM block.",
                )
            ]
        ) from None


def _read_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey:
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        key = None
    if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        return key
    raise Invalid(
        [
            Problem(
                "server key",
                "is not an unencrypted P-256, RSA or Ed25519 private key in PEM",
                "Make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
            )
        ]
    )
