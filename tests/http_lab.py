"""HTTP through the real TLS floor for tests: a site on a floor, a protocol that says what it was handed, and requests as
bytes."""

from __future__ import annotations

import asyncio

from tls_lab import Client, Floor, make_identity

from estd.errors import Code, Refused
from estd.web import metrics
from estd.web.site import Site
from estd.wire.exchange import Exchange, Reply

SERVER = make_identity("estd.test")
HEAD = b"POST /path HTTP/1.1\r\nHost: estd\r\nContent-Type: application/pkcs10\r\n"


class Desk:
    """A protocol that says what it was handed, or fails as it is told to."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.refusals: list[tuple[str, str, Code]] = []
        """Method, path and code of what was refused before it was a whole request."""
        self.fault: Exception | None = None
        self.seconds = 0.0
        self.gate = asyncio.Event()
        """Closed, it keeps every answer back."""
        self.gate.set()

    async def answer(self, exchange: Exchange) -> tuple[str, str, Reply]:
        self.exchanges.append(exchange)
        await asyncio.sleep(self.seconds)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return "echo", "ok", Reply(200, exchange.body or b"nothing", "text/plain", (("X-Path", exchange.path),))

    def note_refusal(self, exchange: Exchange, reason: Refused) -> str:
        self.refusals.append((exchange.method, exchange.path, reason.code))
        return "echo" if exchange.path == "/path" else "unknown"

    @property
    def paths(self) -> list[str]:
        return [exchange.path for exchange in self.exchanges]


class House:
    """A floor with a site on it."""

    def __init__(self, floor: Floor, site: Site, desk: Desk) -> None:
        self.floor = floor
        self.site = site
        self.desk = desk

    async def say(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """All that a new connection is answered until the server closes it, or has nothing more to say."""
        async with await Client.open(self.floor) as client:
            for part in parts:
                await client.send(part)
                await asyncio.sleep(pause)
            return await listen(client)


async def listen(client: Client, seconds: float = 5) -> bytes:
    """What comes until the end, or until nothing more comes."""
    data = b""
    try:
        while True:
            async with asyncio.timeout(seconds):
                part = await client.receive()
            if not part:
                return data + b"<end>"
            data += part
    except TimeoutError:
        return data


def post(body: bytes, more: bytes = b"", version: bytes = b"1.1", *, last: bool = True) -> bytes:
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/" + version) + (b"Connection: close\r\n" if last else b"")
    return head + b"Content-Length: %d\r\n" % len(body) + more + b"\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] + [
        int(part[:3]) for part in answer.split(b"HTTP/1.0 ")[1:]
    ]


def counted(operation: str, outcome: str) -> float:
    metrics.publish()
    return metrics.REQUESTS.labels(operation, outcome)._value.get()
