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


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A signature algorithm as a certificate names it."""

    name: str
    identifier: bytes
    """DER AlgorithmIdentifier; equal bytes are the only equality RFC 5280 §4.1.1.2 asks for."""
    signature_max_bytes: int
    """The longest signature value; a DER-encoded ECDSA signature may be a few octets shorter."""


class SigningKey(Protocol):
    """See the module for what every key promises."""

    @property
    def key_type(self) -> str:
        """One of `KEY_TYPES`."""

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


# RFC 4055 §5: parameters NULL. RFC 5758 §3.2, RFC 8410 §3, RFC 9881 §2: parameters absent.
_ECDSA = "300a06082a8648ce3d0403"
_RSA = "300d06092a864886f70d0101"
_ML_DSA = "300b06096086480165030403"

ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    # A digest at least as strong as the key; RSA above 3072 bits gains nothing from more than SHA-384.
    "rsa-2048": Algorithm("sha256WithRSAEncryption", bytes.fromhex(_RSA + "0b0500"), 256),
    "rsa-3072": Algorithm("sha256WithRSAEncryption", bytes.fromhex(_RSA + "0b0500"), 384),
    "rsa-4096": Algorithm("sha384WithRSAEncryption", bytes.fromhex(_RSA + "0c0500"), 512),
    "ec-p256": Algorithm("ecdsa-with-SHA256", bytes.fromhex(_ECDSA + "02"), 72),
    "ec-p384": Algorithm("ecdsa-with-SHA384", bytes.fromhex(_ECDSA + "03"), 104),
    "ec-p521": Algorithm("ecdsa-with-SHA512", bytes.fromhex(_ECDSA + "04"), 139),
    "ed25519": Algorithm("id-Ed25519", bytes.fromhex("300506032b6570"), 64),
    "ml-dsa-44": Algorithm("id-ml-dsa-44", bytes.fromhex(_ML_DSA + "11"), 2420),
    "ml-dsa-65": Algorithm("id-ml-dsa-65", bytes.fromhex(_ML_DSA + "12"), 3309),
    "ml-dsa-87": Algorithm("id-ml-dsa-87", bytes.fromhex(_ML_DSA + "13"), 4627),
}
"""How a key of each type signs."""

KEY_TYPES: Final[tuple[str, ...]] = tuple(ALGORITHMS)
"""Every key type estd knows, for issuers and for devices alike."""
