"""Documents as they are handed in: what is known of those that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from estd.app.submitted import read_submitted, submit

GOOD = """
[ecosystem]
label = "plant"
[[issuer]]
name = "root"
[profile.pump]
issuer = "root"
label = "pumps"
"""
CLAIMS = {"ecosystem.label": "plant", "profile.pump.label": "pumps"}


def test_a_document_claims_its_labels(tmp_path: Path) -> None:
    (tmp_path / "plant.toml").write_text(GOOD)
    (good,) = read_submitted([tmp_path / "plant.toml"])
    assert good.rules is not None
    assert (good.file, good.label, good.claims, good.problems) == ("plant.toml", "plant", CLAIMS, ())
    assert good.where("ecosystem.label") == "plant.toml: ecosystem.label"
    alone = submit(good.rules)
    assert (alone.claims, alone.where("ecosystem.label")) == (CLAIMS, "ecosystem.label")


@pytest.mark.parametrize(
    ("content", "claims", "problem"),
    [
        (
            GOOD.replace('"root"\n[', '"root"\nkey = "x"\n[').encode(),
            CLAIMS,
            "p.toml: issuer[root].key: 'x' is not known",
        ),
        (b'[ecosystem]\nlabel = 3\n[profile]\na = 1\n[profile.b]\nlabel = "b"\n', {"profile.b.label": "b"}, "p.toml: "),
        (b'ecosystem = "plant"\nprofile = []\n', {}, "p.toml: ecosystem: is a string"),
        (b"[ecosystem", {}, "p.toml: is not TOML"),
        (b"\xff\xfe", {}, "is not text"),
        (None, {}, "cannot be read"),
    ],
)
def test_of_what_is_wrong_the_labels_are_known(
    tmp_path: Path, content: bytes | None, claims: dict[str, str], problem: str
) -> None:
    if content is not None:
        (tmp_path / "p.toml").write_bytes(content)
    (wrong,) = read_submitted([tmp_path / "p.toml"])
    assert (wrong.rules, wrong.claims) == (None, claims)
    assert any(problem in str(one) for one in wrong.problems)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "p.toml", tmp_path / "b" / "p.toml", tmp_path / "c.toml"]
    assert [one.file for one in read_submitted(paths)] == [str(paths[0]), str(paths[1]), "c.toml"]
