"""Bodies that a web server has compressed for the way, inflated piece by piece. No network."""

import itertools
import zlib
from collections.abc import Iterator

_PIECE = 1 << 18  # bytes; whoever takes them can stop after each
_MOST_OVERHEAD = 1 << 16  # bytes that compressed data may be longer than what they come to
_MOST_CODINGS = 4  # each one more goes a level deeper
_GZIP, _ZLIB, _RAW = 31, 15, -15  # as zlib calls them


def decoded(chunks: Iterator[bytes], codings: str) -> Iterator[bytes]:
    """What was sent, in pieces of at most 256 KiB; some can be empty.

    Codings other than gzip and deflate are passed on as they are, and so is what is not compressed
    although it is said to be.

    Args:
        chunks: the body as it comes in.
        codings: the header `Content-Encoding`.

    Raises:
        ValueError: the compressed data are damaged, or break off; or very many codings are named.
    """
    names = [name.strip().lower() for name in codings.split(",")]
    if len(names) > _MOST_CODINGS:
        raise ValueError(f"compressed {len(names)} times over")
    for coding in reversed(names):
        if coding in ("gzip", "x-gzip", "deflate"):
            chunks = _inflated(chunks, coding)
    return chunks


def is_coded(codings: str) -> bool:
    """Tells whether a body is compressed for the way, so that its length says nothing."""
    return codings.strip().lower() not in ("", "identity")


def _inflated(chunks: Iterator[bytes], coding: str) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 2:
            break
    form = _form(head, coding)
    if form is None:
        yield head
        yield from chunks
        return
    inflater = zlib.decompressobj(form)
    taken = given = 0
    for chunk in itertools.chain((head,), chunks):
        taken += len(chunk)
        rest, piece = chunk, b""
        while rest or len(piece) == _PIECE:
            if inflater.eof:
                if form != _GZIP or not rest.startswith(b"\x1f\x8b"):
                    return  # what follows is nobody's, as browsers see it
                inflater = zlib.decompressobj(form)
            try:
                piece = inflater.decompress(rest, _PIECE)
            except zlib.error:
                raise ValueError("damaged compressed data") from None
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            given += len(piece)
            yield piece
        if taken > given + _MOST_OVERHEAD:
            raise ValueError("compressed data that come to nothing")
    if not inflater.eof:
        raise ValueError("compressed data that break off")


def _form(head: bytes, coding: str) -> int | None:
    """The form of compressed data by their first two bytes; None when they are not compressed."""
    if coding != "deflate":
        return _GZIP if head[:2] == b"\x1f\x8b" else None
    if len(head) < 2:
        return None
    is_zlib = head[0] & 0x0F == 8 and int.from_bytes(head[:2]) % 31 == 0  # RFC 1950, 2.2
    return _ZLIB if is_zlib else _RAW
