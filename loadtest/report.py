"""What a bench says: the table for people, the files for programs, the machine it ran on, and progress."""

from __future__ import annotations

import json
import platform
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.backends.openssl import backend
from ours import ROLES

BUILD = Path("build")
_COLUMNS = (
    ("certs", "", 6),
    ("rate", "/s", 7),
    ("p50", "ms", 7),
    ("p99", "ms", 7),
    ("p99.9", "ms", 7),
    ("worker", "µs", 7),
    ("signer", "µs", 7),
    ("postgres", "µs", 8),
    ("super", "µs", 6),
    ("generator", "µs", 9),
    ("bare", "µs", 5),
    ("ratio", "", 6),
    ("group", "", 6),
    ("commits", "", 7),
)
"""Title, unit and width of what stands after the workload."""
_SHARES = (("group_size", 0), ("commits_per_certificate", 2))


def write_text(rows: Sequence[dict[str, Any]], memory: dict[str, float], missing: str | None) -> str:
    """The table for people; CPU columns are for each certificate, `missing` says why there is no peer."""
    lines = [
        f"{'workload':22}" + " ".join(f"{title:>{width}}" for title, _, width in _COLUMNS),
        f"{'':22}" + " ".join(f"{unit:>{width}}" for _, unit, width in _COLUMNS),
    ]
    for row in rows:
        cells = [
            f"{row['certificates']}",
            f"{row['rate']:.0f}",
            *(f"{row[key]:.1f}" for key in ("p50_ms", "p99_ms", "p999_ms")),
            *(f"{row['cpu_us'].get(role, 0.0):.0f}" for role in ROLES),
            f"{row['generator_us']:.0f}",
            "–" if row["floor_us"] is None else f"{row['floor_us']:.0f}",
            *(
                "–" if row.get(key) is None else f"{row[key]:.2f}"
                for key in ("ratio", "group_size", "commits_per_certificate")
            ),
        ]
        columns = zip(cells, _COLUMNS, strict=True)
        lines.append(f"{row['workload']:22}" + " ".join(f"{cell:>{width}}" for cell, (_, _, width) in columns))
        lines += [f"{'':22}{reason}: {count}" for reason, count in row["failures"].items()]
    lines.append("")
    for row in rows:
        if row["peer"] is not None:
            lines += _write_peer(row["workload"], row["peer"], "at the same load")
            lines += _write_peer(row["workload"], row["peer"]["at_best"], "at the load that suits it best")
    if missing:
        lines.append(f"no comparison: {missing}")
    lines.append(
        f"a worker has {memory['worker_rest_bytes'] / 2**20:.0f} MiB at rest, an idle connection adds "
        f"{memory['idle_connection_bytes'] / 1024:.1f} KiB"
    )
    return "\n".join(lines)


def write_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The two tables of docs/performance.md."""
    lines = [
        "| workload | rate | p50, p99, p99.9 | CPU per certificate: worker, signer, PostgreSQL | generator | bare | ratio "
        "| group | commits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cpu = ", ".join(f"{row['cpu_us'].get(role, 0.0) / 1000:.2f}" for role in ROLES[:3])
        low, high = row["ratio_range"] or (0, 0)
        cells = [
            row["workload"],
            f"{row['rate']:,.0f}/s",
            ", ".join(f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms", "p999_ms")) + " ms",
            f"{cpu} ms",
            f"{row['generator_us'] / 1000:.2f} ms",
            "–" if row["floor_us"] is None else f"{row['floor_us'] / 1000:.2f} ms",
            "–" if row["ratio"] is None else f"{row['ratio']:.2f} ({low:.2f}–{high:.2f})",
            *("–" if row.get(key) is None else f"{row[key]:.{digits}f}" for key, digits in _SHARES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| cfssl | rate | CPU: cfssl, PostgreSQL | our rate ÷ its | its CPU ÷ ours |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for peer, load in ((row["peer"], "same load"), ((row["peer"] or {}).get("at_best"), "its best load")):
            if peer is not None:
                cpu = ", ".join(f"{peer['cpu_us_by_role'][role] / 1000:.2f}" for role in ("cfssl", "postgres"))
                lines.append(
                    f"| {row['workload']}, {load} | {peer['rate']:.0f}/s | {cpu} ms | {peer['our_rate_over_its_rate']:.2f} "
                    f"| {peer['its_cpu_over_our_cpu']:.2f} |"
                )
    return "\n".join(lines)


def write_json(name: str, content: Any) -> None:
    """A report below build/."""
    BUILD.mkdir(exist_ok=True)
    (BUILD / name).write_text(json.dumps(content, indent=2) + "\n")


def describe_machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(models),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl_of_cryptography": backend.openssl_version_text(),
        "openssl_of_ssl": ssl.OPENSSL_VERSION,
    }


def stop_on_signals() -> None:
    """Let a SIGTERM end this program as an exception does, so that the servers it started are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))


def tell(what: str) -> None:
    """Progress: one line that is written over on a terminal, a line each in a log; empty: the end of it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(what, file=sys.stderr, flush=True)


def _write_peer(workload: str, peer: dict[str, Any], load: str) -> list[str]:
    cpu = " + ".join(f"{role} {value:.0f}" for role, value in peer["cpu_us_by_role"].items())
    return [
        f"{peer['name']}, {workload}, {load}: {peer['rate']:.0f}/s, CPU {cpu} = {peer['cpu_us']:.0f} µs",
        f"    our rate is {peer['our_rate_over_its_rate']:.2f} × its, its CPU is {peer['its_cpu_over_our_cpu']:.2f} × ours",
    ]
