"""Do the registry's rows still say what was signed? A disk that changes a byte changes no signature with it."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from coordinator.registry.tables import (
    BundleFile,
    BundleRow,
    Candidate,
    Contributor,
    RegistryTable,
    ReleaseRow,
    Upload,
)
from coordinator.registry.transactions import Transactions
from protocol.bundle import read_manifest
from protocol.documents import Pool, read_enrolment, read_receipt
from protocol.errors import Code, GreylagError, Unavailable
from protocol.release import read_candidate, read_release

Row = TypeVar("Row")
Beside = TypeVar("Beside")
_HINT = "Restore the registry from a copy, then run: greylag-coordinator fsck"


def check_rows(registry: Transactions, pool: Pool) -> None:
    """Hold the database against itself, and every signed document in it against its row.

    Raises:
        Unavailable: `STORE_DAMAGED`, naming a few of the faults.
    """
    try:
        with registry.reading() as session:
            faults = [*_unsound(session), *_contradicted(session, pool)]
    except (ValueError, LookupError, TypeError) as error:  # what is no text, number or state any more
        faults = [f"The database cannot be read: {error!r:.100}."]
    if faults:
        shown, more = " ".join(faults[:5]), len(faults) - 5
        what = f"The registry is damaged. {shown}" + (f" And {more} more." if more > 0 else "")
        raise Unavailable(Code.STORE_DAMAGED, what, _HINT)


def _unsound(session: Session) -> Iterator[str]:
    """Ask the database whether its pages and indexes are in order, where it can tell."""
    if session.get_bind().dialect.name == "sqlite":
        for (line,) in session.execute(text("PRAGMA integrity_check(5)")):
            if line != "ok":
                yield f"SQLite says: {line!r:.100}."
        for table, *_ in session.execute(text("PRAGMA foreign_key_check")):
            yield f"A row of {table!r:.40} names another that is not there."
    for each in RegistryTable.metadata.sorted_tables:
        for _ in session.execute(select(each)):  # every word is text, every number one
            pass


def _contradicted(session: Session, pool: Pool) -> Iterator[str]:
    files: dict[str, dict[str, tuple[str, int]]] = {}
    for file in session.scalars(select(BundleFile)):
        files.setdefault(file.bundle, {})[file.name] = file.sha256, file.size
    for bundle in session.scalars(select(BundleRow)):
        yield from _fault(f"bundle {bundle.digest[:16]}", _is_bundle, bundle, files.get(bundle.digest))
        yield from _fault(f"receipt {bundle.sequence}", _is_receipt, bundle, pool)
    for key in session.scalars(select(Contributor)):
        yield from _fault(f"key {key.key[:16]}", _is_enrolment, key, pool)
    for upload in session.scalars(select(Upload)):
        yield from _fault(f"upload {upload.digest[:16]}", _is_upload, upload, pool)
    for release in session.scalars(select(ReleaseRow)):
        yield from _fault(f"release {release.number}", _is_release, release, pool)
    for candidate in session.scalars(select(Candidate)):
        yield from _fault(f"candidate {candidate.sequence}", _is_candidate, candidate, pool)


def _fault(what: str, holds: Callable[[Row, Beside], bool], row: Row, beside: Beside) -> Iterator[str]:
    try:
        if not holds(row, beside):
            yield f"The {what} is another than was signed."
    except GreylagError as error:
        yield f"The {what}: {error.message}"


def _is_bundle(row: BundleRow, held: dict[str, tuple[str, int]] | None) -> bool:
    manifest = read_manifest(row.envelope)
    signed = {name: (file.sha256, file.size) for name, file in manifest.files.items()}
    return (manifest.digest, manifest.spec.name, signed) == (row.digest, row.name, held)


def _is_receipt(row: BundleRow, pool: Pool) -> bool:
    receipt = read_receipt(row.receipt, pool)
    said = receipt.bundle, receipt.sequence, receipt.received, receipt.contributor
    # The receipt names the key that signed the bundle, which a later one of its contributor may be.
    return said == (row.digest, row.sequence, row.received, read_manifest(row.envelope).spec.contributor)


def _is_enrolment(row: Contributor, pool: Pool) -> bool:
    enrolment = read_enrolment(row.envelope)
    return (enrolment.pool, enrolment.key, enrolment.name) == (pool.digest, row.key, row.name)


def _is_release(row: ReleaseRow, pool: Pool) -> bool:
    release = read_release(row.envelope, pool)
    return (release.digest, release.spec.number) == (row.digest, row.number)


def _is_upload(row: Upload, pool: Pool) -> bool:
    manifest = read_manifest(row.envelope)
    return (manifest.digest, manifest.spec.pool) == (row.digest, pool.digest)


def _is_candidate(row: Candidate, pool: Pool) -> bool:
    return read_candidate(row.envelope, pool).digest == row.digest
