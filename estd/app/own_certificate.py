"""The server's TLS certificate as an operator sees it: when it ends; and of one that the operator brings, whether it can be
shown at all, whether it is valid now, and for which names.

What cannot be used is refused wherever it is read: files that cannot be read, a key that is another certificate's. The
rest is the caller's to judge. A check refuses it; a server that has another certificate keeps that one, and one that starts
shows what it has, since a device that does not look at dates is better off than one that finds nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from prometheus_client import CollectorRegistry, Gauge

from estd.config import explain_unreadable, is_open
from estd.errors import Invalid, Problem

REGISTRY: Final = CollectorRegistry()

NOT_AFTER: Final = Gauge(
    "estd_tls_certificate_not_after_seconds",
    "When the certificate that the server shows ends, in seconds since 1970",
    registry=REGISTRY,
)


def read_own(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """PEM chain and key of the operator's own certificate.

    Raises:
        Invalid: with every reason why they cannot be used.
    """
    problems: list[Problem] = []
    chain, secret = (_read(path, problems) for path in (certificate, key))
    if chain is not None and secret is not None:
        problems += _check_pair(certificate, chain, key, secret)
    if problems or chain is None or secret is None:
        raise Invalid(problems)
    return chain, secret


def find_open_key(key: Path) -> Problem | None:
    """That others can read the private key, if they can."""
    return Problem(f"tls.key: {key}", "can be read by others", f"chmod 600 {key}") if is_open(key) else None


def find_end(chain: bytes) -> datetime:
    """When a server certificate ends, its chain given leaf first."""
    return x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc


def find_date_problem(chain: bytes, now: datetime, where: str) -> Problem | None:
    """What is wrong with the dates of a server certificate, if anything is."""
    leaf = x509.load_pem_x509_certificates(chain)[0]
    if now > leaf.not_valid_after_utc:
        what = f"ended on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M}Z, so devices refuse it"
        remedy = "Renew it where it came from; or remove tls.certificate and tls.key, and estd makes its own."
        return Problem(where, what, remedy)
    if now < leaf.not_valid_before_utc:
        what = f"begins on {leaf.not_valid_before_utc:%Y-%m-%d %H:%M}Z, and it is {now:%Y-%m-%d %H:%M}Z here"
        return Problem(where, what, "Set this machine's clock, or wait until then.")
    return None


def find_uncovered(chain: bytes, names: Iterable[str]) -> list[str]:
    """Names by which devices call this server and for which the certificate is none (RFC 9525 §6.3)."""
    leaf = x509.load_pem_x509_certificates(chain)[0]
    try:
        covered = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return list(names)
    hosts = {name.lower() for name in covered.get_values_for_type(x509.DNSName)}
    addresses = set(covered.get_values_for_type(x509.IPAddress))
    return [name for name in names if not _is_covered(name, hosts, addresses)]


# --- private -------------------------------------------------------------------------------------------------------


def _read(path: Path, problems: list[Problem]) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = explain_unreadable(path, error)
        problems.append(Problem(f"tls: {path}", f"cannot be read ({error.strerror})", remedy))
        return None


def _check_pair(certificate: Path, chain: bytes, key: Path, secret: bytes) -> list[Problem]:
    problems = []
    leaf = private = None
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        remedy = "Give the server's certificate first, then its intermediates, each as a PEM block."
        problems.append(Problem(f"tls.certificate: {certificate}", "is no certificate in PEM", remedy))
    try:
        private = load_pem_private_key(secret, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        remedy = f"Take the password off: openssl pkey -in {key}"
        problems.append(Problem(f"tls.key: {key}", "is no unencrypted key in PEM", remedy))
    if leaf is not None and private is not None and private != leaf:
        remedy = "Name the files that belong together, the server's own certificate first in its file."
        problems.append(Problem(f"tls.key: {key}", f"is not the key of {certificate}", remedy))
    return problems


def _is_covered(name: str, hosts: set[str], addresses: Collection[object]) -> bool:
    try:
        return ip_address(name) in addresses
    except ValueError:
        name = name.lower()
        # RFC 9525 §6.3: the asterisk stands for exactly one label, the leftmost.
        return name in hosts or f"*.{name.partition('.')[2]}" in hosts
