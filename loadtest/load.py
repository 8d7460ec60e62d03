"""`make load`: a fleet of Locust users against a quickstart server, or against yours. Results go to build/load.

    make load                                  headless, 60 seconds, 50 devices, a server of its own
    make load UI=1                             Locust's page on http://127.0.0.1:8089
    make load HERD=2000                        2,000 devices that renew in the same second
    make load ARGS="--users 200 --seconds 300"
    make load HOST=https://est.example:8443 ARGS="--trust trust.pem --label plant --maker maker.pem --maker-key maker.key"

A server of yours has to trust the maker whose devices come: make a CA for it, name it as an anchor of a test ecosystem, and
remove it afterwards. Devices with codes come along where --codes names what `estd code create --out` wrote.
estd_stats.csv, estd_failures.csv and report.html say what happened; the exit status is 1 when a request failed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pool
import report
from cryptography.hazmat.primitives.serialization import Encoding
from ours import LABEL, Server

_OTHER = "campus-south"
_STOP_SECONDS = 30.0
_HERE = Path(__file__).parent


def main() -> int:
    """Prepare, run, say where the results are."""
    options = _read_options()
    report.stop_on_signals()
    # A shell ignores SIGINT for what it starts in its background, and Locust would inherit that: it stops on nothing else.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("estd_stats.csv", "estd_stats_history.csv", "estd_failures.csv", "estd_exceptions.csv", "report.html"):
        (options.out / name).unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        # Keys of devices that do not exist, and yet nothing to leave lying about.
        prepared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="estd-fleet-")))
        settings = _settings_of(options) if options.host else stack.enter_context(_quickstart(options))
        _count_fleet(options)
        print(f"preparing {options.devices + options.renewing} devices", file=sys.stderr, flush=True)
        pool.write_pool(prepared, settings, pool.make_members(settings, options))
        status = _run_locust(options, prepared, settings.url)
    print(f"results: {options.out}/estd_stats.csv, {options.out}/report.html")
    return status


# --- private -------------------------------------------------------------------------------------------------------


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make load ARGS=...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=50, help="devices at a time (50)")
    parser.add_argument("--seconds", type=int, default=60, help="length of the run; a herd ends earlier (60)")
    parser.add_argument(
        "--herd", type=int, default=0, metavar="N", help="N devices that renew in the same second, once"
    )
    parser.add_argument("--ui", action="store_true", help="Locust's page instead of a headless run")
    parser.add_argument("--ui-port", type=int, default=8089, help="where that page is (8089)")
    parser.add_argument("--out", type=Path, default=Path("build/load"), help="where results go (build/load)")
    yours = parser.add_argument_group("a server of yours")
    yours.add_argument("--host", help="https://HOST:PORT (default: a quickstart server for the run)")
    yours.add_argument("--trust", type=Path, help="what verifies its certificate (PEM)")
    yours.add_argument("--label", default=LABEL, help=f"the ecosystem ({LABEL})")
    yours.add_argument("--other-label", help="an ecosystem there that does not know these devices")
    yours.add_argument("--maker", type=Path, help="certificate of the maker's CA whose devices come (PEM)")
    yours.add_argument("--maker-key", type=Path, help="its key (PEM)")
    yours.add_argument("--codes", type=Path, help="device,code for devices with codes")
    options = parser.parse_args()
    if options.host and not (options.trust and options.maker and options.maker_key):
        parser.error("--host needs --trust, --maker and --maker-key")
    if options.host:
        pool.check_server(parser, options.host, options.trust, options.label)
    for name in ("maker", "maker_key", "codes"):
        pool.check_file(parser, name, getattr(options, name))
    if options.host and not options.codes and not options.herd:
        print("no --codes: devices with enrollment codes stay away", file=sys.stderr)
    if options.users < 1 or options.seconds < 1 or options.herd < 0:
        parser.error("--users and --seconds begin at 1, --herd at 0")
    return options


def _count_fleet(options: argparse.Namespace) -> None:
    """How many of each kind there may be at a time, and how often each may ask (once a second on average)."""
    options.devices = 0 if options.herd else math.ceil(options.users * 0.5) + 4
    options.renewing = options.herd or math.ceil(options.users * 0.4) + 4
    options.each = 1 if options.herd else options.seconds * 3 // 2 + 10


def _settings_of(options: argparse.Namespace) -> pool.Settings:
    return pool.Settings(options.host.rstrip("/"), options.trust.read_text(), options.label, options.other_label)


@contextlib.contextmanager
def _quickstart(options: argparse.Namespace) -> Iterator[pool.Settings]:
    """A server for this run; fills in what the options of a server of yours would have said."""
    with tempfile.TemporaryDirectory(prefix="estd-load-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # the account that PostgreSQL runs under has to get through
        print("starting a server", file=sys.stderr, flush=True)
        server = Server(directory)
        try:
            options.label, options.maker, options.maker_key = LABEL, server.maker, server.maker_key
            if not options.herd:
                options.codes = directory / "codes.csv"
                count = math.ceil(options.users * 0.1 + 1) * (options.seconds * 3 // 2 + 10)
                estd = str(Path(sys.executable).parent / "estd")
                arguments = [
                    "--ecosystem",
                    LABEL,
                    "--count",
                    str(count),
                    "--prefix",
                    "load",
                    "--out",
                    str(options.codes),
                ]
                subprocess.run(
                    [estd, "code", "create", *arguments, "--dir", str(server.site)], check=True, stdout=subprocess.PIPE
                )
            trust = server.trust.public_bytes(Encoding.PEM).decode()
            yield pool.Settings(f"https://{server.address[0]}:{server.address[1]}", trust, LABEL, _OTHER)
        finally:
            server.stop()


def _run_locust(options: argparse.Namespace, prepared: Path, url: str) -> int:
    locust = shutil.which("locust", path=str(Path(sys.executable).parent))
    if locust is None:
        raise SystemExit("locust is not installed here: run this by `make load`, or pip install locust")
    arguments = ["-f", str(_HERE / ("herd.py" if options.herd else "locustfile.py")), "--host", url]
    arguments += ["--csv", str(options.out / "estd"), "--html", str(options.out / "report.html")]
    if not options.herd:
        arguments += ["--users", str(options.users), "--spawn-rate", str(max(1, options.users // 5))]
    arguments += ["--run-time", f"{options.seconds}s"]
    if options.ui:
        arguments += ["--web-host", "127.0.0.1", "--web-port", str(options.ui_port), "--autostart"]
    else:
        arguments += ["--headless", "--only-summary", "--stop-timeout", "15"]
    process = subprocess.Popen([locust, *arguments], env={**os.environ, "ESTD_LOAD_POOL": str(prepared)})
    try:
        return process.wait()
    except KeyboardInterrupt:  # typed at both of us; it ends by itself when its report is written
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_STOP_SECONDS)
        raise
    finally:
        for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):  # on a SIGTERM it would write no report
            if process.poll() is None:
                process.send_signal(how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
