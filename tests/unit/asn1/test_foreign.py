"""What strangers made: read whole, or refused by the one exception, whatever the library raises."""

from __future__ import annotations

import pytest
from factory import make_device, make_maker
from odd_certificates import ODD_CERTIFICATES

from estd.asn1.foreign import Unreadable, read_certificate, read_extensions, read_pem_certificates, reading


@pytest.mark.parametrize("what", ODD_CERTIFICATES)
def test_an_odd_certificate_is_unreadable_and_nothing_else(what: str) -> None:
    odd = ODD_CERTIFICATES[what](None)
    with pytest.raises(Unreadable):
        read_extensions(read_certificate(odd))


def test_any_other_is_read() -> None:
    maker, device = make_maker(), make_device(None)
    assert read_certificate(device.der) == device.certificate
    assert list(read_extensions(device.certificate)) == list(device.certificate.extensions)
    assert read_pem_certificates((maker.pem + device.pem).encode()) == [maker.certificate, device.certificate]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_no_certificate_at_all(content: bytes) -> None:
    with pytest.raises(Unreadable):
        read_pem_certificates(content)
    with pytest.raises(Unreadable):
        read_certificate(content)


def test_a_value_that_the_library_has_no_word_for_is_told_as_such() -> None:
    with pytest.raises(Unreadable, match="a value that it does not know: 99"), reading():
        raise KeyError(99)


@pytest.mark.parametrize("fault", [RuntimeError("x"), MemoryError(), OSError(), AssertionError()], ids=repr)
def test_what_is_no_refusal_of_the_library_stays_a_fault(fault: Exception) -> None:
    with pytest.raises(type(fault)), reading():
        raise fault
