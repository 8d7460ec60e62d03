"""Software keys: sealing, refusals to open, and signatures a foreign verifier accepts."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa, x25519

from estd.asn1.spki import KEY_TYPES, key_type
from estd.errors import Invalid
from estd.keys.contract import ALGORITHMS, SigningKey
from estd.keys.software import SoftwareKey, generate, is_private_key, is_sealed_under, read_private_key, seal, unseal

KEK = bytes(range(32))
MESSAGES = [b"first", b"second", b""]


@pytest.fixture(scope="module", params=KEY_TYPES)
def key(request: pytest.FixtureRequest) -> SoftwareKey:
    return generate(request.param)


def verify(spki: bytes, signature: bytes, message: bytes) -> None:
    public_key = serialization.load_der_public_key(spki)
    match public_key:
        case ec.EllipticCurvePublicKey():
            digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[public_key.key_size]
            public_key.verify(signature, message, ec.ECDSA(digest))
        case rsa.RSAPublicKey():
            digest = hashes.SHA384() if public_key.key_size == 4096 else hashes.SHA256()
            public_key.verify(signature, message, padding.PKCS1v15(), digest)
        case (
            ed25519.Ed25519PublicKey() | mldsa.MLDSA44PublicKey() | mldsa.MLDSA65PublicKey() | mldsa.MLDSA87PublicKey()
        ):
            public_key.verify(signature, message)
        case _:
            raise AssertionError(public_key)


def test_signs_in_order_and_within_the_promised_length(key: SigningKey) -> None:
    signatures = key.sign_many(MESSAGES)
    assert len(signatures) == len(MESSAGES)
    for message, signature in zip(MESSAGES, signatures, strict=True):
        verify(key.spki, signature, message)
        assert 0 < len(signature) <= key.algorithm.signature_max_bytes


def test_says_truly_whether_it_is_deterministic(key: SigningKey) -> None:
    assert (key.sign_many(MESSAGES) == key.sign_many(MESSAGES)) is key.deterministic
    assert key.deterministic is not key.key_type.startswith("ml-dsa")


def test_sealed_key_opens_to_the_same_key(key: SoftwareKey) -> None:
    sealed = seal(key, KEK, b"plant/devices")
    opened = unseal(sealed, KEK, b"plant/devices")
    assert (opened.key_type, opened.spki) == (key.key_type, key.spki)
    verify(key.spki, opened.sign_many([b"x"])[0], b"x")


def test_sealing_twice_shows_nothing_in_common_but_the_header() -> None:
    key = generate("ec-p256")
    one, two = seal(key, KEK, b""), seal(key, KEK, b"")
    assert one[:8] == two[:8]
    assert one[8:20] != two[8:20]
    assert one[20:] != two[20:]


def test_each_altered_or_missing_octet_keeps_it_shut() -> None:
    sealed = seal(generate("ed25519"), KEK, b"context")
    for index in range(len(sealed)):
        altered = bytearray(sealed)
        altered[index] ^= 1
        with pytest.raises(Invalid):
            unseal(bytes(altered), KEK, b"context")
        with pytest.raises(Invalid):
            unseal(sealed[:index], KEK, b"context")
    with pytest.raises(Invalid):
        unseal(sealed + b"\0", KEK, b"context")


def test_a_sealed_key_names_what_it_is_sealed_under() -> None:
    sealed = seal(generate("ed25519"), KEK, b"context")
    assert is_sealed_under(sealed, KEK)
    assert is_sealed_under(sealed[:-1] + b"\0", KEK), "nothing is opened"
    assert not is_sealed_under(sealed, bytes(32))
    for other in (b"", b"ESK", b"ESK\x02" + sealed[4:], b"sealed"):
        assert not is_sealed_under(other, KEK)


def test_another_context_or_key_encryption_key_keeps_it_shut() -> None:
    sealed = seal(generate("ed25519"), KEK, b"plant/devices")
    with pytest.raises(Invalid, match="belongs to another issuer"):
        unseal(sealed, KEK, b"plant/root")
    with pytest.raises(Invalid, match="another key-encryption key"):
        unseal(sealed, bytes(32), b"plant/devices")
    with pytest.raises(Invalid, match="32 octets"):
        unseal(sealed, b"short", b"plant/devices")


def test_representation_shows_no_secret() -> None:
    key = generate("ec-p256")
    assert isinstance(key.private_key, ec.EllipticCurvePrivateKey)
    secret = key.private_key.private_numbers().private_value
    assert repr(key).startswith("SoftwareKey(ec-p256, ")
    assert f"{secret:x}"[:8] not in repr(key)


def test_reads_an_operators_key_in_pem_and_der() -> None:
    key = generate("ec-p384")
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        content = key.private_key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        assert read_private_key(content, "issuer.pem").spki == key.spki


@pytest.mark.parametrize("content", [b"", b"-----BEGIN nonsense", b"\x30\x03\x02\x01\x00"])
def test_refuses_what_is_no_key(content: bytes) -> None:
    with pytest.raises(Invalid, match=r"issuer\.pem: no private key"):
        read_private_key(content, "issuer.pem")


def test_refuses_encrypted_and_unsuitable_keys() -> None:
    encrypted = generate("ec-p256").private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(Invalid, match="encrypted"):
        read_private_key(encrypted, "issuer.pem")
    for private_key in (x25519.X25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        content = private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(Invalid, match="do not sign here"):
            read_private_key(content, "issuer.pem")


def test_every_type_can_be_made_and_is_called_what_its_public_key_says(key: SigningKey) -> None:
    assert set(KEY_TYPES) == set(ALGORITHMS)
    assert key.key_type == key_type(key.spki)


def test_what_is_a_private_key_and_what_is_not() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        assert is_private_key(
            key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        assert not is_private_key(
            key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    locked = serialization.BestAvailableEncryption(b"secret")
    assert is_private_key(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    assert not is_private_key(b"")
