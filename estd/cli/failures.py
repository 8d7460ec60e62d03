"""Every way a command can fail, as one short message with a remedy, and an exit status.

Statuses: 1 refused or failed, 2 the command line or a file is wrong, 75 try again later (EX_TEMPFAIL of sysexits.h), 130
and 143 stopped by a signal. With ``--json`` the message is one JSON object on standard error; standard output stays clean.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import Final

import click

from estd.cli.loop import Terminated
from estd.errors import Broken, Invalid, Problem, Refused, Unavailable

REFUSED: Final = 1
USAGE: Final = 2
TRY_LATER: Final = 75
INTERRUPTED: Final = 130
TERMINATED: Final = 143


class Failed(Exception):
    """A command found its own result to be a failure: the message is all there is to say."""

    def __init__(self, message: str, remedy: str = "", status: int = REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.status = status


@dataclass(frozen=True, slots=True)
class Failure:
    """What to tell, and how to exit."""

    status: int
    code: str
    message: str
    remedy: str = ""
    problems: tuple[Problem, ...] = ()
    details: dict[str, str | int] = field(default_factory=dict)


def report(fault: BaseException, *, as_json: bool) -> int:
    """Tell about a failure on standard error; the exit status."""
    if isinstance(fault, click.exceptions.Exit):
        return fault.exit_code
    if isinstance(fault, click.exceptions.NoArgsIsHelpError):
        click.echo(fault.format_message(), err=True)
        return USAGE
    if isinstance(fault, BrokenPipeError):
        # Whoever read our output has seen enough; a second complaint while closing it helps nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    if isinstance(fault, SystemExit):
        return REFUSED  # rich says the same in this way, and has let standard output go by itself
    failure = explain(fault)
    if as_json:
        click.echo(json.dumps({"error": _as_json(failure)}, ensure_ascii=False), err=True)
    else:
        _write(failure)
    if failure.code in ("unexpected", "broken") and os.environ.get("ESTD_TRACEBACK"):
        traceback.print_exception(fault)
    return failure.status


def explain(fault: BaseException) -> Failure:
    """What a failure means to the person at the keyboard."""
    match fault:
        case Invalid():
            return Failure(USAGE, "invalid", "", problems=tuple(fault.problems))
        case Refused():
            return Failure(REFUSED, fault.code.value, _sentence(fault.detail), details=_clause(fault.clause))
        case Unavailable():
            remedy = f"Try again in {fault.retry_after_seconds} s."
            return Failure(TRY_LATER, fault.code.value, _sentence(fault.detail), remedy)
        case Failed():
            return Failure(fault.status, "failed", _sentence(fault.message), fault.remedy)
        case Broken():
            remedy = (
                'A fault of estd or around it. A server\'s log says more, with log.level = "debug" in estd.toml all of it; '
                "ESTD_TRACEBACK=1 shows where it happened."
            )
            return Failure(REFUSED, "broken", _sentence(str(fault)), remedy)
        case click.UsageError():
            where = fault.ctx.command_path if fault.ctx is not None else "estd"
            return Failure(USAGE, "usage", _sentence(fault.format_message()), f"Try: {where} --help")
        case click.ClickException():
            return Failure(fault.exit_code, "failed", _sentence(fault.format_message()))
        case click.Abort() | KeyboardInterrupt():
            return Failure(INTERRUPTED, "interrupted", "Stopped.")
        case Terminated():
            return Failure(TERMINATED, "terminated", "Stopped.")
        case PermissionError():
            return Failure(REFUSED, "permission", f"{fault.filename or 'A file'}: permission denied.", _OWNER)
        case OSError():
            where = f"{fault.filename}: " if fault.filename else ""
            return Failure(REFUSED, "system", f"{where}{fault.strerror or fault}.")
        case _:
            return _explain_others(fault)


def _explain_others(fault: BaseException) -> Failure:
    # Imported now because most commands never talk to a server or a store, and both take their time to load.
    from estd.device.answers import ServerRefused, TryLater, WrongServer
    from estd.store.contract import Conflict

    details: dict[str, str | int] = {}
    match fault:
        case ServerRefused():
            if fault.status:
                details["http_status"] = fault.status
            if fault.request_id:
                details["request_id"] = fault.request_id
            asked = f"The server's operator finds the reason by: estd audit list --request {fault.request_id}"
            remedy = asked if fault.request_id else ""
            return Failure(
                REFUSED, "refused", _sentence(f"the server refused: {fault.detail}"), remedy, details=details
            )
        case TryLater():
            details["retry_after_seconds"] = fault.retry_after_seconds
            remedy = f"Try again in {fault.retry_after_seconds} s; nothing is lost, the same request is sent again."
            return Failure(TRY_LATER, "try-later", _sentence(fault.detail), remedy, details=details)
        case WrongServer():
            remedy = (
                "Check that --url names the host and the port of the EST server, and that --trust holds what its operator "
                "gave you for that server (server-trust.pem)."
            )
            return Failure(REFUSED, "wrong-server", _sentence(fault.detail), remedy)
        case Conflict():
            remedy = "Look at the rules in force with `estd ecosystem show`, and apply yours again."
            return Failure(REFUSED, "conflict", "Somebody else applied a newer version meanwhile.", remedy)
        case _:
            remedy = "This is a fault in estd. Please report it; ESTD_TRACEBACK=1 shows where it happened."
            return Failure(REFUSED, "unexpected", f"{type(fault).__name__}: {fault}", remedy)


_OWNER: Final = "Run this as the user who owns it."


def _write(failure: Failure) -> None:
    for problem in failure.problems:
        click.echo(f"{_mark()} {problem.where} {problem.what}.", err=True)
        click.echo(f"  {problem.remedy}", err=True)
    if failure.message:
        click.echo(f"{_mark()} {failure.message}", err=True)
    for name, value in failure.details.items():
        click.echo(f"  {name.replace('_', ' ')}: {value}", err=True)
    if failure.remedy:
        click.echo(f"  {failure.remedy}", err=True)


def _mark() -> str:
    return click.style("✗", fg="red", bold=True) if sys.stderr.isatty() else "estd:"


def _sentence(text: str) -> str:
    text = text.strip()
    first, _, _ = text.partition(" ")
    if first.isalpha() and first.islower():  # not for file names, URLs and codes
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?", ":")) or "\n" in text else f"{text}."


def _clause(clause: str | None) -> dict[str, str | int]:
    return {} if clause is None else {"clause": clause}


def _as_json(failure: Failure) -> dict[str, object]:
    content: dict[str, object] = {"code": failure.code, "status": failure.status}
    if failure.message:
        content["message"] = failure.message
    if failure.remedy:
        content["remedy"] = failure.remedy
    if failure.problems:
        content["problems"] = [
            {"where": problem.where, "what": problem.what, "remedy": problem.remedy} for problem in failure.problems
        ]
    return content | {"details": failure.details} if failure.details else content
