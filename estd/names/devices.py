"""How people name devices, serial numbers and certificates."""

from __future__ import annotations

import hashlib
from unicodedata import normalize

from estd.errors import Code, Refused
from estd.names.distinguished import Name, read_name

MAX_DEVICE_CHARACTERS = 128


def device_name(subject: bytes | Name) -> str:
    """The name an operator knows a device by: its serialNumber, else its CN, else the whole subject by RFC 4514.

    IEEE 802.1AR-2018 §8.6 puts the device's serial number in the serialNumber attribute. Empty for the empty name.
    """
    name = read_name(subject) if isinstance(subject, bytes) else subject
    if not name.rdns:
        return ""
    return normalise_device(name.find("serialNumber") or name.find("commonName") or name.text)


def normalise_device(text: str) -> str:
    """The one spelling of a device's name: NFC, case folded, white space trimmed and single.

    Every name a credential, a certificate or an inventory gives passes here before it is compared or counted, so that
    another spelling is not another device. Control, invisible and unassigned characters are refused.
    """
    if len(text) > 4 * MAX_DEVICE_CHARACTERS:
        raise _device(f"a device name has at most {MAX_DEVICE_CHARACTERS} characters")
    name = text.lower() if text.isascii() else normalize("NFC", normalize("NFD", text).casefold())
    if not name.isprintable():
        raise _device(f"device name {text!r} has a control or invisible character")
    name = " ".join(name.split())
    if not 1 <= len(name) <= MAX_DEVICE_CHARACTERS:
        raise _device(f"a device name has 1 to {MAX_DEVICE_CHARACTERS} characters, not {len(name)}")
    return name


def write_serial(serial: bytes) -> str:
    """The text of a serial number's content octets: lower-case hexadecimal, every octet."""
    return serial.hex()


def read_serial(text: str) -> bytes:
    """The content octets of a serial number as a person types it: hexadecimal, colons and spaces allowed."""
    try:
        serial = bytes.fromhex(text.replace(":", " "))
    except ValueError:
        serial = b""
    if not 1 <= len(serial) <= 20:
        raise Refused(Code.MALFORMED_REQUEST, f"{text!r} is not a serial number in hexadecimal", "RFC 5280 §4.1.2.2")
    return serial


def fingerprint(data: bytes) -> str:
    """SHA-256 of a certificate or key, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# --- private ---------------------------------------------------------------------------------------------------------


def _device(detail: str) -> Refused:
    return Refused(Code.SUBJECT_REFUSED, detail)
