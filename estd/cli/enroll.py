"""``estd enroll``: the device's side, from a code or a birth certificate to a certificate, and from there to the next."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.hazmat.primitives.serialization import Encoding

from estd.asn1.spki import KEY_TYPES
from estd.cli.loop import run_async
from estd.cli.options import PATH, json_option
from estd.cli.output import note, write_facts, write_json, write_span, write_time
from estd.device.answers import serial_text
from estd.device.client import Credential, Patience
from estd.device.enrolling import Enrolled, Wish
from estd.device.enrolling import enroll as carry_out
from estd.errors import Invalid, Problem
from estd.names import fingerprint, read_name

_HELP = """\
Get a certificate for this device, or renew the one it has.

\b
With an enrollment code (asked for, or read from a file or a pipe):
  estd enroll --url https://ca.example:8443 --trust trust.pem --label plant \\
      --device pump-17 --out /etc/pump

\b
With the certificate the device left the factory with:
  estd enroll --url https://ca.example:8443 --trust trust.pem --label plant \\
      --certificate idevid.pem --key idevid.key --out /etc/pump

\b
Later, and whenever you like (from cron, say); the old certificate works until
the new one is in place:
  estd enroll --url https://ca.example:8443 --trust trust.pem --label plant \\
      --out /etc/pump --renew

The private key is made here and never leaves this machine. OUT then holds device.key, device.pem (certificate and
intermediates) and ca.pem. If the connection breaks, run the same command again: it goes on where it stopped.

Exit status: 0 done, 1 refused, 2 the command or a file is wrong, 75 try again later, 130 or 143 stopped by a signal.
"""


@click.command(help=_HELP, short_help="Get or renew this device's certificate.")
@click.option("--url", required=True, metavar="URL", help="The server: https://HOST:PORT.")
@click.option(
    "--trust",
    required=True,
    metavar="FILE",
    type=PATH,
    help="CA certificates (PEM) that the server's certificate must lead to.",
)
@click.option(
    "--label", metavar="LABEL", help="The ecosystem, or a profile's own label (default: the server's default)."
)
@click.option("--out", required=True, metavar="DIR", type=PATH, help="Directory for key and certificates.")
@click.option("--device", metavar="NAME", help="Enroll with an enrollment code, as this device.")
@click.option(
    "--code-file",
    metavar="FILE",
    type=PATH,
    help="Read the code from here (- is standard input) instead of asking.",
)
@click.option("--certificate", metavar="FILE", type=PATH, help="Enroll with this certificate (PEM).")
@click.option("--key", metavar="FILE", type=PATH, help="Private key of that certificate (PEM).")
@click.option("--renew", is_flag=True, help="Renew the certificate in --out, with a new key.")
@click.option("--same-key", is_flag=True, help="Renew for the key there is.")
@click.option("--replace", is_flag=True, help="Enroll anew although --out holds a certificate.")
@click.option(
    "--key-type",
    type=click.Choice(KEY_TYPES),
    metavar="TYPE",
    help=f"Kind of key to make: {', '.join(KEY_TYPES[:5])} … (default: what the server asks for, or ec-p256).",
)
@click.option(
    "--subject",
    default="",
    metavar="NAME",
    help="Subject to ask for, such as CN=pump-17 (default: the server decides).",
)
@click.option("--san", multiple=True, metavar="NAME", help="Alternative name to ask for, such as dns:pump-17.plant.")
@click.option(
    "--tries", type=click.IntRange(1, 100), default=5, show_default=True, metavar="N", help="How often to try in all."
)
@json_option
def enroll(
    url: str,
    trust: Path,
    label: str | None,
    out: Path,
    device: str | None,
    code_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    renew: bool,
    same_key: bool,
    replace: bool,
    key_type: str | None,
    subject: str,
    san: tuple[str, ...],
    tries: int,
    as_json: bool,
) -> None:
    """See `_HELP`."""
    _check(device, code_file, certificate, key, renew, same_key, replace, key_type, subject, san)
    credential = Credential(certificate, key) if certificate else Credential()
    if device is not None:
        credential = Credential(device=device, code=_read_code(device, code_file))
    wish = Wish(
        url=url,
        trust=trust,
        directory=out,
        label=label,
        credential=credential,
        key_type=key_type,
        subject=subject,
        san=san,
        renew=renew,
        same_key=same_key,
        replace=replace,
    )
    enrolled = run_async(carry_out(wish, Patience(tries=tries), None if as_json else _tell_wait))
    (_write_json if as_json else _write)(wish, enrolled)


def _check(
    device: str | None,
    code_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    renew: bool,
    same_key: bool,
    replace: bool,
    key_type: str | None,
    subject: str,
    san: tuple[str, ...],
) -> None:
    if renew:
        if device or code_file or certificate or key:
            raise click.UsageError(
                "--renew uses the certificate in --out; leave out --device, --certificate and --key."
            )
        if subject or san or replace:
            raise click.UsageError("--renew keeps the names of the certificate; leave out --subject, --san, --replace.")
        if same_key and key_type:
            raise click.UsageError("--same-key keeps the kind of key; leave out --key-type.")
        return
    if same_key:
        raise click.UsageError("--same-key goes with --renew.")
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key go together.")
    if (device is None) == (certificate is None):
        raise click.UsageError("Say who this is: --device NAME for a code, --certificate and --key, or --renew.")
    if code_file is not None and device is None:
        raise click.UsageError("--code-file goes with --device.")


def _read_code(device: str, code_file: Path | None) -> str:
    """The code, from anywhere but the command line, where every user of the machine could read it."""
    if code_file is None and sys.stdin.isatty():
        return str(click.prompt(f"Enrollment code of {device}", hide_input=True, err=True)).strip()
    where = "standard input" if code_file is None or str(code_file) == "-" else str(code_file)
    try:
        text = sys.stdin.read() if where == "standard input" else Path(where).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not text"
        raise Invalid([Problem(where, f"cannot be read ({said})", "Name a file that holds the code.")]) from None
    # Windows puts a mark before what it saves as UTF-8, and Unicode does not call that white space.
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    if len(lines) != 1:
        raise Invalid([Problem(where, f"holds {len(lines)} lines", "Let it hold the code and nothing else.")])
    return lines[0]


def _tell_wait(why: str, seconds: int) -> None:
    note(f"… {why}; trying again in {seconds} s")


def _write(wish: Wish, enrolled: Enrolled) -> None:
    certificate = enrolled.certificate
    name = read_name(certificate.subject.public_bytes()).text or "a device without a subject"
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    again = ["estd", "enroll", "--url", wish.url, "--trust", str(wish.trust), "--out", str(wish.directory), "--renew"]
    again += ["--label", wish.label] if wish.label else []
    write_facts(
        f"{'Renewed' if wish.renew else 'Enrolled'} {name}",
        [
            (
                "certificate",
                f"{wish.directory}/device.pem, until {write_time(certificate.not_valid_after_utc)} ({write_span(left)})",
            ),
            (
                "key",
                f"{wish.directory}/device.key, {enrolled.key_type}, made here"
                if not wish.same_key
                else f"{wish.directory}/device.key, unchanged",
            ),
            ("CA certificates", f"{wish.directory}/ca.pem"),
            ("note", "an earlier request was answered again" if enrolled.resumed else ""),
            ("renew with", "" if wish.renew else shlex.join(again)),
        ],
    )


def _write_json(wish: Wish, enrolled: Enrolled) -> None:
    certificate = enrolled.certificate
    write_json(
        {
            "certificate": wish.directory / "device.pem",
            "key": wish.directory / "device.key",
            "ca": wish.directory / "ca.pem",
            "subject": read_name(certificate.subject.public_bytes()).text,
            "serial": serial_text(certificate),
            "sha256": fingerprint(certificate.public_bytes(Encoding.DER)),
            "not_before": certificate.not_valid_before_utc,
            "not_after": certificate.not_valid_after_utc,
            "key_type": enrolled.key_type,
            "renewed": wish.renew,
            "resumed": enrolled.resumed,
        }
    )
