"""A directory that holds one device's identity, and never half of one.

It shows three files: ``device.key`` (mode 0600), ``device.pem`` (the certificate and its intermediates, as TLS wants
them) and ``ca.pem`` (the CA certificates of the ecosystem). All three are links through ``.current`` into one directory
below ``.pairs``; a new identity is written there in full, flushed to disk, and takes effect by one rename, so a crash at
any moment leaves the old identity or the new one.

``.pending`` keeps the key and the request that were sent until an answer is stored: when the answer is lost the very same
request is sent again, which gets the same certificate, even for an enrollment code that is good for one use only, as long
as the server's retry window is open.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.device.answers import TryLater, write_pem
from estd.device.requests import SigningRequest, read_certificates, read_key, write_key
from estd.errors import Invalid, Problem
from estd.keys.software import SoftwareKey

KEY: Final = "device.key"
CERTIFICATE: Final = "device.pem"
AUTHORITIES: Final = "ca.pem"
_NAMES: Final = (KEY, CERTIFICATE, AUTHORITIES)
_CURRENT: Final = ".current"
_PAIRS: Final = ".pairs"
_PENDING: Final = ".pending"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a device has to show: its key and its certificate, and what leads from there to a root."""

    key: SoftwareKey
    certificate: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]


class Folder:
    """The directory of one device. Create it with `open_folder`, which keeps others out meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def key(self) -> Path:
        """Where the private key is."""
        return self.path / KEY

    @property
    def certificate(self) -> Path:
        """Where the certificate and its intermediates are."""
        return self.path / CERTIFICATE

    @property
    def authorities(self) -> Path:
        """Where the CA certificates are."""
        return self.path / AUTHORITIES

    def read_identity(self) -> Identity | None:
        """What the directory holds, or None.

        Raises:
            Invalid: the files are there but unreadable, or do not belong together.
        """
        present = [path for path in (self.key, self.certificate) if path.exists()]
        if len(present) < 2 and not any(path.is_file() and not path.is_symlink() for path in present):
            return None  # nothing, or what a crash left of a first enrollment
        key = read_key(self.key)
        certificate, *intermediates = read_certificates(self.certificate)
        if certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != key.spki:
            what = "hold a key and a certificate that do not belong together"
            raise Invalid([Problem(f"{self.key}, {self.certificate}", what, "Move them away and enroll again.")])
        return Identity(key, certificate, tuple(intermediates))

    def save(self, identity: Identity, authorities: Sequence[x509.Certificate]) -> None:
        """Let the directory hold this identity from now on, and forget the request it came from."""
        self._adopt()
        self._switch(
            {
                KEY: (write_key(identity.key), 0o600),
                CERTIFICATE: (write_pem([identity.certificate, *identity.intermediates]), 0o644),
                AUTHORITIES: (write_pem(authorities), 0o644),
            }
        )
        self.drop_request()

    # --- the request under way -----------------------------------------------------------------------------------

    def find_request(self, purpose: Mapping[str, str]) -> SigningRequest | None:
        """The request that was sent for this very purpose and has no answer yet; one for another purpose is dropped."""
        pending = self.path / _PENDING
        try:
            kept = json.loads((pending / "purpose.json").read_bytes())
            request = SigningRequest((pending / "request.der").read_bytes(), read_key(pending / KEY))
        except (OSError, ValueError, Invalid):
            kept, request = None, None
        if request is not None and kept == dict(purpose):
            return request
        self.drop_request()
        return None

    def keep_request(self, request: SigningRequest, purpose: Mapping[str, str]) -> None:
        """Remember a request before it is sent."""
        self.drop_request()
        unfinished = self.path / f"{_PENDING}.{secrets.token_hex(4)}"
        unfinished.mkdir(mode=0o700)
        _write(unfinished / KEY, write_key(request.key), 0o600)
        _write(unfinished / "request.der", request.der, 0o600)
        _write(unfinished / "purpose.json", json.dumps(dict(purpose)).encode(), 0o600)
        _flush(unfinished)
        unfinished.rename(self.path / _PENDING)
        _flush(self.path)

    def drop_request(self) -> None:
        """Forget the request under way, and what a crash left of others."""
        for path in (self.path / _PENDING, *self.path.glob(f"{_PENDING}.*")):
            shutil.rmtree(path, ignore_errors=True)

    # --- switching -----------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Turn plain files that somebody put here into links with the same content, so that they can be switched."""
        if all((self.path / name).is_symlink() or not (self.path / name).exists() for name in _NAMES):
            return
        present = [name for name in _NAMES if (self.path / name).is_file()]
        self._point({name: ((self.path / name).read_bytes(), 0o600 if name == KEY else 0o644) for name in present})
        for name in present:
            self._link(name)

    def _switch(self, files: Mapping[str, tuple[bytes, int]]) -> None:
        directory = self._point(files)
        for name in files:
            self._link(name)
        _flush(self.path)
        for old in (self.path / _PAIRS).iterdir():
            if old.name != directory.name:
                shutil.rmtree(old, ignore_errors=True)

    def _point(self, files: Mapping[str, tuple[bytes, int]]) -> Path:
        """Write the files beside the present ones and make ``.current`` lead to them."""
        pairs = self.path / _PAIRS
        pairs.mkdir(exist_ok=True)
        directory = pairs / secrets.token_hex(8)
        directory.mkdir()
        for name, (content, mode) in files.items():
            _write(directory / name, content, mode)
        for changed in (directory, pairs):
            _flush(changed)
        self._replace_link(_CURRENT, f"{_PAIRS}/{directory.name}")
        return directory

    def _link(self, name: str) -> None:
        target = f"{_CURRENT}/{name}"
        if not ((self.path / name).is_symlink() and (self.path / name).readlink() == Path(target)):
            self._replace_link(name, target)

    def _replace_link(self, name: str, target: str) -> None:
        temporary = self.path / f"{name}.{secrets.token_hex(4)}"
        temporary.symlink_to(target)
        temporary.replace(self.path / name)
        _flush(self.path)


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """The directory of one device, made when it is missing, for this process alone.

    Raises:
        Invalid: it cannot be made or written.
        TryLater: another process is at work in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Invalid(
            [Problem(str(path), f"cannot be used ({error.strerror})", "Name a directory of yours.")]
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryLater(f"another process is enrolling into {path}", 5) from None
        yield Folder(path)
    finally:
        os.close(lock)


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask says
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
