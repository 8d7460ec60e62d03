"""strongSwan's ``pki --estca`` and ``pki --est``: a TLS stack, an HTTP client and a PKCS#10 writer of its own.

Release 5.9.8 has no option for a label (RFC 7030 §3.2.2): it appends ``/.well-known/est/OPERATION`` to the URL's path, so
it speaks to the default ecosystem. A URL that ends in ``/.well-known/est/LABEL/OPERATION?`` moves what it appends into
the query, which names no resource here; that way it reaches every label.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from live_server import NORTH, SOUTH, Live, attempt, judge, run

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("_programs")]

_KINDS = {"ec-p256": ("ecdsa", "256"), "ec-p384": ("ecdsa", "384"), "rsa-2048": ("rsa", "2048")}


@pytest.fixture(scope="module")
def _programs() -> None:
    judge("pki")


class Pki:
    """`pki` with the anchors it needs: the server's own, and those of the ecosystem whose certificates it will get."""

    def __init__(self, live: Live, folder: Path) -> None:
        self._live = live
        self.folder = folder

    def url(self, operation: str, label: str | None) -> str:
        """Where `operation` goes; see the module for the question mark."""
        base = f"https://127.0.0.1:{self._live.port}"
        return base if label is None else f"{base}/.well-known/est/{label}/{operation}?"

    def anchors(self, label: str) -> list[str | Path]:
        """The options that name every certificate it may trust."""
        options: list[str | Path] = ["--cacert", self._live.trust]
        for number, issuer in enumerate(self._live.issuers(label)):
            path = self.folder / f"issuer-{label}-{number}.pem"
            path.write_bytes(issuer.public_bytes(Encoding.PEM))
            options += ["--cacert", path]
        return options

    def key(self, name: str, kind: str) -> Path:
        """A new private key."""
        algorithm, size = _KINDS[kind]
        path = self.folder / f"{name}.key"
        path.write_bytes(run("pki", "--gen", "--type", algorithm, "--size", size, "--outform", "pem", seconds=60))
        return path

    def request(self, key: Path, subject: str) -> Path:
        """A PKCS#10 request."""
        path = key.with_suffix(".csr")
        path.write_bytes(run("pki", "--req", "--in", key, "--type", "priv", "--dn", subject, "--outform", "der"))
        return path

    def est(self, label: str | None, operation: str, csr: Path, *options: str | Path) -> x509.Certificate:
        """Enroll, and check that exactly this certificate is on record."""
        der = run(
            *("pki", "--est", "--url", self.url(operation, label), "--in", csr),
            *(*self.anchors(label or NORTH), *options, "--maxpolltime", "5", "--interval", "1"),
        )
        (row,) = self._live.stored(der)
        assert row["label"] == (label or NORTH)
        assert row["operation"] == operation
        return x509.load_der_x509_certificate(der)


@pytest.fixture
def pki(live: Live, tmp_path: Path) -> Pki:
    return Pki(live, tmp_path)


@pytest.mark.parametrize("label", [None, NORTH, SOUTH])
def test_estca_gets_root_and_intermediate(live: Live, pki: Pki, label: str | None) -> None:
    out = pki.folder / "ca.der"
    done = attempt("pki", "--estca", "--url", pki.url("cacerts", label), "--cacert", live.trust, "--caout", out)
    assert done.status == 0, done.stderr
    got = {path.read_bytes() for path in pki.folder.glob("ca*.der")}
    assert got == {one.public_bytes(Encoding.DER) for one in live.issuers(label or NORTH)}
    # The intermediate is verified up to the root; the root itself is for a person to compare.
    assert "Sub CA cert is trusted" in done.stderr
    assert "Root CA" in done.stderr


@pytest.mark.parametrize("label", [None, SOUTH])
@pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
def test_basic_then_renewal(live: Live, pki: Pki, kind: str, label: str | None) -> None:
    device, code = live.code(label or NORTH)
    key = pki.key("first", kind)
    first = pki.est(label, "simpleenroll", pki.request(key, f"CN={device}"), "--userpass", f"{device}:{code}")
    assert first.subject.rfc4514_string() == f"CN={device}"
    old = pki.folder / "first.pem"
    old.write_bytes(first.public_bytes(Encoding.PEM))
    new = pki.key("second", "ec-p384")
    second = pki.est(label, "simplereenroll", pki.request(new, f"CN={device}"), "--cert", old, "--key", key)
    assert second.subject == first.subject
    assert second.public_key() != first.public_key()


def test_a_wrong_code_is_a_plain_failure(live: Live, pki: Pki) -> None:
    device, _ = live.code(NORTH)
    csr, issued = pki.request(pki.key("key", "ec-p256"), f"CN={device}"), live.issuances()
    done = attempt(
        *("pki", "--est", "--url", pki.url("simpleenroll", None), "--in", csr, *pki.anchors(NORTH)),
        *("--userpass", f"{device}:AAAAA-AAAAA", "--maxpolltime", "5", "--interval", "1"),
    )
    assert done.status != 0
    assert done.stdout == b""
    assert live.issuances() == issued


def test_a_neighbours_certificate_does_not_renew(live: Live, pki: Pki) -> None:
    device, code = live.code(SOUTH)
    key = pki.key("south", "ec-p256")
    csr = pki.request(key, f"CN={device}")
    issued_south = pki.est(SOUTH, "simpleenroll", csr, "--userpass", f"{device}:{code}")
    old = pki.folder / "south.pem"
    old.write_bytes(issued_south.public_bytes(Encoding.PEM))
    issued, before = live.issuances(), live.last_event()
    done = attempt(
        *("pki", "--est", "--url", pki.url("simplereenroll", NORTH), "--in", csr, "--cert", old, "--key", key),
        *(*pki.anchors(NORTH), "--maxpolltime", "5", "--interval", "1"),
    )
    assert done.status != 0
    (event,) = live.events(before, outcome="refused")
    assert (event["ecosystem"], event["code"]) == (NORTH, "certificate-untrusted")
    assert live.issuances() == issued
