"""Options that many commands share, and what they stand for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from estd.config import Config, read_config
from estd.errors import Invalid, Problem, Refused
from estd.names import normalise_device

SETTINGS: Final = "estd.toml"
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Path(click.Path):
    """A file or directory that has a name: an empty one, of a variable that is not set say, would be the directory here."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name."""
        if not str(value).strip():
            self.fail("the name is empty; name a file or directory.", param, ctx)
        return super().convert(value, param, ctx)


PATH: Final = _Path(path_type=Path)
DIRECTORY: Final = _Path(path_type=Path, file_okay=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")

ecosystem_option = click.option("--ecosystem", "label", metavar="LABEL", required=True, help="Label of the ecosystem.")


def settings_options(command: _Command) -> _Command:
    """``--config`` and ``--dir`` as they are, for commands that want the file's name too (`find_settings`)."""
    by_file = click.option(
        "--config",
        "config_file",
        type=PATH,
        envvar="ESTD_CONFIG",
        metavar="FILE",
        help="Settings of the server (default: $ESTD_CONFIG, or estd.toml here).",
    )
    by_directory = click.option(
        "--dir",
        "directory",
        type=PATH,
        envvar="ESTD_DIR",
        metavar="DIR",
        help="Directory of a quickstart server, instead of --config (default: $ESTD_DIR).",
    )
    return by_file(by_directory(command))


def server_options(command: _Command) -> _Command:
    """``--config`` and ``--dir``: the settings they name arrive as the argument ``config``."""

    @settings_options
    @wraps(command)
    def with_config(*args: Any, config_file: Path | None, directory: Path | None, **kwargs: Any) -> Any:
        return command(*args, config=read_settings(config_file, directory), **kwargs)

    return with_config  # type: ignore[return-value]  # the signature differs on purpose: two options become one value


def may_ask(*, yes: bool, as_json: bool) -> bool:
    """Whether to ask before something is done for good: not where ``--yes`` was said, or a program asks for JSON.

    Raises:
        click.UsageError: one would have to ask, and there is nobody.
    """
    if yes or as_json:
        return False
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is there to confirm it; add --yes.")
    return True


def read_settings(config_file: Path | None, directory: Path | None) -> Config:
    """The settings that the options name.

    Raises:
        Invalid: they name none, or settings with problems.
    """
    return read_config(find_settings(config_file, directory))


def find_settings(config_file: Path | None, directory: Path | None) -> Path:
    """The settings file that the options name.

    Raises:
        Invalid: there is none.
    """
    context = click.get_current_context(silent=True)
    if context is not None and config_file is not None and directory is not None:
        # The one that was typed beats the one that the environment holds.
        typed = click.core.ParameterSource.COMMANDLINE
        if context.get_parameter_source("config_file") is typed and context.get_parameter_source("directory") is typed:
            raise click.UsageError("Give --config or --dir, not both.")
        config_file = config_file if context.get_parameter_source("config_file") is typed else None
    if config_file is not None:
        return config_file
    if directory is not None:
        if not (directory / SETTINGS).is_file():
            remedy = f"Start one there first: estd quickstart --dir {directory}"
            raise Invalid([Problem(str(directory), "holds no quickstart server", remedy)])
        return directory / SETTINGS
    if Path(SETTINGS).is_file():
        return Path(SETTINGS)
    raise Invalid([Problem("The server", "is not named", "Add --config FILE, or --dir DIR for a quickstart server.")])


def read_device(name: str) -> str:
    """A device's name in its one spelling.

    Raises:
        Invalid: that is no name.
    """
    try:
        return normalise_device(name)
    except Refused as refused:
        raise Invalid([Problem(f"device {name!r}", f"is no name: {refused.detail}", "Check its spelling.")]) from None
