"""Every certificate the tests of this session made the server issue, and every CA certificate, before four judges.

pkilint (form), ``openssl verify`` and GnuTLS's ``certtool --verify`` (paths, with nothing but the ecosystem's own
certificates, and never with a neighbour's), and `cryptography`'s verifier. Runs last.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from live_server import NAME, NORTH, SOUTH, Live, attempt, judge, run
from pkilint import loader
from pkilint.pkix import certificate, extension, name
from pkilint.validation import ValidationFindingSeverity

from estd.ra.directory import INTERNAL_LABEL

pytestmark = [pytest.mark.interop, pytest.mark.last]


@dataclass(slots=True)
class World:
    """One ecosystem: what it issued and what vouches for it."""

    label: str
    roots: list[x509.Certificate] = field(default_factory=list)
    between: list[x509.Certificate] = field(default_factory=list)
    leaves: list[x509.Certificate] = field(default_factory=list)

    @property
    def purpose(self) -> str:
        """What its leaves are for, as ``openssl verify -purpose`` says it."""
        return "sslserver" if self.label == INTERNAL_LABEL else "sslclient"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Files of the roots and of the intermediates."""
        roots, between = folder / f"{self.label}-roots.pem", folder / f"{self.label}-between.pem"
        roots.write_bytes(write_pem(self.roots))
        between.write_bytes(write_pem(self.between))
        return roots, between


def write_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


@pytest.fixture(scope="module")
def worlds(live: Live, tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """All ecosystems, the server's own among them, after one more enrollment in each of the devices' two."""
    folder = tmp_path_factory.mktemp("judged")
    for label in (NORTH, SOUTH):
        for number, kind in enumerate((("EC", "ec_paramgen_curve:P-384"), ("RSA", "rsa_keygen_bits:3072"))):
            enroll_one(live, folder, label, number, *kind)
    found: dict[str, World] = {}
    for row in live.sql("SELECT label, certificate FROM issuer JOIN ecosystem USING (ecosystem_id) ORDER BY issuer_id"):
        world = found.setdefault(row["label"], World(row["label"]))
        certificate = x509.load_der_x509_certificate(row["certificate"])
        (world.roots if certificate.issuer == certificate.subject else world.between).append(certificate)
    for row in live.sql("SELECT label, der FROM certificate JOIN ecosystem USING (ecosystem_id) ORDER BY serial"):
        found[row["label"]].leaves.append(x509.load_der_x509_certificate(row["der"]))
    assert all(world.roots for world in found.values())
    # Other tests may have applied one that nobody asked for a certificate.
    assert {NORTH, SOUTH, INTERNAL_LABEL} <= {label for label, world in found.items() if world.leaves}
    return found


def enroll_one(live: Live, folder: Path, label: str, number: int, algorithm: str, option: str) -> None:
    device, key = live.device(label), folder / f"{label}{number}.key"
    run("openssl", "genpkey", "-algorithm", algorithm, "-pkeyopt", option, "-out", key, seconds=60)
    csr = base64.b64encode(run("openssl", "req", "-new", "-key", key, "-subj", device.subject, "-outform", "DER"))
    run(
        *("curl", "--silent", "--fail", "--max-time", "15", "--cacert", live.trust),
        *("--cert", device.certificate, "--key", device.key, "-H", "Content-Type: application/pkcs10"),
        *("--data-binary", "@-", live.url("simpleenroll", label)),
        given=csr,
    )


def each(worlds: dict[str, World]) -> Iterator[tuple[World, World]]:
    """Every world with every other."""
    for world in worlds.values():
        for other in worlds.values():
            if other is not world:
                yield world, other


def in_lots(certificates: Sequence[x509.Certificate], size: int = 100) -> Iterator[Sequence[x509.Certificate]]:
    for start in range(0, len(certificates), size):
        yield certificates[start : start + size]


def test_pkilint_finds_no_fault(worlds: dict[str, World]) -> None:
    linter = certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )
    faults = set()
    for world in worlds.values():
        for one in (*world.roots, *world.between, *world.leaves):
            document = loader.load_certificate(one.public_bytes(Encoding.DER), world.label)
            for result in linter.validate(document.root):
                for found in result.finding_descriptions:
                    # The lower the number, the graver: fatal, error, warning.
                    if found.finding.severity <= ValidationFindingSeverity.WARNING:
                        who = f"{world.label} {one.subject.rfc4514_string()}"
                        faults.add(f"{who}: {found.finding.code} at {result.node.path}")
    assert not faults, "\n".join(sorted(faults))


def test_openssl_finds_the_way_home_and_no_other(worlds: dict[str, World], tmp_path: Path) -> None:
    for world in worlds.values():
        roots, between = world.write(tmp_path)
        trust = ("-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", roots)
        run("openssl", "verify", *trust, roots)
        if world.between:
            run("openssl", "verify", *trust, between)
            trust += ("-untrusted", between)
        for number, lot in enumerate(in_lots(world.leaves)):
            files = []
            for place, leaf in enumerate(lot):
                files.append(tmp_path / f"{world.label}-{number}-{place}.pem")
                files[-1].write_bytes(write_pem([leaf]))
            out = run("openssl", "verify", *trust, "-purpose", world.purpose, *files, seconds=60).decode()
            assert out.count(": OK") == len(files)
    for world, other in each(worlds):
        roots, between = other.write(tmp_path)
        own = tmp_path / "own.pem"
        own.write_bytes(write_pem([*world.between, *other.between]))
        for leaf in world.leaves[:3]:
            stray = tmp_path / "stray.pem"
            stray.write_bytes(write_pem([leaf]))
            trust = ("-no-CApath", "-no-CAstore", "-CAfile", roots, "-untrusted", own)
            assert attempt("openssl", "verify", *trust, stray).status != 0, (world.label, other.label)


def test_gnutls_finds_the_way_home_and_no_other(worlds: dict[str, World], tmp_path: Path) -> None:
    judge("certtool")
    for world in worlds.values():
        roots, _ = world.write(tmp_path)
        for leaf in world.leaves:
            done = verify_with_gnutls(roots, [leaf, *world.between])
            assert done.returncode == 0, done.stdout
    for world, other in each(worlds):
        roots, _ = other.write(tmp_path)
        for leaf in world.leaves[:3]:
            assert verify_with_gnutls(roots, [leaf, *world.between]).returncode != 0
            assert verify_with_gnutls(roots, [leaf, *other.between]).returncode != 0


def verify_with_gnutls(roots: Path, chain: Sequence[x509.Certificate]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [judge("certtool"), "--verify", "--load-ca-certificate", str(roots)],
        input=write_pem(chain),
        capture_output=True,
        timeout=20,
        check=False,
    )


def test_cryptography_finds_the_way_home_and_no_other(live: Live, worlds: dict[str, World]) -> None:
    for world in worlds.values():
        for leaf in world.leaves:
            chain = verify_with_cryptography(world, leaf, world.between)
            assert chain[0] == leaf
            assert chain[-1] in world.roots
    for world, other in each(worlds):
        for leaf in world.leaves:
            with pytest.raises(verification.VerificationError):
                verify_with_cryptography(other, leaf, [*world.between, *other.between])


def verify_with_cryptography(
    world: World, leaf: x509.Certificate, between: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    builder = verification.PolicyBuilder().store(verification.Store(world.roots)).time(datetime.now(UTC))
    if world.purpose == "sslserver":
        return builder.build_server_verifier(x509.DNSName(NAME)).verify(leaf, list(between))
    # The library's own policy for clients wants a subjectAltName, which a device named by its subject need not have.
    leaf_policy = verification.ExtensionPolicy.permit_all().require_present(
        x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, _allows_client_auth
    )
    builder = builder.extension_policies(
        ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=leaf_policy
    )
    return builder.build_client_verifier().verify(leaf, list(between)).chain


def _allows_client_auth(_: object, __: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if x509.ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError("not for clients")


def test_serials_dates_and_keys_are_as_they_should_be(worlds: dict[str, World]) -> None:
    """RFC 5280 §4.1.2.2 (positive, at most 20 octets, unique), §4.1.2.5 and §4.2.1: what no path check looks at."""
    for world in worlds.values():
        issuers = {one.subject: one for one in (*world.roots, *world.between)}
        serials = [(leaf.issuer, leaf.serial_number) for leaf in world.leaves]
        assert len(set(serials)) == len(serials)
        for leaf in world.leaves:
            issuer = issuers[leaf.issuer]
            assert 0 < leaf.serial_number < 1 << 159
            assert issuer.not_valid_before_utc <= leaf.not_valid_before_utc < leaf.not_valid_after_utc
            assert leaf.not_valid_after_utc <= issuer.not_valid_after_utc
            named = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
            assert named == issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
            usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
            assert not usage.key_cert_sign
            assert not usage.crl_sign
            constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
            assert not constraints.ca


def test_nothing_that_was_sent_broke_anything(live: Live, worlds: dict[str, World]) -> None:
    """No answer of the session was an internal error, nothing was raised past its handler, no intent is left open."""
    assert live.metric("estd_requests_total", outcome="internal-error") == 0
    assert "Traceback" not in live.log.read_text(encoding="utf-8", errors="replace")
    assert not live.sql("SELECT * FROM unresolved_intent")
