"""The server's own TLS certificate, issued by estd itself unless the operator brings one.

An internal ecosystem, unreachable for devices, issues it down the same road as every other certificate: intent, journal,
audit event. Its root is written to ``server-trust.pem`` in the data directory; that is what clients install.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtensionOID

from estd.app.apply import apply_document
from estd.app.files import write_file
from estd.app.own_certificate import read_own
from estd.ca.ecosystem import read_document
from estd.config import Config, write_tls_name
from estd.errors import Invalid, Problem, Refused
from estd.names import same_san, write_san
from estd.ra.directory import INTERNAL_LABEL
from estd.ra.enrollment import Enrollment
from estd.ra.order import Order, write_request_key
from estd.store.contract import Store

LABEL: Final = INTERNAL_LABEL
_PROFILE: Final = "server"
_RENEW_AT: Final = 2 / 3
"""Of its life; the rest is the time an operator has to notice that renewing fails."""

_COMMON_NAME_AT_MOST: Final = 64
"""RFC 5280 appendix A.1, ub-common-name."""

_DOCUMENT: Final = """
[ecosystem]
label = "{label}"
name = "This server's own certificates"

[[issuer]]
name = "trust"
subject = "CN=estd server trust {mark}"
key = "ec-p256"
validity = "30y"
path_length = 0

[profile.server]
issuer = "trust"
enroll = []
renew = "never"
keys = ["ec-p256"]
subject = "request"
san = "request"
san_rule = {{ types = ["dns", "ip"], required = [], max = 50 }}
key_usage = ["digitalSignature"]
extended_key_usage = ["serverAuth", "cmcRA"]
validity = "90d"
csrattrs = "off"

[[profile.server.subject_attribute]]
type = "CN"
required = true
"""


async def ensure_ecosystem(store: Store, kek: bytes | None) -> None:
    """Make the internal ecosystem if this is the first start.

    Raises:
        Invalid: it is, and there is no key-encryption key here to make it with.
    """
    if any(record.label == LABEL for record in await store.find_ecosystems()):
        return
    if kek is None:
        what = "has no ecosystem yet, and a server with signers of its own holds no key to make the first one"
        raise Invalid([Problem("the database", what, "Apply one first, where the key is: estd apply FILE.")])
    # Clients may trust several servers; the mark keeps their roots apart.
    text = _DOCUMENT.format(label=LABEL, mark=secrets.token_hex(4))
    rules = read_document(text, "the server's own ecosystem", _read_nothing)
    await apply_document(store, kek, rules, "estd", internal=True)


async def ensure_certificate(
    config: Config, store: Store, enrollment: Enrollment, now: datetime
) -> tuple[bytes, bytes]:
    """PEM chain and key of the server's certificate; a new one is issued when the present one is missing, is for other
    names, comes from another root, does not belong to the present key, or has less than a third of its life left.

    Raises:
        Invalid: the operator's own certificate or key cannot be used, or ``tls.names`` holds what is no name.
        Unavailable: it cannot be issued now.
        OSError: a file cannot be written.
    """
    record = next(record for record in await store.find_ecosystems() if record.label == LABEL)
    root = record.issuers[-1]
    directory = config.data_directory
    _write(directory / "server-trust.pem", _pem(root.certificate), 0o644)
    if config.tls_certificate is not None and config.tls_key is not None:
        return read_own(config.tls_certificate, config.tls_key)
    chain_path, key_path = directory / "server.pem", directory / "server.key"
    san = _write_names(config.tls_names)
    if _is_good(chain_path, key_path, san, root.certificate, now):
        return chain_path.read_bytes(), key_path.read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())
    short = next((name for name in config.tls_names if len(name) <= _COMMON_NAME_AT_MOST), "estd server")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, short)])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, san), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    digest = hashlib.sha256(csr).digest()
    certificate = await enrollment.enroll(
        Order(
            request_key=write_request_key(record.ecosystem_id, "estd", _PROFILE, digest),
            ecosystem_id=record.ecosystem_id,
            ecosystem_version=record.version,
            node_id=record.node_id,
            ecosystem=LABEL,
            profile=_PROFILE,
            retry_window=timedelta(),
            operation="server-certificate",
            identity="estd",
            device=config.tls_names[0],
            csr=csr,
            csr_sha256=digest,
            subject=subject.public_bytes(),
            san=san,
            code_id=None,
            address="",
            request_id="",
        )
    )
    chain = _pem(certificate)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # The key first: a certificate beside the key before it would look complete and not work.
    _write(key_path, key_pem, 0o600)
    _write(chain_path, chain, 0o644)
    return chain, key_pem


# --- private -------------------------------------------------------------------------------------------------------


def _read_nothing(path: str) -> bytes:
    raise FileNotFoundError(path)


def _write_names(names: Sequence[str]) -> bytes:
    try:
        return write_san(write_tls_name(name) for name in names)
    except Refused as refused:
        remedy = "Name the host names and addresses that devices use."
        raise Invalid([Problem("tls.names", refused.detail, remedy)]) from None


def _is_good(chain_path: Path, key_path: Path, wanted: bytes, root: bytes, now: datetime) -> bool:
    """Whether this certificate and this key may go on being shown.

    Args:
        chain_path: of the certificate, PEM.
        key_path: of the key, PEM.
        wanted: the value of the subjectAltName extension it would have if it were made now.
        root: which has to have issued it, DER.
        now: by the server's clock.
    """
    try:
        certificate = x509.load_pem_x509_certificate(chain_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        # Compared as names, not as texts: an address has many spellings, and a host name has upper and lower case.
        has_names = same_san(names.public_bytes(), wanted)
        is_pair = key.public_key() == certificate.public_key()
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, Refused):
        return False  # whatever it is, it was not made here, or not wholly written
    issuer = x509.load_der_x509_certificate(root)
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (
        certificate.issuer == issuer.subject
        and has_names
        and is_pair
        and starts <= now < starts + (ends - starts) * _RENEW_AT
    )


def _pem(certificate: bytes) -> bytes:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Only if it differs."""
    if not path.exists() or path.read_bytes() != content:
        write_file(path, content, mode)
