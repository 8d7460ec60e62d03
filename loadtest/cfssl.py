"""The peer: Debian's `cfssl serve` with PostgreSQL, set up to do the same work as estd under the same conditions.

A P-256 CA and server key; TLS with a client certificate required and verified (``-mutual-tls-ca``); the certificate of each
request stored in ``certificates`` and committed before it is answered; PostgreSQL's binaries and settings are the ones
of estd's private server, in a cluster of its own, reached over a Unix socket like estd's; only ``max_connections`` is
higher, because cfssl opens one for each request under way. cfssl trusts whoever has a certificate: it asks for no profile,
keeps no audit trail, and a repeated request makes another certificate.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import clocks
import fleet
import generator
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ours import Database

from estd.store.private import PrivatePostgres

INSTALL = "apt-get install golang-cfssl"
ROLES = ("cfssl", "postgres")

# The columns of cfssl's own migrations (certdb/pg in its documentation) as of version 1.2.
_SCHEMA = """\
CREATE TABLE certificates (
    serial_number bytea NOT NULL, authority_key_identifier bytea NOT NULL, ca_label bytea, status bytea NOT NULL,
    reason int, expiry timestamptz, revoked_at timestamptz, pem bytea NOT NULL,
    PRIMARY KEY (serial_number, authority_key_identifier)
);
CREATE TABLE ocsp_responses (
    serial_number bytea NOT NULL, authority_key_identifier bytea NOT NULL, body bytea NOT NULL, expiry timestamptz,
    PRIMARY KEY (serial_number, authority_key_identifier),
    FOREIGN KEY (serial_number, authority_key_identifier)
        REFERENCES certificates (serial_number, authority_key_identifier)
);
"""
_SIGN = "/api/v1/cfssl/sign"
_POLICY = {"signing": {"default": {"expiry": "2160h", "usages": ["digital signature", "client auth"]}}}


def why_not() -> str | None:
    """Why there can be no comparison here; None when there can."""
    return None if shutil.which("cfssl") else f"cfssl is not installed ({INSTALL})"


def version() -> str:
    """What it says of itself."""
    answer = subprocess.run(["cfssl", "version"], capture_output=True, text=True, check=True).stdout.splitlines()
    return " ".join(line.partition(":")[2].strip() for line in answer if line.startswith(("Version", "Runtime")))


class Peer:
    """`cfssl serve` in `directory`, trusting one maker; stopped by `stop`, which must be called."""

    name = "cfssl"

    def __init__(self, directory: Path, maker: Path) -> None:
        directory.mkdir(mode=0o755)
        self._postgres = PrivatePostgres(directory / "postgres")
        (directory / "postgres").mkdir(mode=0o755)
        (directory / "postgres" / "tuning.conf").write_text("max_connections = 200\n")
        url = self._postgres.start()
        try:
            self._start(directory, url, maker)
        except BaseException:
            self._postgres.stop()
            raise

    def make_visits(self, devices: Sequence[fleet.Device]) -> list[generator.Visit]:
        """Every CSR of every device as a request to sign."""
        host = f"{self.address[0]}:{self.address[1]}".encode()
        return [generator.Visit(one, tuple(_write_request(host, body) for body in one.bodies)) for one in devices]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds so far by role."""
        roots = [self._process.pid, self._postmaster]
        return clocks.read_roles(roots, lambda command: "postgres" if "postgres" in command else "cfssl")

    def rows(self) -> int:
        """Certificates on record."""
        return int(self.database.fetch("SELECT count(*) FROM certificates"))

    def stop(self) -> None:
        """End both."""
        self.database.close()
        self._process.terminate()
        self._process.wait(30)
        self._postgres.stop()

    def _start(self, directory: Path, url: str, maker: Path) -> None:
        self.database = Database(url)
        self.database.execute(_SCHEMA)
        key = ec.generate_private_key(ec.SECP256R1())
        authority = fleet.make_authority(key, "peer")
        self.trust = authority
        _write(directory, "ca", authority, key)
        server_key = ec.generate_private_key(ec.SECP256R1())
        _write(directory, "server", _make_server_certificate(authority, key, server_key), server_key)
        _dump(directory / "policy.json", _POLICY)
        socket_directory = url.partition("host=")[2]
        source = f"postgres:///estd?host={socket_directory}&user=estd&sslmode=disable"
        _dump(directory / "database.json", {"driver": "postgres", "data_source": source})
        port = _find_port()
        self.address = ("127.0.0.1", port)
        arguments = {
            "address": "127.0.0.1",
            "port": str(port),
            "ca": "ca.pem",
            "ca-key": "ca.key",
            "config": "policy.json",
            "db-config": "database.json",
            "tls-cert": "server.pem",
            "tls-key": "server.key",
            "mutual-tls-ca": str(maker.absolute()),
            "loglevel": "3",  # warnings: a line for each request would cost it CPU that estd does not spend either
        }
        self._log = directory / "cfssl.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                ["cfssl", "serve", *(f"-{name}={value}" for name, value in arguments.items())],
                cwd=directory,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self._process.kill()
            self._process.wait(30)
            raise
        self._postmaster = int(next(directory.rglob("postmaster.pid")).read_text().splitlines()[0])

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(self.address, timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"cfssl did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.05)


def _write_request(host: bytes, body: bytes) -> bytes:
    pem = ssl.DER_cert_to_PEM_cert(fleet.read_body(body)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    content = json.dumps({"certificate_request": pem}).encode()
    return fleet.write_request("POST", _SIGN, host, content, kind=b"application/json")


def _make_server_certificate(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _write(directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (directory / f"{name}.key").write_bytes(private)


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
