"""The issuers of a document: defaults, and every break in the tree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from estd.ca.ecosystem import Ecosystem
from estd.ca.hierarchy import write_issuer
from estd.names import read_name

PROFILE = '\n[profile.device]\nissuer = "devices"\n'
ROOT = '[ecosystem]\nlabel = "plant"\norganization = "Acme"\n[[issuer]]\nname = "root"\n'


def test_a_name_is_enough(read: Callable[..., Ecosystem]) -> None:
    ecosystem = read(ROOT + '[[issuer]]\nname = "devices"\nparent = "root"\n' + PROFILE)
    root, devices = ecosystem.issuers
    assert read_name(root.subject).text == "CN=plant root,O=Acme"
    assert (root.key, root.path_length, root.generation, root.offline) == ("ec-p256", None, 1, False)
    assert read_name(devices.subject).text == "CN=plant devices,O=Acme"
    # Nothing below it: it signs devices only.
    assert devices.path_length == 0
    assert "path_length" in write_issuer(root)


def test_room_for_the_levels_below(read: Callable[..., Ecosystem]) -> None:
    ecosystem = read(
        ROOT
        + '[[issuer]]\nname = "site"\nparent = "root"\n[[issuer]]\nname = "line"\nparent = "site"\n'
        + '[[issuer]]\nname = "devices"\nparent = "line"\n'
        + PROFILE
    )
    assert [issuer.path_length for issuer in ecosystem.issuers] == [None, 2, 1, 0]


@pytest.mark.parametrize(
    ("issuers", "problem"),
    [
        ("", "issuer: is missing. Add at least one [[issuer]] with a name."),
        ("[[issuer]]\n", "issuer[1].name: is missing"),
        ('[[issuer]]\nname = "Devices"\n', "'Devices' is not a name"),
        ('[[issuer]]\nname = "devices"\n[[issuer]]\nname = "devices"\nsubject = "CN=x"\n', "'devices' is taken"),
        (
            '[[issuer]]\nname = "devices"\nsubject = "CN=x"\n[[issuer]]\nname = "b"\nsubject = "CN=x"\n',
            "issuer[b].subject: is that of another issuer",
        ),
        ('[[issuer]]\nname = "devices"\nsubject = ""\n', "issuer[devices].subject: is empty"),
        ('[[issuer]]\nname = "devices"\nsubject = "nonsense"\n', "is not an attribute and its value"),
        ('[[issuer]]\nname = "devices"\nkey = "rsa-1024"\n', "'rsa-1024' is not known here"),
        ('[[issuer]]\nname = "devices"\nkeys = "x"\n', "Did you mean 'key'?"),
        ('[[issuer]]\nname = "devices"\nvalidity = "long"\n', "'long' is not a validity"),
        ('[[issuer]]\nname = "devices"\npath_length = 11\n', "11 is out of range"),
        ('[[issuer]]\nname = "devices"\npath_length = "none"\n', "is a string and must be a whole number"),
        ('[[issuer]]\nname = "devices"\ncrl_url = "https://x/y"\n', "is not an http URL"),
        ('[[issuer]]\nname = "devices"\noffline = true\n', "is for issuers that exist already"),
        ('[[issuer]]\nname = "devices"\nparent = "rot"\n[[issuer]]\nname = "root"\n', "Did you mean 'root'?"),
        ('[[issuer]]\nname = "devices"\nparent = "devices"\n', "leads in a circle"),
        (
            '[[issuer]]\nname = "a"\nparent = "devices"\n[[issuer]]\nname = "devices"\nparent = "a"\n',
            "leads in a circle",
        ),
        (
            '[[issuer]]\nname = "root"\npath_length = 0\n[[issuer]]\nname = "devices"\nparent = "root"\n',
            "'root' has path_length 0: it signs no issuers",
        ),
        (
            '[[issuer]]\nname = "root"\npath_length = 1\n[[issuer]]\nname = "devices"\nparent = "root"\npath_length = 1\n',
            "path_length: must be less than 1, that of 'root'",
        ),
        (
            '[[issuer]]\nname = "root"\nvalidity = "5y"\n[[issuer]]\nname = "devices"\nparent = "root"\n',
            "issuer[devices].validity: is longer than that of 'root'",
        ),
        (
            '[[issuer]]\nname = "devices"\nname_constraints = { permitted = ["example.com"] }\n',
            "issuer[devices].name_constraints.permitted: 'example.com' is not a subtree of names",
        ),
        ('[[issuer]]\nname = "devices"\nname_constraints = {}\n', "names no subtree"),
    ],
)
def test_what_breaks_the_tree_is_said(issuers: str, problem: str, complaints: Callable[..., list[str]]) -> None:
    text = '[ecosystem]\nlabel = "plant"\n' + issuers + PROFILE
    assert any(problem in one for one in complaints(text)), complaints(text)


# --- imports ---------------------------------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP256R1())
SUB_KEY = ec.generate_private_key(ec.SECP256R1())
STARTS, ENDS = datetime(2020, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)


def authority(
    name: str, issuer: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, length: int | None
) -> bytes:
    subject, issued_by = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, issuer))
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = x509.CertificateBuilder(issued_by, subject, key.public_key(), 5, STARTS, ENDS)
    builder = builder.add_extension(x509.BasicConstraints(True, length), True).add_extension(usage, True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


FILES = {
    "root.pem": authority("Root", "Root", KEY, KEY, None),
    "flat.pem": authority("Flat", "Flat", KEY, KEY, 0),
    "sub.pem": authority("Sub", "Root", SUB_KEY, KEY, 0),
    "sub.key": SUB_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    "alien.pem": authority("Alien", "Root", SUB_KEY, SUB_KEY, 0),
}
OFFLINE_ROOT = '[[issuer]]\nname = "root"\nimport = { certificate = "root.pem" }\n'
IMPORTED = (
    OFFLINE_ROOT
    + '[[issuer]]\nname = "devices"\nparent = "root"\nimport = { certificate = "sub.pem", key = "sub.key" }\n'
)


def test_an_offline_root_and_an_imported_issuer(read: Callable[..., Ecosystem]) -> None:
    ecosystem = read('[ecosystem]\nlabel = "plant"\n' + IMPORTED + PROFILE, FILES)
    root, devices = ecosystem.issuers
    assert (root.offline, root.imported_key) == (True, None)
    assert (devices.offline, devices.path_length, devices.key) == (False, 0, "ec-p256")
    assert read_name(devices.subject).text == "CN=Sub"
    assert devices.validity.until == ENDS
    assert devices.imported_key is not None
    assert set(write_issuer(devices)["import"]) == {"certificate"}
    assert "PRIVATE" not in str(write_issuer(devices))


@pytest.mark.parametrize(
    ("issuers", "problem"),
    [
        (
            '[[issuer]]\nname = "devices"\nimport = { certificate = "sub.pem", key = "sub.key" }\n',
            "parent: is missing, and the imported certificate is not self-signed",
        ),
        (
            '[[issuer]]\nname = "root"\n[[issuer]]\nname = "devices"\nparent = "root"\n'
            'import = { certificate = "sub.pem", key = "sub.key" }\n',
            "'root' is made here and cannot have signed an import",
        ),
        (
            OFFLINE_ROOT + '[[issuer]]\nname = "devices"\nparent = "root"\nimport = { certificate = "alien.pem" }\n',
            "'root' did not sign the imported certificate",
        ),
        (OFFLINE_ROOT + '[[issuer]]\nname = "devices"\nparent = "root"\n', "'root' is offline and cannot sign"),
        (IMPORTED + 'validity = "1y"\n', "issuer[devices].validity: is fixed by the imported certificate"),
        (IMPORTED + "offline = true\n", "issuer[devices].offline: contradicts import.key"),
        (OFFLINE_ROOT.replace("root", "devices", 1) + "offline = false\n", "contradicts import.key"),
        (OFFLINE_ROOT.replace('"root"', '"devices"'), "issuer: 'devices' is offline and cannot sign"),
        (
            '[[issuer]]\nname = "flat"\nimport = { certificate = "flat.pem" }\n'
            '[[issuer]]\nname = "devices"\nparent = "flat"\nimport = { certificate = "sub.pem", key = "sub.key" }\n',
            "'flat' has path_length 0",
        ),
        ('[[issuer]]\nname = "devices"\nimport = { certificat = "root.pem" }\n', "Did you mean 'certificate'?"),
    ],
)
def test_imports_that_do_not_fit(issuers: str, problem: str, complaints: Callable[..., list[str]]) -> None:
    text = '[ecosystem]\nlabel = "plant"\n' + issuers + PROFILE
    assert any(problem in one for one in complaints(text, FILES)), complaints(text, FILES)


def test_a_bad_key_is_the_only_thing_that_is_told_of(complaints: Callable[..., list[str]]) -> None:
    """Whoever relies on that issuer is not to blame."""
    text = '[ecosystem]\nlabel = "plant"\n' + IMPORTED + PROFILE
    (problem,) = complaints(text, {**FILES, "sub.key": b"nonsense"})
    assert "issuer[devices].import.key: no private key can be read from it" in problem
    (problem,) = complaints(text, {name: content for name, content in FILES.items() if name != "sub.key"})
    assert "'sub.key' cannot be read" in problem
