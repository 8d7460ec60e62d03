"""A `Reply` becomes the bytes of an HTTP answer.

Promises: the head holds the lines we meant and no others, whatever a protocol put into a header; how long the body is, and
whether the connection goes on after it, is said in the words of the client's version. Must not import aiohttp.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from estd.errors import Broken
from estd.wire.exchange import Reply


def write_response(reply: Reply, *, is_last: bool, is_old: bool = False, is_head: bool = False) -> bytes:
    """The answer as RFC 9112 §4 has it, in one piece.

    Args:
        reply: what to say.
        is_last: the connection is closed after it.
        is_old: the request was of HTTP/1.0, where a connection is kept by agreement only (RFC 9112 §9.3).
        is_head: the request was HEAD: the same head, Content-Length included, and no body (RFC 9110 §9.3.2).
    """
    lines = [_STATUS_LINES[is_old][reply.status], _write_date(int(time.time()))]
    lines.extend([f"{name}: {value}" for name, value in reply.headers])
    if reply.content_type is not None:
        lines.append("Content-Type: " + reply.content_type)
    if reply.stream is not None:
        if not is_old:
            lines.append("Transfer-Encoding: chunked")  # RFC 9112 §7.1
    elif reply.status != HTTPStatus.NO_CONTENT:  # RFC 9110 §8.6
        lines.append(f"Content-Length: {len(reply.body)}")
    if is_last and not is_old:
        lines.append("Connection: close")
    elif is_old and not is_last:
        lines.append("Connection: keep-alive")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) or head.count("\r") != len(lines):  # the date's line is two
        raise Broken("a header holds a line break")
    return head.encode("latin-1") + b"\r\n\r\n" + (b"" if is_head else reply.body)


_STATUS_LINES: Final = tuple(
    {status.value: f"{version} {status.value} {status.phrase}" for status in HTTPStatus}
    for version in ("HTTP/1.1", "HTTP/1.0")
)


@lru_cache(maxsize=1)
def _write_date(seconds: int) -> str:
    """The two headers that every answer has."""
    return f"Date: {formatdate(seconds, usegmt=True)}\r\nServer: estd"
