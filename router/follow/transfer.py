"""Files over the wire: by digest, from where they broke off, each byte checked."""

from contextlib import suppress
from pathlib import Path

import grpc

from protocol.bundle import SignedFile, check_file
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import sync
from protocol.v1 import catalog_pb2
from protocol.wire.chunks import check_chunk
from protocol.wire.grpc_client import STREAM_DEADLINE_S, paced
from protocol.wire.grpc_status import from_rpc_error
from router.follow.source import Source


def pull_beside(path: Path, source: Source, file: SignedFile) -> None:
    """Fetch a file that a router at work may be reading, beside its place; nothing moves where it is there, and whole.

    Raises:
        Refused: `DIGEST_MISMATCH`, `SIZE_MISMATCH`, or what the coordinator refuses.
        Unavailable: `UNREACHABLE`.
    """
    path.parent.mkdir(exist_ok=True)
    with suppress(Refused, FileNotFoundError):  # damaged since it came; fetched afresh
        check_file(path, file)
        source.bar.update(file.size)
        return
    part = path.with_name(f".{path.name}.part")
    pull_file(part, source, file)
    sync(part)
    part.replace(path)


def pull_file(path: Path, source: Source, file: SignedFile) -> None:
    """Fetch a file into its place, or the rest of it; refuses as `pull_beside`, and then nothing of it stays."""
    path.touch()
    if path.stat().st_size >= file.size:
        with suppress(Refused):  # damaged since it came; fetched afresh
            check_file(path, file)
            source.bar.update(file.size)
            return
        path.write_bytes(b"")
    offset = path.stat().st_size
    source.bar.update(offset)
    while offset < file.size:
        try:
            _continue_file(path, source, file, offset)
            if path.stat().st_size == offset:
                raise Refused(
                    Code.SIZE_MISMATCH,
                    f"{source.address} ends {path.name} at byte {offset}; {file.size} were signed.",
                    "Tell the pool's operator.",
                )
        except grpc.RpcError as error:
            ours = from_rpc_error(error, source.address)
            # gRPC has retried already where not a byte came; a stream that broke later is continued.
            if not isinstance(ours, Unavailable) or path.stat().st_size == offset:
                raise ours from error
        offset = path.stat().st_size
    try:
        check_file(path, file)
    except Refused:
        path.unlink()
        raise


def _continue_file(path: Path, source: Source, file: SignedFile, offset: int) -> None:
    wanted = catalog_pb2.FetchRequest(sha256=file.sha256, offset=offset)
    stream = source.catalog.Fetch(wanted, timeout=source.left(STREAM_DEADLINE_S))
    with path.open("ab") as out:
        for chunk in paced(stream, source.address):
            data = check_chunk(chunk, offset=offset, size=file.size)
            out.write(data)
            offset += len(data)
            source.count(len(data))
