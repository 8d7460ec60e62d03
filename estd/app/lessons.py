"""What to try first against a quickstart server: commands for curl and openssl that work as they stand.

`tests/integration/cli/test_quickstart.py` pastes them into a shell.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from estd.app.playground import LABELS
from estd.app.quickstart import Running


@dataclass(frozen=True, slots=True)
class Lesson:
    """A few commands that belong together; each line is one to paste, or the continuation of the one before."""

    title: str
    commands: str


def write_lessons(running: Running, program: str) -> list[Lesson]:
    """The lessons for this server, to be pasted in order into one shell; `program` is how a shell finds estd."""
    north, south = (f"{running.url}/.well-known/est/{label}" for label in LABELS)
    device, code = running.code
    kit = f"bootstrap/{LABELS[0]}"
    curve = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    post = "-H 'Content-Type: application/pkcs10' --data-binary"
    unpack = "base64 -d | openssl pkcs7 -inform DER -print_certs"
    return [
        Lesson(
            f"The CA certificates of {LABELS[0]}; anybody may have them",
            f"cd {shlex.quote(str(running.place.directory))}\n"
            f"curl -sS --cacert trust.pem \\\n"
            f"  {north}/cacerts \\\n"
            f"  | {unpack} -out ca.pem",
        ),
        Lesson(
            "A key, a request, and a certificate for an enrollment code (a code works once)",
            f"{curve} \\\n"
            f"  -keyout pump.key -subj /CN={device} -outform DER | openssl base64 -A -out pump.csr\n"
            f"curl -sS --cacert trust.pem -u {device}:{code} \\\n"
            f"  {post} @pump.csr \\\n"
            f"  {north}/simpleenroll \\\n"
            f"  | {unpack} -out pump.pem\n"
            "openssl verify -CAfile ca.pem pump.pem",
        ),
        Lesson(
            "Its successor: a new key, the same name, proved by the certificate it has",
            f"{curve} \\\n"
            f"  -keyout next.key -subj /CN={device} -outform DER | openssl base64 -A -out next.csr\n"
            "curl -sS --cacert trust.pem --cert pump.pem --key pump.key \\\n"
            f"  {post} @next.csr \\\n"
            f"  {north}/simplereenroll \\\n"
            f"  | {unpack} -out next.pem",
        ),
        Lesson(
            f"{LABELS[0]}'s certificate means nothing in {LABELS[1]}: refused",
            "curl -sS --cacert trust.pem --cert pump.pem --key pump.key \\\n"
            f"  {post} @next.csr \\\n"
            f"  {south}/simpleenroll",
        ),
        Lesson(
            "The same with estd, and a device that proves itself by its birth certificate",
            f"{program} enroll --url {running.url} --trust trust.pem \\\n"
            f"  --label {LABELS[0]} --out valve \\\n"
            f"  --certificate {kit}/device.pem --key {kit}/device.key",
        ),
        Lesson("What happened", f"{program} cert list --dir .\n{program} audit list --dir ."),
    ]
