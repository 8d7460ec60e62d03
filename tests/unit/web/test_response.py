"""The bytes of an answer: read off the wire by a client, and written one by one."""

from __future__ import annotations

import pytest
from http_lab import House

from estd.errors import Broken
from estd.web.response import write_response
from estd.wire.exchange import Reply


async def test_the_head_of_get_without_its_body(house: House) -> None:
    answer = await house.say(b"HEAD /x HTTP/1.1\r\nHost: estd\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"<end>"
    assert b"Content-Length: 7" in head


@pytest.mark.parametrize("value", ["a\r\nX-Forged: b", "a\nb", "a\rb"])
def test_a_header_cannot_smuggle_another(value: str) -> None:
    with pytest.raises(Broken, match="line break"):
        write_response(Reply(200, b"", "text/plain", (("X-Value", value),)), is_last=False)


@pytest.mark.parametrize(
    ("is_last", "is_old", "line"),
    [(False, False, b""), (True, False, b"Connection: close\r\n"), (False, True, b"Connection: keep-alive\r\n")],
)
def test_an_answer_is_written_in_the_words_of_its_version(is_last: bool, is_old: bool, line: bytes) -> None:
    octets = write_response(Reply(200, b"body", "text/plain", (("X-A", "é"),)), is_last=is_last, is_old=is_old)
    first, date, rest = octets.split(b"\r\n", 2)
    assert first == (b"HTTP/1.0 200 OK" if is_old else b"HTTP/1.1 200 OK")
    assert date.startswith(b"Date: ")
    assert rest == (
        b"Server: estd\r\nX-A: \xe9\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n" + line + b"\r\nbody"
    )
