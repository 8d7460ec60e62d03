from __future__ import annotations

import os
import re
import socket
import stat
import time
from pathlib import Path
from typing import Any

import signer_harness as harness
from signer_harness import resume_all, seal_all

from estd.errors import Code
from estd.keys.software import generate
from estd.signer.frames import (
    Done,
    Failed,
    Ping,
    Prepare,
    Status,
    Unlock,
    Verdict,
    write_frame,
)


def test_it_may_listen_on_an_inherited_socket(tmp_path: Path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "inherited.sock"))
    listener.listen()
    os.set_inheritable(listener.fileno(), True)
    signer = harness.SignerProcess(tmp_path, generate("ec-p256"), socket_path=None, listen_fd=listener.fileno())
    try:
        signer.start(inherit=[listener.fileno()])
        end = socket.socket(socket.AF_UNIX)
        end.connect(str(tmp_path / "inherited.sock"))
        end.settimeout(10)
        end.sendall(write_frame(Status(1)))
        assert end.recv(10)
        signer.process.terminate()
        assert signer.wait() == 0
        assert (tmp_path / "inherited.sock").exists()
    finally:
        signer.stop()
        listener.close()


def test_what_was_prepared_before_a_restart_was_never_signed(signer: Any):
    prepared = signer.connect().call(Prepare(1, (harness.item(1),)))
    signer.kill()
    signer.start()
    worker = signer.connect()
    assert worker.call(seal_all(prepared)).items[0].code is Code.SIGNER_UNAVAILABLE
    assert worker.call(resume_all(prepared)).items == (Verdict.NEVER_SIGNED,)


def test_a_second_signer_on_the_same_journal_does_not_start(signer: Any):
    other = harness.SignerProcess(signer.directory, signer.key).start(load=False)
    assert other.wait() == 78
    assert "another signer holds this journal" in other.log
    assert signer.connect().call(Status(1)) is not None


def test_a_damaged_journal_stops_the_start_with_a_plain_message(signer: Any):
    signer.process.terminate()
    signer.wait()
    path = signer.directory / "journal" / "journal-0-0001.log"
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)
    signer.start(load=False)
    assert signer.wait() == 78
    assert f"{path}: the journal is damaged at octet" in signer.log
    assert "docs/signer.md" in signer.log
    assert "Traceback" not in signer.log


def test_a_socket_that_cannot_be_used_stops_the_start(tmp_path: Path):
    signer = harness.SignerProcess(tmp_path, generate("ec-p256"), socket_path=str(tmp_path / "none" / "x.sock"))
    signer.start(load=False)
    assert signer.wait() == 78
    assert "cannot be listened on" in signer.log


def test_the_real_engine_is_what_the_module_runs(tmp_path: Path):
    signer = harness.SignerProcess(tmp_path, generate("ec-p256")).start(load=False, program=None)
    try:
        assert signer.control.call(Unlock(1, harness.KEK)) == Done(1)
        # The plain engine's document means nothing to it.
        assert isinstance(signer.control.call(signer.load_message()), Failed)
        assert signer.report().ecosystems == {}
        signer.process.terminate()
        assert signer.wait() == 0
    finally:
        signer.stop()


def test_no_secret_is_in_argv_or_environment_or_log(shared: Any):
    proc = Path(f"/proc/{shared.process.pid}")
    shown = proc.joinpath("cmdline").read_bytes() + shared.log.encode()
    try:
        shown += proc.joinpath("environ").read_bytes()
    except PermissionError:
        # A process that is not dumpable shows its environment to root alone, not even to its own user.
        assert os.geteuid() != 0
    assert harness.KEK not in shown
    assert harness.KEK.hex().encode() not in shown
    assert re.search(r"Max core file size +0 +0 ", proc.joinpath("limits").read_text())
    assert "NoNewPrivs:\t1" in proc.joinpath("status").read_text()


def test_interrupts_from_the_terminal_are_the_supervisors_affair(shared: Any):
    for number in (2, 1):
        shared.process.send_signal(number)
    time.sleep(0.1)
    assert shared.control.call(Ping(1)) == Done(1)


def test_the_socket_is_for_its_user_alone(shared: Any):
    assert stat.S_IMODE(Path(shared.path).stat().st_mode) == 0o600
