"""Files as checked chunks."""

import zlib
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import Code, Refused
from protocol.v1.chunk_pb2 import Chunk

CHUNK_BYTES = 256 << 10
MAX_CHUNK_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 2 << 20
MAX_REPLY_BYTES = 1 << 25
"""Longest message that a client takes: a release of more experts than any pool has."""


def read_chunks(path: Path, offset: int = 0) -> Iterator[Chunk]:
    """Read a file from an offset, one chunk in memory at a time."""
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(CHUNK_BYTES):
            yield Chunk(offset=offset, data=data, crc32=zlib.crc32(data))
            offset += len(data)


def check_chunk(chunk: Chunk, *, offset: int, size: int) -> bytes:
    """Return a chunk's data if it continues a file of `size` bytes at `offset`.

    Raises:
        Refused: `BAD_WIRE` for a chunk of nothing, `OFFSET_MISMATCH`, `SIZE_MISMATCH` or `CHUNK_CORRUPT`.
    """
    if not chunk.data:
        # Without this a stream of them would neither end nor ever look idle.
        raise Refused(Code.BAD_WIRE, f"The chunk at byte {chunk.offset} is empty.")
    if chunk.offset != offset:
        raise Refused(Code.OFFSET_MISMATCH, f"The chunk starts at byte {chunk.offset}; the file ends at {offset}.")
    if len(chunk.data) > MAX_CHUNK_BYTES or offset + len(chunk.data) > size:
        raise Refused(Code.SIZE_MISMATCH, f"The chunk at byte {offset} reaches past the {size} bytes that were signed.")
    if zlib.crc32(chunk.data) != chunk.crc32:
        raise Refused(Code.CHUNK_CORRUPT, f"The chunk at byte {offset} arrived damaged.", "Send it again.")
    return chunk.data
