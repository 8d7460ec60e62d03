"""Rules under which nothing can be issued are found, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.asn1.spki import KEY_TYPES
from estd.ca.authority import read_authority
from estd.ca.certificates import write_pem
from estd.ca.ecosystem import Ecosystem, read_document
from estd.ca.issuer import RANDOM_BYTES, Issuer, issue_authority
from estd.ca.prospects import _write_blank, find_hindrances
from estd.errors import Refused
from estd.keys.software import SoftwareKey, generate
from estd.names import write_name
from estd.wire.pkcs10 import read_request, verify_request

NOW = datetime(2030, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DOCUMENT = """
[ecosystem]
label = "plant"
{head}
[[issuer]]
name = "root"
{root}
[[issuer]]
name = "devices"
parent = "root"
{devices}
[profile.pump]
issuer = "devices"
{profile}
"""


def write(head: str = "", root: str = "", devices: str = "", profile: str = "", more: str = "") -> Ecosystem:
    text = DOCUMENT.format(head=head, root=root, devices=devices, profile=profile) + more
    return read_document(text, "plant.toml", lambda path: path.encode())


def make(rules: Ecosystem, at: datetime = NOW) -> tuple[dict[str, bytes], dict[str, SoftwareKey]]:
    certificates: dict[str, bytes] = {}
    keys: dict[str, SoftwareKey] = {}
    for spec in rules.issuers:
        keys[spec.name] = generate(spec.key)
        parent = None if spec.parent is None else read_authority(certificates[spec.parent])
        signer = None if spec.parent is None else keys[spec.parent]
        randomness = bytes(range(RANDOM_BYTES))
        certificates[spec.name] = issue_authority(spec, keys[spec.name], parent, signer, at, randomness)
    return certificates, keys


def find(rules: Ecosystem, made_at: datetime = NOW, now: datetime = NOW, new: tuple[str, ...] = ()) -> list[str]:
    return [f"{one.path}: {one.what}" for one in find_hindrances(rules, make(rules, made_at)[0], new, now)]


@pytest.mark.parametrize("profile", ["", 'label = "pumps"', "max_der_bytes = 900", 'validity = "until 2031-01-01"'])
def test_what_can_be_issued_is_left_alone(profile: str) -> None:
    assert find(write(profile=profile), new=("root", "devices")) == []


def test_issuers_out_of_their_time() -> None:
    rules = write(root='validity = "30d"', devices='validity = "10d"', profile='validity = "1d"')
    for new in ((), ("root", "devices")):
        assert find(rules, now=NOW + 9 * DAY, new=new) == []
    assert find(rules, now=NOW + 20 * DAY) == ["issuer[devices]: expired on 2030-06-11 10:59 UTC"]
    assert find(rules, now=NOW - DAY) == ["issuer[devices]: is not valid before 2030-06-01 11:00 UTC"]
    # A root that has ended is told of when it comes new; one that is there already hinders nobody.
    assert [one.partition(":")[0] for one in find(rules, now=NOW + 40 * DAY, new=("root",))] == [
        "issuer[root]",
        "issuer[devices]",
    ]
    # Without a certificate there is nothing to judge.
    assert find_hindrances(rules, {}, (), NOW + 40 * DAY) == []


@pytest.mark.parametrize(
    ("starts", "ends", "what"), [(-20, -10, "expired on 2030-05-22"), (10, 20, "is not valid before")]
)
def test_imports_out_of_their_time(starts: int, ends: int, what: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Old Root")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW + starts * DAY, NOW + ends * DAY)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(*[False] * 5, True, True, False, False), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    text = f"""
[ecosystem]
label = "plant"
[[issuer]]
name = "old"
import = {{ certificate = '''{write_pem(certificate)}''' }}
[[issuer]]
name = "root"
[profile.pump]
issuer = "root"
"""
    rules = read_document(text, "plant.toml", lambda path: path.encode())
    certificates = {"old": certificate}
    (found,) = find_hindrances(rules, certificates, ["old"], NOW)
    assert found.path == "issuer[old].import.certificate"
    assert found.what.startswith(what)
    assert find_hindrances(rules, certificates, [], NOW) == []


@pytest.mark.parametrize(
    ("profile", "what"),
    [
        ('validity = "until 2020-01-01"', "the end that the profile sets, 2020-01-01 00:00 UTC, has passed"),
        ('validity = "30d"\nalign = "refuse"', "the issuer ends on 2030-06-11 10:59 UTC, before a certificate"),
    ],
)
def test_dates_that_never_come(profile: str, what: str) -> None:
    certificates, _ = make(write(devices='validity = "10d"', profile='validity = "1d"'))
    (found,) = find_hindrances(write(profile=profile), certificates, (), NOW)
    assert found.path == "profile.pump.validity"
    assert what in found.what
    # Where every certificate ends with its issuer, what the profile sets is not asked.
    aligned = profile.replace('\nalign = "refuse"', "") + '\nalign = "issuer"'
    assert find_hindrances(write(profile=aligned), certificates, (), NOW) == []


ACME = '{ permitted = ["dirname:O=Acme"] }'


@pytest.mark.parametrize("where", ["root", "devices"])
@pytest.mark.parametrize("organization", ["Acme", "Other"])
def test_a_fixed_subject_that_no_issuer_above_allows(where: str, organization: str) -> None:
    subject = f'subject = "fixed"\n[[profile.pump.subject_attribute]]\ntype = "O"\nvalue = "{organization}"\n'
    constraints = {where: f"name_constraints = {ACME}"}
    root = 'subject = "CN=Root,O=Acme"'
    devices = 'subject = "CN=Devices,O=Acme"'
    rules = write(
        root="\n".join([root, constraints.get("root", "")]),
        devices="\n".join([devices, constraints.get("devices", "")]),
        profile=subject,
    )
    found = find(rules)
    if organization == "Acme":
        assert found == []
        return
    what = "is fixed, and outside the name constraints of its issuer 'devices': dirname:O=Other"
    assert found == [f"profile.pump.subject: {what}"]


def test_a_profile_that_nothing_leads_to() -> None:
    more = '[profile.valve]\nissuer = "devices"\n'
    told = "cannot be reached: it has no label and is not the default_profile"
    assert find(write(more=more)) == [f"profile.pump: {told}", f"profile.valve: {told}"]
    assert find(write(head='default_profile = "pump"', more=more)) == [f"profile.valve: {told}"]
    assert find(write(head='default_profile = "pump"', more=more + 'label = "valves"\n')) == []
    # One that another goes by has its use without a path.
    assert find(write(head='default_profile = "pump"', profile='enroll = ["issued:valve"]', more=more)) == []


@pytest.mark.parametrize("issuer_key", ["ec-p256", "rsa-2048", "ed25519"])
def test_the_smallest_certificate_is_as_large_as_reckoned(issuer_key: str) -> None:
    """What the issuer refuses for its size and what is refused here meet at one octet."""
    fixed = 'subject = "fixed"\n[[profile.pump.subject_attribute]]\ntype = "CN"\nvalue = "a"\n'

    def write_limit(limit: int) -> Ecosystem:
        profile = f'keys = ["ed25519", "rsa-2048"]\nmax_der_bytes = {limit}\n{fixed}'
        return write(devices=f'key = "{issuer_key}"', profile=profile)

    certificates, keys = make(write_limit(200))
    (found,) = find_hindrances(write_limit(200), certificates, (), NOW)
    assert found.path == "profile.pump.max_der_bytes"
    least = int(found.what.rpartition(" less than ")[2].split()[0])
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = csr.sign(ed25519.Ed25519PrivateKey.generate(), None)
    request = verify_request(read_request(signed.public_bytes(Encoding.DER)))

    def prepare(limit: int) -> Any:
        profiles = write_limit(limit).profiles.values()
        issuer = Issuer(1, read_authority(certificates["devices"]), keys["devices"], profiles)
        return issuer.prepare("pump", request, write_name("CN=a"), None, NOW, bytes(range(RANDOM_BYTES)))

    assert find_hindrances(write_limit(least), certificates, (), NOW) == []
    assert prepare(least)
    assert len(find_hindrances(write_limit(least - 1), certificates, (), NOW)) == 1
    with pytest.raises(Refused, match="too_large"):
        prepare(least - 1)


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_blanks_are_as_long_as_keys(key_type: str) -> None:
    public = generate(key_type).private_key.public_key()
    assert len(_write_blank(key_type)) == len(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
