from __future__ import annotations

from typing import Any

import pytest
from aiohttp import HttpVersion11
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from estd.errors import Code, Refused
from estd.web.head import BODY_AT_MOST_BYTES, check_head, read_path


def message(*headers: tuple[str, str]) -> Any:
    given = CIMultiDictProxy(CIMultiDict(headers))
    return RawRequestMessage("POST", "/x", HttpVersion11, given, (), False, None, False, False, URL("/x"))


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


def test_what_a_head_may_hold() -> None:
    check_head(message(("Content-Encoding", "Identity"), ("Content-Length", str(BODY_AT_MOST_BYTES))), has_cap=True)
    check_head(message(("Accept", "a"), ("Accept", "b")), has_cap=True)
    check_head(message(("Content-Length", str(BODY_AT_MOST_BYTES + 1))), has_cap=False)
