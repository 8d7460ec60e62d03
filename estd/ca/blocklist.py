"""Keys whose private half is known to others: never certified, whoever asks and however good they look.

A key is named by the SHA-256 of its SubjectPublicKeyInfo. `PUBLISHED` holds keys that a standard printed in full; an
operator adds more in a file: one hash a line, sixty-four hexadecimal digits, ``#`` starts a comment.
"""

from __future__ import annotations

import re
from typing import Final

from estd.errors import Invalid, Problem

PUBLISHED: Final[frozenset[bytes]] = frozenset(
    bytes.fromhex(digest)
    for digest in (
        "c4c10105a0be0ed4dd3354428dc38a9bfee64da141ce16e75c94eda272f9dd3a",  # testECCP256, RFC 9500 §2.3
        "b2b04340cfaee616ec9c2c62d261b208e54bb197498df52e8cadede23ac0ba5e",  # testECCP384, RFC 9500 §2.3
    )
)

_LINE: Final = re.compile(r"(?:[0-9A-Fa-f]{64})?\s*(?:#.*)?\Z")


def read_blocklist(text: str, file_name: str) -> frozenset[bytes]:
    """The hashes of a blocklist file.

    Raises:
        Invalid: with every line that is neither a hash nor a comment.
    """
    problems = []
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not _LINE.match(entry):
            problems.append(
                Problem(
                    f"{file_name}: line {number}",
                    "is not a SHA-256 of a SubjectPublicKeyInfo",
                    "Write 64 hexadecimal digits; # starts a comment.",
                )
            )
        elif entry and not entry.startswith("#"):
            found.add(bytes.fromhex(entry[:64]))
    if problems:
        raise Invalid(problems)
    return frozenset(found)
