import re
from datetime import UTC, datetime

import pytest

from estd.errors import Code, Refused
from estd.ra.admission import hash_secret
from estd.ra.codes import ALPHABET, CODE_BITS, generate_code, make_code

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def test_a_code_has_four_groups_of_five_characters_without_lookalikes() -> None:
    for _ in range(50):
        assert re.fullmatch(rf"[{ALPHABET}]{{5}}(-[{ALPHABET}]{{5}}){{3}}", generate_code())
    assert len(ALPHABET) == 32
    assert not set("ILOU") & set(ALPHABET)


def test_every_character_carries_five_of_the_hundred_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estd.ra.codes.secrets.randbits", lambda bits: (1 << bits) - 1)
    assert generate_code() == "ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZ"
    assert CODE_BITS == 100
    monkeypatch.setattr("estd.ra.codes.secrets.randbits", lambda _bits: 1)
    assert generate_code() == "10000-00000-00000-00000"


def test_codes_differ() -> None:
    assert len({generate_code() for _ in range(1000)}) == 1000


def test_only_the_hash_is_stored_and_the_device_in_its_one_spelling() -> None:
    made = make_code(7, "  Pump  17 ", single_use=True, profile=None, expires_at=None, now=NOW)
    assert made.row.device == "pump 17"
    assert made.row.secret_sha256 == hash_secret(made.secret)
    assert made.secret not in repr(made)
    assert (made.row.ecosystem_id, made.row.created_at, made.row.spent_at) == (7, NOW, None)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        make_code(7, "a\x00b", single_use=True, profile=None, expires_at=None, now=NOW)
    assert refused.value.code is Code.SUBJECT_REFUSED
