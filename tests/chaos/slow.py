"""slow: hostile connections of every slow kind, as many as asked for at once, beside honest devices.

  silent      connects and says nothing
  half-open   sends a ClientHello, and never its Finished
  drip        sends a ClientHello, an octet a second
  head        finishes the handshake and sends a request's head, an octet a second (slowloris)
  body        sends a head that promises a body, and that an octet a second
  deaf        asks for the CA certificates over and over and reads nothing
  idle        asks once and keeps its connection
  flood       connects and hangs up, over and over

Each hostile connection that the server ends is opened anew at once, so their number stays. They come from `--sources`
addresses, honest devices from others; for as long as there is no attack, and then for as long as it lasts, honest devices
enroll at an even rate, each on a connection of its own. None of them may be refused, and 99 of a hundred have their
certificate within a quarter of a second.

  python tests/chaos/slow.py --connections 200 --seconds 8
  python tests/chaos/slow.py --connections 2000 --json slow.json

Needs no privileges, about two cores and files for the connections (`ulimit -n`). Stops by itself, leaves nothing behind
unless a claim fails.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, cast

import uvloop
from claims import Report, Skipped, describe_seconds, make_parser, perform
from herd import Memory, Neighbour, count_events, dismiss, measure, start
from herd import be_neighbour as be_honest
from OpenSSL import SSL
from stage import LABELS, Stage
from virtual import Device, Dialler, Lost, give_way, make_devices, make_sources

HONEST_P99_MS: Final = 250.0
LONGEST_SECONDS: Final = 30.0
"""No hostile connection may last longer, but for the kinds that break no rule by it (`idle`)."""
_PAUSE_SECONDS: Final = 0.2
"""Before a connection that was ended is opened anew."""
_DRIP_SECONDS: Final = 1.0
_SHARES: Final = {"silent": 20, "half-open": 15, "drip": 15, "head": 15, "body": 15, "deaf": 5, "idle": 10, "flood": 5}
"""How many of a hundred connections are of each kind."""


@dataclass(slots=True)
class Attack:
    """What became of the hostile connections."""

    opened: Counter[str] = field(default_factory=Counter)
    lasted: dict[str, list[float]] = field(default_factory=dict)
    """Seconds until the server ended them, by kind."""
    still_there: Counter[str] = field(default_factory=Counter)
    oldest: dict[str, float] = field(default_factory=dict)
    """Of those still there at the end."""


def main() -> int:
    """See the module."""
    parser = make_parser(__doc__ or "", seeded=False)
    parser.add_argument("--connections", type=int, default=200, help="hostile connections at once (200)")
    parser.add_argument("--seconds", type=float, default=60, help="how long the attack lasts (60)")
    parser.add_argument("--before", type=float, default=10, help="seconds the honest are measured alone (10)")
    parser.add_argument("--rate", dest="neighbour_rate", type=float, default=30, help="honest requests a second (30)")
    parser.add_argument("--sources", type=int, default=100, help="addresses the attack comes from (100)")
    parser.add_argument("--workers", type=int, default=1, help="web workers of the server (1)")
    options = parser.parse_args()
    return perform("slow", options, lambda report: _act(report, options))


def _act(report: Report, options: argparse.Namespace) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < options.connections + 1000:
        raise Skipped(f"{options.connections} connections need as many open files; the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Stage(workers=options.workers, signers=2) as stage:
        stage.keep = options.keep
        stage.start()
        report.say("devices are made")
        maker = stage.place.bootstrap(LABELS[0]).maker
        devices = make_devices(maker, 2000, make_sources(41, 50))
        hostile = start(_attack, stage, LABELS[0], make_devices(maker, 100, make_sources(42, options.sources)), options)
        honest = start(be_honest, stage, LABELS[0], devices, options)
        try:
            report.say("the honest alone")
            memory = Memory(stage)
            alone = measure(honest, lambda: time.sleep(options.before))
            at_rest = memory.look()
            report.say("the attack begins")
            hostile.send(None)
            # Until as many connections as wanted are there.
            hostile.recv()
            report.say(f"{options.connections} hostile connections")

            def watch() -> None:
                until = time.monotonic() + options.seconds
                while time.monotonic() < until:
                    time.sleep(1.0)
                    memory.look()

            beside = measure(honest, watch)
            hostile.send(None)
            attack: Attack = hostile.recv()
            events = count_events(stage)
        finally:
            hostile.close()
            dismiss(honest)
        _judge(report, options, attack, alone, beside)
        grown = (memory.most["worker"] - at_rest["worker"]) * options.workers
        report.figures |= {
            "connections_by_what_became_of_them": events,
            "mib_at_rest": at_rest,
            "mib_at_most": memory.most,
            "kib_for_each_hostile_connection": round(grown * 1024 / options.connections, 1),
        }
        report.claim("the server stops in order", stage.stop() == 0)
        stage.keep = stage.keep or not report.holds


def _judge(report: Report, options: argparse.Namespace, attack: Attack, alone: Neighbour, beside: Neighbour) -> None:
    during = describe_seconds(beside.seconds)
    lasted = {kind: _describe(seconds) for kind, seconds in sorted(attack.lasted.items())}
    report.figures |= {
        "honest_alone": describe_seconds(alone.seconds),
        "honest_beside_the_attack": during,
        "hostile_connections_opened": dict(attack.opened),
        "hostile_connections_lasted": lasted,
        "hostile_connections_at_the_end": dict(attack.still_there),
    }
    report.claim("no honest device was refused", [f"{why}: {count}" for why, count in beside.failures.items()])
    p99 = during.get("p99_ms", float("inf"))
    report.claim(f"honest p99 is at most {HONEST_P99_MS:.0f} ms", [] if p99 <= HONEST_P99_MS else [f"{p99} ms"])
    longest = {kind: max([*seconds, attack.oldest.get(kind, 0.0)]) for kind, seconds in attack.lasted.items()}
    longest |= {kind: age for kind, age in attack.oldest.items() if kind not in longest}
    report.claim(
        f"no hostile connection lasts longer than {LONGEST_SECONDS:.0f} seconds",
        [f"{kind}: {age:.1f} s" for kind, age in longest.items() if age > LONGEST_SECONDS and kind != "idle"],
    )
    report.claim(
        f"there were {options.connections} hostile connections at the end",
        attack.still_there.total() >= options.connections * 0.9,
    )


def _describe(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"count": len(ordered), "p50_s": round(ordered[len(ordered) // 2], 1), "max_s": round(ordered[-1], 1)}


# --- the attack, in a process of its own -------------------------------------------------------------------------------


def _attack(pipe: Connection, dialler: Dialler, label: str, devices: list[Device], options: argparse.Namespace) -> None:
    give_way()
    pipe.recv()
    uvloop.run(_besiege(pipe, dialler, label, devices, options.connections))


async def _besiege(pipe: Connection, dialler: Dialler, label: str, devices: list[Device], connections: int) -> None:
    attack = Attack()
    since: dict[int, tuple[str, float]] = {}
    kinds = list(itertools.chain.from_iterable([kind] * share for kind, share in _SHARES.items()))
    # Spread, so that every kind is there from the beginning: 37 and 100 have no divisor in common.
    order = [kinds[number * 37 % len(kinds)] for number in range(connections)]

    async def keep(number: int, kind: str) -> None:
        device = devices[number % len(devices)]
        while True:
            attack.opened[kind] += 1
            began = time.monotonic()
            since[number] = (kind, began)
            try:
                await _KINDS[kind](dialler, label, device)
            except (Lost, OSError, SSL.Error, RuntimeError):
                pass  # the server, or the kernel, ended it; the last one is what uvloop says then
            if kind != "flood":
                attack.lasted.setdefault(kind, []).append(time.monotonic() - began)
            await asyncio.sleep(_PAUSE_SECONDS)

    loop = asyncio.get_running_loop()
    tasks = []
    for number, kind in enumerate(order):
        tasks.append(loop.create_task(keep(number, kind)))
        if number % 20 == 19:
            await asyncio.sleep(0.01)
    pipe.send("begun")
    await loop.run_in_executor(None, pipe.recv)
    for kind, began in since.values():
        attack.still_there[kind] += 1
        attack.oldest[kind] = max(attack.oldest.get(kind, 0.0), time.monotonic() - began)
    for task in tasks:
        if task.done():
            task.result()  # a fault of this tool
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    pipe.send(attack)


class _Plain(asyncio.Protocol):
    """A socket without TLS; `over` is set when the server ends it."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.raw: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()


async def _connect(dialler: Dialler, device: Device) -> _Plain:
    plain = _Plain()
    await asyncio.get_running_loop().create_connection(lambda: plain, *dialler.address, local_addr=(device.source, 0))
    return plain


def _write_hello(dialler: Dialler) -> bytes:
    tls = dialler.make_tls(None)
    try:
        tls.do_handshake()
    except SSL.WantReadError:
        pass  # it waits for the server, which will never hear of it
    return tls.bio_read(16_384)


async def _end(plain: _Plain) -> None:
    try:
        await plain.over.wait()
    finally:
        if plain.raw is not None:
            plain.raw.abort()


async def _be_silent(dialler: Dialler, _label: str, device: Device) -> None:
    await _end(await _connect(dialler, device))


async def _stay_half_open(dialler: Dialler, _label: str, device: Device) -> None:
    plain = await _connect(dialler, device)
    assert plain.raw is not None
    plain.raw.write(_write_hello(dialler))
    await _end(plain)


async def _drip(dialler: Dialler, _label: str, device: Device) -> None:
    plain = await _connect(dialler, device)
    assert plain.raw is not None
    try:
        for octet in _write_hello(dialler):
            plain.raw.write(bytes([octet]))
            try:
                # Python 3.11's asyncio.wait_for may swallow the cancellation that ends the attack.
                async with asyncio.timeout(_DRIP_SECONDS):
                    await plain.over.wait()
            except TimeoutError:
                continue
            return
    finally:
        plain.raw.abort()


async def _drip_plaintext(dialler: Dialler, device: Device, start_with: bytes, octets: bytes) -> None:
    line = await dialler.open(device, device.source)
    try:
        line.send_plain(start_with)
        for octet in octets:
            if not line.is_open:
                return
            line.send_plain(bytes([octet]))
            await asyncio.sleep(_DRIP_SECONDS)
    finally:
        line.close()


async def _send_head_slowly(dialler: Dialler, _label: str, device: Device) -> None:
    await _drip_plaintext(dialler, device, b"GET / HTTP/1.1\r\n", b"X-Slow: " + b"a" * 600)


async def _send_body_slowly(dialler: Dialler, label: str, device: Device) -> None:
    head = f"POST /.well-known/est/{label}/simpleenroll HTTP/1.1\r\nHost: x\r\nContent-Length: 600\r\n\r\n"
    await _drip_plaintext(dialler, device, head.encode(), b"M" * 600)


async def _be_deaf(dialler: Dialler, label: str, device: Device) -> None:
    line = await dialler.open(device, device.source)
    assert line.raw is not None
    request = f"GET /.well-known/est/{label}/cacerts HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    # Small, or the kernel would read megabytes in its stead.
    line.raw.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.raw.pause_reading()
    try:
        while line.is_open:
            if line.raw.get_write_buffer_size() < 65_536:
                line.send_plain(request * 20)
            await asyncio.sleep(0.1)
            if line.raw.is_closing():
                return
    finally:
        line.close()


async def _stay_idle(dialler: Dialler, label: str, device: Device) -> None:
    line = await dialler.open(device, device.source)
    try:
        await line.ask(f"GET /.well-known/est/{label}/cacerts HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while line.is_open:
            await asyncio.sleep(0.5)
    finally:
        line.close()


async def _flood(dialler: Dialler, _label: str, device: Device) -> None:
    plain = await _connect(dialler, device)
    assert plain.raw is not None
    plain.raw.abort()


_KINDS: Final[dict[str, Callable[[Dialler, str, Device], Awaitable[Any]]]] = {
    "silent": _be_silent,
    "half-open": _stay_half_open,
    "drip": _drip,
    "head": _send_head_slowly,
    "body": _send_body_slowly,
    "deaf": _be_deaf,
    "idle": _stay_idle,
    "flood": _flood,
}


if __name__ == "__main__":
    sys.exit(main())
