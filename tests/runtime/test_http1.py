"""The reader of HTTP answers against every way of cutting them up, and against what is no HTTP at all."""

from time import monotonic
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.http1 import Answer, ExchangeFailed, _Reader, parse_url, quote


class Pieces:
    """A connection that gives `data` in pieces of the sizes that it is told, then its end."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes = data, sizes

    def settimeout(self, _: float) -> None:
        """Nothing waits here."""

    def recv(self, _: int) -> bytes:
        size = self.sizes.pop() if self.sizes else 4096
        piece, self.data = self.data[:size], self.data[size:]
        return piece


def read(data: bytes, sizes: list[int] | None = None) -> Answer:
    return _Reader(cast(Any, Pieces(data, sizes or [])), monotonic() + 60).answer()


BODIES = st.binary(max_size=200)
SIZES = st.lists(st.integers(1, 9), max_size=60)


@given(BODIES, SIZES)
def test_a_body_of_known_length_is_the_same_however_it_arrives(body: bytes, sizes: list[int]) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = read(head + body + b"what follows is not its own", sizes)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["content-type"] == "application/json"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), SIZES)
def test_a_body_in_chunks_is_the_same_however_it_arrives(chunks: list[bytes], sizes: list[int]) -> None:
    data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    answer = read(b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n" + data, sizes)
    assert (answer.status, answer.body) == (404, b"".join(chunks))


@given(BODIES, st.data())
def test_an_answer_that_is_cut_off_is_never_taken_for_whole(body: bytes, data: st.DataObject) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ExchangeFailed):
        read(whole[:cut])


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail), SIZES)
def test_whatever_arrives_is_an_answer_or_a_reason(data: bytes, sizes: list[int]) -> None:
    try:
        assert isinstance(read(data, sizes), Answer)
    except ExchangeFailed as error:
        assert str(error)


@given(st.text())
def test_a_quoted_text_is_one_safe_segment_that_decodes_to_itself(text: str) -> None:
    from urllib.parse import unquote

    try:
        quoted = quote(text)
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    assert unquote(quoted) == text
    assert not set(quoted) & set("/:@?#% \r\n") - {"%"}


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_is_refused(text: str) -> None:
    try:
        address = parse_url(text)
    except ValueError:
        return
    assert address.host
    assert 0 < address.port < 65536
    assert not set(address.host) & set(" \r\n")
