"""Runs a program the way a systemd unit would confine it, where no systemd runs: what can be done by system calls alone.

    python confine.py UNIT UID GID GROUP,GROUP PROGRAM ARGUMENT...

From the unit's own lines: PrivateNetwork, NoNewPrivileges, MemoryDenyWriteExecute, SystemCallFilter (its groups as
``systemd-analyze syscall-filter`` explains them), RestrictAddressFamilies and LimitCORE. Everything about mounts is left
to a machine with systemd. Needs root, libseccomp and, for MemoryDenyWriteExecute, Linux 6.3.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
_CLONE_NEWNET = 0x40000000
_EQUAL = 4
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001


class _Argument(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def main() -> None:
    unit = Path(sys.argv[1]).read_text(encoding="utf-8")
    user, group = int(sys.argv[2]), int(sys.argv[3])
    libc = ctypes.CDLL(None, use_errno=True)
    if _says(unit, "PrivateNetwork=yes"):
        libc.unshare(_CLONE_NEWNET)  # where a container forbids that even to root, without
    allowed = find_allowed(unit)
    filtering = _build_filter(allowed, find_families(unit))
    if _says(unit, "LimitCORE=0"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([int(one) for one in sys.argv[4].split(",") if one])
    os.setgid(group)
    os.setuid(user)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _says(unit, "MemoryDenyWriteExecute=yes"):
        libc.prctl(_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # where the kernel is too old for it, without
    if filtering.load() != 0:
        sys.exit("the system call filter was not accepted")
    os.execv(sys.argv[5], sys.argv[5:])


def find_allowed(unit: str) -> set[str]:
    """The names of the system calls that a unit's SystemCallFilter lines leave."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", unit, re.MULTILINE):
        names = {name for word in line.lstrip("~").split() for name in _expand(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed | set(_expand("@default"))


def find_families(unit: str) -> list[int]:
    """The address families that a unit leaves."""
    names = re.findall(r"^RestrictAddressFamilies=(.+)$", unit, re.MULTILINE)
    return [int(getattr(socket, name)) for name in names[0].split()]


def _says(unit: str, line: str) -> bool:
    return line in unit.splitlines()


def _expand(word: str) -> Iterator[str]:
    if not word.startswith("@"):
        yield word
        return
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for line in shown[1:]:
        found = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
        if found and not found.startswith("#"):
            yield from _expand(found)


class _Filter:
    def __init__(self) -> None:
        self._seccomp = ctypes.CDLL("libseccomp.so.2")
        self._seccomp.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._seccomp.seccomp_init(ctypes.c_uint32(_EPERM)))

    def add(self, action: int, name: str, *arguments: _Argument) -> None:
        number = self._seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # the others are of other architectures
            rules = (_Argument * len(arguments))(*arguments)
            self._seccomp.seccomp_rule_add_array(self._context, ctypes.c_uint32(action), number, len(arguments), rules)

    def load(self) -> int:
        return int(self._seccomp.seccomp_load(self._context))


def _build_filter(allowed: set[str], families: list[int]) -> _Filter:
    built = _Filter()
    for name in sorted(allowed - {"socket"}):
        built.add(_ALLOW, name)
    for family in families:
        built.add(_ALLOW, "socket", _Argument(0, _EQUAL, family, 0))
    return built


if __name__ == "__main__":
    main()
