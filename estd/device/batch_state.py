"""What became of a batch so far, on disk before anybody counts on it: a client that is killed goes on where it stopped.

One file of JSON lines, added to and flushed to disk (fsync) for every piece of answer. Its first line says what the batch
is; each other one what became of one request: its certificate, or why there is none. A last line that is torn is cut off.
From it the results are written: a CSV file or a directory of PEM files, and a CSV file of the refusals.
"""

from __future__ import annotations

import base64
import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cryptography import x509

from estd.asn1.certificate import read_fields
from estd.device.answers import write_pem
from estd.errors import Invalid, Problem, Refused

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one request."""

    name: str
    digest: bytes
    certificate: bytes | None
    """DER."""
    is_repeated: bool = False
    error: str = ""
    detail: str = ""


class BatchState:
    """The state of one batch. Use it as ``with``; nobody else can meanwhile.

    Args:
        out: where the results go: a file that ends in ``.csv``, or a directory.
        facts: what tells this batch from another: server and label.
        resume: whether to go on with a batch that was begun there.

    Raises:
        Invalid: something is there already, or something else.
    """

    def __init__(self, out: Path, facts: dict[str, str], *, resume: bool) -> None:
        self.out = out
        self.is_file = out.suffix.lower() == ".csv"
        self.path = out.with_name(out.name + ".state") if self.is_file else out / ".batch.state"
        self.refused = out.with_name(out.stem + ".refused.csv") if self.is_file else out / "refused.csv"
        self.done: dict[str, bytes] = {}
        """Name → digest of the request that has its verdict."""
        self._head = {"format": _FORMAT, **facts}
        self._resume = resume
        self._file: io.BufferedRandom | None = None

    def __enter__(self) -> Self:
        try:
            (self.out.parent if self.is_file else self.out).mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise _invalid(
                self.path, f"cannot be used ({error.strerror})", "Name a place of yours with --out."
            ) from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def record(self, verdicts: list[Verdict]) -> None:
        """Keep these for good."""
        assert self._file is not None
        for verdict in verdicts:
            if verdict.certificate is not None and not self.is_file:
                self._write_pem(verdict.name, verdict.certificate)
        self._file.write(b"".join(_write_line(verdict) for verdict in verdicts))
        self._file.flush()
        os.fsync(self._file.fileno())
        for verdict in verdicts:
            self.done[verdict.name] = verdict.digest

    def verdicts(self) -> Iterator[Verdict]:
        """Everything on record, the newest word on each request, in the order of the first."""
        last: dict[str, int] = {}
        for at, verdict in self._read():
            last[verdict.name] = at
        for at, verdict in self._read():
            if last[verdict.name] == at:
                yield verdict

    def write_results(self) -> None:
        """Write what a person wants to have, out of what is on record. Safe to repeat."""
        if not self.done:
            return
        refused: list[tuple[str, ...]] = [("id", "error", "detail")]
        rows: list[tuple[str, ...]] = [("id", "certificate")]
        for verdict in self.verdicts():
            if verdict.certificate is None:
                refused.append((verdict.name, verdict.error, verdict.detail))
            elif self.is_file:
                rows.append((verdict.name, base64.b64encode(verdict.certificate).decode()))
            elif not (self.out / f"{verdict.name}.pem").exists():
                self._write_pem(verdict.name, verdict.certificate)
        if self.is_file:
            _write_csv(self.out, rows)
        if len(refused) > 1:
            _write_csv(self.refused, refused)
        else:
            self.refused.unlink(missing_ok=True)

    # --- private -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _invalid(self.path, "is in use", "Another `estd batch` works on it; wait for it.") from None
        whole = self._file.read()
        kept = whole[: whole.rfind(b"\n") + 1]
        if kept.count(b"\n") < 2:  # nothing was answered yet, so it is no batch that anything hangs on
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(json.dumps(self._head).encode() + b"\n")
            self._file.flush()
            os.fsync(descriptor)
            return
        if not self._resume:
            remedy = "Add --resume to go on with it, or name another --out."
            raise _invalid(self.out, "holds a batch that was begun before", remedy)
        self._file.truncate(len(kept))
        self._file.seek(len(kept))
        head = kept[: kept.index(b"\n")]
        try:
            is_ours = json.loads(head) == self._head
        except ValueError:
            is_ours = False
        if not is_ours:
            told = head[:200].decode("utf-8", "backslashreplace")
            raise _invalid(self.path, f"is of another batch, or damaged: {told}", "Name the --out of this batch.")
        for _, verdict in self._read():
            self.done[verdict.name] = verdict.digest

    def _read(self) -> Iterator[tuple[int, Verdict]]:
        with self.path.open("rb") as file:
            next(file, None)
            for number, line in enumerate(file, 2):
                try:
                    yield number, _read_verdict(line)
                except (ValueError, KeyError, TypeError, AttributeError, Refused):
                    remedy = "Delete that line: its request is sent again, and the server has kept what it answered."
                    raise _invalid(self.path, f"line {number} is damaged", remedy) from None

    def _write_pem(self, name: str, certificate: bytes) -> None:
        # What a crash leaves of it is written again: the state holds the certificate too.
        path = self.out / f"{name}.pem"
        temporary = self.out / f".{name}.pem.part"
        temporary.write_bytes(write_pem([x509.load_der_x509_certificate(certificate)]))
        temporary.replace(path)


def _write_line(verdict: Verdict) -> bytes:
    content: dict[str, Any] = {"id": verdict.name, "csr_sha256": verdict.digest.hex()}
    if verdict.certificate is not None:
        content["certificate"] = base64.b64encode(verdict.certificate).decode()
        if verdict.is_repeated:
            content["repeated"] = True
    else:
        content |= {"error": verdict.error, "detail": verdict.detail}
    return json.dumps(content).encode() + b"\n"


def _read_verdict(line: bytes) -> Verdict:
    content = json.loads(line)
    certificate = content.get("certificate")
    if certificate is not None:
        certificate = base64.b64decode(certificate, validate=True)
        read_fields(certificate)
    return Verdict(
        content["id"],
        bytes.fromhex(content["csr_sha256"]),
        certificate,
        content.get("repeated", False),
        content.get("error", ""),
        content.get("detail", ""),
    )


def _write_csv(path: Path, rows: list[tuple[str, ...]]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _invalid(path: Path, what: str, remedy: str) -> Invalid:
    return Invalid([Problem(str(path), what, remedy)])
