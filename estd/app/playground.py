"""The files of a playground: settings, two ecosystems, their makers, devices and codes. Made once and kept from then on.

::

    DIR/estd.toml                        the server's settings
    DIR/ecosystems/LABEL.toml            the rules of each ecosystem, to read and to change
    DIR/bootstrap/LABEL/maker.pem .key   a demonstration maker that only this ecosystem trusts
    DIR/bootstrap/LABEL/device.pem .key  a device of that maker (IDevID)
    DIR/bootstrap/LABEL/line.pem .key    a demonstration CA for registration authorities of this ecosystem
    DIR/bootstrap/LABEL/ra.pem .key      one of them, which may ask for many devices (`estd batch`)
    DIR/bootstrap/LABEL/codes.csv        device names with enrollment codes
    DIR/trust.pem                        what a client verifies the server with
    DIR/run.json                         ports and process id, while it runs
    DIR/data/                            the server's own: database, journal, key-encryption key

Nothing here needs the server. Secret files have mode 0600 in a directory of mode 0700.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pwd
import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from estd.app.access import make_data_directory
from estd.app.files import write_file
from estd.app.makers import Maker
from estd.asn1.oids import OIDS
from estd.config import check_tls_names, default_key_path
from estd.errors import Invalid, Problem

LABELS: Final = ("campus-north", "campus-south")
"""The first is the default ecosystem."""
PROFILE: Final = "device"
CODES_EACH: Final = 20
DEFAULT_PORT: Final = 8443
DEFAULT_OPS_PORT: Final = 8081
DEFAULT_ADDRESS: Final = "127.0.0.1"

_NAMES: Final = {"campus-north": "Campus North", "campus-south": "Campus South"}


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What devices of one ecosystem start with."""

    directory: Path

    @property
    def maker(self) -> tuple[Path, Path]:
        """Certificate and key of the maker's CA."""
        return self.directory / "maker.pem", self.directory / "maker.key"

    @property
    def device(self) -> tuple[Path, Path]:
        """Certificate and key of one device."""
        return self.directory / "device.pem", self.directory / "device.key"

    @property
    def line(self) -> tuple[Path, Path]:
        """Certificate and key of the CA of registration authorities."""
        return self.directory / "line.pem", self.directory / "line.key"

    @property
    def authority(self) -> tuple[Path, Path]:
        """Certificate and key of a registration authority."""
        return self.directory / "ra.pem", self.directory / "ra.key"

    @property
    def codes(self) -> Path:
        """Device names with their enrollment codes: a header and a line for each."""
        return self.directory / "codes.csv"


@dataclass(frozen=True, slots=True)
class Playground:
    """Where everything of one playground is."""

    directory: Path

    @property
    def settings(self) -> Path:
        """The server's settings."""
        return self.directory / "estd.toml"

    @property
    def trust(self) -> Path:
        """What verifies the server's certificate."""
        return self.directory / "trust.pem"

    @property
    def run_file(self) -> Path:
        """Ports and process id, while it runs."""
        return self.directory / "run.json"

    @property
    def data(self) -> Path:
        """What the server keeps."""
        return self.directory / "data"

    def ecosystem(self, label: str) -> Path:
        """The document of one ecosystem."""
        return self.directory / "ecosystems" / f"{label}.toml"

    def bootstrap(self, label: str) -> Bootstrap:
        """What devices of one ecosystem start with."""
        return Bootstrap(self.directory / "bootstrap" / label)


def lay_out(
    directory: Path, address: str, port: int, ops_port: int, now: datetime, names: Sequence[str] = ()
) -> Playground:
    """Make what is missing of a playground's files; what is there stays as it is.

    `names` are what clients call the server besides its addresses.

    Raises:
        Invalid: the directory cannot be used, the two ports are one, or a name is none.
    """
    place = Playground(directory.absolute())
    if not place.settings.exists():
        # Found before it stands in the settings, where it would have to be mended by hand.
        problems = check_tls_names("--name", names)
        if port == ops_port != 0:
            problems.append(Problem("ops.port", "is listen.port, which devices use", "Choose another port for one."))
        if problems:
            raise Invalid(problems)
    _check_owner(place)
    try:
        place.directory.mkdir(parents=True, exist_ok=True)
        make_data_directory(place.data)
        for name, mode in (("ecosystems", 0o755), ("bootstrap", 0o700)):
            _make_directory(place.directory / name, mode)
        key = default_key_path(place.data)
        if not key.exists():
            if (place.data / "postgres").exists():
                what = "is missing, and only that key opens the CA keys in the database beside it"
                raise Invalid([Problem(str(key), what, "Put it back, or name a new directory.")])
            write_file(key, f"{secrets.token_hex(32)}\n".encode(), 0o600)
        if not place.settings.exists():
            write_file(place.settings, _write_settings(address, port, ops_port, names).encode(), 0o644)
        for label in LABELS:
            _make_bootstrap(place.bootstrap(label), label, now)
            if not place.ecosystem(label).exists():
                write_file(place.ecosystem(label), _write_ecosystem(label).encode(), 0o644)
    except OSError as error:
        where = str(error.filename or place.directory)
        raise Invalid([Problem(where, f"cannot be used ({error.strerror})", "Name a directory of yours.")]) from None
    return place


def read_codes(path: Path) -> list[tuple[str, str]]:
    """Device names and codes of a ``codes.csv``; empty when there is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [(row["device"], row["code"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def write_codes(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a ``codes.csv`` that only its owner can read."""
    lines = ["device,code", *(f"{_quote(device)},{code}" for device, code in rows)]
    write_file(path, ("\n".join(lines) + "\n").encode(), 0o600)


def write_run_file(place: Playground, facts: dict[str, Any]) -> None:
    """Say that the server runs, and where."""
    write_file(place.run_file, (json.dumps(facts, indent=2) + "\n").encode(), 0o644)


def remove_run_file(place: Playground, pid: int) -> None:
    """Say that it does not; what another process said stays."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(place.run_file.read_bytes())["pid"] == pid:
            place.run_file.unlink()


# --- private -------------------------------------------------------------------------------------------------------


def _check_owner(place: Playground) -> None:
    """Whoever else started it there keeps journals and keys that are theirs alone; root would only lock them out."""
    try:
        owner = place.data.stat().st_uid
    except OSError:
        return
    if owner != os.geteuid():
        who = f"user {owner}"
        with contextlib.suppress(KeyError):
            who = pwd.getpwuid(owner).pw_name
        raise Invalid([Problem(str(place.data), f"belongs to {who}", f"Run it as {who}, or name another directory.")])


def _make_directory(path: Path, mode: int) -> None:
    if not path.is_dir():
        path.mkdir()
        path.chmod(mode)


def _make_bootstrap(bootstrap: Bootstrap, label: str, now: datetime) -> None:
    _make_directory(bootstrap.directory, 0o700)
    maker = _make_maker(bootstrap.maker, f"Demonstration maker of {label}", now)
    _make_party(bootstrap.device, maker, f"{label}-device", now)
    line = _make_maker(bootstrap.line, f"Demonstration factory line of {label}", now)
    _make_party(bootstrap.authority, line, f"{label}-line-1", now, _AUTHORITY_PURPOSES)


def _make_maker(files: tuple[Path, Path], name: str, now: datetime) -> Maker:
    certificate, key = files
    if not (certificate.exists() and key.exists()):
        maker = Maker.create(name, now)
        write_file(key, maker.key_pem, 0o600)
        write_file(certificate, maker.certificate_pem, 0o644)
    return Maker.load(certificate, key)


def _make_party(
    files: tuple[Path, Path],
    maker: Maker,
    name: str,
    now: datetime,
    purposes: tuple[x509.ObjectIdentifier, ...] = (),
) -> None:
    certificate, key = files
    if not (certificate.exists() and key.exists()):
        party, party_key = maker.make_device([(NameOID.COMMON_NAME, name)], now, purposes)
        write_file(key, party_key, 0o600)
        write_file(certificate, party, 0o644)


_AUTHORITY_PURPOSES: Final = (ExtendedKeyUsageOID.CLIENT_AUTH, x509.ObjectIdentifier(OIDS["cmcRA"]))
"""What tells a registration authority (RFC 6402 §2.10); the first because it is a TLS client."""


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(character in text for character in ',"\r\n') else text


def _write_settings(address: str, port: int, ops_port: int, names: Sequence[str]) -> str:
    return f"""\
# The settings of one estd server. Every key has a default; docs/operations.md explains them all.
# Check a change with `estd serve --check --config estd.toml`; the rules about certificates are in ecosystems/.

data_directory = "data"                # database, journal and key-encryption key; back it up as a whole

[listen]
address = {json.dumps(address)}
port = {port}

[ops]                                  # /healthz, /readyz and /metrics, for this machine only
port = {ops_port}

[tls]
names = {json.dumps(_own_names(address, names))}  # what clients call this server; its certificate carries them

[est]
default_ecosystem = "{LABELS[0]}"     # what a path without a label means

[log]
level = "warning"                      # "info" also logs every decision
"""


def _own_names(address: str, given: Sequence[str]) -> list[str]:
    names = ["127.0.0.1", "::1"]
    try:
        is_everywhere = ip_address(address).is_unspecified
    except ValueError:
        is_everywhere = False
    if is_everywhere:
        with contextlib.suppress(OSError):
            name = socket.gethostname()
            names += [] if check_tls_names("", [name]) else [name]
    else:
        names.append(address)
    return list(dict.fromkeys([*names, *given]))


def _write_ecosystem(label: str) -> str:
    name = _NAMES[label]
    return f"""\
# {name}: an ecosystem, that is a trust domain of its own. It has its own CA, it decides whose devices may come, and
# what it issues means nothing in any other ecosystem on this server. Change this file, then see and apply the change:
#
#     estd apply ecosystems/{label}.toml --dir . --dry-run
#     estd apply ecosystems/{label}.toml --dir .
#
# A running server follows within a second. docs/profiles.md explains every key.

[ecosystem]
label = "{label}"               # devices ask at https://HOST:PORT/.well-known/est/{label}/...
name = "{name}"
organization = "Example Campus"
default_profile = "{PROFILE}"            # what they get there

# --- Who signs -------------------------------------------------------------------------------------------------------
# The root signs the issuer below it and nothing else; devices keep it for a long time. The issuer signs the devices'
# certificates and can be replaced without touching the devices. estd makes both and seals their keys.

[[issuer]]
name = "root"
subject = "CN={name} Root CA,O=Example Campus"
key = "ec-p384"
validity = "20y"

[[issuer]]
name = "devices"
subject = "CN={name} Device CA,O=Example Campus"
parent = "root"
key = "ec-p256"
validity = "10y"

# --- Whose devices may come ------------------------------------------------------------------------------------------
# A maker gives each device a birth certificate (IDevID). Trusting the maker's CA lets its devices ask for a certificate
# of this ecosystem; it does not let them in anywhere else. This maker exists for the demonstration only.

[[anchor]]
name = "demo-maker"
certificates = ["../bootstrap/{label}/maker.pem"]

# A factory line asks for many devices at once (`estd batch`, docs/factory-line.md). Whoever has a certificate of this CA,
# with the key purpose cmcRA, may do that for the profiles that name it.

[[anchor]]
name = "demo-line"
certificates = ["../bootstrap/{label}/line.pem"]

# --- What a device gets ----------------------------------------------------------------------------------------------

[profile.{PROFILE}]
issuer = "devices"
enroll = ["anchor:demo-maker", "code"] # a birth certificate of that maker, or an enrollment code
registration_authorities = ["anchor:demo-line"]  # who may ask on behalf of devices
renew = "either"                       # a renewal may bring a new key, or keep the old one
subject = "credential"                 # the name in the birth certificate, or CN=DEVICE for a code; nothing else
keys = ["ec-p256", "ec-p384", "rsa-2048", "rsa-3072"]
key_usage = ["digitalSignature"]
extended_key_usage = ["clientAuth"]    # these certificates are for TLS clients
validity = "90d"

# A second kind of certificate, at a label of its own: gateways are servers too, and say by which DNS name. Only what
# already is a device here may ask for it. Remove the hashes and apply the file to try it.
#
# [profile.gateway]
# label = "{label}-gateways"
# issuer = "devices"
# enroll = ["issued:{PROFILE}"]
# subject = "credential"
# san = "request"
# san_rule = {{ types = ["dns"], required = ["dns"], patterns = {{ dns = '[a-z0-9-]+\\.{label}\\.example' }} }}
# extended_key_usage = ["serverAuth", "clientAuth"]
# validity = "30d"
"""
