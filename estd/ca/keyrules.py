"""Which public keys deserve a certificate.

Promises that a key which passes is of a type the profile allows, is encoded in the one way estd accepts (so that a
blocklist of hashes cannot be dodged by another encoding), and shows none of the known weaknesses that can be seen from
the public half: SP 800-56B and CA/Browser Forum BR §6.1.1.3 and §6.1.6 for RSA, SP 800-56A §5.6.2.3 for curves. It is
pure arithmetic on the bytes; known compromised keys are looked up through a function the caller passes in.

`Code.KEY_REFUSED`: not that kind of key here. `Code.KEY_WEAK`: that very key, never, anywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection

from estd.asn1.spki import key_type, read_rsa, read_spki
from estd.errors import Code, Refused

__all__ = ["RSA_EXPONENT", "check_key", "key_type"]

RSA_EXPONENT = 65537
"""SP 800-56B §6.2.1 allows 65537 ≤ e < 2^256; one value is enough for every device, and small ones are not (BR §6.1.6)."""

FERMAT_ROUNDS = 100
"""BR §6.1.1.3: keys whose primes 100 rounds of Fermat's method find are close-prime keys."""


def check_key(
    spki: bytes,
    allowed: Collection[str],
    is_blocked: Callable[[bytes], bool] | None = None,
    spki_sha256: bytes | None = None,
) -> str:
    """Refuse the key unless it is good; its type otherwise.

    Args:
        spki: SubjectPublicKeyInfo.
        allowed: the key types the profile accepts, out of `estd.asn1.spki.KEY_TYPES`.
        is_blocked: given the SHA-256 of the SubjectPublicKeyInfo, whether its private key is known to others.
        spki_sha256: that hash, where the caller has it already.
    """
    try:
        kind = key_type(spki)
        octets = read_spki(spki)[1]
    except Refused as refused:
        raise _refused(refused.detail, refused.clause) from None
    if kind not in allowed:
        raise _refused(f"a key of type {kind} is not accepted; this profile takes {', '.join(sorted(allowed))}")
    if kind.startswith("rsa-"):
        _check_rsa(*read_rsa(octets))
    elif kind.startswith("ec-"):
        _check_point(kind, octets)
    elif kind == "ed25519":
        _check_ed25519(octets)
    elif len(octets) != _ML_DSA_BYTES[kind]:
        raise _refused(f"an {kind} key has {_ML_DSA_BYTES[kind]} bytes, not {len(octets)}", "FIPS 204 §4")
    if is_blocked is not None and is_blocked(spki_sha256 or hashlib.sha256(spki).digest()):
        raise _weak("the private key is known to have been compromised", "CA/Browser Forum BR §6.1.1.3")
    return kind


# --- private ---------------------------------------------------------------------------------------------------------


def _refused(detail: str, clause: str | None = None) -> Refused:
    return Refused(Code.KEY_REFUSED, detail, clause)


def _weak(detail: str, clause: str) -> Refused:
    return Refused(Code.KEY_WEAK, detail, clause)


# --- RSA -------------------------------------------------------------------------------------------------------------


def _primes(limit: int) -> list[int]:
    return [n for n in range(2, limit) if all(n % divisor for divisor in range(2, math.isqrt(n) + 1))]


# BR §6.1.6 asks for "no factors smaller than 752"; a gcd with twice as many primes costs the same few microseconds.
_SMALL_PRIMES = math.prod(_primes(1600))


def _check_rsa(modulus: int, exponent: int) -> None:
    if exponent != RSA_EXPONENT:
        raise _refused(f"the public exponent must be {RSA_EXPONENT}", "SP 800-56B §6.2.1")
    if math.gcd(modulus, _SMALL_PRIMES) != 1:
        raise _weak("the modulus has a small prime factor", "CA/Browser Forum BR §6.1.6")
    if _has_roca_fingerprint(modulus):
        raise _weak("the key comes from a broken key generator (ROCA, CVE-2017-15361)", "CA/Browser Forum BR §6.1.1.3")
    if _has_close_primes(modulus):
        raise _weak("the two primes of the modulus are too close", "CA/Browser Forum BR §6.1.1.3")


# Squares modulo these four, whose product fits a machine word, sieve out 99.3 % of the candidates of Fermat's method.
_SIEVE = 64 * 63 * 65 * 11
_SQUARES_64, _SQUARES_63, _SQUARES_65, _SQUARES_11 = (
    sum(1 << residue for residue in {x * x % modulus for x in range(modulus)}) for modulus in (64, 63, 65, 11)
)


def _has_close_primes(modulus: int) -> bool:
    """n = a² - b² with a among the first integers from √n upwards (CVE-2022-26320)."""
    root = math.isqrt(modulus - 1) + 1
    reduced = root % _SIEVE
    target = modulus % _SIEVE
    for step in range(FERMAT_ROUNDS + 1):
        rest = ((reduced + step) ** 2 - target) % _SIEVE
        if (
            _SQUARES_64 >> (rest & 63) & 1
            and _SQUARES_63 >> rest % 63 & 1
            and _SQUARES_65 >> rest % 65 & 1
            and _SQUARES_11 >> rest % 11 & 1
        ):
            square = (root + step) ** 2 - modulus
            if math.isqrt(square) ** 2 == square:
                return True
    return False


# ROCA: the faulty library makes primes k·M + (65537^a mod M) with M the product of the first primes, so the modulus too
# is a power of 65537 modulo M (Nemec, Sýs, Švenda, Klinec, Matyáš, CCS 2017, §2.3). M of the first 39 primes divides
# that of every key size of the library.
_ROCA_PRIMES = _primes(168)
_ROCA_MODULUS = math.prod(_ROCA_PRIMES)


def _powers(generator: int, modulus: int) -> list[int]:
    powers = [1]
    while (power := powers[-1] * generator % modulus) != 1:
        powers.append(power)
    return powers


_ROCA_POWERS = [(prime, frozenset(_powers(65537, prime))) for prime in _ROCA_PRIMES[1:]]
_ROCA_ORDER = math.lcm(*(len(powers) for _, powers in _ROCA_POWERS))


def _prime_powers(number: int) -> list[int]:
    powers = []
    for prime in _primes(168):
        power = math.gcd(number, prime**64)
        if power > 1:
            powers.append(power)
    return powers


_ROCA_COMPONENTS = [
    (_ROCA_ORDER // power, frozenset(_powers(pow(65537, _ROCA_ORDER // power, _ROCA_MODULUS), _ROCA_MODULUS)))
    for power in _prime_powers(_ROCA_ORDER)
]


def _has_roca_fingerprint(modulus: int) -> bool:
    """Whether the modulus is a power of 65537 modulo M.

    Looking at each prime alone settles every sound key after two or three divisions and lets one in 2^28 through; for
    the rest the discrete logarithm exists if it exists in each prime-power part of the group (Pohlig-Hellman).
    """
    residue = modulus % _ROCA_MODULUS
    if any(residue % prime not in powers for prime, powers in _ROCA_POWERS):
        return False
    return pow(residue, _ROCA_ORDER, _ROCA_MODULUS) == 1 and all(
        pow(residue, cofactor, _ROCA_MODULUS) in component for cofactor, component in _ROCA_COMPONENTS
    )


# --- curves ----------------------------------------------------------------------------------------------------------

# y² = x³ - 3x + b over the field of p elements (SP 800-186 §3.2.1): (octets of a coordinate, p, b).
_CURVES = {
    "ec-p256": (
        32,
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    "ec-p384": (
        48,
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    ),
    "ec-p521": (
        66,
        2**521 - 1,
        int(
            "0051953eb9618e1c9a1f929a21a0b68540eea2da725b99b315f3b8b489918ef109e1"
            "56193951ec7e937b1652c0bd3bb1bf073573df883d2c34f1ef451fd46b503f00",
            16,
        ),
    ),
}


def _check_point(kind: str, octets: bytes) -> None:
    """SP 800-56A §5.6.2.3.3: partial validation is full validation on these curves, whose cofactor is 1."""
    size, prime, b = _CURVES[kind]
    if len(octets) != 2 * size + 1 or octets[0] != 4:
        # The point at infinity and compressed points fall here: RFC 5480 §2.2 leaves compression to us, and one key
        # shall have one encoding.
        raise _refused(f"an {kind} key must be an uncompressed point of {2 * size + 1} bytes", "RFC 5480 §2.2")
    x = int.from_bytes(octets[1 : size + 1], "big")
    y = int.from_bytes(octets[size + 1 :], "big")
    if x >= prime or y >= prime or (y * y - (x * x - 3) * x - b) % prime:
        raise _weak(f"the point is not on the curve of an {kind} key", "SP 800-56A §5.6.2.3.3")


_ED25519_PRIME = 2**255 - 19
_ED25519_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
# The y coordinates of the eight points whose order divides 8: the neutral one, then orders 2, 4, 8 and 8.
_ED25519_SMALL = frozenset((1, _ED25519_PRIME - 1, 0, _ED25519_ORDER_8, _ED25519_PRIME - _ED25519_ORDER_8))


def _check_ed25519(octets: bytes) -> None:
    """RFC 8032 §5.1.3 gives a point one encoding, y < p; a small-order key verifies signatures nobody made.

    That y belongs to a point at all shows when the request's signature is verified.
    """
    if len(octets) != 32:
        raise _refused(f"an ed25519 key has 32 bytes, not {len(octets)}", "RFC 8410 §4")
    y = int.from_bytes(octets, "little") & (1 << 255) - 1
    if y >= _ED25519_PRIME:
        raise _weak("the ed25519 key is not the encoding of a point", "RFC 8032 §5.1.3")
    if y in _ED25519_SMALL:
        raise _weak("the ed25519 key is a point of small order", "RFC 8032 §5.1.7")


_ML_DSA_BYTES = {"ml-dsa-44": 1312, "ml-dsa-65": 1952, "ml-dsa-87": 2592}
