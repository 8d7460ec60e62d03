"""Public keys as the linter judges them: RFC 3279 §2.3.1, RFC 5480 §2, RFC 8410 §4, RFC 9881 §2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from estd.ca.lint.walk import Malformed, element, is_padded, members, only


class Key(NamedTuple):
    """A public key as far as its certificate depends on it."""

    family: str
    octets: bytes
    """Contents of the BIT STRING, without the count of unused bits."""
    signs_with: frozenset[bytes]
    """AlgorithmIdentifiers that such a key may sign certificates with."""


_RSA: Final = bytes.fromhex("300d06092a864886f70d0101010500")
_RSA_SIGNATURES: Final = frozenset(bytes.fromhex(f"300d06092a864886f70d0101{last}0500") for last in ("0b", "0c", "0d"))
_KEYS: Final[Mapping[bytes, tuple[str, int, bytes]]] = {
    # AlgorithmIdentifier → family, octets of the key, AlgorithmIdentifier of its signatures.
    bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"): ("ec", 65, bytes.fromhex("300a06082a8648ce3d040302")),
    bytes.fromhex("301006072a8648ce3d020106052b81040022"): ("ec", 97, bytes.fromhex("300a06082a8648ce3d040303")),
    bytes.fromhex("301006072a8648ce3d020106052b81040023"): ("ec", 133, bytes.fromhex("300a06082a8648ce3d040304")),
    bytes.fromhex("300506032b6570"): ("ed25519", 32, bytes.fromhex("300506032b6570")),
    bytes.fromhex("300b0609608648016503040311"): ("ml-dsa", 1312, bytes.fromhex("300b0609608648016503040311")),
    bytes.fromhex("300b0609608648016503040312"): ("ml-dsa", 1952, bytes.fromhex("300b0609608648016503040312")),
    bytes.fromhex("300b0609608648016503040313"): ("ml-dsa", 2592, bytes.fromhex("300b0609608648016503040313")),
}
_POINT: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""What precedes the coordinates of an uncompressed point on P-256, 64 octets: nearly every key there is."""
_POINT_SIGNS: Final = frozenset({bytes.fromhex("300a06082a8648ce3d040302")})
_RSA_MIN_BITS: Final = 2048


def read_key(spki: bytes) -> Key | None:
    """The key of a SubjectPublicKeyInfo; None when it is not well formed (RFC 3279 §2.3, RFC 5480 §2, RFC 8410 §4)."""
    if spki.startswith(_POINT) and len(spki) == len(_POINT) + 64:
        return Key("ec", spki[len(_POINT) - 1 :], _POINT_SIGNS)
    try:
        start, stop = only(spki, 0x30)
        tag, _, after = element(spki, start, stop)
        bits, inner, end = element(spki, after, stop)
        if tag != 0x30 or bits != 0x03 or end != stop or inner == end or spki[inner] != 0:
            return None
        algorithm, octets = spki[start:after], spki[inner + 1 : end]
        if algorithm == _RSA:
            return Key("rsa", octets, _RSA_SIGNATURES) if _is_rsa(octets) else None
    except Malformed:
        return None
    known = _KEYS.get(algorithm)
    if known is None or len(octets) != known[1] or (known[0] == "ec" and octets[0] != 0x04):
        return None
    return Key(known[0], octets, frozenset({known[2]}))


def _is_rsa(octets: bytes) -> bool:
    start, stop = only(octets, 0x30)
    numbers = [
        contents if tag == 0x02 and contents and contents[0] < 0x80 else b""
        for tag, contents in members(octets, start, stop)
    ]
    if len(numbers) != 2 or any(is_padded(number) for number in numbers):
        return False
    modulus, exponent = (int.from_bytes(number, "big") for number in numbers)
    return modulus.bit_length() >= _RSA_MIN_BITS and modulus & exponent & 1 == 1 and exponent >= 3


def follows_from_key(key_id: bytes, octets: bytes) -> bool:
    """Whether a key identifier comes from the key by RFC 5280 §4.2.1.2 (1) or (2), or RFC 7093 §2 (1)."""
    if len(key_id) == 8:
        low = int.from_bytes(hashlib.sha1(octets, usedforsecurity=False).digest(), "big") & (1 << 60) - 1
        return key_id == (4 << 60 | low).to_bytes(8, "big")
    if key_id == hashlib.sha256(octets).digest()[:20]:
        return True
    return key_id == hashlib.sha1(octets, usedforsecurity=False).digest()
