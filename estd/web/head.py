"""The head of an HTTP request: the parser that reads it, what refuses it before its body is read, its path, and why it
is none."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, cast

from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage

from estd.errors import Code, Refused

BODY_AT_MOST_BYTES: Final = 64 * 1024
_FIELD_AT_MOST_BYTES: Final = 8190
_FIELDS_AT_MOST: Final = 64


class _Tap:
    """The protocol whose reading the parser would pause for a body that nobody takes: never, since a body is taken as it
    comes, and capped.

    One for all connections. Were it the connection itself, the two would hold each other, and all that a connection holds
    would live on until the next collection.
    """

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


_TAP: Final = _Tap()


def make_parser() -> HttpRequestParser:
    """A connection's parser. Made inside the loop.

    It stops at a request's end and keeps what lies behind it as it came: until its `message_consumed` is called and it is
    fed again, if only with nothing. So there is never more than one request, whatever the client sends.
    """
    return HttpRequestParser(
        cast(Any, _TAP),  # it wants no more of aiohttp's BaseProtocol than is there
        asyncio.get_running_loop(),
        BODY_AT_MOST_BYTES,
        max_line_size=_FIELD_AT_MOST_BYTES,
        max_field_size=_FIELD_AT_MOST_BYTES,
        max_headers=_FIELDS_AT_MOST,
        auto_decompress=False,
        max_msg_queue_size=1,
    )


def check_head(message: RawRequestMessage, *, has_cap: bool) -> None:
    """Refuse a request that nobody can understand in one way only, or whose body is not wanted.

    Args:
        message: as the parser read it.
        has_cap: whether its body may hold no more than `BODY_AT_MOST_BYTES`.

    Raises:
        Refused: MALFORMED_REQUEST, CONTENT_ENCODING or BODY_TOO_LARGE.
    """
    headers = message.headers
    for name in _SINGLE_HEADERS:
        if len(headers.getall(name, ())) > 1:
            raise Refused(Code.MALFORMED_REQUEST, f"there is more than one {name} header", "RFC 9110 §5.3")
    if message.version != HttpVersion11:
        if message.version != HttpVersion10:
            raise Refused(Code.MALFORMED_REQUEST, "the version is neither 1.0 nor 1.1", "RFC 9110 §2.5")
        if "Transfer-Encoding" in headers:
            # The parser takes it for a request without a body.
            raise Refused(Code.MALFORMED_REQUEST, "there was no Transfer-Encoding before 1.1", "RFC 9112 §6.1")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(Code.CONTENT_ENCODING, "send the body as it is, without Content-Encoding", "RFC 9110 §8.4")
    # The parser has seen to it that it is a number.
    if has_cap and int(headers.get("Content-Length", "0")) > BODY_AT_MOST_BYTES:
        raise too_large()


def too_large() -> Refused:
    """The refusal of a body beyond the cap."""
    return Refused(Code.BODY_TOO_LARGE, f"a body may hold {BODY_AT_MOST_BYTES} bytes at most")


def read_path(target: str) -> str:
    """The path of a request target, as sent: RFC 9112 §3.2.1, and the absolute form of §3.2.2 that servers must take."""
    if not target.startswith("/"):
        found = _ABSOLUTE_FORM.match(target)
        if found is not None:
            target = target[found.end() :]
    return target.partition("?")[0]


def say_why(error: HttpProcessingError) -> str:
    """Why something is no HTTP, in one line: the parser's message goes on to quote what was sent, which is left out."""
    if isinstance(error, LineTooLong):
        return f"its target or one of its fields is longer than {error.args[1]} bytes"
    return error.message.partition("\n")[0].rstrip(":")


_ABSOLUTE_FORM: Final = re.compile(r"https?://[^/?#]*(?=/)", re.IGNORECASE)

_SINGLE_HEADERS: Final = ("Authorization", "Content-Type", "Content-Encoding")
"""Two of these would leave open which one was meant."""
