"""What a factory may hand in: every form of a row and a file, and what becomes of one that cannot be read."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from factory import make_csr, make_name

from estd.device.batch_source import FILE_AT_MOST_BYTES, Source
from estd.errors import Invalid
from estd.est.batch import LineReader

CSR = make_csr(make_name("device-1"))
BASE64 = base64.b64encode(CSR).decode()
PEM = x509.load_der_x509_csr(CSR).public_bytes(Encoding.PEM).decode()
SPKI = x509.load_der_x509_csr(CSR).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def write(directory: Path, text: str) -> Source:
    path = directory / "requests.csv"
    path.write_text(text, encoding="utf-8")
    return Source(path)


@pytest.mark.parametrize(
    "text",
    [
        f"id,csr\npump,{BASE64}\n",
        f"ID,CSR,note\npump,{BASE64},first floor\n",
        f"pump,{BASE64}",
        f"\ufeffid,csr\r\n pump , {BASE64} \r\n\r\n",
        f'id,csr\n"pump","{PEM}"\n',
        "id,csr\npump,{}\n".format(PEM.replace("\n", "\\n")),
        "id,csr\npump,one.pem\n",
        "id,csr\npump,below/one.der\n",
    ],
)
def test_every_form_of_a_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "one.pem").write_text(PEM)
    (tmp_path / "below" / "one.der").write_bytes(CSR)
    source = write(tmp_path, text)
    assert source.check() == 1
    (item,) = source
    assert (item.name, item.csr, item.spki, item.problem) == ("pump", CSR, SPKI, "")
    (again,) = source
    assert again == item


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "b.csr").write_text(PEM)
    (tmp_path / "a.DER").write_bytes(CSR)
    (tmp_path / "c.p10").write_text(BASE64)
    (tmp_path / ".hidden.csr").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    assert [(item.name, item.csr) for item in Source(tmp_path)] == [("a", CSR), ("b", CSR), ("c", CSR)]


@pytest.mark.parametrize("name", ["pump", "pump, 17", 'the "big" one', "bär"])
def test_a_line_is_read_by_the_server_as_it_was_meant(tmp_path: Path, name: str) -> None:
    quoted = name.replace('"', '""')
    (item,) = write(tmp_path, f'"{quoted}",{BASE64}\n')
    reader = LineReader()
    reader.feed(item.write_line())
    assert [(request.name, request.csr) for request in reader.ready] == [(name, CSR)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("pump,missing.csr", "cannot be read"),
        ("pump,AAAA", "no PKCS #10 request"),
        ("pump,MIIB", "no PKCS #10 request"),
        ("pump,long.csr", "too long"),
        (f"../pump,{BASE64}", "no name a file could have"),
        (f".pump,{BASE64}", "no name a file could have"),
        ("\u4e2d" * 70 + f",{BASE64}", "no name a file could have"),
        ("pump,a\0b", "neither a request nor the name of a file"),
        (f"pump,{'A' * 200_000}", "too long"),
        ("pump", "row 2 is not id,csr"),
        (f",{BASE64}", "row 2 is not id,csr"),
    ],
)
def test_what_cannot_be_read_is_an_item_with_the_reason(tmp_path: Path, row: str, why: str) -> None:
    (tmp_path / "long.csr").write_bytes(bytes(FILE_AT_MOST_BYTES + 1))
    source = write(tmp_path, f"first,{BASE64}\n{row}\nother,{BASE64}\n")
    assert source.check() == 3
    first, bad, good = source
    assert why in bad.problem
    assert bad.csr == b""
    assert first.problem == good.problem == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no request"),
        ("id,csr\n", "holds no request"),
        (f"a,{BASE64}\na,{BASE64}\n", "has 'a' twice"),
        ("only one column\n", "row 1 is not id,csr"),
        (f",{BASE64}\n", "row 1 is not id,csr"),
    ],
)
def test_what_is_no_batch(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        write(tmp_path, text).check()
    assert why in str(caught.value)


def test_what_can_be_read_only_once_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(Invalid, match="neither file nor directory"):
            Source(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
        os.close(writing)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="does not exist"):
        Source(tmp_path / "nothing.csv")
    (tmp_path / "latin").write_bytes(b"b\xe4r,x\n")
    with pytest.raises(Invalid, match="not CSV in UTF-8"):
        Source(tmp_path / "latin").check()
