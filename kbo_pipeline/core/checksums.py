"""The checksums in a DuckDB file: whether it still is what DuckDB wrote. No SQL.

A file of DuckDB 1.x is three headers of 4 KiB and blocks of 256 KiB; each begins with a checksum of
the rest of it. DuckDB compares it when it reads a block; we compare all of them before a file is
copied over another one, so that damage is never handed on.
"""

from pathlib import Path

import numpy

from kbo_pipeline.core.errors import DamagedError

_HEADERS = 3
_HEADER_BYTES = 4096
_BLOCK_BYTES = 262_144
_READ_BLOCKS = 32
_FACTOR = numpy.uint64(0xBF58476D1CE4E5B9)
_START = numpy.uint64(5381)


def check_blocks(file: Path) -> None:
    """Makes sure that a DuckDB file is what DuckDB wrote; nobody may be writing it.

    Raises:
        DamagedError: it is not; names the place.
        OSError: it cannot be read.
    """
    with file.open("rb") as content:
        headers = content.read(_HEADERS * _HEADER_BYTES)
        _check(file, headers, _HEADER_BYTES, 0)
        if len(headers) < _HEADERS * _HEADER_BYTES:
            raise DamagedError(f"{file}: damaged: it ends after {len(headers)} bytes")
        buffer = bytearray(_READ_BLOCKS * _BLOCK_BYTES)
        place = len(headers)
        while length := content.readinto(buffer):
            _check(file, memoryview(buffer)[:length], _BLOCK_BYTES, place)
            place += length


def is_duckdb(file: Path) -> bool:
    """Tells whether a file begins as DuckDB's do, damaged or not."""
    with file.open("rb") as content:
        return content.read(12)[8:] == b"DUCK"


def _check(file: Path, content: bytes | memoryview, size: int, place: int) -> None:
    """Compares the checksums of parts of equal size; what is left over at the end is no part."""
    whole = len(content) - len(content) % size
    parts = numpy.frombuffer(content, dtype="<u8", count=whole // 8).reshape(-1, size // 8)
    for number, part in enumerate(parts):
        if numpy.bitwise_xor.reduce(part[1:] * _FACTOR) ^ _START != part[0]:
            raise DamagedError(
                f"{file}: damaged: the checksum of {size} bytes at {place + number * size} is wrong"
            )
    if whole < len(content):
        raise DamagedError(f"{file}: damaged: it ends within a block, at {place + len(content)}")
