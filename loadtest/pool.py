"""Prepare a fleet for Locust: keys, certificates and requests on disk, so that a run spends its time on requests.

    python loadtest/pool.py --out pool --url https://est.example:8443 --trust trust.pem --label plant \\
        --maker maker.pem --maker-key maker.key --codes codes.csv --devices 100 --renewing 100 --each 60

Devices of that maker come with a birth certificate (IDevID); those that are to renew get their first certificate now.
Codes come from `estd code create --out codes.csv`, one device each. The directory holds private keys of devices that do
not exist; it is written for its owner alone.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import fleet
import generator
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

IDEVID, CODE, RENEWING = "idevid", "code", "renewing"


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a prepared fleet."""

    kind: str
    name: str
    credential: str
    """Certificate and key in PEM; for a device with a code, the code."""
    bodies: list[str]
    """Requests to send, base64 PKCS #10."""
    keys: list[str]
    """The key of each of them in PEM, where the device goes on with its new certificate."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run has to know of the server."""

    url: str
    trust: str
    """PEM."""
    label: str
    other_label: str | None
    """An ecosystem that does not know these devices, to be refused at."""


def make_idevid_members(maker: Path, maker_key: Path, count: int, each: int) -> Iterator[Member]:
    """Devices with a birth certificate."""
    for device in fleet.make_devices(maker, maker_key, count, each):
        yield Member(IDEVID, device.name, _write_pem(device.certificate, device.key), _texts(device.bodies), [])


def make_renewing_members(settings: Settings, maker: Path, maker_key: Path, count: int, each: int) -> Iterator[Member]:
    """Devices that have enrolled: this asks the server for their first certificates.

    Raises:
        SystemExit: it refuses one.
    """
    devices = fleet.make_devices(maker, maker_key, count, 1)
    parts = urlsplit(settings.url)
    address = (parts.hostname or "", parts.port or 443)
    path = f"/.well-known/est/{settings.label}/simpleenroll"
    trust = x509.load_pem_x509_certificate(settings.trust.encode())
    tally = generator.send_all(address, trust, generator.make_visits(address, path, devices), in_flight=16, keep=False)
    if tally.failures:
        raise SystemExit(f"{settings.url} does not enroll these devices: {tally.failures}")
    for device in devices:
        issued = pkcs7.load_der_pkcs7_certificates(base64.b64decode(tally.last[device.name]))[0]
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(each)]
        bodies = [fleet.make_body(issued.subject, key) for key in keys]
        credential = _write_pem(issued, device.next_key)
        yield Member(RENEWING, device.name, credential, _texts(bodies), [_write_key(key) for key in keys])


def make_code_members(codes: Path) -> Iterator[Member]:
    """Devices with an enrollment code, one request each."""
    with codes.open(newline="") as file:
        for row in csv.DictReader(file):
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, row["device"])])
            body = fleet.make_body(subject, ec.generate_private_key(ec.SECP256R1()))
            yield Member(CODE, row["device"], row["code"], _texts([body]), [])


def write_pool(directory: Path, settings: Settings, members: Iterable[Member]) -> int:
    """Write everything; how many there are."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / "settings.json").write_text(json.dumps(asdict(settings)))
    path = directory / "fleet.jsonl"
    path.unlink(missing_ok=True)
    count = 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        for member in members:
            file.write(json.dumps(asdict(member)) + "\n")
            count += 1
    return count


def read_pool(directory: Path) -> tuple[Settings, list[Member]]:
    """What `write_pool` wrote."""
    settings = Settings(**json.loads((directory / "settings.json").read_text()))
    with (directory / "fleet.jsonl").open() as file:
        return settings, [Member(**json.loads(line)) for line in file]


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--url", required=True, help="the server, https://HOST:PORT")
    parser.add_argument("--trust", type=Path, required=True, help="what verifies its certificate (PEM)")
    parser.add_argument("--label", required=True, help="the ecosystem")
    parser.add_argument("--other-label", help="an ecosystem that does not know these devices")
    parser.add_argument(
        "--maker", type=Path, required=True, help="certificate of a maker's CA that the ecosystem trusts"
    )
    parser.add_argument("--maker-key", type=Path, required=True, help="its key")
    parser.add_argument("--codes", type=Path, help="device,code as `estd code create --out` writes it")
    parser.add_argument("--devices", type=int, default=100, help="devices with a birth certificate (100)")
    parser.add_argument("--renewing", type=int, default=100, help="devices that renew (100)")
    parser.add_argument("--each", type=int, default=30, help="requests of each (30)")
    options = parser.parse_args()
    check_server(parser, options.url, options.trust, options.label)
    for name in ("maker", "maker_key", "codes"):
        check_file(parser, name, getattr(options, name))
    settings = Settings(options.url, options.trust.read_text(), options.label, options.other_label)
    count = write_pool(options.out, settings, make_members(settings, options))
    print(f"{count} devices in {options.out}")
    return 0


def make_members(settings: Settings, options: argparse.Namespace) -> Iterator[Member]:
    """All kinds, as the options say."""
    maker = (options.maker, options.maker_key)
    yield from make_idevid_members(*maker, options.devices, options.each)
    yield from make_renewing_members(settings, *maker, options.renewing, options.each)
    if options.codes is not None:
        yield from make_code_members(options.codes)


def check_file(parser: argparse.ArgumentParser, option: str, path: Path | None) -> None:
    """End the program with what is wrong with a file of that option, if something is."""
    if path is None:
        return
    name = f"--{option.replace('_', '-')} {path}"
    try:
        text = path.read_text(encoding="utf-8")
        if option == "trust":
            ssl.create_default_context(cadata=text)
        elif option == "maker":
            x509.load_pem_x509_certificate(text.encode())
        elif option == "maker_key":
            serialization.load_pem_private_key(text.encode(), None)
        elif option == "codes" and not {"device", "code"} <= set(csv.DictReader(text.splitlines()).fieldnames or ()):
            parser.error(f"{name}: has no line `device,code` at its head; `estd code create --out` writes one")
    except OSError as error:
        parser.error(f"{name}: {error.strerror or error}")
    except (ValueError, TypeError) as error:
        parser.error(f"{name}: is not PEM as it should be: {error}")


def check_server(parser: argparse.ArgumentParser, url: str, trust: Path, label: str) -> None:
    """End the program with why devices could not enroll there, if they could not: better said before they are made."""
    check_file(parser, "trust", trust)
    if urlsplit(url).scheme != "https":
        parser.error(f"{url}: EST is spoken over https://")
    there = f"{url.rstrip('/')}/.well-known/est/{label}/cacerts"
    try:
        urllib.request.urlopen(there, context=ssl.create_default_context(cafile=str(trust)), timeout=15).close()
    except urllib.error.HTTPError as answer:
        parser.error(f"{there} answers {answer.code}: {answer.read(500).decode(errors='replace').strip()}")
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            parser.error(f"{url}: --trust {trust} does not verify its certificate: {error.reason.verify_message}")
        parser.error(f"{url}: {error.reason}")


# --- private -------------------------------------------------------------------------------------------------------


def _texts(bodies: Sequence[bytes]) -> list[str]:
    return [body.decode() for body in bodies]


def _write_pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode() + _write_key(key)


def _write_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


if __name__ == "__main__":
    sys.exit(main())
