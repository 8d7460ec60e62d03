"""Certificates and requests that strangers made, read by `cryptography` without a surprise.

The library refuses what it cannot read by eight kinds of exception, some of them below nothing but `Exception`, and many
of them only when a field is asked for. Here they become one, `Unreadable`, which is a ValueError. Whatever comes from
outside is read by these functions, or between `reading` and its end.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm


class Unreadable(ValueError):
    """The library refuses these octets; the text says why in its words."""


class _Reading:
    """One for all: every request passes through it a few times."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyError):
            raise Unreadable(f"a value that it does not know: {error}") from None
        if isinstance(error, _REFUSALS):
            raise Unreadable(str(error)) from None


def reading() -> AbstractContextManager[None]:
    """Whatever the library raises in here because of what it reads is raised as `Unreadable`."""
    return _READING


def read_certificate(der: bytes) -> x509.Certificate:
    """The certificate. Its extensions have not been read; see `read_extensions`.

    Raises:
        Unreadable: no certificate, or of a version that is none of X.509's three.
    """
    with reading():
        return x509.load_der_x509_certificate(der)


def read_pem_certificates(content: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file, in order; there is one at least.

    Raises:
        Unreadable: one of them is no certificate, or there is none.
    """
    with reading():
        return x509.load_pem_x509_certificates(content)


def read_extensions(certificate: x509.Certificate) -> x509.Extensions:
    """All its extensions.

    Raises:
        Unreadable: one is there twice (RFC 5280 §4.2), or has a value that cannot be read.
    """
    with reading():
        return certificate.extensions


# --- private ---------------------------------------------------------------------------------------------------------

_READING: Final = _Reading()
_REFUSALS: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
