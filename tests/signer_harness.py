"""Starts, unlocks, loads, kills and restarts real signer processes for tests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from estd.asn1 import der
from estd.keys.software import SoftwareKey, generate, seal
from estd.signer.frames import (
    Load,
    LoadedIssuer,
    Prepared,
    PreparedItem,
    PrepareItem,
    RefusedItem,
    Resume,
    ResumeItem,
    Seal,
    SealItem,
    Status,
    StatusReport,
    Unlock,
    answer_reader,
    control_answer_reader,
    write_frame,
)
from estd.signer.server import SignerSettings

PROGRAM = Path(__file__).with_name("signer_program.py")
KEK = bytes(range(32))
ECOSYSTEM = 7
VERSION = 3
ISSUER = 11
CONTEXT = b"test"


class Peer:
    """One end of a channel to a signer, used step by step."""

    def __init__(self, end: socket.socket, reader: Any) -> None:
        end.settimeout(30)
        self.end = end
        self.reader = reader
        self.arrived: list[Any] = []

    def send(self, message: Any) -> None:
        self.end.sendall(write_frame(message))

    def receive(self) -> Any:
        """The next message; None when the other end is gone."""
        while not self.arrived:
            try:
                received = self.end.recv(1 << 20)
            except ConnectionError:
                return None
            if not received:
                return None
            self.arrived.extend(self.reader.feed(received))
        return self.arrived.pop(0)

    def call(self, message: Any) -> Any:
        try:
            self.send(message)
        except (BrokenPipeError, ConnectionError):
            return None
        return self.receive()

    def close(self) -> None:
        self.end.close()


class SignerProcess:
    """A signer on a directory of its own, and the supervisor's end of its control channel."""

    def __init__(self, directory: Path, key: SoftwareKey, **settings: Any) -> None:
        self.directory = directory
        self.key = key
        self.settings = SignerSettings(
            **{
                "slot": 0,
                "socket_path": str(directory / "signer.sock"),
                "journal_directory": str(directory / "journal"),
                "allowed_uids": [os.getuid()],
                "drain_seconds": 3.0,
                **settings,
            }
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Peer | None = None
        self.log_path = directory / "signer.log"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def control(self) -> Peer:
        assert self._control is not None
        return self._control

    @property
    def path(self) -> str:
        return str(self.settings.socket_path)

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def start(
        self, *trap: str, load: bool = True, program: Path | None = PROGRAM, inherit: list[int] | None = None
    ) -> SignerProcess:
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as settings, self.log_path.open("ab") as log:
            settings.write(msgspec.json.encode(self.settings))
            settings.flush()
            fds = [settings.fileno(), theirs.fileno()]
            what = ["-m", "estd.signer.server"] if program is None else [str(program)]
            self._process = subprocess.Popen(
                [sys.executable, *what, *map(str, fds), *trap],
                pass_fds=[*fds, *(inherit or [])],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        theirs.close()
        self._control = Peer(ours, control_answer_reader())
        if load:
            assert self.control.call(Unlock(1, KEK)) is not None, self.log
            assert self.control.call(self.load_message()) is not None, self.log
        return self

    def load_message(self, version: int = VERSION, key: SoftwareKey | None = None, issuer: int = ISSUER) -> Load:
        sealed = seal(key or self.key, KEK, CONTEXT)
        issuers = (LoadedIssuer(issuer, "issuer", None, b"0\x00", sealed),)
        return Load(2, ECOSYSTEM, "plant", version, {"format": 1}, issuers)

    def connect(self) -> Peer:
        end = socket.socket(socket.AF_UNIX)
        end.connect(self.path)
        return Peer(end, answer_reader())

    def report(self) -> StatusReport:
        answer = self.control.call(Status(9))
        assert isinstance(answer, StatusReport), self.log
        return answer

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 15) -> int:
        status = self.process.wait(seconds)
        self.control.close()
        return status

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


@contextlib.contextmanager
def running(directory: Path, key_type: str = "ec-p256", **settings: Any) -> Iterator[SignerProcess]:
    """A signer that serves, killed at the end if it still runs."""
    signer = SignerProcess(directory, generate(key_type), **settings).start()
    try:
        yield signer
    finally:
        signer.stop()


def item(number: int, csr: bytes | None = None, version: int = VERSION) -> PrepareItem:
    """A request that the plain engine grants."""
    subject = der.sequence(der.octet_string(b"device %d" % number))
    key = hashlib.sha256(b"request %d" % number).digest()
    return PrepareItem(key, ECOSYSTEM, version, "device", csr or b"csr %d" % number, subject, None)


def seals(items: Iterable[PreparedItem | RefusedItem]) -> tuple[SealItem, ...]:
    """The parts of a request to seal those that were prepared."""
    return tuple(SealItem(item.issuer_id, item.serial) for item in items if isinstance(item, PreparedItem))


def resumes(items: Iterable[PreparedItem | RefusedItem]) -> tuple[ResumeItem, ...]:
    """The parts of a request to resume those that were prepared."""
    return tuple(
        ResumeItem(item.issuer_id, item.serial, item.tbs_sha256) for item in items if isinstance(item, PreparedItem)
    )


def seal_all(prepared: Prepared, number: int = 50) -> Seal:
    return Seal(number, seals(prepared.items))


def resume_all(prepared: Prepared, number: int = 60) -> Resume:
    return Resume(number, prepared.mark, resumes(prepared.items))
