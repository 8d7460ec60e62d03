"""A factory's batch through everything that can go wrong on its way: the link cut, the client killed, the server reloaded.

Real processes: ``estd batch`` against a quickstart server, with a relay between them that cuts the connection after a
number of octets chosen by chance. What counts afterwards is the database: one certificate for each request, and no more.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bulk
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from live_server import NORTH, SOUTH, Live, judge
from program import ESTD

from estd.ca.ecosystem import read_document

REFUSED_HERE = ["unreadable,AAAA", "nowhere,missing.csr"]


class Relay:
    """Between client and server. Cuts a connection after so many octets of the server's, as long as there are cuts left."""

    def __init__(self, port: int, cuts: int, allowance: range) -> None:
        self._target = ("127.0.0.1", port)
        self._cuts, self._allowance = cuts, allowance
        self.connections = 0
        self.cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._target)
            left = None
            if self.cut < self._cuts:
                self.cut += 1
                left = self._allowance[secrets.randbelow(len(self._allowance))]
            threading.Thread(target=self._carry, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, left), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, left: int | None) -> None:
        try:
            while data := source.recv(16384):
                if left is not None:
                    data, left = data[:left], left - len(data[:left])
                target.sendall(data)
                if left == 0:
                    break
        except OSError:
            pass  # the other direction was cut
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is gone already


@pytest.fixture
def relay(live: Live) -> Iterator[Relay]:
    # Six of these are less than the answers before the last two groups, so no cut loses the last line's or comes too late.
    relay = Relay(live.port, cuts=6, allowance=range(10_000, 130_000))
    yield relay
    relay.close()


def write_requests(directory: Path, count: int, more: Sequence[str] = ()) -> Path:
    path = directory / "requests.csv"
    path.write_bytes(b"id,csr\n" + b"".join(bulk.make_lines(count)) + "".join(f"{row}\n" for row in more).encode())
    return path


def command(live: Live, port: int, source: Path, out: Path, *more: str, party: Path | None = None) -> list[str | Path]:
    party = party or live.directory / "bootstrap" / NORTH / "ra"
    return [
        *(ESTD, "batch", "--url", f"https://127.0.0.1:{port}", "--trust", live.trust, "--label", NORTH),
        *("--cert", party.with_suffix(".pem"), "--key", party.with_suffix(".key"), "--in", source, "--out", out),
        *("--json", *more),
    ]


def run(*argv: Any, status: int, seconds: float = 90) -> dict[str, Any]:
    done = subprocess.run(*argv, capture_output=True, timeout=seconds, check=False)
    assert done.returncode == status, done.stderr.decode()
    return dict(json.loads(done.stdout or done.stderr))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_record(live: Live, source: Path, out: Path, after: int) -> None:
    """Each request has one certificate, which is the one in the results, for its key and name; and each has one event."""
    requests = {row["id"]: row["csr"] for row in read_rows(source)}
    results = {row["id"]: base64.b64decode(row["certificate"]) for row in read_rows(out)}
    expected = {name for name in requests if name.startswith("line-")}
    assert set(results) == expected
    stored = live.sql(
        "SELECT intent.device, intent.csr_sha256, intent.operation, certificate.der, intent.closed FROM intent"
        " LEFT JOIN certificate USING (issuer_id, serial) WHERE intent.device = ANY($1::text[])",
        list(expected),
    )
    issued = [row for row in stored if row["der"] is not None]
    assert len(issued) == len(expected)
    assert {row["device"]: row["der"] for row in issued} == results
    # An intent that a cut left behind may have been closed; none of them is open, and none of them was signed twice.
    assert all(row["closed"] == "void" for row in stored if row["der"] is None)
    for row in issued:
        assert (row["operation"], row["closed"]) == ("batch", None)
    events = live.sql("SELECT serial, extra FROM event WHERE event_id > $1 AND kind = 'est.batch'", after)
    granted = [row for row in events if row["serial"] is not None and json.loads(row["extra"])["device"] in expected]
    assert len(granted) == len(expected)
    assert len({row["serial"] for row in granted}) == len(expected)
    for name in list(expected)[:20]:
        request = x509.load_der_x509_csr(base64.b64decode(requests[name]))
        certificate = x509.load_der_x509_certificate(results[name])
        assert certificate.public_key() == request.public_key()
        assert certificate.subject == request.subject


@pytest.mark.slow
def test_a_link_that_breaks_again_and_again(live: Live, relay: Relay, tmp_path: Path) -> None:
    source, out, after = write_requests(tmp_path, 2000, REFUSED_HERE), tmp_path / "out.csv", live.last_event()
    # The bytes of this one are a request's, but its signature is another's: the server refuses it, and it alone.
    good = x509.load_der_x509_csr(base64.b64decode(read_rows(source)[0]["csr"])).public_bytes(Encoding.DER)
    with source.open("a") as file:
        file.write(f"forged,{base64.b64encode(good[:-1] + bytes([good[-1] ^ 1])).decode()}\n")
    result = run(command(live, relay.port, source, out), status=1)
    assert relay.cut == 6
    assert relay.connections > relay.cut
    assert (result["total"], result["issued"] + result["repeated"]) == (2003, 2000)
    assert (result["refused"], result["unfinished"]) == (3, 0)
    check_record(live, source, out, after)
    refusals = {row["id"]: row["error"] for row in read_rows(tmp_path / "out.refused.csv")}
    assert refusals == {"unreadable": "unreadable", "nowhere": "unreadable", "forged": "csr-signature-invalid"}
    (event,) = live.events(after, kind="est.batch", outcome="refused")
    assert event["code"] == "csr-signature-invalid"
    assert json.loads(event["extra"])["item"] == "forged"


@pytest.mark.slow
def test_a_client_that_is_killed(live: Live, tmp_path: Path) -> None:
    source, out, after = write_requests(tmp_path, 1200), tmp_path / "out.csv", live.last_event()
    state = tmp_path / "out.csv.state"
    for number in range(3):
        more = ["--resume"] if number else []
        size = state.stat().st_size if number else 0
        with subprocess.Popen(
            command(live, live.port, source, out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as client:
            deadline = time.monotonic() + 60
            while client.poll() is None and not (state.exists() and state.stat().st_size > size + 50_000):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            client.kill()
    # A kill may tear the last line of the state.
    with state.open("ab") as file:
        file.write(b'{"id": "torn')
    run(command(live, live.port, source, out), status=2)
    result = run(command(live, live.port, source, out, "--resume"), status=0)
    assert result["issued"] + result["repeated"] == result["total"] == 1200
    assert result["already_done"] > 0
    check_record(live, source, out, after)
    again = run(command(live, live.port, source, out, "--resume"), status=0)
    assert again["already_done"] == 1200
    check_record(live, source, out, after)


def test_another_copy_of_the_batch_gets_the_same_certificates(live: Live, tmp_path: Path) -> None:
    source, first, second, after = write_requests(tmp_path, 300), tmp_path / "1.csv", tmp_path / "2", live.last_event()
    clients = [
        subprocess.Popen(command(live, live.port, source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for out in (first, second)
    ]
    assert [client.wait(60) for client in clients] == [0, 0]
    check_record(live, source, first, after)
    for row in read_rows(first):
        certificate = x509.load_pem_x509_certificate((second / f"{row['id']}.pem").read_bytes())
        assert certificate.public_bytes(Encoding.DER) == base64.b64decode(row["certificate"])


def test_a_server_that_is_reloaded(live: Live, tmp_path: Path) -> None:
    source, out, after = write_requests(tmp_path, 1500), tmp_path / "out.csv", live.last_event()
    with subprocess.Popen(
        command(live, live.port, source, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as client:
        while client.poll() is None and not (tmp_path / "out.csv.state").exists():
            time.sleep(0.01)
        os.kill(live.process.pid, signal.SIGHUP)
        said, complaint = client.communicate(timeout=90)
    assert client.returncode == 0, complaint.decode()
    assert json.loads(said)["total"] == 1500
    check_record(live, source, out, after)


def test_a_revoked_certificate_is_not_handed_out_again(live: Live, tmp_path: Path) -> None:
    source, first, again = write_requests(tmp_path, 3), tmp_path / "first.csv", tmp_path / "again.csv"
    assert run(command(live, live.port, source, first), status=0)["issued"] == 3
    certificates = {row["id"]: row["certificate"] for row in read_rows(first)}
    name, kept = min(certificates), set(certificates) - {min(certificates)}
    serial = f"{x509.load_der_x509_certificate(base64.b64decode(certificates[name])).serial_number:040x}"
    revoke = [ESTD, "cert", "revoke", serial, "--reason", "superseded", "--dir", live.directory, "--yes", "--json"]
    subprocess.run(revoke, check=True, capture_output=True)
    after = live.last_event()
    result = run(command(live, live.port, source, again), status=1)
    assert {name: result[name] for name in ("issued", "repeated", "refused", "unfinished")} == {
        "issued": 0, "repeated": 2, "refused": 1, "unfinished": 0,
    }  # fmt: skip
    assert {row["id"]: row["certificate"] for row in read_rows(again)} == {one: certificates[one] for one in kept}
    assert {row["id"]: row["error"] for row in read_rows(tmp_path / "again.refused.csv")} == {name: "request-revoked"}
    (event,) = live.events(after, kind="est.batch")
    assert (event["outcome"], event["code"]) == ("refused", "request-revoked")


@pytest.mark.parametrize(
    ("party", "code"), [(f"{SOUTH}/ra", "certificate-untrusted"), (f"{NORTH}/device", "not-authorized")]
)
def test_who_is_no_registration_authority_of_this_ecosystem(live: Live, tmp_path: Path, party: str, code: str) -> None:
    source, out, after = write_requests(tmp_path, 3), tmp_path / "out.csv", live.last_event()
    before = live.issuances()
    files = live.directory / "bootstrap" / party
    error = run(command(live, live.port, source, out, party=files), status=1)["error"]
    assert error["details"]["http_status"] == 403
    assert error["message"].startswith(f"The server refused: {code}")
    assert not out.exists()
    assert live.issuances() == before
    (event,) = live.events(after, kind="est.batch")
    assert (event["outcome"], event["code"], event["ecosystem"]) == ("refused", code, NORTH)


def test_what_people_are_told(live: Live, tmp_path: Path) -> None:
    source, out = write_requests(tmp_path, 3, REFUSED_HERE), tmp_path / "out.csv"
    argv = [one for one in command(live, live.port, source, out) if one != "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "3 of 5 devices have a certificate",
        f"  certificates  {out}",
        f"  refused       2, see {tmp_path / 'out.refused.csv'}",
    ]
    assert done.stderr.splitlines()[-1] == "5 of 5"
    assert len(read_rows(out)) == 3
    # The same requests again are the same certificates, and it says so.
    again = [tmp_path / "again.csv" if one == out else one for one in argv]
    done = subprocess.run(again, capture_output=True, text=True, timeout=60, check=False)
    assert "  repeated      3 had been issued before, for the same request" in done.stdout.splitlines()
    assert read_rows(tmp_path / "again.csv") == read_rows(out)


PAGE = (Path(__file__).parents[3] / "docs" / "factory-line.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^<!-- run -->\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page(live: Live, tmp_path: Path) -> None:
    """In one shell, in order; the port alone is another."""
    judge("openssl")
    judge("curl")
    assert len(BLOCKS) == PAGE.count("<!-- run")
    (tmp_path / "lab").symlink_to(live.directory)
    script = "set -eu -o pipefail\n" + "".join(BLOCKS).replace("127.0.0.1:8443", f"127.0.0.1:{live.port}")
    environment = {**os.environ, "PATH": f"{ESTD.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash"], input=script.encode(), cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    *answers, end = [json.loads(line) for line in (tmp_path / "answer.jsonl").read_text().splitlines()]
    assert (end["end"], end["repeated"]) == ("complete", 3)
    for answer in answers:
        pem = (tmp_path / "certificates" / f"{answer['id']}.pem").read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        assert certificate.public_bytes(Encoding.DER) == base64.b64decode(answer["certificate"])


def test_the_document_of_the_page_is_accepted() -> None:
    (document,) = re.findall(r"^```\n(\[ecosystem\].*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    rules = read_document(document, "plant.toml", lambda _: b"")
    assert rules.profiles["pump"].registration_authorities == ("issued:line",)
