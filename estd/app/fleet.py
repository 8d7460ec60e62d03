"""A fleet of devices for the demonstration: born at a maker, each goes through its first days at an EST server.

Each device takes the road of RFC 7030: CA certificates (§4.1), what a request should hold (§4.5), its certificate
(§4.2.1), then a new connection with that certificate and its successor (§4.2.2). What each step took is kept; a device
that fails is counted and the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509

from estd.app.files import write_file
from estd.device.answers import ServerRefused, TryLater, WrongServer, write_pem
from estd.device.client import Credential, EstClient
from estd.device.requests import generate_key, write_key, write_renewal, write_request
from estd.errors import Invalid

OPERATIONS: Final = ("cacerts", "csrattrs", "enroll", "reconnect", "re-enroll")
"""The steps that are timed, in their order; cacerts and reconnect include the TLS handshake."""
AT_ONCE: Final = 8
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Device:
    """One device before it meets the server: what it has to show, and where it keeps its files."""

    name: str
    label: str
    credential: Credential
    directory: Path


@dataclass(frozen=True, slots=True)
class Life:
    """What a device has after its first days."""

    device: Device
    authorities: tuple[x509.Certificate, ...]
    first: x509.Certificate
    second: x509.Certificate
    """The successor of `first`; its key and itself are in the device's directory."""

    @property
    def credential(self) -> Credential:
        """What the device shows from now on."""
        return Credential(self.device.directory / "device.pem", self.device.directory / "device.key")


@dataclass(slots=True)
class Tally:
    """How the fleet fared."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OPERATIONS})
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Device, operation, what happened."""
    lives: list[Life] = field(default_factory=list)
    elapsed_seconds: float = 0.0

    def count_failures(self, operation: str) -> int:
        """How many devices failed at that step."""
        return sum(at == operation for _, at, _ in self.failures)


async def run_fleet(
    devices: Sequence[Device], url: str, trust: Path, advance: Callable[[], None], at_once: int = AT_ONCE
) -> Tally:
    """Let all devices live, a bounded number of them at a time; `advance` is called for each that is through."""
    tally = Tally()
    waiting = iter(devices)

    async def live_one_after_another() -> None:
        for device in waiting:
            await _Walk(device, url, trust, tally).live()
            advance()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(devices))):
            group.create_task(live_one_after_another())
    tally.elapsed_seconds = time.perf_counter() - started
    return tally


class _Walk:
    """One device's way."""

    def __init__(self, device: Device, url: str, trust: Path, tally: Tally) -> None:
        self._device = device
        self._url = url
        self._trust = trust
        self._tally = tally
        self._operation = OPERATIONS[0]

    async def live(self) -> None:
        try:
            self._tally.lives.append(await self._live())
        except (ServerRefused, TryLater, WrongServer) as reason:
            self._tally.failures.append((self._device.name, self._operation, reason.detail))
        except Invalid as invalid:
            self._tally.failures.append((self._device.name, self._operation, str(invalid)))

    async def _live(self) -> Life:
        device = self._device
        async with EstClient(self._url, self._trust, device.label, device.credential) as client:
            authorities = await self._time("cacerts", client.cacerts())
            await self._time("csrattrs", client.csrattrs())
            request = await asyncio.to_thread(lambda: write_request(generate_key("ec-p256")))
            first = await self._time("enroll", client.simpleenroll(request))
        certificate, key = device.directory / "device.pem", device.directory / "device.key"
        device.directory.mkdir(parents=True, exist_ok=True)
        certificate.write_bytes(write_pem([first]))
        write_file(key, write_key(request.key), 0o600)
        async with EstClient(self._url, self._trust, device.label, Credential(certificate, key)) as client:
            await self._time("reconnect", client.cacerts())
            request = await asyncio.to_thread(lambda: write_renewal(generate_key("ec-p256"), first))
            second = await self._time("re-enroll", client.simplereenroll(request))
        certificate.write_bytes(write_pem([second]))
        write_file(key, write_key(request.key), 0o600)
        return Life(device, authorities, first, second)

    async def _time(self, operation: str, answer: Awaitable[_Answer]) -> _Answer:
        self._operation = operation
        started = time.perf_counter()
        result = await answer
        self._tally.seconds[operation].append(time.perf_counter() - started)
        return result
