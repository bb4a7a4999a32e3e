"""What the log's entries say: one step of a key, a bundle, a decision or a release, and no name, reason or data."""

from typing import Annotated

from pydantic import Field

from protocol import statement
from protocol.errors import Code
from protocol.files import strict_json
from protocol.statement import Strict

MAX_LEAF_BYTES = 1 << 10
Word = Annotated[str, Field(max_length=64)]


class LogLeaf(Strict):
    """One entry."""

    number: Annotated[int, Field(ge=1)]
    """Its place in the log, from 1."""
    at: Word
    """When, by the coordinator's clock; never earlier than the entry before."""
    kind: Word
    """What it is about: pool, invite, contributor (a key), node, bundle, check (of a bundle), candidate, release,
    campaign, act (of operators)."""
    subject: Word
    """The key or the digest."""
    step: Word
    """What became of it; a release's number."""
    actor: Word
    """Who decided: contributor, worker, rule or operator."""
    code: Word
    """Why, for what was refused, yanked or held back; empty otherwise."""

    def encode(self) -> bytes:
        """Write it as the log hashes it."""
        return strict_json.dumps(self.model_dump())


def read_leaf(raw: bytes) -> LogLeaf:
    """Read an entry (`SPEC_INVALID`)."""
    what = "The log's entry"
    value = strict_json.loads(raw, what=what, code=Code.SPEC_INVALID, max_bytes=MAX_LEAF_BYTES)
    return statement.read(LogLeaf, value, what=what)
