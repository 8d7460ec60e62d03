"""Devices as Locust users: EST over mutual TLS, each with a key, a certificate and requests of its own.

Everything that is not a request was prepared (`loadtest/pool.py`): a user takes a member of the fleet, builds its TLS
context outside the measured time, and opens a new connection for each request, as devices do. A device that is told to come
later (503 with Retry-After) does so with the same request; a refusal that estd promises counts as success of the user
that provokes it.
"""

from __future__ import annotations

import base64
import csv
import os
import ssl
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import gevent
import gevent.socket
import pool
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from locust import FastHttpUser, between, events
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner
from locust.stats import PERCENTILES_TO_REPORT, StatsCSV

_POOL = Path(os.environ.get("ESTD_LOAD_POOL", "build/load/pool"))
_SLOW_SECONDS = 30.0
_CONTENT = {"Content-Type": "application/pkcs10"}
_REFUSED, _FORBIDDEN, _TOO_SLOW = 400, 403, 408

settings, _members = pool.read_pool(_POOL)
waiting: Mapping[str, deque[pool.Member]] = {
    kind: deque(member for member in _members if member.kind == kind)
    for kind in (pool.IDEVID, pool.CODE, pool.RENEWING)
}
"""Members that no user is yet, by kind."""


@events.init.add_listener
def write_last_answers(environment: Environment, **_more: object) -> None:
    """Locust writes its tables once a second and not at the end: what was answered in the last second would be missing."""
    prefix = environment.parsed_options and environment.parsed_options.csv_prefix
    if not prefix or isinstance(environment.runner, WorkerRunner):
        return

    def write(**_more: object) -> None:
        tables = StatsCSV(environment, PERCENTILES_TO_REPORT)
        for name, write_rows in (("stats", tables.requests_csv), ("failures", tables.failures_csv)):
            # Into another file: what Locust still holds of the old one it may write at any moment.
            path = Path(f"{prefix}_{name}.csv")
            with path.with_suffix(".new").open("w", newline="") as file:
                write_rows(csv.writer(file))
            path.with_suffix(".new").replace(path)

    environment.events.quit.add_listener(write)


class Device(FastHttpUser):
    """What all of them have in common."""

    abstract = True
    host = settings.url
    wait_time = between(0.5, 1.5)

    def take(self, kind: str) -> pool.Member:
        """A member of the fleet that is nobody else; the user ends when there is none left."""
        if not waiting[kind]:
            raise StopUser
        return waiting[kind].popleft()

    def become(self, credential: str | None) -> None:
        """Speak TLS with this certificate and key (PEM) from the next connection on."""
        context = make_context(credential)
        self.client = FastHttpSession(
            base_url=self.host,
            request_event=self.environment.events.request,
            user=self,
            insecure=False,
            concurrency=1,
            network_timeout=60.0,
            connection_timeout=60.0,
            # It is offered a file of public CAs; whoever does not take it gets them loaded, at a hundred times the cost.
            ssl_context_factory=lambda **_: context,
        )

    def ask(
        self,
        name: str,
        operation: str,
        body: str,
        *,
        expected: int = 200,
        label: str = settings.label,
        code: tuple[str, str] | None = None,
    ) -> bytes | None:
        """Send one request on a connection of its own until it is decided; the answer's body if it is the expected one."""
        path = f"/.well-known/est/{label}/{operation}"
        while True:
            with self.client.post(
                path, data=body, headers=_CONTENT, auth=code, name=name, catch_response=True
            ) as answer:
                later = (answer.headers or {}).get("Retry-After")
                if answer.status_code == expected:
                    answer.success()
                elif answer.status_code == 503 and later is not None:
                    answer.request_meta["name"] = f"{name}: told to come later (503)"
                    answer.success()
                else:
                    answer.failure(f"{answer.status_code} {answer.error or answer.text}")
            self.client.client.clientpool.close()
            if answer.status_code == expected:
                return bytes(answer.content)
            if answer.status_code != 503 or later is None:
                return None
            gevent.sleep(int(later))


class Renewing(Device):
    """Renews the certificate it has, and goes on with the new one."""

    abstract = True

    def on_start(self) -> None:
        """Be somebody with a certificate of this ecosystem."""
        member = self.take(pool.RENEWING)
        self._requests = deque(zip(member.bodies, member.keys, strict=True))
        self.become(member.credential)

    def renew(self) -> None:
        """RFC 7030 §4.2.2."""
        if not self._requests:
            raise StopUser
        body, key = self._requests.popleft()
        answer = self.ask("simplereenroll", "simplereenroll", body)
        if answer is not None:
            issued = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))[0]
            self.become(issued.public_bytes(Encoding.PEM).decode() + key)


class FirstByIDevID(Device):
    """Comes with the certificate its maker gave it."""

    abstract = True

    def on_start(self) -> None:
        """Be somebody."""
        member = self.take(pool.IDEVID)
        self._bodies = deque(member.bodies)
        self.become(member.credential)

    def enroll(self) -> None:
        """RFC 7030 §4.2.1, authenticated by §3.3.2."""
        if not self._bodies:
            raise StopUser
        self.ask("simpleenroll by IDevID", "simpleenroll", self._bodies.popleft())


class FirstByCode(Device):
    """Shows an enrollment code, which is good for one certificate; then it is the next device."""

    abstract = True

    def on_start(self) -> None:
        """Without a client certificate."""
        self.become(None)

    def enroll(self) -> None:
        """RFC 7030 §4.2.1, authenticated by §3.2.3."""
        member = self.take(pool.CODE)
        self.ask("simpleenroll by code", "simpleenroll", member.bodies[0], code=(member.name, member.credential))


class Misbehaving(FirstByIDevID):
    """Has a certificate and no manners; being refused as documented is its success."""

    abstract = True

    def send_bad_request(self) -> None:
        """A CSR whose signature does not fit: 400."""
        octets = bytearray(base64.b64decode(self._bodies[0]))
        octets[-1] ^= 1
        self.ask("a CSR with a wrong signature", "simpleenroll", base64.b64encode(octets).decode(), expected=_REFUSED)

    def ask_next_door(self) -> None:
        """Its maker is not known there: 403."""
        if settings.other_label is not None:
            body = self._bodies[0]
            self.ask("the wrong ecosystem", "simpleenroll", body, label=settings.other_label, expected=_FORBIDDEN)

    def send_slowly(self) -> None:
        """Half a body and then nothing: 408 after the deadline."""
        started = time.time()
        begun = time.perf_counter()
        fault: Exception | None = None
        answer = b""
        try:
            answer = self._send_half()
            status = int(answer.split(b" ", 2)[1]) if answer else 0
            if status != _TOO_SLOW:
                fault = ValueError(f"answered with {status}")
        except (OSError, ValueError, IndexError) as error:
            fault = error
        events.request.fire(
            request_type="POST",
            name="a body that never ends",
            response_time=(time.perf_counter() - begun) * 1000,
            response_length=len(answer),
            exception=fault,
            context={},
            start_time=started,
        )

    def _send_half(self) -> bytes:
        parts = urlsplit(settings.url)
        address = (parts.hostname or "", parts.port or 443)
        head = f"POST /.well-known/est/{settings.label}/simpleenroll HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        with (
            gevent.socket.create_connection(address, timeout=_SLOW_SECONDS) as plain,
            self._context.wrap_socket(plain, server_hostname=address[0]) as tls,
        ):
            tls.sendall(f"{head}Content-Type: application/pkcs10\r\nContent-Length: 600\r\n\r\nMIH".encode())
            return bytes(tls.recv(4096))

    def become(self, credential: str | None) -> None:
        """Keep the context for the connection that is not Locust's."""
        super().become(credential)
        self._context = make_context(credential)


def make_context(credential: str | None) -> ssl.SSLContext:
    """TLS 1.3 that verifies the server, with this certificate and key (PEM)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=settings.trust)
    if credential is not None:
        # The module reads files only; this one never is on a disk.
        descriptor = os.memfd_create("credential", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, credential.encode())
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    return context
