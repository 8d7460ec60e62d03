"""What a key that signs certificates promises, whatever keeps it.

Promises every implementation makes (``tests/unit/keys`` holds them to it):

* `SigningKey.sign_many` answers in the order of its messages and signs all of them or raises; nothing half-done.
* The answer is the content of an X.509 ``signatureValue`` BIT STRING (RFC 5280 §4.1.1.3), made with the algorithm whose
  AlgorithmIdentifier `Algorithm.identifier` is, to the byte.
* Where `SigningKey.deterministic` is true the same message always gives the same signature, so a message that a journal
  holds may be signed again after a crash. Where it is false nothing may ever be signed twice.

Carries the AlgorithmIdentifiers of RFC 4055 §5, RFC 5758 §3.2, RFC 8410 §3 and RFC 9881 §2. Must not import anything of
the floors above, and knows no file, socket or clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from estd.asn1 import der


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A signature algorithm as a certificate names it."""

    name: str
    """As `estd.asn1.oids` calls it."""
    identifier: bytes
    """DER AlgorithmIdentifier; equal bytes are the only equality RFC 5280 §4.1.1.2 asks for."""
    signature_max_bytes: int
    """The longest signature value; a DER-encoded ECDSA signature may be a few octets shorter."""


class SigningKey(Protocol):
    """See the module for what every key promises."""

    @property
    def key_type(self) -> str:
        """One of `estd.asn1.spki.KEY_TYPES`."""

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm this key signs with."""

    @property
    def spki(self) -> bytes:
        """The public half: DER SubjectPublicKeyInfo."""

    @property
    def deterministic(self) -> bool:
        """Whether signing the same message again gives the same bytes."""

    def sign_many(self, messages: Sequence[bytes]) -> list[bytes]:
        """Sign each message, in order.

        Raises:
            Unavailable: the key cannot be reached; whether it signed is unknown.
        """


def _algorithm(name: str, parameters: bytes, signature_max_bytes: int) -> Algorithm:
    return Algorithm(name, der.sequence(der.oid(name), parameters), signature_max_bytes)


ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    # A digest at least as strong as the key. RFC 4055 §5: parameters NULL.
    "rsa-2048": _algorithm("sha256WithRSAEncryption", der.NULL, 256),
    "rsa-3072": _algorithm("sha256WithRSAEncryption", der.NULL, 384),
    "rsa-4096": _algorithm("sha384WithRSAEncryption", der.NULL, 512),
    # RFC 5758 §3.2, RFC 8410 §3, RFC 9881 §2: parameters absent.
    "ec-p256": _algorithm("ecdsaWithSHA256", b"", 72),
    "ec-p384": _algorithm("ecdsaWithSHA384", b"", 104),
    "ec-p521": _algorithm("ecdsaWithSHA512", b"", 139),
    "ed25519": _algorithm("ed25519", b"", 64),
    "ml-dsa-44": _algorithm("mlDsa44", b"", 2420),
    "ml-dsa-65": _algorithm("mlDsa65", b"", 3309),
    "ml-dsa-87": _algorithm("mlDsa87", b"", 4627),
}
"""How a key of each type of `estd.asn1.spki.KEY_TYPES` signs."""
