"""What this contributor has submitted: one small file a bundle, replaced whole."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from protocol import compatibility, statement
from protocol.compatibility import Submitted
from protocol.documents import Receipt
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.files.atomic import write_whole
from protocol.log.reader import Logged
from protocol.spec import Name, Sha256, Timestamp
from protocol.statement import Strict

REFUSED = "refused"


class Record(Strict):
    """A submitted bundle and the last that was heard of it."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    digest: Sha256
    name: Name
    sequence: int
    """The coordinator's count of receipts; orders a contributor's own bundles."""
    received: Timestamp
    receipt: str
    """The receipt's signed envelope: proof that the coordinator keeps the bundle."""
    logged: Logged | None = None
    """Proof that the pool's log holds it; None until it was asked."""
    state: str = "received"
    code: str = ""
    message: str = ""
    hint: str = ""
    release: int = 0
    """First release that holds the bundle; 0 for none yet."""


def submitted(name: str, receipt: Receipt, envelope: bytes) -> Record:
    """Make the record of a bundle that has just been received."""
    return Record(
        digest=receipt.bundle,
        name=name,
        sequence=receipt.sequence,
        received=receipt.received,
        receipt=envelope.decode(),
    )


def save(folder: Path, record: Record) -> None:
    """Keep a record."""
    write_whole(folder / f"{record.digest}.json", strict_json.dumps(record.model_dump(mode="json", by_alias=True)))


def load(folder: Path) -> list[Record]:
    """Read all records, oldest first.

    Raises:
        Refused: `SPEC_INVALID` for a record that was damaged.
    """
    return sorted((_read(path) for path in folder.glob("*.json")), key=lambda record: record.sequence)


def predecessor(records: list[Record], name: str) -> str | None:
    """Return the digest of what the next bundle of a name supersedes."""
    return compatibility.predecessor([Submitted(each.digest, each.state) for each in records if each.name == name])


def _read(path: Path) -> Record:
    value = strict_json.loads(path.read_bytes(), what=path.name, code=Code.SPEC_INVALID)
    try:
        return statement.read(Record, value, what=f"The outbox record {path.name}")
    except Refused as error:
        raise Refused(error.code, error.message, f"Remove {path} and run greylag-client submit again.") from error
