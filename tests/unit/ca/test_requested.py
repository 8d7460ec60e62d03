"""What requests ask for beyond names: ignored, refused, or strictly compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509

from estd.ca.ecosystem import Ecosystem
from estd.ca.profile import Profile
from estd.ca.requested import check_requested
from estd.errors import Code, Refused
from estd.keys.software import SoftwareKey
from estd.names import EMPTY_NAME, write_name, write_san

SUBJECT = write_name("CN=device-1")
SAN = write_san(["dns:a.example.com"])
NAMES = x509.SubjectAlternativeName([x509.DNSName("A.example.com")])
USAGE = x509.KeyUsage(True, *[False] * 8)
SIGNS = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
CLIENT = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
BOTH = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH])
ODD = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@pytest.fixture
def profile(read: Callable[..., Ecosystem], head: str) -> Callable[[str], Profile]:
    return lambda text: read(f'{head}[profile.device]\nissuer = "devices"\n{text}').profiles["device"]


@pytest.fixture
def ask(device_key: SoftwareKey, make_request: Callable[..., Any]) -> Callable[..., None]:
    def ask(profile: Profile, *extensions: tuple[x509.ExtensionType, bool], subject: bytes = EMPTY_NAME) -> None:
        check_requested(profile, make_request(device_key, subject, extensions).request, SUBJECT, SAN)

    return ask


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [(USAGE, True), (CLIENT, False), (NAMES, False)],
        [(SIGNS, True), (BOTH, True)],
        [(x509.BasicConstraints(False, None), True)],
        [(ODD, False)],
    ],
)
def test_what_will_not_be_given_is_ignored(
    extensions: list[Any], profile: Callable[[str], Profile], ask: Callable[..., None]
) -> None:
    ask(profile('san = "credential"\n'), *extensions, subject=write_name("CN=other"))


@pytest.mark.parametrize("length", [None, 0])
@pytest.mark.parametrize("strict", ["true", "false"])
def test_nobody_becomes_an_authority(
    length: int | None, strict: str, profile: Callable[[str], Profile], ask: Callable[..., None]
) -> None:
    with pytest.raises(Refused, match="certification authority") as refusal:
        ask(profile(f"strict = {strict}\n"), (x509.BasicConstraints(True, length), False))
    assert refusal.value.code is Code.EXTENSION_REFUSED


def test_a_critical_extension_is_not_ignored(profile: Callable[[str], Profile], ask: Callable[..., None]) -> None:
    with pytest.raises(Refused, match=r"1\.2\.3\.4"):
        ask(profile(""), (ODD, True))
    ask(profile('extension = [{ oid = "1.2.3.4", value = "0500" }]\n'), (ODD, True))


@pytest.mark.parametrize(
    ("extensions", "problem"),
    [
        ([(SIGNS, True)], "keyCertSign is more than this profile gives"),
        ([(BOTH, False)], "serverAuth is more than this profile gives"),
        ([(ODD, False)], "the extension 1.2.3.4 is not one this profile issues so"),
    ],
)
def test_a_strict_profile_refuses_every_difference(
    extensions: list[Any], problem: str, profile: Callable[[str], Profile], ask: Callable[..., None]
) -> None:
    with pytest.raises(Refused, match=problem):
        ask(profile('strict = true\nsan = "credential"\n'), *extensions)


def test_a_strict_profile_takes_what_it_gives(profile: Callable[[str], Profile], ask: Callable[..., None]) -> None:
    strict = profile('strict = true\nsan = "credential"\nextension = [{ oid = "1.2.3.4", value = "0500" }]\n')
    ask(strict, (USAGE, True), (CLIENT, False), (NAMES, False), (ODD, False), subject=write_name("CN=DEVICE-1"))
    ask(strict)


def test_a_strict_profile_compares_names(profile: Callable[[str], Profile], ask: Callable[..., None]) -> None:
    strict = profile('strict = true\nsan = "credential"\n')
    with pytest.raises(Refused, match="subject asked for") as refusal:
        ask(strict, subject=write_name("CN=other"))
    assert refusal.value.code is Code.SUBJECT_REFUSED
    with pytest.raises(Refused, match="subjectAltName asked for") as refusal:
        ask(strict, (x509.SubjectAlternativeName([x509.DNSName("b.example.com")]), False))
    assert refusal.value.code is Code.SAN_REFUSED


def test_names_from_the_request_come_from_the_request(
    profile: Callable[[str], Profile], ask: Callable[..., None]
) -> None:
    asked = 'subject = "request"\nsubject_attribute = [{ type = "CN" }]\n'
    ask(profile(asked), subject=write_name("CN=Device-1"))
    with pytest.raises(Refused, match="not the one asked for"):
        ask(profile(asked), subject=write_name("CN=other"))
    names = profile('san = "request"\nsan_rule = { types = ["dns"] }\n')
    ask(names, (NAMES, False))
    with pytest.raises(Refused, match="not the one asked for"):
        ask(names)
