"""The head of an HTTP request: what refuses it before its body is read, and the path it asks for."""

from __future__ import annotations

import re
from typing import Final

from aiohttp.http_parser import RawRequestMessage

from estd.errors import Code, Refused

BODY_AT_MOST_BYTES: Final = 64 * 1024


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


_ABSOLUTE_FORM: Final = re.compile(r"https?://[^/?#]*(?=/)", re.IGNORECASE)

_SINGLE_HEADERS: Final = ("Authorization", "Content-Type", "Content-Encoding")
"""Two of these would leave open which one was meant."""
