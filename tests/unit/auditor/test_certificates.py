from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from factory import make_maker

from estd.auditor.certificates import find_fault, read_received, read_tbs


def test_the_bytes_that_were_signed_are_found() -> None:
    maker = make_maker()
    assert read_tbs(maker.der) == maker.certificate.tbs_certificate_bytes
    assert read_tbs(maker.der + b"\x00") is None
    assert read_tbs(b"") is None
    assert read_tbs(b"\x30\x84\xff") is None


def test_what_its_issuer_did_not_sign_is_told() -> None:
    maker, other = make_maker(), make_maker()
    serial = maker.certificate.serial_number.to_bytes(21, "big")
    assert find_fault(maker.der, serial, maker.certificate) is None
    assert find_fault(maker.der, b"\x07", maker.certificate) == "it carries another serial"
    assert find_fault(maker.der, serial, other.certificate) is not None
    spoiled = maker.der[:-1] + bytes([maker.der[-1] ^ 1])
    assert find_fault(spoiled, serial, maker.certificate) == "its issuer did not sign it"


def test_certificates_are_found_in_files_of_both_kinds_and_nothing_else_is(tmp_path: Path) -> None:
    one, other = make_maker(), make_maker()
    (tmp_path / "below").mkdir()
    (tmp_path / "a.der").write_bytes(one.der)
    pem = one.certificate.public_bytes(Encoding.PEM) + other.certificate.public_bytes(Encoding.PEM)
    (tmp_path / "below" / "chain.pem").write_bytes(pem)
    (tmp_path / "device.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    (tmp_path / "garbage.der").write_bytes(b"\x30garbage")
    found = list(read_received(tmp_path))
    assert [certificate for _, certificate in found] == [one.der, one.der, other.der]
    assert found[2][0].endswith("chain.pem#2")
    assert list(read_received(tmp_path / "a.der")) == [(str(tmp_path / "a.der"), one.der)]
