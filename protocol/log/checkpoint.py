"""Checkpoints (https://c2sp.org/tlog-checkpoint): how large a log is, and its root, signed.

The log's name, its *origin*, is made of the pool's digest, and a key with that duty signs.
"""

import base64
import re
from dataclasses import dataclass

from protocol.documents import Duty, Pool
from protocol.errors import Code, Refused
from protocol.log.note import Note, NoteKey, SignatureType, malformed, sign_note
from protocol.signing import Identity

_TEXT = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,15})\n([A-Za-z0-9+/]{43}=)\n")


@dataclass(frozen=True)
class Checkpoint:
    """A log's head."""

    size: int
    """Entries."""
    root: bytes
    note: Note
    current: bool = True
    """Whether the key signed it that has the duty now, and not one before it."""

    def text(self) -> str:
        """The signed note as text, for documents and files."""
        return self.note.encode().decode()


def origin(pool: str) -> str:
    """Name the log of a pool, given by its digest."""
    return f"greylag.org/log/{pool}"


def log_keys(pool: Pool) -> tuple[NoteKey, ...]:
    """The keys that sign, and signed, a pool's checkpoints, newest first."""
    return tuple(NoteKey(origin(pool.digest), key, SignatureType.LOG) for key in pool.keys(Duty.LOG))


def sign_checkpoint(pool: Pool, size: int, root: bytes, identity: Identity) -> Checkpoint:
    """Sign a log's head."""
    name = origin(pool.digest)
    return Checkpoint(size, root, sign_note(f"{name}\n{size}\n{base64.b64encode(root).decode()}\n", name, identity))


def read_checkpoint(raw: bytes, pool: Pool) -> Checkpoint:
    """Verify a checkpoint of a pool's log, by a key that has or had that duty.

    Raises:
        Refused: `SPEC_INVALID`, `WRONG_POOL` or `BAD_SIGNATURE`.
    """
    note = Note.parse(raw)
    if (found := _TEXT.fullmatch(note.text)) is None:
        raise malformed("it does not say origin, size and root, each in a line")
    root = base64.b64decode(found[3])
    if base64.b64encode(root).decode() != found[3]:
        raise malformed("its root is not in base64")
    if found[1] != origin(pool.digest):
        raise Refused(Code.WRONG_POOL, "The checkpoint is another log's.", "Tell the pool's operator.")
    keys = log_keys(pool)
    by = next((key for key in keys if note.signed_by(key)), keys[0])
    note.verify(by)
    return Checkpoint(int(found[2]), root, note, by == keys[0])
