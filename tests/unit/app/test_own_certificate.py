"""An operator's own TLS certificate: what cannot be shown, when it is valid, and for which names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estd.app.own_certificate import find_date_problem, find_end, find_open_key, find_uncovered, read_own
from estd.device.requests import write_key
from estd.errors import Invalid
from estd.keys.software import SoftwareKey

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
DAY = timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())


def make(*names: str, starts: datetime = NOW - DAY, ends: datetime = NOW + DAY) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), 5, starts, ends)
    if names:
        san: list[x509.GeneralName] = [
            x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_bytes(make("ca.plant.example"))
    key.touch(mode=0o600)
    key.write_bytes(write_key(SoftwareKey(KEY)))
    return certificate, key


def problems(files: tuple[Path, Path]) -> list[str]:
    with pytest.raises(Invalid) as caught:
        read_own(*files)
    return [f"{problem.where} {problem.what}" for problem in caught.value.problems]


def test_a_pair_is_read(files: tuple[Path, Path]) -> None:
    certificate, key = files
    assert read_own(*files) == (certificate.read_bytes(), key.read_bytes())
    assert find_end(certificate.read_bytes()) == NOW + DAY


def test_what_cannot_be_shown_is_told_with_its_file(files: tuple[Path, Path]) -> None:
    certificate, key = files
    assert problems((certificate.with_name("a"), key.with_name("b"))) == [
        f"tls: {certificate.with_name('a')} cannot be read (No such file or directory)",
        f"tls: {certificate.with_name('b')} cannot be read (No such file or directory)",
    ]
    assert problems((key, certificate)) == [
        f"tls.certificate: {key} is no certificate in PEM",
        f"tls.key: {certificate} is no unencrypted key in PEM",
    ]
    key.write_bytes(write_key(SoftwareKey(ec.generate_private_key(ec.SECP256R1()))))
    assert problems(files) == [f"tls.key: {key} is not the key of {certificate}"]


def test_a_key_that_others_can_read_is_found(files: tuple[Path, Path]) -> None:
    _, key = files
    assert find_open_key(key) is None
    for mode in (0o640, 0o604):
        key.chmod(mode)
        assert str(find_open_key(key)) == f"tls.key: {key}: can be read by others. chmod 600 {key}"


def test_dates() -> None:
    chain = make()
    for moment in (NOW - DAY, NOW, NOW + DAY):
        assert find_date_problem(chain, moment, "c.pem") is None
    after, before = (find_date_problem(chain, NOW + sign * 2 * DAY, "c.pem") for sign in (1, -1))
    assert str(after).startswith("c.pem: ended on 2031-05-07 07:08Z")
    assert str(before).startswith("c.pem: begins on 2031-05-05 07:08Z")


@pytest.mark.parametrize(
    ("has", "wanted", "missing"),
    [
        (("CA.plant.example", "192.0.2.7"), ("ca.plant.example", "192.0.2.7"), []),
        (
            ("*.plant.example",),
            ("ca.plant.example", "plant.example", "a.b.plant.example"),
            ["plant.example", "a.b.plant.example"],
        ),
        (("other.example",), ("ca.plant.example", "192.0.2.7"), ["ca.plant.example", "192.0.2.7"]),
        ((), ("ca.plant.example",), ["ca.plant.example"]),
    ],
)
def test_names_it_is_not_for(has: tuple[str, ...], wanted: tuple[str, ...], missing: list[str]) -> None:
    assert find_uncovered(make(*has), wanted) == missing
