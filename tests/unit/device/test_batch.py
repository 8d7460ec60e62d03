"""The client of the bulk lane against answers of every kind: what it sends again, what it keeps and when it gives up."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from factory import Party, make_csr, make_device, make_key, make_maker, make_name
from factory import make_certificate as certify

from estd.device import batch
from estd.device.answers import ServerRefused, TryLater, WrongServer
from estd.device.batch import BatchResult, BatchWish, carry_out
from estd.device.client import Credential, EstClient, Patience

MAKER: Party = make_maker("Issuer")


def issue(n: int, name: str, csr: bytes) -> dict[str, Any]:
    return {"n": n, "id": name, "certificate": base64.b64encode(CERTIFICATES[name]).decode()}


CERTIFICATES: dict[str, bytes] = {}


def write_source(directory: Path, count: int) -> Path:
    lines = []
    for number in range(count):
        name, key = f"device-{number}", make_key()
        CERTIFICATES[name] = certify(make_name(name), key, MAKER).public_bytes(Encoding.DER)
        lines.append(f"{name},{base64.b64encode(make_csr(make_name(name), key)).decode()}\n")
    path = directory / "in.csv"
    path.write_text("".join(lines))
    return path


class Server:
    """In the place of the network: each connection is a script's business."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scripts: Any) -> None:
        self.scripts = list(scripts)
        self.received: list[list[str]] = []
        server = self

        async def send_batch(self: EstClient, lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
            server.received.append([])
            script = server.scripts.pop(0)
            if isinstance(script, Exception):
                raise script
            n = 0
            async for piece in lines:
                for line in piece.splitlines():
                    n += 1
                    name, _, text = line.decode().partition(",")
                    server.received[-1].append(name)
                    answer = script(n, name, base64.b64decode(text))
                    if isinstance(answer, Exception):
                        raise answer
                    if answer is not None:
                        yield json.dumps(answer).encode() + b"\n"
                        if "end" in answer:
                            return
            yield b'{"end": "complete", "items": 0}\n'

        monkeypatch.setattr(EstClient, "send_batch", send_batch)
        monkeypatch.setattr(EstClient, "__init__", lambda self, *_: None)
        monkeypatch.setattr(EstClient, "__aenter__", _enter)
        monkeypatch.setattr(EstClient, "__aexit__", _leave)


async def _enter(self: EstClient) -> EstClient:
    return self


async def _leave(self: EstClient, *_: object) -> None:
    return None


async def run(
    source: Path, out: Path, *, tries: int = 3, resume: bool = False, waits: list[int] | None = None
) -> BatchResult:
    wish = BatchWish("https://localhost", Path("trust.pem"), "plant", Credential(), source, out, resume)
    told: list[int] = []

    async def sleep(_: float) -> None:
        return None

    result = await carry_out(
        wish,
        Patience(tries=tries),
        lambda done, total: told.append(done),
        lambda why, seconds: (waits if waits is not None else []).append(seconds),
        sleep,
    )
    assert told == sorted(told)
    return result


async def test_everything_is_issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, issue)
    result = await run(write_source(tmp_path, 5), tmp_path / "out.csv")
    assert (result.total, result.issued, result.unfinished) == (5, 5, 0)
    assert server.received == [[f"device-{number}" for number in range(5)]]


async def test_what_has_no_answer_is_sent_again_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(n: int, name: str, csr: bytes) -> Any:
        return issue(n, name, csr) if n <= 2 else TryLater("broken", 1)

    server = Server(monkeypatch, break_off, TryLater("busy", 7), issue)
    waits: list[int] = []
    result = await run(write_source(tmp_path, 5), tmp_path / "out.csv", waits=waits)
    assert result.issued == 5
    assert server.received[-1] == ["device-2", "device-3", "device-4"]
    assert waits[1] == 7  # what the server asks for


async def test_an_end_before_the_end_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(n: int, name: str, csr: bytes) -> Any:
        return issue(n, name, csr) if n == 1 else {"end": "interrupted", "retry_after_seconds": 3}

    def limit(n: int, name: str, csr: bytes) -> Any:
        return issue(n, name, csr) if n == 1 else {"end": "limit"}

    server = Server(monkeypatch, interrupt, limit, issue)
    result = await run(write_source(tmp_path, 4), tmp_path / "out.csv")
    assert result.issued == 4
    assert server.received[-1] == ["device-2", "device-3"]


async def test_not_now_is_tried_again_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(n: int, name: str, csr: bytes) -> Any:
        if name == "device-1":
            return {"n": n, "id": name, "error": "store-unavailable", "retry": True}
        return issue(n, name, csr)

    server = Server(monkeypatch, *[never] * 10)
    result = await run(write_source(tmp_path, 3), tmp_path / "out.csv", tries=50)
    assert (result.issued, result.refused, result.unfinished) == (2, 0, 1)
    assert server.received.count(["device-1"]) == batch._TRIES_EACH - 1


async def test_a_refusal_is_kept_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(n: int, name: str, csr: bytes) -> Any:
        return {"n": n, "id": name, "error": "key-weak", "detail": "too short"}

    server = Server(monkeypatch, refuse)
    source = write_source(tmp_path, 2)
    assert (await run(source, tmp_path / "out.csv")).refused == 2
    result = await run(source, tmp_path / "out.csv", resume=True)
    assert (result.refused, result.before) == (2, 2)
    assert len(server.received) == 1


async def test_giving_up_keeps_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(n: int, name: str, csr: bytes) -> Any:
        return issue(n, name, csr) if n == 1 else TryLater("broken", 1)

    source, out = write_source(tmp_path, 3), tmp_path / "out.csv"
    Server(monkeypatch, one, *[TryLater("away", 1)] * 3)
    with pytest.raises(TryLater):
        await run(source, out, tries=3)
    assert out.read_text().count("\n") == 2
    server = Server(monkeypatch, issue)
    result = await run(source, out, resume=True)
    assert (result.issued, result.before) == (3, 1)
    assert server.received == [["device-1", "device-2"]]


async def test_a_request_that_changed_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Server(monkeypatch, issue)
    await run(write_source(tmp_path, 2), tmp_path / "out.csv")
    server = Server(monkeypatch, issue)
    result = await run(write_source(tmp_path, 2), tmp_path / "out.csv", resume=True)
    assert server.received == [["device-0", "device-1"]]
    assert (result.total, result.issued) == (2, 2)


async def test_what_the_source_holds_no_more_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path, 3)
    Server(monkeypatch, issue)
    await run(source, tmp_path / "out.csv")
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:2]))
    result = await run(source, tmp_path / "out.csv", resume=True)
    assert (result.total, result.issued, result.before, result.unfinished) == (2, 2, 2, 0)


async def test_a_certificate_for_another_key_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(n: int, name: str, csr: bytes) -> Any:
        return {"n": n, "id": name, "certificate": base64.b64encode(make_device(None, name).der).decode()}

    Server(monkeypatch, foreign)
    with pytest.raises(WrongServer, match="not for the key"):
        await run(write_source(tmp_path, 1), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("answer", [{"n": 99}, {"n": 1}, ["x"], 5, {"n": 1, "certificate": "!"}])
async def test_what_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    Server(monkeypatch, lambda *_: answer)
    with pytest.raises(WrongServer):
        await run(write_source(tmp_path, 1), tmp_path / "out.csv")


async def test_an_authority_that_is_refused_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def revoked(n: int, name: str, csr: bytes) -> Any:
        return issue(n, name, csr) if n == 1 else {"end": "refused", "detail": "this certificate was revoked"}

    Server(monkeypatch, revoked)
    with pytest.raises(ServerRefused, match="revoked"):
        await run(write_source(tmp_path, 3), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().count("\n") == 2
