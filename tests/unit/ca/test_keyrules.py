"""estd.ca.keyrules: good keys pass, bad ones do not, and the badkeys project says the same."""

import hashlib
import math
from collections.abc import Callable
from random import Random  # noqa: TID251 - the same numbers in every run; nothing here is secret
from typing import Any

import gmpy2
import pytest
from badkeys.rsakeys.fermat import fermat
from badkeys.rsakeys.roca import roca
from badkeys.rsakeys.smallfactors import smallfactors
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from estd.asn1 import der
from estd.asn1.spki import ALGORITHMS, KEY_TYPES, RSA
from estd.ca import keyrules
from estd.ca.keyrules import check_key
from estd.errors import Code, Refused

RANDOM = Random(2017)

MAKERS: dict[str, Callable[[], Any]] = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-3072": lambda: rsa.generate_private_key(65537, 3072),
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}


def spki_of(key: Any) -> bytes:
    encoding: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoding


def rsa_spki(modulus: int, exponent: int = 65537) -> bytes:
    return der.sequence(RSA, der.bit_string(der.sequence(der.integer(modulus), der.integer(exponent))))


def spki(kind: str, octets: bytes) -> bytes:
    return der.sequence(ALGORITHMS[kind], der.bit_string(octets))


def random_prime(bits: int) -> int:
    return int(gmpy2.next_prime(RANDOM.getrandbits(bits) | 3 << bits - 2))


def refusal(key: bytes, allowed: tuple[str, ...] = KEY_TYPES) -> Refused:
    with pytest.raises(Refused) as refused:
        check_key(key, allowed)
    return refused.value


@pytest.mark.parametrize("kind", MAKERS)
def test_good_keys_pass_where_their_type_is_allowed(kind: str) -> None:
    key = spki_of(MAKERS[kind]())
    assert check_key(key, KEY_TYPES) == kind
    assert check_key(key, [kind]) == kind
    refused = refusal(key, tuple(name for name in KEY_TYPES if name != kind))
    assert refused.code is Code.KEY_REFUSED
    assert kind in refused.detail


@pytest.mark.parametrize("curve", ["ec-p256", "ec-p384", "ec-p521"])
def test_good_points_are_on_their_curve(curve: str) -> None:
    for _ in range(20):
        assert check_key(spki_of(MAKERS[curve]()), [curve]) == curve


@pytest.mark.parametrize("bits", [1024, 2047, 2049, 8192])
def test_odd_sizes_of_rsa(bits: int) -> None:
    assert refusal(rsa_spki((1 << bits - 1) + 1)).code is Code.KEY_REFUSED


@pytest.mark.parametrize("exponent", [1, 3, 17, 65535, 65539, (1 << 33) + 1])
def test_exponents(exponent: int) -> None:
    modulus = random_prime(1024) * random_prime(1024)
    assert check_key(rsa_spki(modulus), ["rsa-2048"]) == "rsa-2048"
    assert refusal(rsa_spki(modulus, exponent)).code is Code.KEY_REFUSED


@pytest.mark.parametrize("factor", [2, 3, 5, 7, 701, 743, 751, 1597])
def test_small_factors(factor: int) -> None:
    other = (1 << 2047) // factor + 2 | 1
    modulus = factor * int(gmpy2.next_prime(other))
    assert smallfactors(modulus)
    refused = refusal(rsa_spki(modulus))
    assert refused.code is Code.KEY_WEAK
    assert "small prime factor" in refused.detail


@pytest.mark.parametrize("steps", [0, 1, 50])
def test_close_primes(steps: int) -> None:
    first = random_prime(1024)
    second = first
    for _ in range(steps):
        second = int(gmpy2.next_prime(second))
    assert fermat(first * second)
    refused = refusal(rsa_spki(first * second))
    assert refused.code is Code.KEY_WEAK
    assert "close" in refused.detail


@pytest.mark.parametrize("rounds", [1, 2, 99, 100])
def test_close_primes_in_just_so_many_rounds(rounds: int) -> None:
    """n = a² - b² where a is `rounds` above the root: b ≈ √(2·a·rounds)."""
    a = 3 << 1022
    b = math.isqrt(2 * a * rounds)
    modulus = (a + b) * (a - b)
    assert math.isqrt(modulus - 1) + 1 + rounds - 1 <= a <= math.isqrt(modulus - 1) + 1 + rounds
    assert fermat(modulus)
    assert keyrules._has_close_primes(modulus)


def roca_prime(bits: int, primes: int) -> int:
    """As the library of CVE-2017-15361 makes them: k·M + (65537^a mod M)."""
    product = math.prod(first_primes(primes))
    while True:
        k = RANDOM.getrandbits(bits - product.bit_length()) | 3 << max(bits - product.bit_length() - 2, 0)
        candidate = k * product + pow(65537, RANDOM.getrandbits(128), product)
        if candidate.bit_length() == bits and gmpy2.is_prime(candidate):
            return candidate


def first_primes(count: int) -> list[int]:
    primes = [2]
    while len(primes) < count:
        primes.append(int(gmpy2.next_prime(primes[-1])))
    return primes


def test_roca() -> None:
    for _ in range(3):
        modulus = roca_prime(1024, 126) * roca_prime(1024, 126)
        if modulus.bit_length() != 2048:
            continue
        assert roca(modulus)
        refused = refusal(rsa_spki(modulus))
        assert refused.code is Code.KEY_WEAK
        assert "CVE-2017-15361" in refused.detail


def test_a_residue_of_a_power_modulo_each_prime_is_not_yet_roca() -> None:
    """The discriminating step: each residue alone is a power of 65537, but not of one and the same exponent."""
    modulus = 0
    product = 1
    for index, (prime, powers) in enumerate(keyrules._ROCA_POWERS):
        residue = pow(65537, index, prime)
        assert residue in powers
        modulus += (residue - modulus) * pow(product, -1, prime) % prime * product
        product *= prime
    modulus += product * (1 + modulus % 2)
    assert modulus % 2
    assert all(modulus % prime in powers for prime, powers in keyrules._ROCA_POWERS)
    assert not roca(modulus)
    assert not keyrules._has_roca_fingerprint(modulus)


def test_two_hundred_sound_moduli_and_the_same_verdict() -> None:
    for _ in range(200):
        modulus = random_prime(512) * random_prime(512)
        assert not roca(modulus)
        assert not keyrules._has_roca_fingerprint(modulus)
        assert not fermat(modulus)
        assert not keyrules._has_close_primes(modulus)
        assert not smallfactors(modulus)
        keyrules._check_rsa(modulus, 65537)


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "ec-p521"])
def test_points_that_are_none(kind: str) -> None:
    size = keyrules._CURVES[kind][0]
    prime = keyrules._CURVES[kind][1]
    good = spki_of(MAKERS[kind]())[-2 * size :]
    off = good[:-1] + bytes((good[-1] ^ 1,))
    assert refusal(spki(kind, b"\4" + off)).code is Code.KEY_WEAK
    assert refusal(spki(kind, b"\4" + bytes(2 * size))).code is Code.KEY_WEAK
    beyond = prime.to_bytes(size, "big")
    assert refusal(spki(kind, b"\4" + beyond + good[size:])).code is Code.KEY_WEAK
    assert refusal(spki(kind, b"\4" + good[:size] + beyond)).code is Code.KEY_WEAK
    for octets in (b"\0", b"", b"\2" + good[:size], b"\3" + good[:size], b"\4" + good + b"\0", b"\6" + good):
        assert refusal(spki(kind, octets)).code is Code.KEY_REFUSED


def test_other_curves_and_explicit_parameters() -> None:
    assert refusal(spki_of(ec.generate_private_key(ec.SECP256K1()))).code is Code.KEY_REFUSED
    explicit = der.sequence(der.sequence(der.oid("ecPublicKey"), der.sequence(der.integer(1))), der.bit_string(b"\4"))
    assert refusal(explicit).code is Code.KEY_REFUSED


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def double(x: int, y: int) -> tuple[int, int]:
    """Edwards doubling, RFC 8032 §5.1.4 in affine form."""
    product = D * x * x * y * y % P
    return (
        2 * x * y * pow(1 + product, -1, P) % P,
        (y * y + x * x) * pow(1 - product, -1, P) % P,
    )


def x_of(y: int) -> int:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    assert root * root % P == square
    return root


def test_the_small_points_of_ed25519_are_those() -> None:
    assert len(keyrules._ED25519_SMALL) == 5
    for y in keyrules._ED25519_SMALL:
        point = (x_of(y), y)
        for _ in range(3):
            point = double(*point)
        assert point == (0, 1)
        for sign in (0, 1 << 255):
            assert refusal(spki("ed25519", (y | sign).to_bytes(32, "little"))).code is Code.KEY_WEAK


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (P.to_bytes(32, "little"), Code.KEY_WEAK),
        ((P + 1).to_bytes(32, "little"), Code.KEY_WEAK),
        (b"\xff" * 32, Code.KEY_WEAK),
        (bytes(31), Code.KEY_REFUSED),
        (bytes(33), Code.KEY_REFUSED),
    ],
)
def test_what_is_no_ed25519_key(octets: bytes, code: Code) -> None:
    assert refusal(spki("ed25519", octets)).code is code


@pytest.mark.parametrize(("kind", "size"), [("ml-dsa-44", 1312), ("ml-dsa-65", 1952), ("ml-dsa-87", 2592)])
def test_sizes_of_ml_dsa(kind: str, size: int) -> None:
    assert check_key(spki(kind, bytes(size)), [kind]) == kind
    for wrong in (0, size - 1, size + 1):
        assert refusal(spki(kind, bytes(wrong))).code is Code.KEY_REFUSED


def test_blocked_keys() -> None:
    key = spki_of(MAKERS["ec-p256"]())
    hash_ = hashlib.sha256(key).digest()
    asked: list[bytes] = []

    def is_blocked(spki_sha256: bytes) -> bool:
        asked.append(spki_sha256)
        return spki_sha256 == hash_

    with pytest.raises(Refused) as refused:
        check_key(key, KEY_TYPES, is_blocked)
    assert refused.value.code is Code.KEY_WEAK
    assert asked == [hash_]
    assert check_key(key, KEY_TYPES, is_blocked, spki_sha256=bytes(32)) == "ec-p256"


@given(st.binary(max_size=90), st.sampled_from(sorted(ALGORITHMS)))
def test_random_bytes_never_crash(data: bytes, kind: str) -> None:
    for key in (data, spki(kind, data), der.sequence(RSA, der.bit_string(data)), rsa_spki(int.from_bytes(data))):
        try:
            check_key(key, KEY_TYPES)
        except Refused as refused:
            if refused.code not in (Code.KEY_REFUSED, Code.KEY_WEAK):
                raise
