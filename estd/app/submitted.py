"""Documents as an operator hands them in: files, of which some may be wrong.

Of a file that is refused the labels are known as long as it is TOML, so that whoever mends it hears at once whether they are
free.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estd.ca.ecosystem import Ecosystem, read_document
from estd.config import is_open
from estd.errors import Invalid, Problem
from estd.keys.software import is_private_key


@dataclass(frozen=True, slots=True)
class Submitted:
    """One document."""

    file: str
    """What problems call it; empty for one that no person wrote."""
    rules: Ecosystem | None
    """None where it has problems of its own."""
    claims: Mapping[str, str]
    """Where in the document → the label that stands there."""
    problems: tuple[Problem, ...] = ()

    @property
    def label(self) -> str | None:
        """The ecosystem's own label, as far as it is known."""
        return self.claims.get("ecosystem.label")

    def where(self, path: str) -> str:
        """A place in this document, as a problem names it."""
        return f"{self.file}: {path}" if self.file else path


def submit(rules: Ecosystem, file: str = "") -> Submitted:
    """A document that was read already."""
    claims = {"ecosystem.label": rules.label}
    claims |= {f"profile.{name}.label": p.label for name, p in rules.profiles.items() if p.label is not None}
    return Submitted(file, rules, claims)


def read_submitted(paths: Sequence[Path], warn: Callable[[str], None] | None = None) -> list[Submitted]:
    """These documents and what is wrong with each; `warn` is that of `read_ecosystem`."""
    names = [path.name for path in paths]
    return [_read(path, warn, path.name if names.count(path.name) == 1 else str(path)) for path in paths]


def read_ecosystem(path: Path, warn: Callable[[str], None] | None = None, name: str | None = None) -> Ecosystem:
    """An ecosystem document; files it names are relative to it.

    Args:
        path: the document.
        warn: told of private keys that others can read. They are imported all the same: the file is the operator's, and
            where it is mounted its mode may not be theirs to choose.
        name: what problems call the document; None: the file's name alone.

    Raises:
        Invalid: with every problem it has.
        OSError, UnicodeDecodeError: it cannot be read, or is not text.
    """

    def read(named: str) -> bytes:
        file = path.parent / named
        content = file.read_bytes()
        if warn is not None and is_open(file) and is_private_key(content):
            warn(f"{file} is a private key, and others can read it: chmod 600 {file}")
        return content

    return read_document(path.read_text(encoding="utf-8"), path.name if name is None else name, read)


# --- private -------------------------------------------------------------------------------------------------------


def _read(path: Path, warn: Callable[[str], None] | None, name: str) -> Submitted:
    try:
        return submit(read_ecosystem(path, warn, name), name)
    except Invalid as invalid:
        return Submitted(name, None, _find_claims(path.read_text(encoding="utf-8")), tuple(invalid.problems))
    except OSError as error:
        problem = Problem(str(path), f"cannot be read ({error.strerror})", "Name a readable file.")
    except UnicodeDecodeError:
        problem = Problem(str(path), "is not text", "Write it in UTF-8.")
    return Submitted(name, None, {}, (problem,))


def _find_claims(text: str) -> dict[str, str]:
    try:
        content: Mapping[str, Any] = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return {}
    profiles = content.get("profile")
    tables = {"ecosystem": content.get("ecosystem")}
    if isinstance(profiles, Mapping):
        tables |= {f"profile.{name}": table for name, table in profiles.items()}
    labels = {f"{path}.label": table.get("label") for path, table in tables.items() if isinstance(table, Mapping)}
    return {path: label for path, label in labels.items() if isinstance(label, str)}
