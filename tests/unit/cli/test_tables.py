"""Files that an operator hands to the command line: names of devices, and the inventory."""

import io
from pathlib import Path

import pytest

from estd.cli.code import _read_names, _reserved
from estd.cli.enroll import _read_code
from estd.cli.inventory import _read
from estd.errors import Invalid


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pump-1\npump-2\n", ["pump-1", "pump-2"]),
        ("\ufeffdevice,place\r\npump-1,roof\r\n\r\npump-2,cellar\r\n", ["pump-1", "pump-2"]),
        ("place, Device \nroof, pump-1\n", ["pump-1"]),
        ('device\n"pump, one"\n', ["pump, one"]),
        ("", []),
    ],
)
def test_names_from_a_list_or_a_column(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "f").write_text(text, encoding="utf-8")
    assert _read_names(tmp_path / "f") == names


def test_files_that_hold_no_names(tmp_path: Path) -> None:
    (tmp_path / "columns").write_text("name,place\npump,roof\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, said in (("columns", "no column"), ("bytes", "not text"), ("absent", "cannot be read")):
        with pytest.raises(Invalid, match=said):
            _read_names(tmp_path / name)
        if name != "columns":
            with pytest.raises(Invalid, match=said):
                _read(tmp_path / name)


def test_an_inventory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(
        'device,subject,san\nPump-1,"CN=pump-1,O=Harbour",dns:a.example ip:192.0.2.1\nvalve,,\n', encoding="utf-8"
    )
    assert _read(tmp_path / "f") == [
        ("pump-1", "CN=pump-1,O=Harbour", ("dns:a.example", "ip:192.0.2.1")),
        ("valve", None, ()),
    ]
    (tmp_path / "f").write_text("device\nvalve\n")
    assert _read(tmp_path / "f") == [("valve", None, ())]


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    lines = ["device,subject,san", "a,CN=a,O=b,dns:x.example", ",CN=a", "b,XX", "c,,dns:-", "good,CN=good,"]
    (tmp_path / "f").write_text("\n".join(lines))
    with pytest.raises(Invalid) as invalid:
        _read(tmp_path / "f")
    assert [problem.where for problem in invalid.value.problems] == [f"f, line {number}" for number in (2, 3, 4, 5)]


def test_very_many_wrong_lines_are_not_all_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("device,subject\n" + "a,XX\n" * 500)
    with pytest.raises(Invalid) as invalid:
        _read(tmp_path / "f")
    assert len(invalid.value.problems) == 51
    assert "450 more" in str(invalid.value.problems[-1])


@pytest.mark.parametrize("text", ["", "name\nx\n", "device,colour\nx,red\n", "device,subject,san\n"])
def test_an_inventory_without_devices_or_with_other_columns(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(Invalid):
        _read(tmp_path / "f")


def test_a_file_for_codes_is_there_before_any_code_and_gone_when_there_is_none(tmp_path: Path) -> None:
    out = tmp_path / "codes.csv"
    with _reserved(out):
        assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Invalid, match="exists already"), _reserved(out):
        pytest.fail("it would be written over")
    out.unlink()
    with pytest.raises(KeyboardInterrupt), _reserved(out):
        raise KeyboardInterrupt
    assert not out.exists()
    with pytest.raises(Invalid, match="cannot be written"), _reserved(tmp_path / "absent" / "codes.csv"):
        pytest.fail("there is no such directory")


@pytest.mark.parametrize("text", ["\ufeff00000-11111\r\n", " 00000-11111 \n\n", "\ufeff\r\n00000-11111"])
def test_a_code_as_editors_save_it(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").write_bytes(text.encode())
    assert _read_code("pump", tmp_path / "code") == "00000-11111"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert _read_code("pump", None) == "00000-11111"
