"""Requests that a factory has gathered: a CSV file or a directory of PKCS #10 files, one after the other.

A CSV file has a row for each device, ``id,csr``; the heading may be left out. ``csr`` is the request in base64 or PEM, or
the name of a file that holds it, relative to the CSV file. In a directory each file that ends in ``.csr``, ``.p10``,
``.pem`` or ``.der`` is a request, and its name without the ending the id. Keys stay on the devices: nothing here needs one.

What cannot be read is an item too, with the reason, so that one bad row does not keep the others waiting.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from estd.asn1.spki import read_spki
from estd.errors import Invalid, Problem, Refused
from estd.wire.pkcs10 import read_request_again

ENDINGS: Final = (".csr", ".p10", ".pem", ".der")
FILE_AT_MOST_BYTES: Final = 64 * 1024
_CELL_AT_MOST: Final = 16 * 1024 * 1024
_COLUMNS: Final = ("id", "csr")
_ARMOUR: Final = re.compile(
    rb"-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----(?P<body>[A-Za-z0-9+/=\s]*)-----END (?:NEW )?CERTIFICATE REQUEST-----"
)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=\s]+\Z")


@dataclass(frozen=True, slots=True)
class Item:
    """One request: what its sender calls it, and its DER, or why there is none."""

    name: str
    csr: bytes
    spki: bytes
    problem: str = ""

    @property
    def digest(self) -> bytes:
        """What tells this request from another of the same name."""
        return hashlib.sha256(self.csr).digest()

    def write_line(self) -> bytes:
        """The item as a line of a batch."""
        name = self.name if not set(self.name) & set(',"') else '"' + self.name.replace('"', '""') + '"'
        return name.encode() + b"," + base64.b64encode(self.csr) + b"\n"


class Source:
    """Where the requests of a batch come from; may be read any number of times.

    Raises:
        Invalid: there is nothing to read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise _invalid(
                path, "does not exist", "Name a CSV file with id,csr in each row, or a directory of requests."
            )
        if not (path.is_dir() or path.is_file()):
            raise _invalid(path, "is neither file nor directory", "It is read more than once: save it to a file first.")

    def __iter__(self) -> Iterator[Item]:
        """Every item, in order."""
        return self._read_directory() if self.path.is_dir() else self._read_csv()

    def check(self) -> int:
        """How many items there are.

        Raises:
            Invalid: none, two of one name, or a file that is not CSV.
        """
        names: set[str] = set()
        for number, item in enumerate(self, 1):
            if item.name in names:
                raise _invalid(
                    self.path, f"has {item.name!r} twice (item {number})", "Give each device an id of its own."
                )
            names.add(item.name)
        if not names:
            raise _invalid(
                self.path, "holds no request", "Put id,csr in each row of the file, or *.csr in the directory."
            )
        return len(names)

    def _read_directory(self) -> Iterator[Item]:
        for path in sorted(self.path.iterdir()):
            if path.suffix.lower() in ENDINGS and not path.name.startswith("."):
                yield _read_file(path.stem, path)

    def _read_csv(self) -> Iterator[Item]:
        is_table = False
        csv.field_size_limit(_CELL_AT_MOST)  # what is longer than a request is that row's trouble, not the file's
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                for number, row in enumerate(csv.reader(file), 1):
                    fields = [field.strip() for field in row]
                    if not any(fields) or (number == 1 and [field.lower() for field in fields[:2]] == [*_COLUMNS]):
                        continue
                    if len(fields) >= 2 and fields[0]:
                        is_table = True
                        yield self._read_cell(fields[0], fields[1])
                    elif is_table:
                        yield Item(fields[0] or f"row {number}", b"", b"", f"row {number} is not id,csr")
                    else:  # from its first row on this is something else, semicolons perhaps
                        raise _invalid(
                            self.path, f"row {number} is not id,csr", "Write the id, a comma and the request."
                        )
        except OSError as error:
            raise _invalid(self.path, f"cannot be read ({error.strerror})", "Name a file of yours.") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise _invalid(self.path, f"is not CSV in UTF-8 ({error})", "Write id,csr in each row.") from None

    def _read_cell(self, name: str, cell: str) -> Item:
        if "-----BEGIN" in cell or (_BASE64.match(cell) and not cell.lower().endswith(ENDINGS)):
            return _read_item(name, cell.replace("\\n", "\n").encode())
        if "\0" in cell:
            return Item(name, b"", b"", "neither a request nor the name of a file")
        return _read_file(name, self.path.parent / cell)


# --- private -------------------------------------------------------------------------------------------------------


def _read_file(name: str, path: Path) -> Item:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_AT_MOST_BYTES + 1)
    except OSError as error:
        return Item(name, b"", b"", f"{path} cannot be read ({error.strerror})")
    return _read_item(name, content)


def _read_item(name: str, content: bytes) -> Item:
    if not name.isprintable() or name.startswith(".") or "/" in name or len(name.encode()) > 200:
        return Item(name, b"", b"", "the id is no name a file could have")
    if len(content) > FILE_AT_MOST_BYTES:
        return Item(name, b"", b"", "this is too long for a request")
    try:
        csr = content if content[:1] == b"\x30" else _read_text(content)
        request = read_request_again(csr)
        read_spki(request.spki)
    except (Refused, binascii.Error) as reason:
        detail = reason.detail if isinstance(reason, Refused) else "neither DER, PEM nor base64"
        return Item(name, b"", b"", f"this is no PKCS #10 request: {detail}")
    return Item(name, csr, request.spki)


def _read_text(content: bytes) -> bytes:
    armour = _ARMOUR.search(content)
    text = (content if armour is None else armour["body"]).translate(None, b" \t\r\n")
    return binascii.a2b_base64(text, strict_mode=True)


def _invalid(path: Path, what: str, remedy: str) -> Invalid:
    return Invalid([Problem(str(path), what, remedy)])
