"""A signer process for tests: the real one, with a plain issuance engine and with points at which it kills itself.

Run as ``python signer_program.py SETTINGS_FD CONTROL_FD [POINT [NTH]]``. At the NTH time it reaches POINT (see `POINTS`) the
process gets SIGKILL, as a power cut would have it. The engine signs with real keys whatever bytes it is asked for.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from estd.asn1 import der
from estd.errors import Code, Refused, Unavailable
from estd.keys.software import SoftwareKey, unseal
from estd.signer.frames import Load, PrepareItem
from estd.signer.journal import Journal
from estd.signer.server import run_process
from estd.signer.tail import Tail

CONTEXT = b"test"
POINTS = (
    "prepare: nothing done",
    "prepare: done, not answered",
    "entries: not written",
    "entries: half written",
    "entries: written, not flushed",
    "entries: flushed",
    "sign: one of many",
    "sign: all",
    "results: not written",
    "results: written",
    "seal: done, not answered",
    "resume: done, not answered",
)


@dataclass(frozen=True, slots=True)
class PlainApproved:
    issuer_id: int
    serial: bytes
    tbs: bytes
    spki_sha256: bytes
    not_before: datetime
    not_after: datetime

    @property
    def tbs_sha256(self) -> bytes:
        return hashlib.sha256(self.tbs).digest()


class PlainEngine:
    """Signs a SEQUENCE of serial, subject and CSR with the newest issuer of the ecosystem."""

    def __init__(self) -> None:
        self.kek = b""
        self.loaded: dict[int, dict[int, int]] = {}
        self.keys: dict[int, SoftwareKey] = {}

    def unlock(self, kek: bytes) -> None:
        self.kek = kek

    def load(self, load: Load, at: float) -> None:
        issuer = load.issuers[-1]
        if issuer.sealed_key is not None:
            self.keys[issuer.issuer_id] = unseal(issuer.sealed_key, self.kek, CONTEXT)
        self.loaded.setdefault(load.ecosystem_id, {})[load.version] = issuer.issuer_id

    def drop(self, ecosystem_id: int) -> None:
        for issuer_id in self.loaded.pop(ecosystem_id, {}).values():
            self.keys.pop(issuer_id, None)

    def expire(self, at: float) -> None:
        pass

    def versions(self) -> dict[int, list[int]]:
        return {ecosystem_id: sorted(versions) for ecosystem_id, versions in self.loaded.items()}

    def read_all(self, items: Sequence[PrepareItem]) -> None:
        pass

    def prepare(self, item: PrepareItem, now: datetime) -> PlainApproved:
        issuer_id = self.loaded.get(item.ecosystem_id, {}).get(item.version)
        if issuer_id is None:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "this version is not known here")
        if item.csr == b"bad csr":
            raise Refused(Code.CSR_SIGNATURE, "the CSR is not signed by its key", "RFC 7030 §4.2.1")
        if item.csr == b"strange csr":
            raise ZeroDivisionError("what nobody foresaw")
        serial = b"\x01" + secrets.token_bytes(19)
        tbs = der.sequence(der.octet_string(serial), item.subject, der.octet_string(item.csr))
        spki_sha256 = hashlib.sha256(item.csr).digest()
        return PlainApproved(issuer_id, serial, tbs, spki_sha256, now, now + timedelta(days=1))

    def seal(self, approved: Sequence[PlainApproved]) -> list[bytes | Refused | Unavailable]:
        return [self.repeat(each.issuer_id, each.tbs) for each in approved]

    def is_repeatable(self, issuer_id: int) -> bool | None:
        key = self.keys.get(issuer_id)
        return None if key is None else key.deterministic

    def repeat(self, issuer_id: int, tbs: bytes) -> bytes:
        key = self.keys[issuer_id]
        return der.sequence(tbs, key.algorithm.identifier, der.bit_string(key.sign_many([tbs])[0]))


class Trap:
    """Kills the process when it comes to the point for the nth time."""

    def __init__(self, point: str, nth: int) -> None:
        self.point = point
        self.left = nth

    def at(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class TrappedEngine(PlainEngine):
    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self.trap = trap

    def prepare(self, item: PrepareItem, now: datetime) -> PlainApproved:
        self.trap.at("prepare: nothing done")
        approved = super().prepare(item, now)
        self.trap.at("prepare: done, not answered")
        return approved

    def seal(self, approved: Sequence[PlainApproved]) -> list[bytes | Refused | Unavailable]:
        sealed: list[bytes | Refused | Unavailable] = []
        for each in approved:
            sealed.append(PlainEngine.repeat(self, each.issuer_id, each.tbs))
            self.trap.at("sign: one of many")
        self.trap.at("sign: all")
        return sealed

    def is_repeatable(self, issuer_id: int) -> bool | None:
        repeatable = super().is_repeatable(issuer_id)
        if repeatable:
            # With such a key nothing comes between signing and answering.
            self.trap.at("seal: done, not answered")
        return repeatable

    def repeat(self, issuer_id: int, tbs: bytes) -> bytes:
        certificate = super().repeat(issuer_id, tbs)
        self.trap.at("resume: done, not answered")
        return certificate


class TrappedJournal(Journal):
    trap: Trap
    _recording = ""

    def record_entries(self, entries: Any, now: datetime) -> None:
        self._recording = "entries"
        self.trap.at("entries: not written")
        super().record_entries(entries, now)
        self.trap.at("entries: flushed")

    def record_results(self, results: Any, now: datetime) -> None:
        self._recording = "results"
        self.trap.at("results: not written")
        super().record_results(results, now)
        self.trap.at("results: written")
        self.trap.at("seal: done, not answered")

    def _write(self, tail: Tail, octets: bytes) -> None:
        if self._recording == "entries" and self.trap.point == "entries: half written" and self.trap.left == 1:
            os.pwrite(tail.fd, octets[: len(octets) // 2], tail.end)
            self.trap.at("entries: half written")
        super()._write(tail, octets)
        if self._recording == "entries":
            self.trap.at("entries: written, not flushed")


def main() -> None:
    settings_fd, control_fd, *rest = sys.argv[1:]
    trap = Trap(rest[0] if rest else "", int(rest[1]) if len(rest) > 1 else 1)
    TrappedJournal.trap = trap
    sys.exit(run_process(int(settings_fd), int(control_fd), TrappedEngine(trap), TrappedJournal.open))


if __name__ == "__main__":
    main()
