"""The load generator: one thread, many non-blocking connections, requests that were written before the clock runs.

It has to be lean, because it runs on the cores of the server it measures. pyOpenSSL over `epoll` costs little more than
the client's half of the handshake; threads cost half as much again for handing the interpreter around. Every server is
driven by it in the same way: a visit is octets to send, whatever they ask for.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import fleet
from cryptography import x509
from OpenSSL import SSL

_GIVE_UP_SECONDS = 60.0
_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Visit:
    """What one client does: requests as octets, on one connection or on one each."""

    device: fleet.Device | None
    """Whose certificate it shows; None: none."""
    requests: tuple[bytes, ...]


@dataclass(slots=True)
class Tally:
    """What came back."""

    ok: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """From opening the connection, or from sending on one that is open, to the whole answer."""
    last: dict[str, bytes] = field(default_factory=dict)
    """The body of the newest answer with status 200 for each device, by name."""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    def fail(self, reason: str) -> None:
        """One more that did not succeed."""
        self.failures[reason] = self.failures.get(reason, 0) + 1


def make_visits(address: tuple[str, int], path: str, devices: Sequence[fleet.Device]) -> list[Visit]:
    """Every body of every device as a POST to that path."""
    host = f"{address[0]}:{address[1]}".encode()
    return [
        Visit(device, tuple(fleet.write_request("POST", path, host, body) for body in device.bodies))
        for device in devices
    ]


def send_all(
    address: tuple[str, int],
    trust: x509.Certificate,
    visits: Sequence[Visit],
    *,
    in_flight: int,
    keep: bool,
    opened: Sequence[fleet.Connection] = (),
) -> Tally:
    """Make every visit once, so many at a time; a new connection for each request unless `keep`.

    Args:
        opened: connections that are open already, one for each visit; closed at its end.
    """
    for visit in visits:
        fleet.make_context(trust, visit.device)
    return _Loop(address, trust, visits, keep, opened).run(in_flight)


# --- private -------------------------------------------------------------------------------------------------------


class _Loop:
    """One run."""

    def __init__(
        self,
        address: tuple[str, int],
        trust: x509.Certificate,
        visits: Sequence[Visit],
        keep: bool,
        opened: Sequence[fleet.Connection],
    ) -> None:
        self.address, self.trust, self.keep = address, trust, keep
        self.tally = Tally()
        self._waiting = list(reversed(visits))
        self._opened = list(reversed(opened))
        self._open: dict[int, _Client] = {}
        self._poll = select.epoll()

    def run(self, in_flight: int) -> Tally:
        """Until every visit was made."""
        started, cpu = time.perf_counter(), time.thread_time()
        heard = started
        with self._poll:
            while self._waiting or self._open:
                while self._waiting and len(self._open) < in_flight:
                    client = _Client(self, self._waiting.pop())
                    if self._opened:
                        client.take(self._opened.pop())
                    else:
                        client.open()
                for descriptor, _ in self._poll.poll(1.0):
                    self._open[descriptor].go_on()
                    heard = time.perf_counter()
                if self._open and time.perf_counter() - heard > _GIVE_UP_SECONDS:
                    raise SystemExit(f"no answer for {_GIVE_UP_SECONDS:.0f} s")
        self.tally.wall_seconds = time.perf_counter() - started
        self.tally.cpu_seconds = time.thread_time() - cpu
        return self.tally

    def watch(self, client: _Client, descriptor: int, events: int) -> None:
        """Call that client when its socket is ready."""
        if descriptor in self._open:
            self._poll.modify(descriptor, events)
        else:
            self._open[descriptor] = client
            self._poll.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """That socket is about to be closed."""
        if self._open.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)


class _Client:
    """One visit: its requests in order."""

    __slots__ = ("_loop", "_next", "_received", "_socket", "_started", "_step", "_tls", "_visit")

    def __init__(self, loop: _Loop, visit: Visit) -> None:
        self._loop = loop
        self._visit = visit
        self._next = 0

    def open(self) -> None:
        """Connect, shake hands, send."""
        self._started = time.perf_counter()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect_ex(self._loop.address)
        self._tls = SSL.Connection(fleet.make_context(self._loop.trust, self._visit.device), self._socket)
        self._tls.set_connect_state()
        self._step = self._shake_hands
        self._loop.watch(self, self._socket.fileno(), select.EPOLLOUT)

    def take(self, connection: fleet.Connection) -> None:
        """Send on a connection that is open."""
        self._started = time.perf_counter()
        self._socket, self._tls = connection.socket, connection.tls
        self._socket.setblocking(False)
        self._send()

    def go_on(self) -> None:
        """Its socket is ready."""
        try:
            self._step()
        except SSL.WantReadError:
            self._loop.watch(self, self._socket.fileno(), select.EPOLLIN)
        except SSL.WantWriteError:
            self._loop.watch(self, self._socket.fileno(), select.EPOLLOUT)
        except (SSL.Error, OSError) as error:
            self._loop.tally.fail(type(error).__name__)
            self._close()
            self._move_on()

    def _shake_hands(self) -> None:
        self._tls.do_handshake()
        self._send()

    def _send(self) -> None:
        self._tls.send(self._visit.requests[self._next])  # a few kilobytes, which always fit into the socket's buffer
        self._received = b""
        self._step = self._receive
        self._loop.watch(self, self._socket.fileno(), select.EPOLLIN)

    def _receive(self) -> None:
        while (answer := fleet.read_answer(self._received)) is None:
            self._received += self._tls.recv(_CHUNK)
        tally = self._loop.tally
        tally.seconds.append(time.perf_counter() - self._started)
        status, body = answer
        if status == 200:
            tally.ok += 1
            if self._visit.device is not None:
                tally.last[self._visit.device.name] = body
        else:
            tally.fail(str(status))
        if self._loop.keep and self._next + 1 < len(self._visit.requests):
            self._next += 1
            self._started = time.perf_counter()
            self._send()
            return
        with contextlib.suppress(SSL.Error):  # the server closed first
            self._tls.shutdown()
        self._close()
        self._move_on()

    def _close(self) -> None:
        self._loop.forget(self._socket.fileno())
        self._socket.close()

    def _move_on(self) -> None:
        self._next += 1
        if self._next < len(self._visit.requests):
            self.open()
