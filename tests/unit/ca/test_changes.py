"""What a new version changes, as lines, and which issuers it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from estd.ca.certificates import write_pem
from estd.ca.changes import decide_changes, decide_new_issuers
from estd.ca.ecosystem import Ecosystem


def test_a_new_ecosystem(read: Callable[..., Ecosystem], minimal: str) -> None:
    new = read(minimal)
    assert decide_changes(None, new) == [
        "new ecosystem 'plant'",
        "new issuer 'root': a new ec-p256 key",
        "new issuer 'devices': a new ec-p256 key, signed by 'root'",
        "new profile 'device'",
    ]
    assert decide_new_issuers(None, new) == ["root", "devices"]


def test_no_difference_is_no_line(read: Callable[..., Ecosystem], minimal: str) -> None:
    assert decide_changes(read(minimal), read(minimal + 'validity = "365d"\n')) == []
    assert decide_new_issuers(read(minimal), read(minimal)) == []


def test_each_difference_is_a_line(read: Callable[..., Ecosystem], minimal: str) -> None:
    old = read(minimal + 'label = "old"\n')
    new = read(minimal + 'validity = "90d"\nkeys = ["ec-p256", "ed25519"]\nstrict = true\n')
    assert decide_changes(old, new) == [
        "profile.device.keys: ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096 → ec-p256, ed25519",
        "profile.device.label: old (gone)",
        "profile.device.strict: false → true",
        "profile.device.validity: 1y → 90d",
    ]
    assert decide_new_issuers(old, new) == []


def test_a_rule_is_found_by_its_type(read: Callable[..., Ecosystem], minimal: str) -> None:
    new = read(minimal + 'subject_attribute = [{ type = "CN", pattern = "dev-.*" }]\n')
    assert "profile.device.subject_attribute[CN].pattern: dev-.* (new)" in decide_changes(read(minimal), new)


def test_an_issuer_is_made_anew_when_its_certificate_would_differ(read: Callable[..., Ecosystem], minimal: str) -> None:
    for change in ('key = "ec-p384"', "generation = 2", 'validity = "30y"', 'subject = "CN=x"'):
        new = read(minimal.replace('name = "root"\n', f'name = "root"\n{change}\n'))
        assert decide_new_issuers(read(minimal), new) == ["root"]
        lines = decide_changes(read(minimal), new)
        assert "issuer 'root' gets a new certificate and key; the old ones stay until what they signed ends" in lines
        assert "issuer 'devices' keeps its certificate from the previous 'root'" in lines


def test_urls_need_no_new_certificate(read: Callable[..., Ecosystem], minimal: str) -> None:
    new = read(minimal.replace("devices.crl", "other.crl"))
    assert decide_new_issuers(read(minimal), new) == []
    assert decide_changes(read(minimal), new) == [
        "issuer[devices].crl_url: http://pki.example.com/devices.crl → http://pki.example.com/other.crl"
    ]


def test_issuers_come_and_go(read: Callable[..., Ecosystem], minimal: str) -> None:
    more = read(minimal + '[[issuer]]\nname = "spare"\nparent = "root"\n')
    assert "new issuer 'spare': a new ec-p256 key, signed by 'root'" in decide_changes(read(minimal), more)
    lines = decide_changes(more, read(minimal))
    assert "issuer 'spare' issues nothing any more; its certificates stay on record" in lines


def test_certificates_are_called_by_name(read: Callable[..., Ecosystem], minimal: str, hierarchy: Any) -> None:
    anchored = read(
        minimal + '[[anchor]]\nname = "maker"\ncertificates = ["m.pem"]\n',
        {"m.pem": write_pem(hierarchy.root.certificate).encode()},
    )
    lines = decide_changes(read(minimal), anchored)
    assert any(line.startswith("anchor[maker].certificates: CN=plant root (SHA-256 ") for line in lines), lines


def test_a_key_that_comes_home_is_taken(read: Callable[..., Ecosystem], hierarchy: Any) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    files = {
        "root.pem": write_pem(hierarchy.root.certificate).encode(),
        "root.key": hierarchy.root_key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    text = '[ecosystem]\nlabel = "plant"\n[[issuer]]\nname = "root"\nimport = { certificate = "root.pem" }\n'
    text += '[[issuer]]\nname = "other"\n[profile.device]\nissuer = "other"\n'
    offline = read(text, files)
    home = read(text.replace('"root.pem" }', '"root.pem", key = "root.key" }'), files)
    assert decide_new_issuers(offline, home) == ["root"]
    assert decide_new_issuers(home, home) == []
