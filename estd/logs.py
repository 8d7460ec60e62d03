"""Structured logs: one JSON object per line on standard error, with whatever a call gave as `extra`.

An extra field `each` holds the fields of several lines: they are written at once, one line each, as if each had been
logged by itself. A group of certificates costs one call and one write that way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

_ENCODER: Final = json.JSONEncoder(default=str, ensure_ascii=False)
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object, or as one for `each`: at, level, process, logger, message, the extra fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, or as several."""
        fields: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        attributes = vars(record)
        each: Sequence[Mapping[str, object]] | None = attributes.get("each")
        if each is not None:
            head = _ENCODER.encode(fields)[:-1]
            return "\n".join([f"{head}, {_ENCODER.encode(one)[1:]}" for one in each])
        for name in [name for name in attributes if name not in _STANDARD]:
            fields[name] = attributes[name]
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _ENCODER.encode(fields)


def set_up_logs(process: str, level: str) -> None:
    """Send everything to standard error as JSON lines, named after this process."""
    # Every decision is a line, so what no line says is not looked up either: who called, from which thread and process.
    logging._srcfile = None  # the switch that the manual of the logging module names
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # A library's warning, which what a stranger sent may cause, is a line like any other.
    logging.captureWarnings(True)
    # asyncio's own complaints and ours are enough; the libraries' chatter is not for operators.
    for name in ("aiohttp.access", "aiohttp.server", "asyncpg"):
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "aiohttp.access" else logging.WARNING)
