"""An operator's commands as the documents give them, held against the settings, the units and the sealed credentials.

systemd does not run here: that it starts such a unit is its own affair. That the settings name what the unit is given, and
that its user can read what the command reads, is ours. ``test_backup.py`` carries the audits out.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from live_server import attempt
from test_docs import parse
from transient_units import ROOT, TransientUnit, read_transient_units

from estd.cli import estd as command_line

SYSTEMD = ROOT / "deploy" / "systemd"
README = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
UNITS = read_transient_units()


def read_sealed() -> dict[str, str]:
    """The credentials that the README has made, each with the name it is sealed under."""
    text = README
    loop = re.search(r"^for url in (.+); do$", text, re.MULTILINE)
    assert loop is not None
    line = next(line for line in text.splitlines() if "$url-url.cred" in line)
    text += "\n".join(line.replace("$url", url) for url in loop[1].split())
    return {
        path: name for name, path in re.findall(r"systemd-creds encrypt --name=(\S+) \S+ (/etc/estd/\S+\.cred)", text)
    }


def find_signer(name: str) -> str:
    """What the signers' unit says."""
    found = re.search(rf"^{name}=(.+)$", (SYSTEMD / "estd-signer@.service").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_apply_migrate_verify_and_reconcile_are_there() -> None:
    commands = {" ".join(one.command[:2]) for one in UNITS}
    assert {"apply /etc/estd/plant.toml", "ecosystem list", "audit verify", "audit reconcile"} <= commands


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.unit} {unit.command[1]}")
class TestEachCommand:
    def test_it_parses(self, unit: TransientUnit) -> None:
        parse(command_line, list(unit.command))

    def test_it_can_be_repeated_and_waits(self, unit: TransientUnit) -> None:
        """A transient unit that failed keeps its name unless it is collected."""
        assert unit.options == {"--pipe", "--wait", "--collect"}

    def test_systemd_knows_what_is_asked_of_it(self, unit: TransientUnit, tmp_path: Path) -> None:
        lines = [f"{name}={value}" for name, value in unit.properties]
        lines.append(f"ExecStart={Path(sys.executable).with_name('estd')} {' '.join(unit.command)}")
        path = tmp_path / f"{unit.unit}.service"
        path.write_text("[Service]\n" + "\n".join(lines) + "\n")
        done = attempt("systemd-analyze", "verify", "--man=no", path)
        assert (done.status, done.stderr, done.text) == (0, "", "")

    def test_its_settings_are_shipped_and_name_what_it_is_given(self, unit: TransientUnit) -> None:
        assert unit.settings.parent == Path("/etc/estd")
        shipped = tomllib.loads((SYSTEMD / unit.settings.name).read_text(encoding="utf-8"))
        assert f" {unit.settings.name} " in README.partition("install -d /etc/estd && install -m 644 ")[2]
        url = Path(shipped["database"]["url_file"])
        assert url.parent == Path(f"/run/credentials/{unit.unit}.service")
        needed = {url.name} | ({shipped["keys"]["credential"]} if "keys" in shipped else set())
        assert set(unit.credentials) == needed

    def test_its_credentials_are_sealed_under_the_names_it_asks_for(self, unit: TransientUnit) -> None:
        sealed = read_sealed()
        assert {name: sealed.get(str(path)) for name, path in unit.credentials.items()} == {
            name: name for name in unit.credentials
        }

    def test_who_reads_journals_is_who_owns_them(self, unit: TransientUnit) -> None:
        if unit.command[0] != "audit":
            assert unit.user == "estd"
            return
        journal = unit.command[unit.command.index("--journal") + 1]
        assert journal == f"/var/lib/{find_signer('StateDirectory')}/journal"
        assert unit.user == find_signer("User")
        assert find_signer("StateDirectoryMode") == "0700"


def test_the_key_is_for_those_commands_alone_that_need_it() -> None:
    with_key = {one.command[0] + " " + one.unit for one in UNITS if "estd-kek" in one.credentials}
    assert with_key == {"apply estd-apply", "audit estd-apply"}
