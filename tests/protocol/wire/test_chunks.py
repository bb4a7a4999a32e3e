import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, Refused
from protocol.v1.chunk_pb2 import Chunk
from protocol.wire import chunks
from protocol.wire.grpc_client import IDLE_S
from tests.protocol.strategies import few

CONTENT = bytes(range(256)) * 5


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wire") / "file"
    path.write_bytes(CONTENT)
    return path


def chunk(data: bytes = b"abc", offset: int = 0) -> Chunk:
    return Chunk(offset=offset, data=data, crc32=zlib.crc32(data))


def refusal(piece: Chunk, offset: int, size: int) -> Code:
    with pytest.raises(Refused) as refused:
        chunks.check_chunk(piece, offset=offset, size=size)
    return refused.value.code


@few
@given(st.integers(0, len(CONTENT)), st.integers(1, 700))
def test_chunks_from_any_offset_make_the_rest_of_the_file(file: Path, start: int, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", step)
        arrived = bytearray(CONTENT[:start])
        for piece in chunks.read_chunks(file, start):
            on_the_wire = Chunk.FromString(piece.SerializeToString())
            arrived += chunks.check_chunk(on_the_wire, offset=len(arrived), size=len(CONTENT))
    assert arrived == CONTENT


@few
@given(st.data())
def test_any_flipped_bit_is_noticed(file: Path, data: st.DataObject) -> None:
    (piece,) = chunks.read_chunks(file)
    flipped = bytearray(piece.data)
    flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    piece.data = bytes(flipped)
    assert refusal(piece, 0, len(CONTENT)) is Code.CHUNK_CORRUPT


def test_a_chunk_fits_a_message(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(chunks.CHUNK_BYTES + 1))
    first, second = chunks.read_chunks(path)
    assert (len(first.data), len(second.data), second.offset) == (chunks.CHUNK_BYTES, 1, chunks.CHUNK_BYTES)
    assert chunks.CHUNK_BYTES <= chunks.MAX_CHUNK_BYTES
    assert chunks.CHUNK_BYTES / IDLE_S < 9000, "bytes a second of the slowest line that a file gets through"
    assert chunk(bytes(chunks.MAX_CHUNK_BYTES), 2**63).ByteSize() < chunks.MAX_MESSAGE_BYTES


def test_an_empty_file_and_an_offset_at_or_past_the_end_have_no_chunks(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(chunks.read_chunks(tmp_path / "empty")) == []
    assert list(chunks.read_chunks(file, len(CONTENT))) == []
    assert list(chunks.read_chunks(file, len(CONTENT) + 1)) == []


@pytest.mark.parametrize("offset", [0, 9, 11, 2**63])
def test_a_chunk_continues_where_the_file_ends(offset: int) -> None:
    assert refusal(chunk(offset=offset), 10, 100) is Code.OFFSET_MISMATCH


def test_a_chunk_does_not_reach_past_the_end() -> None:
    assert chunks.check_chunk(chunk(offset=7), offset=7, size=10) == b"abc"
    assert refusal(chunk(offset=8), 8, 10) is Code.SIZE_MISMATCH
    big = chunk(bytes(chunks.MAX_CHUNK_BYTES + 1))
    assert refusal(big, 0, 1 << 30) is Code.SIZE_MISMATCH
    assert (
        len(chunks.check_chunk(chunk(bytes(chunks.MAX_CHUNK_BYTES)), offset=0, size=1 << 30)) == chunks.MAX_CHUNK_BYTES
    )


@pytest.mark.parametrize("crc32", [0, 1, 2**32 - 1])
def test_a_wrong_checksum_is_noticed(crc32: int) -> None:
    assert refusal(Chunk(data=b"abc", crc32=crc32), 0, 3) is Code.CHUNK_CORRUPT


def test_a_chunk_of_nothing_is_refused_or_a_stream_of_them_would_never_end() -> None:
    assert refusal(chunk(b"", offset=10), 10, 100) is Code.BAD_WIRE
