"""retry: every answer is lost once; the device asks again and has to get the very same certificate.

Each request is sent twice at least. The first time its answer is lost, in one of three ways:

  answered   the answer has arrived at the device's machine, and the device vanishes without having read it
  broken     the device has read its first octet, and vanishes
  unread     the device vanishes right after it has asked, so that the server finds out while it is working

Then the device connects anew and sends the same request until it has its certificate. Of every hundredth lost answer the
tool keeps a copy that the device does not see, and compares. At the end a checker that shares no code with the server
counts what is on record: one certificate for each request, journaled and delivered byte for byte.

  python tests/chaos/retry.py --n 1000
  python tests/chaos/retry.py --n 20000 --json retry.json

Needs no privileges and about two cores; a hundred requests a second or more. Stops by itself, leaves nothing behind
unless a claim fails.
"""

from __future__ import annotations

import argparse
import random  # noqa: TID251 - choices that a seed can repeat; nothing secret hangs on them
import sys
import threading
import time
from collections import Counter
from typing import Final, Literal

from claims import Report, describe_seconds, make_parser, perform
from insist import Answer, Caller, read_csr_sha256
from ledger import check
from OpenSSL import SSL
from stage import Stage, fleet

Loss = Literal["answered", "broken", "unread", "copied"]

LOSSES: Final[dict[Loss, int]] = {"answered": 45, "broken": 24, "unread": 30, "copied": 1}
"""How often each, of a hundred; `copied` is lost to the device and kept by the tool."""
REQUESTS_EACH: Final = 20
PATIENCE_SECONDS: Final = 60.0


class Losers:
    """Devices that lose every answer once, at work in threads."""

    def __init__(self, stage: Stage, devices: list[fleet.Device], seed: int) -> None:
        self._address, self._trust, self._path = stage.address, stage.trust, stage.path()
        self._waiting = list(devices)
        self._seed = seed
        self._lock = threading.Lock()
        self.answers: dict[bytes, list[bytes]] = {}
        self.lost: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.gave_up: list[str] = []
        self.copied = 0
        self.retry_seconds: list[float] = []

    def run(self, threads: int, report: Report) -> None:
        """Until every device has all its certificates."""
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            workers[0].join(5.0)
            if workers[0].is_alive():
                report.say(f"{len(self.answers)} certificates")
            else:
                workers.pop(0)

    # --- private -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                device = self._waiting.pop()
                # By the seed alone, so that a run can be repeated: names are new each time.
                choices = random.Random(f"{self._seed}-{len(self._waiting)}")
            context = fleet.make_new_context(self._trust, device)
            caller: Caller | None = None
            for body in device.bodies:
                self._lose(context, caller, body, choices.choices(list(LOSSES), list(LOSSES.values()))[0])
                caller = self._insist(device.name, context, body)
            if caller is not None:
                caller.close()

    def _lose(self, context: SSL.Context, caller: Caller | None, body: bytes, loss: Loss) -> None:
        """Ask once and lose the answer."""
        try:
            caller = caller or Caller(self._address, context)
            caller.send(self._path, body)
            if loss == "copied":
                self._note(body, caller.receive(), copied=True)
            elif loss != "unread":
                arrived = caller.wait_answered()
                if arrived and loss == "broken":
                    caller.receive_part()
            caller.drop()
        except (SSL.Error, OSError) as fault:
            self._count(self.broken, type(fault).__name__)
            if caller is not None:
                caller.drop()
        else:
            self._count(self.lost, loss)

    def _insist(self, name: str, context: SSL.Context, body: bytes) -> Caller | None:
        """Ask again until there is a certificate; the connection it came on, or None."""
        started = time.monotonic()
        while time.monotonic() - started < PATIENCE_SECONDS:
            caller: Caller | None = None
            try:
                caller = Caller(self._address, context)
                caller.send(self._path, body)
                answer = caller.receive()
            except (SSL.Error, OSError) as fault:
                self._count(self.broken, type(fault).__name__)
                if caller is not None:
                    caller.drop()
                time.sleep(0.05)
                continue
            if self._note(body, answer):
                with self._lock:
                    self.retry_seconds.append(time.monotonic() - started)
                return caller
            caller.close()
            time.sleep(0.2)
        self.gave_up.append(name)
        return None

    def _note(self, body: bytes, answer: Answer, *, copied: bool = False) -> bool:
        if answer.status != 200:
            told = "" if "retry-after" in answer.headers else "without Retry-After: "
            code = answer.body.decode("utf-8", "replace").partition(":")[0][:40]
            self._count(self.refused, f"{told}{answer.status} {code}")
            return False
        with self._lock:
            self.answers.setdefault(read_csr_sha256(body), []).append(answer.certificate)
            self.copied += copied
        return True

    def _count(self, counter: Counter[str], what: str) -> None:
        with self._lock:
            counter[what] += 1


def act(report: Report, options: argparse.Namespace) -> None:
    """One run."""
    with Stage(workers=options.workers, signers=options.signers) as stage:
        stage.keep = options.keep
        stage.start()
        each = min(REQUESTS_EACH, options.n)
        devices = stage.devices(options.n // each, each)
        if options.n % each:
            devices += stage.devices(1, options.n % each)
        report.say(f"{len(devices)} devices are made")
        losers = Losers(stage, devices, options.seed)
        started = time.monotonic()
        losers.run(options.threads, report)
        seconds = time.monotonic() - started
        report.figures["requests"] = {"count": options.n, "a second": round(options.n / seconds, 1)}
        report.figures["lost answers"] = dict(losers.lost)
        report.figures["copies compared"] = losers.copied
        report.figures["refusals"] = dict(losers.refused)
        report.figures["broken connections"] = dict(losers.broken)
        report.figures["from retry to certificate"] = describe_seconds(losers.retry_seconds)
        report.claim("every device got its certificates", losers.gave_up)
        report.claim("every answer was lost once", sum(losers.lost.values()) == options.n)
        report.claim(
            "whoever was refused was told to come back (503 with Retry-After), and nothing else",
            [f"{reason}: {count}" for reason, count in losers.refused.items() if not reason.startswith("503 ")],
        )
        report.claim("every request was answered in the end", len(losers.answers) == options.n)
        check(report, stage, losers.answers, settle_seconds=120.0)
        report.claim(
            "no certificate is on record but these", report.figures["on record"]["certificates"] == options.n + 1
        )
        stage.keep |= not report.holds


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--n", type=int, default=1000, metavar="N", help="requests, each of which loses its answer (1000)"
    )
    parser.add_argument("--threads", type=int, default=16, metavar="N", help="devices at work at once (16)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="web workers (2)")
    parser.add_argument("--signers", type=int, default=2, metavar="N", help="signers (2)")
    options = parser.parse_args(arguments)
    return perform("retry", options, lambda report: act(report, options))


if __name__ == "__main__":
    sys.exit(main())
