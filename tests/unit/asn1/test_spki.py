"""estd.asn1.spki: which key it is, from the whole AlgorithmIdentifier."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from estd.asn1 import der
from estd.asn1.spki import ALGORITHMS, KEY_TYPES, RSA, key_type, read_rsa, read_spki
from estd.errors import Code, Refused


def spki_of(public: object) -> bytes:
    encoding: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined] # every public key has it
    return encoding


KEYS: dict[str, Callable[[], Any]] = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-1024": lambda: rsa.generate_private_key(65537, 1024),
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_as_another_library_writes_them(name: str) -> None:
    assert key_type(spki_of(KEYS[name]().public_key())) == name


@pytest.mark.parametrize("name", ["ec-p256", "ec-p384", "ec-p521", "ed25519"])
def test_the_short_way_to_a_plain_key_comes_out_where_the_long_one_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spki = spki_of(KEYS[name]().public_key())
    flipped = [
        spki[:at] + bytes((spki[at] ^ 1 << bit,)) + spki[at + 1 :] for at in range(len(spki)) for bit in range(8)
    ]
    cut = [spki[:size] for size in range(len(spki))]

    def read(data: bytes) -> tuple[bytes, bytes] | None:
        try:
            return read_spki.__wrapped__(data)
        except Refused:
            return None

    short = [read(data) for data in (spki, *flipped, *cut, spki + b"\0")]
    monkeypatch.setattr("estd.asn1.spki._PLAIN", {})
    assert short == [read(data) for data in (spki, *flipped, *cut, spki + b"\0")]
    assert short[0] is not None
    assert short[-1] is None


def test_every_key_type_has_an_algorithm() -> None:
    assert set(ALGORITHMS) | {name for name in KEY_TYPES if name.startswith("rsa-")} == set(KEY_TYPES)


def rsa_spki(modulus: int, exponent: int) -> bytes:
    return der.sequence(RSA, der.bit_string(der.sequence(der.integer(modulus), der.integer(exponent))))


def test_rsa_numbers() -> None:
    assert key_type(rsa_spki((1 << 3071) + 1, 65537)) == "rsa-3072"
    assert key_type(rsa_spki((1 << 2047) - 1, 3)) == "rsa-2047"
    assert read_rsa(read_spki(rsa_spki(1 << 2047, 65537))[1]) == (1 << 2047, 65537)


@pytest.mark.parametrize(
    ("spki", "why"),
    [
        (rsa_spki(1 << 4104, 65537), "more than 4096 bits"),
        (rsa_spki(1 << 60_000, 65537), "more than 4096 bits"),
        (rsa_spki(1 << 2047, 1 << 2000), "exponent of the RSA key is too long"),
        (rsa_spki(-5, 65537), "not positive"),
        (rsa_spki(1 << 2047, 0), "not positive"),
        (spki_of(ed448.Ed448PrivateKey.generate().public_key()), "algorithm 1.3.101.113"),
        (spki_of(x25519.X25519PrivateKey.generate().public_key()), "algorithm 1.3.101.110"),
        (spki_of(ec.generate_private_key(ec.SECP256K1()).public_key()), "curve 1.3.132.0.10"),
        (
            der.sequence(der.sequence(der.oid("ecPublicKey"), der.sequence(der.integer(1))), der.bit_string(b"\4")),
            "named curve",
        ),
        (der.sequence(der.sequence(der.oid("ecPublicKey")), der.bit_string(b"\4")), "parameters of ecPublicKey"),
        (der.sequence(der.sequence(der.oid("rsaEncryption")), der.bit_string(b"\4")), "parameters of rsaEncryption"),
        (der.sequence(der.sequence(der.oid("ed25519"), der.NULL), der.bit_string(bytes(32))), "parameters of ed25519"),
        (der.sequence(der.sequence(der.oid("rsassaPss")), der.bit_string(b"\4")), "algorithm rsassaPss"),
    ],
)
def test_keys_we_do_not_certify(spki: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        key_type(spki)
    assert refused.value.code is Code.KEY_REFUSED


@pytest.mark.parametrize(
    "spki",
    [
        b"",
        der.sequence(),
        der.sequence(RSA),
        der.sequence(RSA, der.bit_string(b"")),
        der.sequence(RSA, der.bit_string(der.sequence(der.integer(5)))),
        der.sequence(RSA, der.bit_string(der.sequence(der.integer(5), der.integer(3), der.integer(3)))),
        der.sequence(RSA, der.bit_string(der.sequence(der.integer(5), der.integer(3)) + b"\0")),
        der.sequence(RSA, der.bit_string(b"\x30\x07\x02\x02\x00\x05\x02\x01\x03")),
        der.sequence(RSA, der.tlv(der.BIT_STRING, b"\1\2")),
        der.sequence(RSA, der.bit_string(b"a"), der.NULL),
        der.sequence(der.sequence(), der.bit_string(b"a")),
        der.sequence(der.sequence(der.NULL), der.bit_string(b"a")),
        spki_of(KEYS["ec-p256"]().public_key()) + b"\0",
    ],
)
def test_malformed_keys(spki: bytes) -> None:
    with pytest.raises(Refused) as refused:
        key_type(spki)
    assert refused.value.code is Code.MALFORMED_REQUEST


@given(st.binary(max_size=80))
def test_random_bytes_never_crash(data: bytes) -> None:
    for spki in (data, der.sequence(data), der.sequence(RSA, der.bit_string(data)), der.sequence(der.sequence(data))):
        try:
            key_type(spki)
        except Refused:
            continue
