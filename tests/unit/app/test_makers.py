from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from estd.app.makers import FOREVER, Maker
from estd.device.requests import read_key

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def test_a_device_of_a_maker_leads_to_it_and_to_no_other() -> None:
    maker, other = Maker.create("Acme", NOW), Maker.create("Acme", NOW)
    certificate, _key = maker.make_device([(NameOID.COMMON_NAME, "pump"), (NameOID.SERIAL_NUMBER, "17")], NOW)
    leaf = x509.load_pem_x509_certificate(certificate)
    for one, good in ((maker, True), (other, False)):
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store([one.certificate]))
            .time(NOW.replace(year=2099))
            .extension_policies(
                ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=verification.ExtensionPolicy.permit_all(),
            )
            .build_client_verifier()
        )
        try:
            verifier.verify(leaf, [])
        except verification.VerificationError:
            assert not good
        else:
            assert good


def test_a_birth_certificate_looks_like_one() -> None:
    certificate, key = Maker.create("Acme", NOW).make_device([(NameOID.SERIAL_NUMBER, "17")], NOW)
    leaf = x509.load_pem_x509_certificate(certificate)
    assert leaf.not_valid_after_utc == FOREVER
    assert leaf.not_valid_before_utc < NOW
    assert leaf.subject.rfc4514_string() == "2.5.4.5=17"
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.digital_signature, usage.value.key_cert_sign) == (True, False)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.serial_number.bit_length() <= 127
    assert b"PRIVATE KEY" in key


def test_a_maker_is_saved_and_loaded(tmp_path: Path) -> None:
    maker = Maker.create("Acme", NOW)
    (tmp_path / "m.pem").write_bytes(maker.certificate_pem)
    (tmp_path / "m.key").write_bytes(maker.key_pem)
    again = Maker.load(tmp_path / "m.pem", tmp_path / "m.key")
    certificate, _ = again.make_device([(NameOID.COMMON_NAME, "pump")], NOW)
    x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(maker.certificate)
    assert read_key(tmp_path / "m.key").key_type == "ec-p256"
