"""Devices that insist: they send the same request again until they have their certificate, and remember every answer.

`Caller` is one device's end of one connection: blocking TLS in a thread, with a deadline on every read, so that a server
that never answers is noticed. `Crowd` is many of them at work for as long as a tool wants.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random  # noqa: TID251 - choices that a seed can repeat; nothing secret hangs on them
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from OpenSSL import SSL
from stage import LABELS, Stage, fleet

READ_SECONDS: Final = 30
"""How long a device waits for the next octet before it hangs up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def certificate(self) -> bytes:
        """The DER of the one certificate in it."""
        (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.body))
        return certificate.public_bytes(Encoding.DER)


class Caller:
    """One connection. Every failure is an `OSError` or an `SSL.Error`."""

    def __init__(self, address: tuple[str, int], context: SSL.Context) -> None:
        self._socket = socket.create_connection(address, timeout=READ_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # pyOpenSSL wants a blocking socket without a Python timeout; the kernel's own takes its place.
        self._socket.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", READ_SECONDS, 0))
        self._tls = SSL.Connection(context, self._socket)
        self._tls.set_connect_state()
        self._tls.do_handshake()

    def send(self, path: str, body: bytes) -> None:
        """POST a request (base64)."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/pkcs10\r\n"
        self._tls.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def receive(self) -> Answer:
        """Read one answer."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._tls.recv(16384)
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", "0")):
            body += self._tls.recv(16384)
        return Answer(int(first.split(" ")[1]), headers, body)

    def wait_answered(self) -> bool:
        """Until octets of an answer have arrived, which are not read; whether any did before the other end closed."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            raise TimeoutError("no answer came") from None

    def receive_part(self) -> None:
        """Read one octet of the answer."""
        self._tls.recv(1)

    def drop(self) -> None:
        """Vanish: the other end gets a reset, and whatever was on its way is lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        """Hang up."""
        try:
            self._tls.shutdown()
        except SSL.Error:
            pass  # the server was first
        self._socket.close()


def read_csr_sha256(body: bytes) -> bytes:
    """What the server's ledger knows a request by."""
    return hashlib.sha256(base64.b64decode(body)).digest()


@dataclass(slots=True)
class Record:
    """What devices were answered. `answers` has every certificate (DER) that a request (SHA-256 of its CSR) got."""

    answers: dict[bytes, list[bytes]] = field(default_factory=dict)
    delivered: list[float] = field(default_factory=list)
    """When, in monotonic seconds."""
    attempts: int = 0
    retries: int = 0
    asked_again: int = 0
    """Times a device that had its certificate asked once more for it."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Answers other than 200, by status and error code."""
    without_retry_after: int = 0
    """503 without the header that says when to come back."""
    broken: Counter[str] = field(default_factory=Counter)
    """Connections that ended without an answer, by what the device saw."""
    gave_up: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    """Seconds from a request's first attempt to its certificate."""
    answer_seconds: list[float] = field(default_factory=list)
    """Seconds from one attempt to its answer, whatever that was."""


class Crowd:
    """Devices at work in threads, each replaced by a new one when it has its certificates.

    Args:
        stage: the server.
        threads: how many at once.
        pause_seconds: the longest pause between two requests of one device.
        patience_seconds: after how long without its certificate a device counts as having given up.
        seed: of its choices.
    """

    def __init__(
        self,
        stage: Stage,
        threads: int,
        *,
        pause_seconds: float,
        patience_seconds: float,
        seed: int,
        label: str = LABELS[0],
    ) -> None:
        self._maker, self._maker_key = fleet.read_maker(*stage.place.bootstrap(label).maker)
        self._address = stage.address
        self._trust = stage.trust
        self._path = stage.path(label)
        self._pause_seconds = pause_seconds
        self._patience_seconds = patience_seconds
        self._names = itertools.count()
        self._run = os.urandom(4).hex()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.record = Record()
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(f"{seed}-{number}"),), daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Let every device finish what it is asking for; returns when all have."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def delivered(self) -> int:
        """How many certificates were delivered so far."""
        return len(self.record.delivered)

    # --- private -----------------------------------------------------------------------------------------------------

    def _work(self, choices: random.Random) -> None:
        while not self._over.is_set():
            name = f"storm-{self._run}-{next(self._names)}"
            device = fleet.make_device(self._maker, self._maker_key, name, 4)
            # Not kept, because a storm sees more devices than memory holds contexts.
            context = fleet.make_new_context(self._trust, device)
            for body in device.bodies:
                if self._over.is_set():
                    break
                self._insist(name, context, body, choices)
                time.sleep(choices.random() * self._pause_seconds)

    def _insist(self, name: str, context: SSL.Context, body: bytes, choices: random.Random) -> None:
        started = time.monotonic()
        # Every fourth request is sent once more after its answer, as by a device that lost it before it was stored.
        wanted = 2 if choices.randrange(4) == 0 else 1
        had = 0
        first = True
        while had < wanted:
            if time.monotonic() - started > self._patience_seconds:
                with self._lock:
                    self.record.gave_up.append(f"{name} {read_csr_sha256(body).hex()[:16]}")
                return
            asked = time.monotonic()
            answer = self._ask(context, body)
            with self._lock:
                self.record.attempts += 1
                self.record.answer_seconds.append(time.monotonic() - asked)
                self.record.retries += not first and had == 0
                self.record.asked_again += had > 0
            first = False
            if answer is not None and answer.status == 200:
                certificate = answer.certificate
                now = time.monotonic()
                with self._lock:
                    self.record.answers.setdefault(read_csr_sha256(body), []).append(certificate)
                    self.record.delivered.append(now)
                    if had == 0:
                        self.record.waits.append(now - started)
                had += 1
            elif answer is not None:
                self._note(answer)
                time.sleep(0.1 + choices.random() * 0.2)
            else:
                time.sleep(0.02 + choices.random() * 0.08)

    def _ask(self, context: SSL.Context, body: bytes) -> Answer | None:
        caller: Caller | None = None
        try:
            caller = Caller(self._address, context)
            caller.send(self._path, body)
            return caller.receive()
        except (SSL.Error, OSError) as fault:
            with self._lock:
                self.record.broken[type(fault).__name__] += 1
            return None
        finally:
            if caller is not None:
                caller.close()

    def _note(self, answer: Answer) -> None:
        code = answer.body.decode("utf-8", "replace").partition(":")[0][:40]
        with self._lock:
            self.record.refusals[f"{answer.status} {code}"] += 1
            self.record.without_retry_after += answer.status == 503 and "retry-after" not in answer.headers
