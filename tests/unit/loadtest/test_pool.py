"""A prepared fleet: written for its owner alone, read again as it was, every request signed by a key of its own."""

from __future__ import annotations

from pathlib import Path

import fleet
import pool
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_maker(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    files = folder / "maker.pem", folder / "maker.key"
    files[0].write_bytes(fleet.make_authority(key, "maker").public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_what_is_written_is_read(tmp_path: Path):
    settings = pool.Settings("https://localhost:1", "PEM", "plant", None)
    codes = tmp_path / "codes.csv"
    codes.write_text("device,code\npump-1,SECRET\n")
    members = [*pool.make_idevid_members(*make_maker(tmp_path), 2, 3), *pool.make_code_members(codes)]
    assert pool.write_pool(tmp_path / "pool", settings, members) == 3
    assert pool.read_pool(tmp_path / "pool") == (settings, members)
    assert (tmp_path / "pool" / "fleet.jsonl").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "pool").stat().st_mode & 0o777 == 0o700


def test_every_request_has_a_key_of_its_own(tmp_path: Path):
    members = list(pool.make_idevid_members(*make_maker(tmp_path), 2, 3))
    requests = [x509.load_der_x509_csr(fleet.read_body(body.encode())) for one in members for body in one.bodies]
    assert all(request.is_signature_valid for request in requests)
    assert len({request.public_key().public_numbers() for request in requests}) == 6


def test_a_code_is_for_the_device_it_names(tmp_path: Path):
    codes = tmp_path / "codes.csv"
    codes.write_text('device,code\n"pump, the third",SECRET\n')
    (member,) = pool.make_code_members(codes)
    assert (member.kind, member.name, member.credential) == (pool.CODE, "pump, the third", "SECRET")
    subject = x509.load_der_x509_csr(fleet.read_body(member.bodies[0].encode())).subject
    assert subject.rfc4514_string() == "CN=pump\\, the third"
