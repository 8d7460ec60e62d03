"""Name constraints: texts, encodings, and which names stay inside."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from cryptography import x509

from estd.ca.constraints import (
    NameConstraints,
    find_violation,
    read_name_constraints,
    write_name_constraints,
    write_subtree,
)
from estd.errors import Refused
from estd.names import EMPTY_NAME, write_name, write_san

ALL = NameConstraints(
    ("dns:example.com", "email:example.com", "uri:.example.com", "ip:10.0.0.0/8", "ip:2001:db8::/32", "dirname:O=Acme"),
    ("dns:secret.example.com",),
)


def test_what_is_written_is_read() -> None:
    assert read_name_constraints(write_name_constraints(ALL)) == ALL


def test_another_library_writes_the_same() -> None:
    theirs = x509.NameConstraints(
        [x509.DNSName("example.com"), x509.IPAddress(ip_network("10.0.0.0/8"))], [x509.DNSName("secret.example.com")]
    )
    ours = NameConstraints(("dns:example.com", "ip:10.0.0.0/8"), ("dns:secret.example.com",))
    assert write_name_constraints(ours) == theirs.public_bytes()


@pytest.mark.parametrize(
    "text",
    [
        *("", "example.com", "dns:", "dns:.example.com", "dns:a b", "email:@x", "uri:http://x", "ip:10.0.0.1/8"),
        *("ip:x", "dirname:nonsense", "rid:1.2.3"),
    ],
)
def test_what_is_no_subtree(text: str) -> None:
    with pytest.raises(Refused):
        write_subtree(text)


@pytest.mark.parametrize(
    "value",
    [
        "30",
        "3003020101",
        "3007a3053003820161",
        "300aa00830068201618001 00",  # a minimum that is not the default
        "3009a00730058703010203",
    ],
)
def test_what_is_no_constraint(value: str) -> None:
    with pytest.raises(Refused):
        read_name_constraints(bytes.fromhex(value))


@pytest.mark.parametrize("cut", range(1, 30))
def test_truncated_and_extended(cut: int) -> None:
    value = write_name_constraints(ALL)
    with pytest.raises(Refused):
        read_name_constraints(value[:-cut])
    with pytest.raises(Refused):
        read_name_constraints(value + b"\0" * cut)


@pytest.mark.parametrize(
    ("san", "inside"),
    [
        ("dns:example.com", True),
        ("dns:a.EXAMPLE.com", True),
        ("dns:notexample.com", False),
        ("dns:secret.example.com", False),
        ("dns:a.secret.example.com", False),
        ("email:me@example.com", True),
        ("email:me@a.example.com", False),
        ("uri:https://a.example.com/x", True),
        ("uri:https://user@a.example.com:8443/x", True),
        ("uri:https://example.com/", False),
        ("uri:urn:device:1", False),
        ("ip:10.1.2.3", True),
        ("ip:11.1.2.3", False),
        ("ip:2001:db8::1", True),
        ("ip:2001:db9::1", False),
        ("dirname:O=Acme,CN=x", False),
        ("dirname:CN=x,O=ACME", True),
        ("rid:1.2.3", True),
    ],
)
def test_alternative_names(san: str, inside: bool) -> None:
    assert (find_violation([ALL], EMPTY_NAME, write_san([san])) is None) is inside


@pytest.mark.parametrize(
    ("subject", "inside"), [("CN=x,O=acme", True), ("O=Acme", True), ("O=Other", False), ("CN=x", False)]
)
def test_subjects(subject: str, inside: bool) -> None:
    assert (find_violation([ALL], write_name(subject), None) is None) is inside


def test_a_mailbox_and_a_domain_of_mailboxes() -> None:
    one = [NameConstraints(("email:me@Example.com",), ())]
    assert find_violation(one, EMPTY_NAME, write_san(["email:me@example.com"])) is None
    assert find_violation(one, EMPTY_NAME, write_san(["email:you@example.com"])) == "email:you@example.com"
    domain = [NameConstraints(("email:.example.com",), ())]
    assert find_violation(domain, EMPTY_NAME, write_san(["email:me@a.example.com"])) is None


def test_an_address_in_the_subject_counts_where_there_is_no_alternative_name() -> None:
    one = [NameConstraints(("email:example.com",), ())]
    assert find_violation(one, write_name("CN=x,emailAddress=a@example.com"), None) is None
    assert find_violation(one, write_name("CN=x,emailAddress=a@evil.example"), None) == "email:a@evil.example"
    assert find_violation(one, write_name("CN=x,emailAddress=a@evil.example"), write_san(["dns:x.example"])) is None
    none = [NameConstraints((), ("email:example.com",))]
    assert find_violation(none, write_name("emailAddress=a@example.com,CN=x"), None) == "email:a@example.com"


def test_every_issuer_above_counts() -> None:
    outer, inner = NameConstraints(("dns:example.com",), ()), NameConstraints(("dns:plant.example.com",), ())
    assert find_violation([outer, inner], EMPTY_NAME, write_san(["dns:a.plant.example.com"])) is None
    assert find_violation([outer, inner], EMPTY_NAME, write_san(["dns:a.example.com"])) == "dns:a.example.com"
    assert find_violation([], EMPTY_NAME, write_san(["dns:anything"])) is None
