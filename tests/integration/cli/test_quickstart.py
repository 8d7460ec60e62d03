"""``estd quickstart``: what it prints works, it goes on with what is there, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from live_server import NORTH, SOUTH, Live, judge
from patience import wait_until
from program import ESTD, ask, estd, refusal

from estd.app.lessons import write_lessons
from estd.app.playground import Playground, read_codes
from estd.app.quickstart import Running


def test_the_commands_that_quickstart_prints_work_as_pasted(live: Live, tmp_path: Path) -> None:
    judge("curl")
    judge("openssl")
    running = Running(Playground(live.directory), "127.0.0.1", live.port, live.ops_port, live.code(NORTH))
    lessons = write_lessons(running, "estd")
    # What was printed at the start is the same text, with the code that was unused then.
    printed = live.log.read_text(encoding="utf-8")
    assert all(f"# {lesson.title}" in printed for lesson in lessons)
    assert lessons[0].commands in printed
    script = tmp_path / "pasted.sh"
    script.write_text("\n\n".join(lesson.commands for lesson in lessons) + "\n", encoding="utf-8")
    done = subprocess.run(
        ["bash", "-eo", "pipefail", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": f"{ESTD.parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    assert "pump.pem: OK" in done.stdout
    assert "certificate-untrusted" in done.stdout
    first, second = (
        x509.load_pem_x509_certificate((live.directory / name).read_bytes()) for name in ("pump.pem", "next.pem")
    )
    assert first.subject == second.subject
    assert first.public_key() != second.public_key()
    assert (live.directory / "valve" / "device.pem").exists()


@contextmanager
def quickstart(directory: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A quickstart server of its own, until the block ends."""
    arguments = ("quickstart", "--dir", directory, "--port", 0, "--ops-port", 0, "--json", *options)
    process = subprocess.Popen(
        [str(ESTD), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: (directory / "run.json").exists() or process.poll() is not None, 60)
        assert process.poll() is None, process.communicate()[1]
        yield process, json.loads((directory / "run.json").read_text())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)


def read_server_names(port: int) -> list[str]:
    """What the certificate of that server calls it."""
    shown = x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port), timeout=10).encode())
    return [str(name.value) for name in shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


@pytest.mark.slow
def test_the_second_start_goes_on_with_what_is_there(tmp_path: Path) -> None:
    site, ready = tmp_path / "lab", tmp_path / "ready.json"
    with quickstart(site, "--ready-file", ready) as (process, facts):
        wait_until(ready.exists)
        assert json.loads(ready.read_text())["port"] == facts["port"] != 0
        assert facts["pid"] == process.pid
        status, error = refusal("quickstart", "--dir", site, "--port", "0", "--ops-port", "0")
        assert (status, "in use by a running estd" in error["problems"][0]["what"]) == (2, True)
        assert (site / "run.json").exists(), "the other one's"
        status, error = refusal("quickstart", "--dir", tmp_path / "other", "--port", facts["port"], "--ops-port", "0")
        assert (status, error["problems"][0]["where"]) == (2, "listen.port")
        assert not (tmp_path / "other/data/postgres").exists(), "found out before the database was made"
        home = tmp_path / "d"
        device, code = read_codes(site / "bootstrap" / NORTH / "codes.csv")[0]
        where = ("--url", facts["url"], "--trust", site / "trust.pem", "--out", home)
        assert estd("enroll", *where, "--device", device, given=code).returncode == 0, "the default ecosystem"
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    assert not (site / "run.json").exists()
    assert not ready.exists()
    kept = {path: path.read_bytes() for path in (site / "trust.pem", *site.glob("bootstrap/*/*"))}
    issuers = ask("issuer", "list", "--dir", site)  # the database runs for the time of the command
    assert not list(site.rglob("postmaster.pid"))
    with quickstart(site, "--name", "est.lab.example") as (_, facts):
        assert {path: path.read_bytes() for path in kept} == kept
        assert ask("issuer", "list", "--dir", site) == issuers
        where = ("--url", facts["url"], "--trust", site / "trust.pem", "--out", home)
        assert ask("enroll", *where, "--renew")["renewed"]
        assert read_server_names(facts["port"]) == ["127.0.0.1", "::1", "est.lab.example"]
    settings = site / "estd.toml"
    settings.write_text(settings.read_text().replace(f'default_ecosystem = "{NORTH}"', 'default_ecosystem = "nope"'))
    for command in (("quickstart",), ("serve",), ("serve", "--check")):
        done = estd(*command, "--dir", site)
        assert done.returncode == 2
        assert f"estd: {settings}: est.default_ecosystem 'nope' is no ecosystem here." in done.stderr.splitlines()
        assert f"name one of {NORTH}, {SOUTH}" in done.stderr


@pytest.mark.slow
def test_a_signal_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    for number, pause in ((signal.SIGTERM, 0.7), (signal.SIGINT, 2.0)):
        site = tmp_path / str(pause)
        process = subprocess.Popen(
            [str(ESTD), "quickstart", "--dir", str(site), "--port", "0", "--ops-port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(pause)
        process.send_signal(number)
        assert process.wait(60) in (0, 130, 143, -number)
        assert not list(site.rglob("postmaster.pid"))
        assert not (site / "run.json").exists()


def test_two_ports_that_are_one_are_told_before_anything_is_made(tmp_path: Path) -> None:
    status, error = refusal("quickstart", "--dir", tmp_path / "lab", "--port", 18081, "--ops-port", 18081)
    assert (status, error["problems"][0]["where"]) == (2, "ops.port")
    assert not (tmp_path / "lab").exists()
