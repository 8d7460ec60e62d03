"""The ``systemd-run`` lines of the documents, and what they promise: unit, user, credentials, command."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "deploy" / "README.md", ROOT / "docs" / "backup.md")


@dataclass(frozen=True, slots=True)
class TransientUnit:
    """One such line."""

    unit: str
    options: frozenset[str]
    properties: tuple[tuple[str, str], ...]
    command: tuple[str, ...]
    """estd's arguments, without the program."""

    @property
    def user(self) -> str:
        """Whom it runs as."""
        return dict(self.properties)["User"]

    @property
    def credentials(self) -> dict[str, Path]:
        """The sealed files it is given, by the names under which it finds them."""
        loaded = [value for name, value in self.properties if name == "LoadCredentialEncrypted"]
        return {name: Path(path) for name, _, path in (one.partition(":") for one in loaded)}

    @property
    def settings(self) -> Path:
        """The settings it names."""
        return Path(self.command[self.command.index("--config") + 1])


def read_transient_units(*pages: Path) -> list[TransientUnit]:
    """All of these pages, in their order."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages or PAGES)
    lines = re.findall(r"^ *systemd-run (.+)$", text.replace("\\\n", " "), re.MULTILINE)
    return [_read(shlex.split(line)) for line in lines]


def _read(words: list[str]) -> TransientUnit:
    program = words.index("/opt/estd/bin/estd")
    options: set[str] = set()
    properties: list[tuple[str, str]] = []
    unit = ""
    before = iter(words[:program])
    for word in before:
        if word == "-p":
            name, _, value = next(before).partition("=")
            properties.append((name, value))
        elif word.startswith("--unit="):
            unit = word.removeprefix("--unit=")
        else:
            options.add(word)
    return TransientUnit(unit, frozenset(options), tuple(properties), tuple(words[program + 1 :]))
