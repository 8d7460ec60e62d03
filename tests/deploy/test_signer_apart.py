"""Signers as services of their own: two users, one group between them, and what neither of them can reach.

They run as the units in ``deploy/systemd`` run them, confined by those as far as ``tests/confine.py`` can: `daemon` is the
signers' user and `nobody` the server's, who is in the signers' group. `bin` is in that group as well, and is nobody whom
a signer would serve.
"""

from __future__ import annotations

import csv
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from live_server import judge
from other_users import Interpreter, find_interpreter
from patience import wait_for_file, wait_until
from production_site import ECOSYSTEM

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become other users")

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SIGNER, SERVER, STRANGER = "daemon", "nobody", "bin"
KEK = "5a" * 32
CALL = """
import socket, sys
end = socket.socket(socket.AF_UNIX)
end.settimeout(10)
try:
    end.connect(sys.argv[1])
    print("answered" if end.recv(1) else "closed")
except TimeoutError:
    print("open")
except OSError as error:
    print(type(error).__name__)
"""
READ = """
import os, sys
for path in sys.argv[1:]:
    try:
        print(sorted(os.listdir(path)) if os.path.isdir(path) else open(path, "rb").read())
    except OSError as error:
        print(type(error).__name__)
"""


class Site:
    """A server and two signers, each under its user."""

    def __init__(self, folder: Path, python: Interpreter) -> None:
        self.folder = folder
        self.python = python
        is_confined = os.environ.get("CI") == "true" or shutil.which("systemd-analyze") is not None
        self.units = {
            "signer": UNITS / "estd-signer@.service" if is_confined else None,
            "server": UNITS / "estd.service" if is_confined else None,
        }
        self.log = folder / "log"
        self.log.touch()
        self.sockets = [folder / "run" / f"{slot}.sock" for slot in (0, 1)]
        self.kek = self._directory("keys", SIGNER, 0o700) / "kek"
        self._file(self.kek, KEK, SIGNER, 0o600)
        self._directory("run", SIGNER, 0o750)
        self.journals = self._directory("signer", SIGNER, 0o700)
        self.data = self._directory("server", SERVER, 0o700)
        names = ", ".join(f'"{path}"' for path in self.sockets)
        self.signer_settings = folder / "signer.toml"
        self._file(
            self.signer_settings,
            f'data_directory = "{self.journals}"\nkeys.file = "{self.kek}"\n'
            f'signers.sockets = [{names}]\nsigners.users = ["{SERVER}"]\n',
            SIGNER,
            0o600,
        )
        serving = f'data_directory = "{self.data}"\nlisten.port = 0\nlisten.address = "127.0.0.1"\nops.port = 0\n'
        serving += "processes.workers = 1\n"
        self.settings = folder / "estd.toml"
        self._file(self.settings, f"{serving}signers.sockets = [{names}]\n", SERVER, 0o600)
        self.admin = folder / "admin.toml"
        self._file(self.admin, f'{serving}keys.environment = "THE_KEY"\n', SERVER, 0o600)
        self.signers = [self.start_signer(slot) for slot in (0, 1)]
        self.server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.ops_port = 0

    def start_signer(self, slot: int) -> subprocess.Popen[bytes]:
        arguments = ("-m", "estd", "signer", "--config", self.signer_settings, "--slot", str(slot))
        with self.log.open("ab") as log:
            return self.python.popen(SIGNER, *arguments, unit=self.units["signer"], stdout=log, stderr=log)

    def start_server(self) -> None:
        ready = self.data / "ready.json"
        arguments = ("-m", "estd", "serve", "--config", self.settings, "--ready-file", ready)
        with self.log.open("ab") as log:
            self.server = self.python.popen(
                SERVER, *arguments, groups=[SIGNER], unit=self.units["server"], stdout=log, stderr=log
            )
        wait_for_file(ready, self.server, 60, self.log.read_text)
        facts = json.loads(ready.read_text())
        self.port, self.ops_port = facts["port"], facts["ops_port"]

    def stop_server(self) -> None:
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        assert self.server.wait(60) == 0, self.log.read_text()

    def is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/readyz", timeout=5).close()
        except OSError:
            return False
        return True

    def wait_until(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, 60, self.log.read_text)

    def estd(self, *arguments: str | Path) -> tuple[int, str]:
        """A command as the operator gives it, who has the key; in the server's name because of its private database."""
        return self.python.run(SERVER, "-m", "estd", *arguments, "--config", self.admin, env={"THE_KEY": KEK})

    def enroll(self, device: str) -> x509.Certificate:
        codes = self.data / f"{device}.csv"
        status, said = self.estd("code", "create", "--ecosystem", "plant", "--device", device, "--out", codes)
        assert status == 0, said
        with codes.open(newline="") as file:
            code = next(csv.DictReader(file))["code"]
        (self.folder / "code").write_text(code)
        (self.folder / "code").chmod(0o600)
        out = self.folder / device
        command = [
            sys.executable,
            "-m",
            "estd",
            "enroll",
            "--url",
            f"https://127.0.0.1:{self.port}",
            "--label",
            "plant",
        ]
        command += ["--trust", str(self.data / "server-trust.pem"), "--device", device, "--out", str(out)]
        done = subprocess.run(
            [*command, "--code-file", str(self.folder / "code")], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode() + self.log.read_text()
        return x509.load_pem_x509_certificate((out / "device.pem").read_bytes())

    def close(self) -> list[int]:
        """Stop what runs; the signers' exit statuses."""
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            self.server.wait(60)
        for process in self.signers:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        return [process.wait(30) for process in self.signers]

    def _directory(self, name: str, owner: str, mode: int) -> Path:
        path = self.folder / name
        path.mkdir()
        shutil.chown(path, owner, pwd.getpwnam(owner).pw_gid)
        path.chmod(mode)
        return path

    def _file(self, path: Path, text: str, owner: str, mode: int) -> None:
        path.write_text(text)
        shutil.chown(path, owner, pwd.getpwnam(owner).pw_gid)
        path.chmod(mode)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="estd-apart-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "python").mkdir()
        site = Site(folder, find_interpreter(folder / "python"))
        try:
            controls = [path.with_name(f"{path.name}.control") for path in site.sockets]
            site.wait_until(lambda: all(path.is_socket() for path in controls))
            status, said = site.python.run(SERVER, "-m", "estd", "serve", "--config", site.settings, groups=[SIGNER])
            assert status == 2, said
            assert "holds no key to make the first one" in said
            document = folder / "plant.toml"
            document.write_text(ECOSYSTEM)
            status, said = site.estd("apply", document)
            assert status == 0, said
            site.start_server()
            yield site
        finally:
            statuses = site.close()
        assert statuses == [0, 0], site.log.read_text()


def test_devices_enroll_and_each_process_has_its_user(site: Site) -> None:
    issued = site.enroll("pump-1")
    assert issued.not_valid_after_utc > issued.not_valid_before_utc
    for process in site.signers:
        about = Path(f"/proc/{process.pid}")
        assert f"Uid:\t{pwd.getpwnam(SIGNER).pw_uid}\t" in (about / "status").read_text()
        assert (about / "mem").stat().st_uid == 0  # not dumpable, so not even its own user may look into its memory
    assert list(site.journals.glob("journal/journal-*.log"))
    assert not (site.data / "journal").exists()


def test_the_confinement_of_the_units_is_in_force(site: Site) -> None:
    judge("systemd-analyze")
    assert site.server is not None
    for process in (*site.signers, site.server):
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)


def test_signers_have_no_network(site: Site) -> None:
    judge("systemd-analyze")
    if subprocess.run([judge("unshare"), "--net", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no network namespace can be made here")
    ours = Path("/proc/self/ns/net").readlink()
    assert all(Path(f"/proc/{process.pid}/ns/net").readlink() != ours for process in site.signers)


def test_another_user_of_the_same_group_is_not_served(site: Site) -> None:
    for path in (*site.sockets, *(path.with_name(f"{path.name}.control") for path in site.sockets)):
        status, said = site.python.run(STRANGER, "-c", CALL, path, groups=[SIGNER])
        assert (status, said.strip()) in ((0, "closed"), (0, "ConnectionResetError")), said
    assert site.log.read_text().count("its user may not call") >= 4


def test_a_user_outside_the_group_does_not_reach_the_socket(site: Site) -> None:
    for user in (STRANGER, SERVER):  # the server's user itself, without the group
        assert site.python.run(user, "-c", CALL, site.sockets[0])[1].strip() == "PermissionError"


def test_a_worker_finds_the_supervisors_place_taken(site: Site) -> None:
    control = site.sockets[0].with_name(f"{site.sockets[0].name}.control")
    _, said = site.python.run(SERVER, "-c", CALL, control, groups=[SIGNER])
    assert said.strip() in ("closed", "ConnectionResetError")
    assert "there is a supervisor already" in site.log.read_text()


def test_the_server_reads_nothing_of_the_signers(site: Site) -> None:
    journal = next(site.journals.glob("journal/journal-*.log"))
    paths = [site.journals, site.journals / "journal", journal, site.kek.parent, site.kek, site.signer_settings]
    _, said = site.python.run(SERVER, "-c", READ, *paths, groups=[SIGNER])
    assert said.split() == ["PermissionError"] * len(paths)


def test_a_signer_reads_nothing_of_the_server(site: Site) -> None:
    paths = [site.data, site.data / "server.key", site.data / "postgres", site.settings, site.admin]
    _, said = site.python.run(SIGNER, "-c", READ, *paths)
    assert said.split() == ["PermissionError"] * len(paths)


def test_a_killed_signer_is_linked_and_loaded_again(site: Site) -> None:
    before = site.log.read_text().count("signer linked")
    for process in site.signers:
        process.kill()
        process.wait(30)
    site.wait_until(lambda: not site.is_ready())
    site.signers = [site.start_signer(slot) for slot in (0, 1)]
    site.wait_until(lambda: site.log.read_text().count("signer linked") >= before + 2)
    site.wait_until(site.is_ready)
    site.enroll("pump-2")


def test_signers_outlive_the_server(site: Site) -> None:
    site.stop_server()
    assert [process.poll() for process in site.signers] == [None, None]
    site.start_server()
    site.enroll("pump-3")
