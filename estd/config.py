"""The server's own settings: one TOML file, every key with a default, all problems reported at once.

Read by the roof alone; every other module gets plain values. Rules about certificates are not here but in ecosystem
files (`estd.ca.ecosystem`), which live in the database.
"""

from __future__ import annotations

import os
import pwd
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from estd.ca.blocklist import read_blocklist
from estd.errors import Invalid, Problem, Refused
from estd.names import write_san

KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one server. Paths are absolute."""

    data_directory: Path
    address: str = "0.0.0.0"  # noqa: S104  # devices come from everywhere; trust is decided per request
    port: int = 8443
    ops_address: str = "127.0.0.1"
    ops_port: int = 8081
    database_url: str | None = field(default=None, repr=False)
    """None: a private PostgreSQL below `data_directory`."""
    key_file: Path | None = None
    key_environment: str | None = None
    key_credential: str | None = None
    blocklist: Path | None = None
    """SHA-256 of public keys that are never certified (`estd.ca.blocklist`)."""
    tls_names: tuple[str, ...] = ("127.0.0.1",)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    default_ecosystem: str | None = None
    workers: int = 0
    """0: three for every four cores, so that groups stay large and the signers and the database have room."""
    signers: int = 0
    """0: one for every four cores, at least two, so that one is there while the other restarts."""
    signer_sockets: tuple[Path, ...] = ()
    """Signers that run on their own (`estd signer`), by slot; empty: the server starts its signers itself."""
    signer_users: tuple[str, ...] = ("estd",)
    """Users whose processes may call a signer that runs on its own."""
    log_level: str = "info"
    source: Path | None = field(default=None, compare=False)
    """The file they were read from."""

    @property
    def worker_count(self) -> int:
        """How many web workers to run."""
        return self.workers or max(1, (os.cpu_count() or 1) * 3 // 4)

    @property
    def signer_count(self) -> int:
        """How many signers to run."""
        return len(self.signer_sockets) or self.signers or max(2, (os.cpu_count() or 1) // 4)

    def where(self, key: str) -> str:
        """A setting as a problem names it, with the file where that is known."""
        return key if self.source is None else f"{self.source}: {key}"


_TABLES: Final[Mapping[str, Mapping[str, tuple[str, type]]]] = {
    "": {"data_directory": ("data_directory", str)},
    "listen": {"address": ("address", str), "port": ("port", int)},
    "ops": {"address": ("ops_address", str), "port": ("ops_port", int)},
    "database": {"url": ("database_url", str), "url_file": ("database_url_file", str)},
    "keys": {
        "file": ("key_file", str),
        "environment": ("key_environment", str),
        "credential": ("key_credential", str),
        "blocklist": ("blocklist", str),
    },
    "tls": {"names": ("tls_names", list), "certificate": ("tls_certificate", str), "key": ("tls_key", str)},
    "est": {"default_ecosystem": ("default_ecosystem", str)},
    "processes": {"workers": ("workers", int), "signers": ("signers", int)},
    "signers": {"sockets": ("signer_sockets", list), "users": ("signer_users", list)},
    "log": {"level": ("log_level", str)},
}
_TYPE_NAMES: Final = {str: "a string", int: "a whole number", list: "a list of strings"}
_PATHS: Final = ("data_directory", "key_file", "blocklist", "tls_certificate", "tls_key")
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  # a comparison
_NAMES_AT_MOST: Final = 50
_KEY_REMEDY: Final = "Put the key back as it was; for a new server it is what `openssl rand -hex 32` prints."
_DATABASE_SCHEMES: Final = ("postgresql://", "postgres://")


def read_config(path: Path) -> Config:
    """Read a settings file.

    Raises:
        Invalid: with every problem the file has.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise Invalid([Problem(str(path), f"cannot be read ({error.strerror})", "Name a readable file.")]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid([Problem(str(path), f"is not TOML: {error}", "Mend the line named.")]) from None
    except RecursionError:
        remedy = "Write it as docs/operations.md shows."
        raise Invalid([Problem(str(path), "is nested too deeply to be read", remedy)]) from None
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict) and name in _TABLES:
            for key, inner in value.items():
                _take(path, f"{name}.{key}", _TABLES[name].get(key), inner, _TABLES[name], values, problems)
        elif name in _TABLES and name:
            problems.append(Problem(f"{path}: {name}", "must be a table", f"Write [{name}] above its keys."))
        else:
            known = {**_TABLES[""], **{table: ("", dict) for table in _TABLES if table}}
            _take(path, name, _TABLES[""].get(name), value, known, values, problems)
    return _check(path, values, problems)


def _take(
    path: Path,
    where: str,
    target: tuple[str, type] | None,
    value: Any,
    known: Mapping[str, Any],
    values: dict[str, Any],
    problems: list[Problem],
) -> None:
    if target is None:
        problems.append(Problem(f"{path}: {where}", "is not a setting", f"Known here: {', '.join(sorted(known))}."))
        return
    name, kind = target
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, list) and not _is_texts(value)):
        problems.append(Problem(f"{path}: {where}", f"must be {_TYPE_NAMES[kind]}", "Change its value."))
        return
    values[name] = value


def _is_texts(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, str) and item for item in value)


def _check(path: Path, values: dict[str, Any], problems: list[Problem]) -> Config:
    base = path.resolve().parent
    if "data_directory" not in values:
        problems.append(Problem(f"{path}: data_directory", "is missing", "Name the directory estd may keep data in."))
    for name in _PATHS:
        if name in values:
            values[name] = (base / values[name]).resolve()
    problems.extend(
        Problem(f"{path}: {where}", "is not a port", "Use 1 to 65535, or 0 for any free port.")
        for key, where in (("port", "listen.port"), ("ops_port", "ops.port"))
        if not 0 <= values.get(key, 0) <= 65535
    )
    here = {one.name: values.get(one.name, one.default) for one in fields(Config)}
    if is_one_port(here["address"], here["port"], here["ops_address"], here["ops_port"]):
        problems.append(Problem(f"{path}: ops.port", "is listen.port, which devices use", "Choose another port."))
    problems += check_tls_names(f"{path}: tls.names", values.get("tls_names", []))
    problems.extend(
        Problem(f"{path}: processes.{key}", "is out of range", "Use 0 (automatic) to 256.")
        for key in ("workers", "signers")
        if not 0 <= values.get(key, 0) <= 256
    )
    if ("tls_certificate" in values) != ("tls_key" in values):
        problems.append(
            Problem(
                f"{path}: tls", "names only one of certificate and key", "Name both, or none to let estd issue one."
            )
        )
    if sum(key in values for key in ("key_file", "key_environment", "key_credential")) > 1:
        problems.append(
            Problem(f"{path}: keys", "names more than one source", "Keep one of file, environment, credential.")
        )
    if "signer_sockets" in values and values.get("signers"):
        remedy = "Keep one: sockets of signers that run on their own, or how many to start."
        problems.append(Problem(f"{path}: signers.sockets", "and processes.signers are both set", remedy))
    if values.get("log_level", "info") not in _LOG_LEVELS:
        problems.append(Problem(f"{path}: log.level", "is unknown", f"Use one of {', '.join(_LOG_LEVELS)}."))
    _read_url(path, values, problems)
    if problems:
        raise Invalid(problems)
    if "tls_names" in values:
        values["tls_names"] = tuple(values["tls_names"])
    if "signer_sockets" in values:
        values["signer_sockets"] = tuple((base / name).resolve() for name in values["signer_sockets"])
    if "signer_users" in values:
        values["signer_users"] = tuple(values["signer_users"])
    return Config(**values, source=path)


def is_one_port(address: str, port: int, ops_address: str, ops_port: int) -> bool:
    """Whether devices and the ops port would meet at one and the same place."""
    if not port == ops_port != 0:
        return False
    return address == ops_address or address in _EVERYWHERE or ops_address in _EVERYWHERE


def find_changes(before: Config, after: Config) -> list[str]:
    """The settings in which two differ, as they are written in the file."""
    names = {name: f"{table}.{key}".lstrip(".") for table, keys in _TABLES.items() for key, (name, _) in keys.items()}
    return [
        names[one.name]
        for one in fields(Config)
        if one.compare and getattr(before, one.name) != getattr(after, one.name)
    ]


def write_tls_name(name: str) -> str:
    """A host name or an address as a subjectAltName spells it."""
    try:
        ip_address(name)
    except ValueError:
        return f"dns:{name}"
    return f"ip:{name}"


def check_tls_names(where: str, names: Sequence[str]) -> list[Problem]:
    """What is wrong with the names that a server's certificate is to carry; `where` says who gave them."""
    problems = []
    for name in names:
        try:
            write_san([write_tls_name(name)])
        except Refused:
            remedy = "Name hosts and addresses as devices call them: ca.plant.example, 192.0.2.7."
            problems.append(Problem(where, f"{name!r} is neither a host name nor an address", remedy))
    if len(names) > _NAMES_AT_MOST:
        problems.append(Problem(where, "are too many", f"Name at most {_NAMES_AT_MOST}."))
    return problems


def _read_url(path: Path, values: dict[str, Any], problems: list[Problem]) -> None:
    """The database's URL, from the settings or from the file they name, which nobody else may read if it is secret."""
    named = values.pop("database_url_file", None)
    if named is None:
        _check_scheme(f"{path}: database.url", values.get("database_url"), problems)
        if _has_password(values.get("database_url", "")) and is_open(path):
            what = "holds a database password and can be read by others"
            problems.append(Problem(f"{path}: database.url", what, f"chmod 600 {path}, or use database.url_file."))
        return
    if "database_url" in values:
        problems.append(Problem(f"{path}: database", "names url and url_file", "Keep one of them."))
    where, file = f"{path}: database.url_file", path.resolve().parent / named
    try:
        values["database_url"] = file.read_text(encoding="utf-8").strip()
        if is_open(file):
            problems.append(Problem(where, f"{file} can be read by others", f"chmod 600 {file}"))
        _check_scheme(f"{where} {file}", values["database_url"], problems)
    except OSError as error:
        problems.append(Problem(where, f"cannot be read ({error.strerror})", "Name a readable file."))
    except UnicodeDecodeError:
        problems.append(Problem(where, f"{file} is not text", "Write the URL alone into it, in UTF-8."))


def _check_scheme(where: str, url: str | None, problems: list[Problem]) -> None:
    # Not shown: whatever it is, a password may be in it.
    if url is not None and not url.startswith(_DATABASE_SCHEMES):
        remedy = "Write it like postgresql://estd@db.example/estd; estd works with PostgreSQL alone."
        problems.append(Problem(where, "does not begin with postgresql://", remedy))


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return True  # whatever it is; PostgreSQL will say what is wrong with it
    return bool(parts.password) or "password" in parse_qs(parts.query)


def is_open(file: Path) -> bool:
    """Whether others may read a secret file of ours. One of another user's may be ours to read by its group alone, or by
    an access list, which shows as the group's mode: so systemd and Kubernetes hand out secrets.
    """
    found = file.stat()
    return bool(found.st_mode & (0o077 if found.st_uid == os.geteuid() else 0o027))


def read_key_encryption_key(config: Config) -> bytes:
    """The 32 bytes under which issuer keys are sealed, from the one source that the settings name.

    A file holds 64 hexadecimal digits (or 32 raw bytes) and must not be readable by others; an environment variable
    holds the digits; a systemd credential is a file below ``$CREDENTIALS_DIRECTORY``. Without a setting the file
    ``key-encryption.key`` in the data directory is used.

    Raises:
        Invalid: it is missing, malformed or readable by others.
    """
    where = describe_key(config)
    if config.key_environment is not None:
        text = os.environ.get(config.key_environment)
        if text is None:
            raise Invalid([Problem(where, "is not set", "Put 64 hexadecimal digits there (openssl rand -hex 32).")])
        return _read_key(text.encode(), where)
    if config.key_credential is not None:
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            raise Invalid([Problem(where, "cannot be found", "Start estd from a unit with LoadCredential=.")])
        return _read_key_file(Path(directory) / config.key_credential, where, check_mode=False)
    return _read_key_file(config.key_file or default_key_path(config.data_directory), where, check_mode=True)


def describe_key(config: Config) -> str:
    """Where the key-encryption key comes from, for a person."""
    if config.key_environment is not None:
        return f"environment variable {config.key_environment}"
    if config.key_credential is not None:
        return f"systemd credential {config.key_credential}"
    return str(config.key_file or default_key_path(config.data_directory))


def explain_unreadable(path: Path, error: OSError) -> str:
    """What to do about a secret file of ours that is there and cannot be read."""
    if not isinstance(error, PermissionError):
        return "Name a readable file."
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return f"Let the user {user} alone read it: chown {user} {path}; its directories have to let {user} pass."


def check_blocklist(config: Config) -> None:
    """Refuse a blocklist that cannot be read, before a signer has to.

    Raises:
        Invalid: with every problem of the file.
    """
    if config.blocklist is None:
        return
    try:
        read_blocklist(config.blocklist.read_text(encoding="ascii"), str(config.blocklist))
    except OSError as error:
        raise Invalid(
            [Problem("keys.blocklist", f"cannot be read ({error.strerror})", "Name a readable file.")]
        ) from None
    except UnicodeDecodeError:
        raise Invalid([Problem(str(config.blocklist), "is not a text file", "Write one hash a line.")]) from None


def default_key_path(data_directory: Path) -> Path:
    """Where the key-encryption key is when the settings do not say."""
    return data_directory / "key-encryption.key"


def _read_key_file(path: Path, where: str, *, check_mode: bool) -> bytes:
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except FileNotFoundError:
        # With umask, since at no moment may others read it; "put it back", since nothing else opens CA keys that exist.
        remedy = f"For a new server make it: (umask 077; openssl rand -hex 32 > {path}). Otherwise put it back."
        if not check_mode:
            remedy = f"Load it in the unit: LoadCredential={path.name}:FILE."
        raise Invalid([Problem(where, "does not exist", remedy)]) from None
    except OSError as error:
        # Never a remedy that writes there: the key may well exist, and it is the only one that opens the CA keys.
        raise Invalid([Problem(where, f"cannot be read ({error.strerror})", explain_unreadable(path, error))]) from None
    if check_mode and mode & 0o077:
        raise Invalid([Problem(where, "can be read by others", f"chmod 600 {path}")])
    return _read_key(content, where)


def _read_key(content: bytes, where: str) -> bytes:
    if len(content) == KEY_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except (ValueError, UnicodeDecodeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise Invalid([Problem(where, "does not hold 64 hexadecimal digits", _KEY_REMEDY)])
    return key
