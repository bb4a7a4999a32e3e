"""A witness of a pool's log: signs for what continues everything that it has signed for before, and for nothing else.

Its folder is a router's, without releases: the pool and the last checkpoint, which is written before it is signed.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Unpack

from protocol.log.checkpoint import Checkpoint
from protocol.log.note import NoteKey, SignatureType, cosign
from protocol.signing import Identity
from protocol.v1.log_pb2 import AddCosignatureRequest
from protocol.wire.grpc_client import DEADLINE_S
from router.follow.pull import reach_log
from router.follow.source import Contact

KEY = "witness.key"


class Witness:
    """One key under a name, in a folder.

    Args:
        folder: Where its key and what it has seen are kept; both are made if they are missing.
        name: What it is called, such as witness.example.org/w1.
    """

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / KEY
        made = not path.exists()
        identity = Identity.generate() if made else Identity.load(path)
        self.key = NoteKey(name, identity.public, SignatureType.WITNESS)
        """What readers name it by."""
        self._folder, self._identity = folder, identity
        if made:
            folder.mkdir(parents=True, exist_ok=True)
            identity.save(path)

    def look(self, address: str, *, clock: Callable[[], datetime], **contact: Unpack[Contact]) -> Checkpoint:
        """Sign for a log as it is, and give the coordinator the signature.

        Raises:
            Refused: `LOG_ROLLBACK` or `LOG_FORK` for a log that does not continue what was seen here, `KEY_UNKNOWN` if
                the coordinator does not know the witness, or any code of the pool.
            Unavailable: `UNREACHABLE` or `BUSY`.
        """
        with reach_log(self._folder, address, contact) as (reader, stub):
            signed = cosign(reader.head.note, self.key.name, self._identity, now=clock())
            stub.AddCosignature(AddCosignatureRequest(checkpoint=signed.encode()), timeout=DEADLINE_S)
            return Checkpoint(reader.head.size, reader.head.root, signed)
