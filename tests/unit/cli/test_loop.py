"""How commands are told to stop: what they do is cancelled, may clean up, and its end says which signal it was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from factory import make_maker

from estd.cli.loop import Terminated, run_async


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    """A SIGTERM that nobody waits for fails the test and not the whole run."""

    def complain(number: int, frame: object) -> None:
        pytest.fail("nobody was there to be told")

    before = signal.signal(signal.SIGTERM, complain)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Work:
    """Something that takes for ever, and cleans up in some steps when it is cancelled."""

    def __init__(self, number: int, *, instead: BaseException | str | None = None) -> None:
        self._number = number
        self._instead = instead
        self.done: list[str] = []

    async def run(self) -> str:
        self.done.append("begun")
        os.kill(os.getpid(), self._number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.done.append("cancelled")
            await asyncio.sleep(0)
            self.done.append("cleaned up")
            if isinstance(self._instead, BaseException):
                raise self._instead from None
            if self._instead is not None:
                return self._instead
            raise
        return "never"


def test_a_result_and_a_fault_are_handed_on() -> None:
    async def add(one: int, other: int) -> int:
        await asyncio.sleep(0)
        return one + other

    async def fail() -> None:
        raise LookupError("not here")

    assert run_async(add(2, 3)) == 5
    with pytest.raises(LookupError, match="not here"):
        run_async(fail())


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_it_tidily(number: int, end: type[BaseException]) -> None:
    work = Work(number)
    with pytest.raises(end):
        run_async(work.run())
    assert work.done == ["begun", "cancelled", "cleaned up"]


def test_a_signal_is_no_excuse_for_a_fault_while_cleaning_up() -> None:
    work = Work(signal.SIGTERM, instead=OSError("the disk is full"))
    with pytest.raises(OSError, match="the disk is full"):
        run_async(work.run())


def test_work_that_came_to_its_end_all_the_same_has_a_result() -> None:
    work = Work(signal.SIGTERM, instead="saved")
    assert run_async(work.run()) == "saved"
    assert work.done == ["begun", "cancelled", "cleaned up"]


def test_work_that_cancels_itself_was_not_terminated() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_async(give_up())


def test_nothing_listens_for_signals_afterwards() -> None:
    with pytest.raises(Terminated):
        run_async(Work(signal.SIGTERM).run())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "status", "told"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_command_that_waits_for_its_server_is_stopped(tmp_path: Path, number: int, status: int, told: str) -> None:
    """The status and the words are those of `estd.cli.failures`, and the device's directory holds no certificate."""
    trust, code_file, out = tmp_path / "trust.pem", tmp_path / "code", tmp_path / "d"
    trust.write_bytes(make_maker().certificate.public_bytes(Encoding.PEM))
    code_file.write_text("00000-00000\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        enroll = (
            "enroll",
            "--url",
            url,
            "--trust",
            trust,
            "--device",
            "pump-1",
            "--code-file",
            code_file,
            "--out",
            out,
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "estd", *enroll, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = silent.accept()  # from here on it waits for an answer
        with connection:
            process.send_signal(number)
            said, complaint = process.communicate(timeout=30)
    assert (process.returncode, said) == (status, "")
    error = json.loads(complaint)["error"]
    assert (error["code"], error["message"], error["status"]) == (told, "Stopped.", status)
    assert not list(out.rglob("device.*"))
