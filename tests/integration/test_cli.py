"""The program as people meet it: real processes, real files, a real server."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from live_server import NORTH, SOUTH, Live
from patience import wait_for_file, wait_until

from estd.app.lessons import write_lessons
from estd.app.playground import Playground, read_codes
from estd.app.quickstart import Running
from estd.device.requests import write_key
from estd.keys.software import SoftwareKey

ESTD = Path(sys.executable).with_name("estd")
PLANT = """\
[ecosystem]
label = "plant"
name = "Harbour Plant"

[[issuer]]
name = "root"

[profile.pump]
issuer = "root"
enroll = ["code"]
subject = "inventory"
san = "inventory"
validity = "30d"
"""


def estd(*arguments: object, given: str = "", seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ESTD_")}
    return subprocess.run(
        [str(ESTD), *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=environment,
    )


def ask(*arguments: object) -> Any:
    """The JSON a command answers with, which must succeed."""
    done = estd(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(*arguments: object, given: str = "") -> tuple[int, dict[str, Any]]:
    """Exit status and error of a command that must fail."""
    done = estd(*arguments, "--json", given=given)
    assert done.returncode != 0, done.stdout
    return done.returncode, json.loads(done.stderr)["error"]


def server_of(live: Live, label: str = NORTH) -> tuple[object, ...]:
    return ("--url", f"https://127.0.0.1:{live.port}", "--trust", live.trust, "--label", label)


# --- devices -----------------------------------------------------------------------------------------------------------


def test_the_commands_that_quickstart_prints_work_as_pasted(live: Live, tmp_path: Path) -> None:
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


def test_a_device_enrolls_with_a_code_and_renews(live: Live, tmp_path: Path) -> None:
    device, code = live.code(NORTH)
    home = tmp_path / "pump"
    (tmp_path / "code").write_text(f"{code}\n")
    first = ask("enroll", *server_of(live), "--device", device, "--code-file", tmp_path / "code", "--out", home)
    assert (first["subject"], first["renewed"]) == (f"CN={device}", False)
    assert (home / "device.key").stat().st_mode & 0o777 == 0o600
    second = ask("enroll", *server_of(live), "--out", home, "--renew", "--key-type", "ec-p384")
    assert (second["renewed"], second["key_type"]) == (True, "ec-p384")
    listed = ask("cert", "list", "--device", device, "--dir", live.directory)
    assert sorted(one["serial"] for one in listed) == sorted([first["serial"], second["serial"]])
    # The certificate, its key and the CA certificates belong together and are what TLS wants.
    assert verified(home / "ca.pem", home / "device.pem")


def test_the_command_to_renew_with_works_as_printed(live: Live, tmp_path: Path) -> None:
    device, code = live.code(NORTH)
    home = tmp_path / "the pump's"
    (tmp_path / "code").write_text(f"{code}\n")
    done = estd("enroll", *server_of(live), "--device", device, "--code-file", tmp_path / "code", "--out", home)
    assert done.returncode == 0, done.stderr
    before = read_pem(home / "device.pem")
    (printed,) = [line.split("renew with", 1)[1].strip() for line in done.stdout.splitlines() if "renew with" in line]
    pasted = subprocess.run(
        ["bash", "-c", printed],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": f"{ESTD.parent}:{os.environ['PATH']}"},
    )
    assert pasted.returncode == 0, pasted.stderr
    after = read_pem(home / "device.pem")
    assert after.subject == before.subject
    assert after.serial_number != before.serial_number


def read_pem(path: Path) -> x509.Certificate:
    """The first certificate of a file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def verified(authorities: Path, chain: Path) -> bool:
    """Whether a TLS stack takes the chain with its key, and it leads over one intermediate to a CA certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(chain, chain.with_name("device.key"))
    certificates = x509.load_pem_x509_certificates(authorities.read_bytes())
    leaf, *rest = x509.load_pem_x509_certificates(chain.read_bytes())
    for issuer in (*rest, certificates[0]):
        leaf.verify_directly_issued_by(issuer)
        leaf = issuer
    return len(rest) == 1


def test_a_device_enrolls_with_its_birth_certificate(live: Live, tmp_path: Path) -> None:
    device = live.device(SOUTH)
    enrolled = ask(
        "enroll",
        *server_of(live, SOUTH),
        "--certificate",
        device.certificate,
        "--key",
        device.key,
        "--out",
        tmp_path / "d",
    )
    assert device.name in enrolled["subject"]
    status, error = refusal("enroll", *server_of(live, NORTH), "--out", tmp_path / "d", "--renew")
    assert (status, error["details"]["http_status"]) == (1, 403)
    assert live.events(0, request_id=error["details"]["request_id"])


def test_how_enrolling_fails(live: Live, tmp_path: Path) -> None:
    device, code = live.code(NORTH)
    home = tmp_path / "d"
    by_code = ("enroll", *server_of(live), "--device", device, "--out", home)
    status, error = refusal(*by_code, given="00000-00000-00000-00000")
    assert (status, error["details"]["http_status"]) == (1, 401)
    assert estd(*by_code, given=code).returncode == 0
    status, error = refusal(*by_code, given=code)
    assert (status, "--renew" in error["problems"][0]["remedy"]) == (2, True)
    status, error = refusal("enroll", *server_of(live), "--device", device, "--out", tmp_path / "e", given=code)
    assert (status, "code-spent" in error["message"]) == (1, True)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"https://127.0.0.1:{free.getsockname()[1]}"
    status, error = refusal("enroll", "--url", nobody, "--trust", live.trust, "--out", home, "--renew", "--tries", "1")
    assert (status, error["code"]) == (75, "try-later")
    status, error = refusal("enroll", "--url", "http://x", "--trust", live.trust, "--out", home, "--renew")
    assert status == 2
    status, error = refusal("enroll", *server_of(live)[:2], "--trust", home / "ca.pem", "--out", home, "--renew")
    assert (status, error["code"]) == (1, "wrong-server")


# --- operators ---------------------------------------------------------------------------------------------------------


def test_an_ecosystem_of_ones_own_beside_a_running_server(live: Live, tmp_path: Path) -> None:
    here = ("--dir", live.directory)
    (tmp_path / "plant.toml").write_text(PLANT)
    (tmp_path / "pumps.csv").write_text("device,subject,san\npump-17,CN=Pump 17,dns:pump-17.plant.example\n")
    [tried] = ask("apply", tmp_path / "plant.toml", "--dry-run", *here)
    assert (tried["version"], tried["changed"]) == (1, True)
    assert "plant" not in {one["label"] for one in ask("ecosystem", "list", *here)}
    [applied] = ask("apply", tmp_path / "plant.toml", *here)
    assert (applied["version"], applied["changed"]) == (1, True)
    [again] = ask("apply", tmp_path / "plant.toml", *here)
    assert (again["version"], again["changed"]) == (1, False)
    assert ask("inventory", "import", tmp_path / "pumps.csv", "--ecosystem", "plant", *here)["devices"] == 1
    done = estd("code", "create", "--ecosystem", "plant", "--device", "Pump-17", "--out", tmp_path / "codes.csv", *here)
    assert done.returncode == 0, done.stderr
    [(device, code)] = read_codes(tmp_path / "codes.csv")
    enroll = ("enroll", *server_of(live, "plant"), "--device", device, "--out", tmp_path / "d")
    # The running server follows within a second or so.
    wait_until(lambda: estd(*enroll, given=code).returncode == 0)
    certificate = read_pem(tmp_path / "d/device.pem")
    assert certificate.subject.rfc4514_string() == "CN=Pump 17"
    export = tmp_path / "root.pem"
    assert estd("issuer", "export", "--ecosystem", "plant", "--roots", "--out", export, *here).returncode == 0
    certificate.verify_directly_issued_by(read_pem(export))
    [spent] = ask("code", "list", "--ecosystem", "plant", *here)
    assert (spent["device"], spent["state"]) == ("pump-17", "used")
    assert ask("profile", "show", "pump", "--ecosystem", "plant", *here)["validity"] == "30d"
    assert ask("ecosystem", "show", "plant", *here)["document"]["ecosystem"]["label"] == "plant"
    assert [one["name"] for one in ask("issuer", "list", "--ecosystem", "plant", *here)] == ["root"]
    assert ask("inventory", "show", "PUMP-17", "--ecosystem", "plant", *here)[0]["san"] == ["dns:pump-17.plant.example"]
    kinds = {event["kind"] for event in ask("audit", "list", "--ecosystem", "plant", *here)}
    assert {"ecosystem.apply", "code.create", "inventory.import", "est.simpleenroll"} <= kinds
    # Were the profile renamed, that certificate could not be renewed any more.
    (tmp_path / "plant.toml").write_text(PLANT.replace("[profile.pump]", "[profile.device]"))
    done = estd("apply", tmp_path / "plant.toml", "--dry-run", *here)
    assert "warning: plant: profile 'pump' is gone, and 1 certificate of it is in use" in done.stderr
    [tried] = ask("apply", tmp_path / "plant.toml", "--dry-run", *here)
    assert len(tried["warnings"]) == 1


def test_no_code_is_made_for_a_name_that_cannot_be_certified(live: Live, tmp_path: Path) -> None:
    north = ("--ecosystem", NORTH, "--dir", live.directory)
    made = len(ask("code", "list", "--limit", "1000", *north))
    status, error = refusal("code", "create", "--device", "x" * 64, "--device", "x" * 65, *north)
    assert status == 2
    [problem] = error["problems"]
    assert problem["where"] == f"device '{'x' * 65}'"
    assert "1 to 64 characters, not 65" in problem["what"]
    assert len(ask("code", "list", "--limit", "1000", *north)) == made
    # Where the inventory says what a device is called, its name may be longer.
    (tmp_path / "long.toml").write_text(PLANT.replace('"plant"', '"long"'))
    ask("apply", tmp_path / "long.toml", "--dir", live.directory)
    assert ask("code", "create", "--device", "x" * 65, "--ecosystem", "long", "--dir", live.directory)


def test_codes_and_devices_can_be_taken_back(live: Live, tmp_path: Path) -> None:
    yard = ("--ecosystem", "yard", "--dir", live.directory)
    (tmp_path / "yard.toml").write_text(PLANT.replace('"plant"', '"yard"'))
    ask("apply", tmp_path / "yard.toml", "--dir", live.directory)
    (tmp_path / "pumps.csv").write_text("device,subject\n" + "".join(f"pump-{n},CN=Pump {n}\n" for n in range(1, 5)))
    ask("inventory", "import", tmp_path / "pumps.csv", *yard)
    made = ask("code", "create", "--device", "pump-1", "--device", "pump-2", "--device", "pump-3", *yard)
    codes = {one["device"]: one["code"] for one in made}
    enroll = ("enroll", *server_of(live, "yard"))
    third = ("--device", "pump-3", "--out", tmp_path / "3")
    wait_until(lambda: estd(*enroll, *third, given=codes["pump-3"]).returncode == 0)

    # The newest code is spent, and the newest that works is found all the same.
    assert ask("code", "list", "--unused", "--limit", "1", *yard)[0]["device"] == "pump-2"
    assert ask("code", "revoke", "Pump-2", *yard) == [{"device": "pump-2"}]
    assert [one["device"] for one in ask("code", "list", "--unused", *yard)] == ["pump-1"]
    second = ("--device", "pump-2", "--out", tmp_path / "2")
    status, error = refusal(*enroll, *second, given=codes["pump-2"])
    assert (status, "does not know this device name with this enrollment code" in error["message"]) == (1, True)
    [event] = [one for one in ask("audit", "list", *yard) if one["outcome"] == "refused"]
    assert (event["code"], event["detail"]) == ("credential-invalid", "this enrollment code has expired")
    assert ask("audit", "list", "--request", event["request_id"], "--dir", live.directory) == [event]
    assert ask("audit", "list", "--request", "nobodys", *yard) == []
    # A code that is spent ends as well: its request is repeated no more.
    pending = ("enroll", *server_of(live, "yard"), "--device", "pump-3", "--replace", "--out", tmp_path / "3")
    assert ask("code", "revoke", "pump-2", "pump-3", *yard) == [{"device": "pump-3"}]
    assert refusal(*pending, given=codes["pump-3"])[0] == 1
    assert len([one for one in ask("audit", "list", *yard) if one.get("code") == "credential-invalid"]) == 2
    status, error = refusal("code", "revoke", "pump-2", "pump-3", *yard)
    assert (status, error["problems"][0]["what"]) == (2, "has no code that still works")
    assert error["problems"][0]["where"] == "device 'pump-2', device 'pump-3'"
    (tmp_path / "semicolons.csv").write_text("name;device\nPump;pump-9\n")
    status, error = refusal("code", "create", "--devices-file", tmp_path / "semicolons.csv", *yard)
    assert (status, error["problems"][0]["what"]) == (2, "has semicolons where CSV has commas")
    status, error = refusal("issuer", "export", "--roots", "--name", "devices", "--out", tmp_path / "no.pem", *yard)
    assert (status, (tmp_path / "no.pem").exists()) == (2, False)
    assert ask("code", "revoke", "--all", *yard) == [{"device": "pump-1"}]
    assert ask("code", "list", "--unused", *yard) == []

    names = [one["device"] for one in ask("inventory", "list", *yard)]
    assert names == ["pump-1", "pump-2", "pump-3", "pump-4"]
    page = estd("inventory", "list", "--limit", "2", *yard)
    assert page.returncode == 0
    assert "pump-2" in page.stdout
    assert "pump-3" not in page.stdout
    assert "--after pump-2" in page.stderr
    assert [one["device"] for one in ask("inventory", "list", "--after", "pump-2", *yard)] == names[2:]
    removed = ask("inventory", "remove", "Pump-3", "pump-4", *yard)
    assert removed == [{"device": "pump-3", "removed": True}, {"device": "pump-4", "removed": True}]
    status, error = refusal("inventory", "remove", "pump-4", *yard)
    assert (status, error["problems"][0]["where"]) == (2, "device 'pump-4'")
    # Names are the inventory's affair with the first certificate only: to end a device, revoke what it has.
    assert ask(*enroll, "--out", tmp_path / "3", "--renew")["renewed"]
    [again] = ask("code", "create", "--device", "pump-4", *yard)
    status, error = refusal(*enroll, "--device", "pump-4", "--out", tmp_path / "4", given=again["code"])
    assert (status, "not-authorized" in error["message"]) == (1, True)
    ours = [one for one in ask("audit", "list", *yard) if one["kind"] in ("code.revoke", "inventory.remove")]
    assert [one["detail"] for one in ours] == [
        "pump-3, pump-4",
        "all codes that were not used",
        "codes of pump-2, pump-3",
        "codes of pump-2",
    ]


def test_a_revoked_device_is_refused_from_its_next_request_on(live: Live, tmp_path: Path) -> None:
    here, device = ("--dir", live.directory), live.device(NORTH)
    home = tmp_path / "d"
    enrolled = ask("enroll", *server_of(live), "--certificate", device.certificate, "--key", device.key, "--out", home)
    shown = ask("cert", "show", enrolled["serial"].upper(), *here)
    assert (shown["state"], shown["sha256"]) == ("valid", enrolled["sha256"])
    [revoked] = ask("cert", "revoke", enrolled["serial"], "--reason", "keyCompromise", *here)
    assert revoked["revoked"]
    [again] = ask("cert", "revoke", enrolled["serial"], *here)
    assert not again["revoked"]
    assert ask("cert", "show", enrolled["serial"], *here)["state"] == "revoked"
    renew = ("enroll", *server_of(live), "--out", home, "--renew")
    # Until the worker has heard of it, a second at most, the renewal may still go through.
    error = wait_until(lambda: (done := estd(*renew, "--json")).returncode == 1 and json.loads(done.stderr)["error"], 5)
    assert "certificate-revoked" in error["message"]
    events = ask("audit", "list", "--ecosystem", NORTH, "--outcome", "refused", "--limit", "500", *here)
    assert "certificate-revoked" in {event["code"] for event in events}


@pytest.mark.parametrize("way", ["serial", "device"])
def test_a_key_found_compromised_later_is_blocked(live: Live, tmp_path: Path, way: str) -> None:
    """Of a certificate that was revoked for another reason before."""
    here = ("--dir", live.directory)
    device, code = live.code(NORTH)
    done = estd("enroll", *server_of(live), "--device", device, "--out", tmp_path / "d", "--json", given=code)
    assert done.returncode == 0, done.stderr
    serial = json.loads(done.stdout)["serial"]
    [revoked] = ask("cert", "revoke", serial, *here)
    assert (revoked["revoked"], revoked["outcome"]) == (True, "revoked")
    chosen = (serial,) if way == "serial" else ("--device", device, "--ecosystem", NORTH)
    told = estd("cert", "revoke", *chosen, "--reason", "keyCompromise", "--yes", *here)
    assert told.stdout == f"{serial}  {device}  was revoked before; the reason is keyCompromise now\n"
    for reason in ("keyCompromise", "superseded"):
        [again] = ask("cert", "revoke", serial, "--reason", reason, *here)
        assert (again["revoked"], again["outcome"]) == (False, "unchanged")
    events = ask("audit", "list", "--ecosystem", NORTH, "--limit", "500", *here)
    ours = [one for one in events if one["kind"] == "certificate.revoke" and one["serial"] == serial]
    told = [(one["reason"], one.get("raised")) for one in ours]
    assert told == [("keyCompromise", True), ("unspecified", None)]
    # The same key with a new code.
    [fresh] = ask("code", "create", "--ecosystem", NORTH, "--device", device, "--reusable", *here)
    key = load_pem_private_key((tmp_path / "d/device.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    wait_until(lambda: "key-revoked" in enroll_anew(live, device, fresh["code"], csr), 5)


def enroll_anew(live: Live, device: str, code: str, csr: bytes) -> str:
    """What the server says to a certificate request, by HTTP Basic; empty where it is granted."""
    request = urllib.request.Request(
        f"https://127.0.0.1:{live.port}/.well-known/est/{NORTH}/simpleenroll",
        base64.b64encode(csr),
        {
            "Content-Type": "application/pkcs10",
            "Authorization": "Basic " + base64.b64encode(f"{device}:{code}".encode()).decode(),
        },
    )
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=live.trust), timeout=20):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_tables_for_people(live: Live) -> None:
    here = ("--dir", live.directory)
    for arguments, said in (
        (("ecosystem", "list"), "Campus North"),
        (("ecosystem", "show", NORTH), "demo-maker"),
        (("issuer", "list"), "CN=Campus South Root CA"),
        (("issuer", "show", "root", "--ecosystem", NORTH), "sealed in the database"),
        (("issuer", "export", "--ecosystem", NORTH), "-----BEGIN CERTIFICATE-----"),
        (("profile", "list"), "anchor:demo-maker, code"),
        (("profile", "show", "device", "--ecosystem", NORTH), "the name in the device's credential"),
        (("code", "list", "--ecosystem", NORTH), "unused"),
        (("cert", "list"), "serial"),
        (("audit", "list"), "ecosystem.apply"),
        (("serve", "--check"), "the private PostgreSQL answers"),
    ):
        limit = ("--limit", "100000") if arguments[0] in ("audit", "code") else ()
        done = estd(*arguments, *limit, *here)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert done.stderr == ""


# --- servers -----------------------------------------------------------------------------------------------------------


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
    with quickstart(site) as (_, facts):
        assert {path: path.read_bytes() for path in kept} == kept
        assert ask("issuer", "list", "--dir", site) == issuers
        where = ("--url", facts["url"], "--trust", site / "trust.pem", "--out", home)
        assert ask("enroll", *where, "--renew")["renewed"]
    settings = site / "estd.toml"
    settings.write_text(settings.read_text().replace(f'default_ecosystem = "{NORTH}"', 'default_ecosystem = "nope"'))
    for command in (("quickstart",), ("serve",), ("serve", "--check")):
        done = estd(*command, "--dir", site)
        assert done.returncode == 2
        assert f"estd: {settings}: est.default_ecosystem 'nope' is no ecosystem here." in done.stderr.splitlines()
        assert f"name one of {NORTH}, {SOUTH}" in done.stderr


@pytest.mark.slow
def test_a_server_from_settings(tmp_path: Path) -> None:
    settings, ready = tmp_path / "estd.toml", tmp_path / "ready.json"
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    settings.write_text('data_directory = "data"\nlisten.port = 0\nops.port = 0\n[keys]\nfile = "key"\n')
    assert "first start" in ask("serve", "--config", settings, "--check")["database"]
    with serving(settings, ready):
        assert ask("serve", "--config", settings, "--check")["running"] is True
        facts = json.loads(ready.read_text())
    assert not ready.exists()
    # A program reads every line of the log.
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert "serving" in {line["message"] for line in log}
    said = (tmp_path / "said").read_text()
    assert said == f"estd serves on port {facts['port']}, ops on port {facts['ops_port']}\n"

    (tmp_path / "key").write_text("cd" * 32)
    for command in (("serve", "--config", settings, "--check"), ("serve", "--config", settings)):
        done = estd(*command)
        assert done.returncode == 2
        told = done.stderr.splitlines()[-2:]
        assert told[0].startswith(f"estd: the key-encryption key ({tmp_path / 'key'}) is not the one that")
        assert "--new-key" in told[1]
        assert "child did not become ready" not in done.stderr, "found before any signer was started"


@contextmanager
def serving(settings: Path, ready: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server of these settings, until the block ends; what it says is in the files ``log`` and ``said`` beside them."""
    with settings.with_name("log").open("wb") as log, settings.with_name("said").open("wb") as said:
        process = subprocess.Popen(
            [str(ESTD), "serve", "--config", str(settings), "--ready-file", str(ready)], stdout=said, stderr=log
        )
        try:
            wait_for_file(ready, process, 60, settings.with_name("log").read_text)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0


def bring_certificate(directory: Path, ends: datetime, *names: str) -> bytes:
    """An operator's own certificate and key, as ``tls.pem`` and ``tls.key``; the certificate, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 5, ends - timedelta(days=90), ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    for name, content in (
        ("tls.key", write_key(SoftwareKey(key))),
        ("tls.pem", certificate.public_bytes(Encoding.PEM)),
    ):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    return certificate.public_bytes(Encoding.DER)


@pytest.mark.slow
def test_what_a_reload_takes_over_and_what_it_does_not(tmp_path: Path) -> None:
    settings, ready, log = tmp_path / "estd.toml", tmp_path / "ready.json", tmp_path / "log"
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    text = 'data_directory = "data"\nlisten.port = 0\nops.port = 0\nprocesses.workers = 1\nkeys.file = "key"\n'
    text += 'tls = { names = ["ca.plant.example"], certificate = "tls.pem", key = "tls.key" }\n'
    settings.write_text(text)
    now = datetime.now(UTC).replace(microsecond=0)
    first = bring_certificate(tmp_path, now + timedelta(days=9), "ca.plant.example")

    def lines(message: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        return [one for one in found if one["message"] == message]

    def reload(process: subprocess.Popen[bytes], said: str) -> dict[str, Any]:
        """What the log says of it, with that message."""
        before = len(lines(said))
        process.send_signal(signal.SIGHUP)
        return wait_until(lambda: lines(said)[before:], 30)[0]

    with serving(settings, ready) as process:
        facts = json.loads(ready.read_text())

        def shown() -> bytes:
            return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", facts["port"])))

        assert shown() == first
        bring_certificate(tmp_path, now - timedelta(days=1), "ca.plant.example")
        assert "ended on" in reload(process, "reload failed; the old workers stay")["detail"]
        assert shown() == first
        (tmp_path / "tls.pem").unlink()
        assert "No such file" in reload(process, "reload failed; the old workers stay")["detail"]
        assert shown() == first
        assert lines("reloaded") == []

        second = bring_certificate(tmp_path, now + timedelta(days=8), "other.example")
        reload(process, "reloaded")
        wait_until(lambda: shown() == second)
        (named,) = lines("the server certificate is for other names than tls.names")
        assert named["names"] == ["ca.plant.example"]
        with urllib.request.urlopen(f"http://127.0.0.1:{facts['ops_port']}/metrics", timeout=10) as answer:
            metrics = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
        assert float(metrics["estd_tls_certificate_not_after_seconds"]) == (now + timedelta(days=8)).timestamp()

        settings.write_text(
            text.replace("listen.port = 0", "listen.port = 18443").replace("workers = 1", "workers = 2")
        )
        reload(process, "reloaded")
        (waiting,) = lines("changed settings want a restart")
        assert waiting["settings"] == ["listen.port"]


def test_settings_that_cannot_work_are_told_before_anything_starts(tmp_path: Path) -> None:
    settings = tmp_path / "estd.toml"
    (tmp_path / "data").mkdir()
    key = tmp_path / "data/key-encryption.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    for wrong, where in (
        ("listen.port = 18081\nops.port = 18081\n", "ops.port"),
        ('tls.names = ["bad name"]\n', "tls.names"),
        ('database.url = "mysql://db/estd"\n', "database.url"),
    ):
        settings.write_text('data_directory = "data"\n' + wrong)
        for check in ((), ("--check",)):
            status, error = refusal("serve", "--config", settings, *check)
            assert (status, error["problems"][0]["where"]) == (2, f"{settings}: {where}")
    status, error = refusal("quickstart", "--dir", tmp_path / "lab", "--port", 18081, "--ops-port", 18081)
    assert (status, error["problems"][0]["where"]) == (2, "ops.port")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["key-encryption.key"]
    assert not (tmp_path / "lab").exists()


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


# --- the demonstration -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    keep = tmp_path / "lab"
    done = estd("demo", "--devices", "9", "--keep", keep, "--json", seconds=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["good"], told["certificates"], told["failures"]) == (True, 18, [])
    assert {one["count"] for one in told["operations"].values()} == {9}
    proof = told["proof"]
    assert (proof["cryptography"], proof["in_database"], proof["accepted_by_neighbour"]) == (18, 18, 0)
    assert proof["openssl"] in (18, None)
    neighbour = told["neighbour"]
    assert (neighbour["status"], neighbour["certificates"]) == (403, 0)
    assert neighbour["audit"]["code"] == "certificate-untrusted"
    assert neighbour["audit"]["ecosystem"] == neighbour["ecosystem"]
    assert len(ask("cert", "list", "--dir", keep)) == 18
    keys = list(keep.rglob("*.key"))
    assert len(keys) > 18
    assert [path for path in keys if path.stat().st_mode & 0o077] == []


@pytest.mark.slow
def test_an_interrupted_demonstration_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    tmp_path.chmod(0o755)
    process = subprocess.Popen(
        [str(ESTD), "demo", "--devices", "2000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Enrolling" in line:
            break
    pids = [int(path.read_text().split()[0]) for path in tmp_path.rglob("postmaster.pid")]
    assert pids
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_another_key_encryption_key_has_to_be_meant(tmp_path: Path) -> None:
    """One that was mistaken would leave an ecosystem that no signer opens."""
    (tmp_path / "plant.toml").write_text(PLANT)
    settings = {}
    for name, digit in (("first", "1"), ("second", "2")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(digit * 64)
        settings[name] = tmp_path / f"{name}.toml"
        settings[name].write_text(f'data_directory = "data"\nkeys.file = "{name}"\n')
    plant = tmp_path / "plant.toml"
    assert ask("apply", plant, "--config", settings["first"])[0]["version"] == 1
    status, error = refusal("apply", plant, "--config", settings["second"])
    assert (status, "--new-key" in str(error)) == (2, True)
    status, error = refusal("apply", plant, "--config", settings["second"], "--new-key")
    assert (status, "Raise its generation" in str(error)) == (2, True)
    plant.write_text(PLANT.replace('name = "root"', 'name = "root"\ngeneration = 2'))
    assert ask("apply", plant, "--config", settings["second"], "--new-key")[0]["version"] == 2
    assert refusal("apply", plant, "--config", settings["first"])[0] == 2
    assert ask("apply", plant, "--config", settings["second"])[0]["changed"] is False


def write_site(directory: Path) -> tuple[object, ...]:
    """Settings and a key-encryption key; the options that name them."""
    (directory / "kek").touch(mode=0o600)
    (directory / "kek").write_text("1" * 64)
    (directory / "estd.toml").write_text('data_directory = "data"\nkeys.file = "kek"\n')
    return "--config", directory / "estd.toml"


def test_files_that_are_applied_together_are_applied_all_or_none(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    good, other, wrong = (tmp_path / f"{name}.toml" for name in ("z20", "z13", "z7"))
    good.write_text(PLANT.replace('"plant"', '"z20"'))
    past = 'name = "root"\nvalidity = "until 2026-01-01"'
    other.write_text(PLANT.replace('"plant"', '"z13"').replace('name = "root"', past))
    for options in (("--dry-run",), ()):
        status, error = refusal("apply", good, other, *site, *options)
        assert (status, [one["where"] for one in error["problems"]]) == (2, ["z13.toml: issuer[root].validity"])
        assert ask("ecosystem", "list", *site) == []
    # What is taken and what is wrong in itself come together, each with its file.
    assert ask("apply", good, *site)[0]["version"] == 1
    other.write_text(PLANT.replace('"plant"', '"z13"').replace('issuer = "root"', 'issuer = "root"\nlabel = "z20"'))
    wrong.write_text(PLANT.replace('"plant"', '"z7"').replace('issuer = "root"', 'issuer = "rot"\nlabel = "z13"'))
    status, error = refusal("apply", other, wrong, *site)
    assert status == 2
    assert [(one["where"], one["what"].partition(" of ")[0]) for one in error["problems"]] == [
        ("z7.toml: profile.pump.issuer", "'rot' is not an issuer"),
        ("z13.toml: ecosystem.label", "'z13' leads to the ecosystem 'z7'"),
        ("z13.toml: profile.pump.label", "'z20' leads to the ecosystem 'z20'"),
        ("z7.toml: profile.pump.label", "'z13' leads to the ecosystem 'z13'"),
    ]
    assert [one["label"] for one in ask("ecosystem", "list", *site)] == ["z20"]


def test_a_faulty_file_makes_no_database(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    (tmp_path / "plant.toml").write_text("[ecosystem")
    assert refusal("apply", tmp_path / "plant.toml", *site)[0] == 2
    assert not (tmp_path / "data" / "postgres").exists()
