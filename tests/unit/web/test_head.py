from __future__ import annotations

from typing import Any

import pytest
from aiohttp import HttpVersion, HttpVersion10, HttpVersion11
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from estd.errors import Code, Refused
from estd.web.head import BODY_AT_MOST_BYTES, check_head, make_parser, read_path


def message(*headers: tuple[str, str], version: HttpVersion = HttpVersion11) -> Any:
    given = CIMultiDictProxy(CIMultiDict(headers))
    return RawRequestMessage("POST", "/x", version, given, (), False, None, False, False, URL("/x"))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a?b=c", "/a"),
        ("/a?b?c", "/a"),
        ("/%2e%2e/a", "/%2e%2e/a"),
        ("http://host/a", "/a"),
        ("HTTPS://host:8443/a?b", "/a"),
        ("https://host", "https://host"),
        ("ftp://host/a", "ftp://host/a"),
        ("*", "*"),
        ("host:443", "host:443"),
    ],
)
def test_the_path_of_a_target(target: str, path: str) -> None:
    assert read_path(target) == path


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ((("Authorization", "a"), ("authorization", "b")), Code.MALFORMED_REQUEST),
        ((("Content-Type", "a"), ("Content-Type", "a")), Code.MALFORMED_REQUEST),
        ((("Content-Encoding", "gzip"),), Code.CONTENT_ENCODING),
        ((("Content-Length", str(BODY_AT_MOST_BYTES + 1)),), Code.BODY_TOO_LARGE),
    ],
)
def test_what_a_head_is_refused_for(headers: tuple[tuple[str, str], ...], code: Code) -> None:
    with pytest.raises(Refused) as refused:
        check_head(message(*headers), has_cap=True)
    assert refused.value.code is code


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        (HttpVersion10, (("Transfer-Encoding", "chunked"),)),
        (HttpVersion(0, 9), ()),
        (HttpVersion(1, 2), ()),
        (HttpVersion(2, 0), ()),
    ],
)
def test_what_a_version_cannot_say(version: HttpVersion, headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(Refused) as refused:
        check_head(message(*headers, version=version), has_cap=False)
    assert refused.value.code is Code.MALFORMED_REQUEST


def test_what_a_head_may_hold() -> None:
    check_head(message(("Content-Length", "5"), version=HttpVersion10), has_cap=True)
    check_head(message(("Transfer-Encoding", "chunked")), has_cap=True)
    check_head(message(("Content-Encoding", "Identity"), ("Content-Length", str(BODY_AT_MOST_BYTES))), has_cap=True)
    check_head(message(("Accept", "a"), ("Accept", "b")), has_cap=True)
    check_head(message(("Content-Length", str(BODY_AT_MOST_BYTES + 1))), has_cap=False)


async def test_the_parser_stops_behind_each_request() -> None:
    parser = make_parser()
    get = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
    ((first, _),), _, _ = parser.feed_data(b"".join(get % number for number in range(3)))
    assert first.path == "/0"
    for number in (1, 2):
        parser.message_consumed()
        ((following, _),), _, _ = parser.feed_data(b"")
        assert following.path == f"/{number}"
    parser.message_consumed()
    assert not parser.feed_data(b"")[0]
