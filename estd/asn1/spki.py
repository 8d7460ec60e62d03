"""SubjectPublicKeyInfo: what kind of key it is (RFC 5280 §4.1.2.7, RFC 3279 §2.3.1, RFC 5480, RFC 8410, RFC 9881).

Promises a key type out of a closed list or `Refused`, without any arithmetic on the key: `estd.ca.keyrules` judges
whether the key is any good. An algorithm is recognised by its whole AlgorithmIdentifier, so parameters that are missing,
superfluous or explicit are never mistaken for the named ones.
"""

from __future__ import annotations

from functools import lru_cache

from estd.asn1 import der
from estd.errors import Code, Refused

KEY_TYPES = (
    "rsa-2048",
    "rsa-3072",
    "rsa-4096",
    "ec-p256",
    "ec-p384",
    "ec-p521",
    "ed25519",
    "ml-dsa-44",
    "ml-dsa-65",
    "ml-dsa-87",
)
"""Every type of key estd can certify, as profiles name them."""

MAX_RSA_BITS = 4096
MAX_RSA_EXPONENT_BITS = 64

RSA = der.sequence(der.oid("rsaEncryption"), der.NULL)
ALGORITHMS = {
    "ec-p256": der.sequence(der.oid("ecPublicKey"), der.oid("secp256r1")),
    "ec-p384": der.sequence(der.oid("ecPublicKey"), der.oid("secp384r1")),
    "ec-p521": der.sequence(der.oid("ecPublicKey"), der.oid("secp521r1")),
    "ed25519": der.sequence(der.oid("ed25519")),
    "ml-dsa-44": der.sequence(der.oid("mlDsa44")),
    "ml-dsa-65": der.sequence(der.oid("mlDsa65")),
    "ml-dsa-87": der.sequence(der.oid("mlDsa87")),
}
"""The AlgorithmIdentifier of each key type but the RSA ones, which share `RSA`."""


@lru_cache(maxsize=512)
def read_spki(spki: bytes) -> tuple[bytes, bytes]:
    """The AlgorithmIdentifier (whole element) and the key's octets.

    Kept for more keys than a signer is given at once, because one request's key is read in several places.
    """
    plain = _PLAIN.get(len(spki))
    if plain is not None and spki.startswith(plain[0]):
        # All but the key's octets is as in every key of its type, so there is nothing left to read.
        return plain[1], spki[len(plain[0]) :]
    start, stop = der.read_whole(spki, der.SEQUENCE)
    algorithm_stop = der.read_tagged(spki, start, stop, der.SEQUENCE)[1]
    key_start, key_stop = der.read_tagged(spki, algorithm_stop, stop, der.BIT_STRING)
    if key_stop != stop:
        raise Refused(Code.MALFORMED_REQUEST, "something follows the key in its SubjectPublicKeyInfo", "RFC 5280 §4.1")
    return spki[start:algorithm_stop], der.read_octets(spki, key_start, key_stop)


def read_rsa(octets: bytes) -> tuple[int, int]:
    """Modulus and public exponent of an RSAPublicKey (RFC 3279 §2.3.1), within what a verification may cost."""
    start, stop = der.read_whole(octets, der.SEQUENCE)
    modulus_start, modulus_stop = der.read_tagged(octets, start, stop, der.INTEGER)
    exponent_start, exponent_stop = der.read_tagged(octets, modulus_stop, stop, der.INTEGER)
    if exponent_stop != stop:
        raise Refused(Code.MALFORMED_REQUEST, "an RSA key has more than modulus and exponent", "RFC 3279 §2.3.1")
    if modulus_stop - modulus_start > MAX_RSA_BITS // 8 + 1:
        raise Refused(Code.KEY_REFUSED, f"an RSA key of more than {MAX_RSA_BITS} bits is not accepted", "RFC 7030 §6")
    if exponent_stop - exponent_start > MAX_RSA_EXPONENT_BITS // 8 + 1:
        raise Refused(Code.KEY_REFUSED, "the public exponent of the RSA key is too long", "SP 800-56B §6.2")
    modulus = der.read_integer(octets, modulus_start, modulus_stop)
    exponent = der.read_integer(octets, exponent_start, exponent_stop)
    if modulus <= 0 or exponent <= 0:
        raise Refused(Code.KEY_REFUSED, "modulus or exponent of the RSA key is not positive", "RFC 3279 §2.3.1")
    return modulus, exponent


def key_type(spki: bytes) -> str:
    """The key's type: one of `KEY_TYPES`, or ``rsa-<bits>`` for an RSA key of another size."""
    algorithm, octets = read_spki(spki)
    found = _TYPES.get(algorithm)
    if found is not None:
        return found
    if algorithm == RSA:
        return f"rsa-{read_rsa(octets)[0].bit_length()}"
    raise _unknown(algorithm)


# --- private ---------------------------------------------------------------------------------------------------------

_TYPES = {algorithm: name for name, algorithm in ALGORITHMS.items()}


def _write_plain(key_type: str, size: int) -> tuple[int, tuple[bytes, bytes]]:
    algorithm = ALGORITHMS[key_type]
    whole = der.sequence(algorithm, der.bit_string(bytes(size)))
    return len(whole), (whole[: len(whole) - size], algorithm)


# Length of a SubjectPublicKeyInfo → what precedes the octets of a key that is so long, and its algorithm.
_PLAIN = dict(_write_plain(*one) for one in (("ec-p256", 65), ("ec-p384", 97), ("ec-p521", 133), ("ed25519", 32)))


def _unknown(algorithm: bytes) -> Refused:
    """Says what is wrong with the AlgorithmIdentifier."""
    der.check_der(algorithm)
    start, stop = der.read_whole(algorithm, der.SEQUENCE)
    members = der.read_members(algorithm, start, stop)
    if not members or members[0][0] != der.OID:
        raise Refused(Code.MALFORMED_REQUEST, "an AlgorithmIdentifier does not name an algorithm", "RFC 5280 §4.1.1.2")
    name = der.oid_name(der.read_oid(algorithm[members[0][2] : members[0][3]]))
    if name == "ecPublicKey" and len(members) == 2:
        if members[1][0] != der.OID:
            return Refused(Code.KEY_REFUSED, "EC parameters must be a named curve", "RFC 5480 §2.1.1")
        curve = der.oid_name(der.read_oid(algorithm[members[1][2] : members[1][3]]))
        return Refused(Code.KEY_REFUSED, f"keys on the curve {curve} are not accepted", "RFC 5480 §2.1.1.1")
    if name in ("rsaEncryption", "ecPublicKey", "ed25519", "mlDsa44", "mlDsa65", "mlDsa87"):
        return Refused(Code.KEY_REFUSED, f"the parameters of {name} are not those of its standard", "RFC 5280 §4.1.2.7")
    return Refused(Code.KEY_REFUSED, f"keys for the algorithm {name} are not accepted", "RFC 5280 §4.1.2.7")
