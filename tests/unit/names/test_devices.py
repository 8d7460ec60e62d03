"""estd.names.devices: one spelling for a device, a serial number, a fingerprint."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estd.errors import Code, Refused
from estd.names import (
    MAX_DEVICE_CHARACTERS,
    device_name,
    fingerprint,
    normalise_device,
    read_name,
    read_serial,
    write_name,
    write_serial,
)


@pytest.mark.parametrize(
    ("subject", "device"),
    [
        ("CN=Sensor,serialNumber=SN-0001,O=Acme", "sn-0001"),
        ("CN=Sensor 7,O=Acme", "sensor 7"),
        ("OU=Line 4,O=Acme", "ou=line 4,o=acme"),
        ("", ""),
    ],
)
def test_the_device_in_a_subject(subject: str, device: str) -> None:
    assert device_name(write_name(subject)) == device
    assert device_name(read_name(write_name(subject))) == device


@pytest.mark.parametrize(
    ("typed", "device"),
    [
        ("SN-0001", "sn-0001"),
        ("  SN-0001 ", "sn-0001"),
        ("a  b", "a b"),
        ("STRASSE", "straße".casefold()),
        ("e\u0301", "é"),
        ("É", "é"),
        ("a" * MAX_DEVICE_CHARACTERS, "a" * MAX_DEVICE_CHARACTERS),
    ],
)
def test_one_spelling(typed: str, device: str) -> None:
    assert normalise_device(typed) == device


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "   ",
        "a\0",
        "a\n",
        "\ta",
        "a\u200bb",
        "a\u202eb",
        "a\u00a0b",
        "a\ue000",
        "\ud800",
        "a" * (MAX_DEVICE_CHARACTERS + 1),
        "a" * 100_000,
    ],
)
def test_names_nobody_can_type_are_refused(typed: str) -> None:
    with pytest.raises(Refused) as refused:
        normalise_device(typed)
    assert refused.value.code is Code.SUBJECT_REFUSED


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(typed: str) -> None:
    with contextlib.suppress(Refused):
        device = normalise_device(typed)
        assert normalise_device(device) == device
        assert normalise_device(f" {typed}  ") == device


def test_serials_and_fingerprints() -> None:
    assert write_serial(bytes.fromhex("00ab01")) == "00ab01"
    assert read_serial("00:AB:01") == read_serial("00ab01") == bytes.fromhex("00ab01")
    for text in ("", "zz", "abc", "00" * 21):
        with pytest.raises(Refused):
            read_serial(text)
    assert fingerprint(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
