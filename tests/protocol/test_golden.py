"""What version 1 of the wire ever looked like stays readable for ever."""

import os
from collections.abc import Callable
from pathlib import Path

from protocol import documents, release, statement
from protocol.bundle import BUNDLE_TYPE, FILES, read_manifest
from protocol.documents import ENROLMENT_TYPE, RECEIPT_TYPE, Enrolment, Receipt
from protocol.spec import ExpertSpec
from protocol.statement import Strict
from tests.protocol import samples
from tests.protocol.samples import CONTRIBUTOR, COORDINATOR, CREATED

FOLDER = Path(__file__).parent / "golden" / "v1"


class BundlePredicate(Strict):
    """As the bundle's, whose own is private."""

    spec: ExpertSpec
    sizes: dict[str, int]


def bundle() -> bytes:
    sizes = {name: number + 1 for number, name in enumerate(FILES)}
    subjects = {name: f"{number:064x}" for number, name in enumerate(FILES)}
    return CONTRIBUTOR.sign(statement.build(BUNDLE_TYPE, subjects, BundlePredicate(spec=samples.expert(), sizes=sizes)))


def enrolment() -> bytes:
    key = CONTRIBUTOR.public.hex
    document = Enrolment(pool=samples.pool().digest, name="alice", key=key, created=CREATED)
    return documents.sign(ENROLMENT_TYPE, {"pool": document.pool}, document, CONTRIBUTOR)


def receipt() -> bytes:
    key = CONTRIBUTOR.public.hex
    document = Receipt(pool=samples.pool().digest, bundle="4" * 64, contributor=key, sequence=1, received=CREATED)
    return documents.sign(RECEIPT_TYPE, {"bundle": "4" * 64}, document, COORDINATOR)


WRITE: dict[str, Callable[[], bytes]] = {
    "pool": lambda: samples.pool().envelope,
    "release": lambda: release.sign_release(samples.release(), COORDINATOR).envelope,
    "bundle": bundle,
    "enrolment": enrolment,
    "receipt": receipt,
}


def golden(kind: str) -> bytes:
    path = FOLDER / f"{kind}.dsse.json"
    if os.environ.get("GREYLAG_UPDATE") == "1" and not path.exists():  # the past is never rewritten
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WRITE[kind]())
    return path.read_bytes()


def test_documents_of_version_1_are_read() -> None:
    pool = documents.read_pool(golden("pool"), COORDINATOR.public)
    assert (pool.spec.name, pool.spec.created) == ("pool", CREATED)
    assert release.read_release(golden("release"), pool).spec.experts[0].bundle == "4" * 64
    assert documents.read_receipt(golden("receipt"), pool).sequence == 1
    assert documents.read_enrolment(golden("enrolment")).name == "alice"
    manifest = read_manifest(golden("bundle"))
    assert (manifest.spec.pool, manifest.spec.modules) == (pool.digest, samples.MODULES)


def test_a_bundle_of_version_1_keeps_its_identity() -> None:
    assert read_manifest(golden("bundle")).digest == "503bbd86193da5ede73f5ffd7eb72bb6b95574c277059063f179b3472e719dca"
