"""A routed model in a folder of its own, by content, names kept; needs neither coordinator nor workspace.

greylag.json          base, routing and experts in pool order, all by digest
bundles/<digest>/     the experts as their contributors signed them
calibration           biases and temperatures of the routers, where the release has any
statistics/<digest>   what the pool tells of public text, where it tells any
base/                 the base model's files, if they were asked for

Bundles are kept rather than tensors as they run: who made an expert can still be checked, statistics come
along, and the model loads on another device, in another dtype or on a quantised base.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from protocol.bundle import Bundle, open_bundle, sha256_of
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.files.atomic import new_folder
from protocol.spec import BaseModelRef, Routing, Sha256, Version
from protocol.statement import Strict, read
from router.base.fingerprint import FILES, fingerprint, locate
from router.pool.calibration import Calibration
from router.pool.pool import ExpertPool

INDEX, BASE, BUNDLES, CALIBRATION, STATISTICS = "greylag.json", "base", "bundles", "calibration", "statistics"
_MAX_INDEX_BYTES = 1 << 24


class SavedExpert(Strict):
    """One expert, under the names that it had in its pool."""

    name: str
    contributor: str
    bundle: Sha256


class SavedModel(Strict):
    """The index of a saved routed model."""

    version: Version = 1
    base: BaseModelRef
    routing: Routing
    """What routes a request that asks for nothing else."""
    release: int
    """Number of the release; 0 for a model that was put together by hand."""
    calibration: Sha256 | None = None
    """sha256 of the file of that name."""
    statistics: Sha256 | None = None
    """Name and sha256 of the file in the folder of that name."""
    experts: list[SavedExpert]
    """In pool order, which decides ties."""

    @property
    def identity(self) -> str:
        """A sha256 that stands for every byte of experts, routing and base; the base may go by any name."""
        nameless = self.base.model_copy(update={"name": "-"})
        return hashlib.sha256(
            strict_json.dumps(self.model_copy(update={"base": nameless}).model_dump(mode="json"))
        ).hexdigest()


@dataclass(frozen=True)
class Saved:
    """A saved routed model that was read and checked."""

    index: SavedModel
    bundles: tuple[Bundle, ...]
    """In pool order."""
    base: Path | None
    """The base model's folder, where it was saved, too."""
    calibration: Calibration | None = None
    statistics: Path | None = None


def save(
    folder: Path,
    base: str,
    pool: ExpertPool,
    *,
    routing: Routing,
    release: int,
    with_base: bool,
    statistics: Path | None = None,
) -> str:
    """Write a routed model; the folder appears whole or not at all.

    Args:
        folder: Must not exist yet, or be empty.
        base: Folder or Hub id of the base model.
        pool: The experts, whose bundles must still lie where they were loaded from, and their calibration.
        routing: What routes a request that asks for nothing else.
        release: Number of the release; 0 for none.
        with_base: Whether to copy the base model's files, too; else whoever loads the model names them.
        statistics: What the pool tells of public text, in a file named by its sha256.

    Returns:
        The model's identity.

    Raises:
        Refused: `WORKSPACE_EXISTS` if there is something in the folder, `BASE_UNREADABLE`, `BUNDLE_UNKNOWN` or
            any other code of a bundle that is no longer what it was.
    """
    experts, calibration = pool.experts, pool.calibration
    listed = [SavedExpert(name=each.name, contributor=each.contributor, bundle=each.digest) for each in experts]
    index = SavedModel(
        base=fingerprint(base), routing=routing, release=release, experts=listed,
        calibration=calibration.digest if calibration else None, statistics=statistics.name if statistics else None,
    )  # fmt: skip
    with new_folder(folder) as partial:
        for expert in experts:
            source = _open_listed(expert.source, expert.digest).folder
            shutil.copytree(source, partial / BUNDLES / expert.digest)
        if calibration is not None:
            (partial / CALIBRATION).write_bytes(calibration.content)
        if statistics is not None:
            (partial / STATISTICS).mkdir()
            shutil.copyfile(statistics, partial / STATISTICS / statistics.name)
        if with_base:
            _copy_base(locate(base), partial / BASE)
        (partial / INDEX).write_bytes(strict_json.dumps(index.model_dump(mode="json")))
    return index.identity


def open_saved(folder: Path, *, expected: str | None = None) -> Saved:
    """Read a saved model and check every byte of its bundles.

    Args:
        folder: As `save` wrote it.
        expected: The identity that the model must have.

    Raises:
        Refused: `WORKSPACE_MISSING`, `DIGEST_MISMATCH`, `SPEC_INVALID`, or any code of a bundle.
    """
    path = folder / INDEX
    if not path.is_file():
        raise Refused(
            Code.WORKSPACE_MISSING, f"{folder} holds no saved model.", f"Give the folder in which {INDEX} lies."
        )
    value = strict_json.loads(path.read_bytes(), what=str(path), code=Code.SPEC_INVALID, max_bytes=_MAX_INDEX_BYTES)
    index = read(SavedModel, value, what=str(path))
    if expected is not None and index.identity != expected:
        raise Refused(
            Code.DIGEST_MISMATCH,
            f"{folder} holds model {index.identity[:16]}; expected {expected[:16]}.",
            "Save it again.",
        )
    bundles = tuple(_open_listed(folder / BUNDLES / expert.bundle, expert.bundle) for expert in index.experts)
    calibration = None if index.calibration is None else _open_calibration(folder / CALIBRATION, index.calibration)
    statistics = None if index.statistics is None else folder / STATISTICS / index.statistics
    if statistics and (not statistics.is_file() or sha256_of(statistics) != index.statistics):
        raise Refused(Code.DIGEST_MISMATCH, f"{statistics} is not what was saved.", "Save it again.")
    return Saved(index, bundles, folder / BASE if (folder / BASE).is_dir() else None, calibration, statistics)


def _open_calibration(path: Path, digest: str) -> Calibration:
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise Refused(Code.DIGEST_MISMATCH, f"{path} is not what was saved.", "Save it again.")
    return Calibration.load(content)


def _open_listed(folder: Path | None, digest: str) -> Bundle:
    if folder is None or not folder.is_dir():
        raise Refused(
            Code.BUNDLE_UNKNOWN,
            f"Bundle {digest[:16]} is not where it was loaded from.",
            "Load the model again from bundles that are on disk.",
        )
    bundle = open_bundle(folder)
    if bundle.digest != digest:
        raise Refused(
            Code.DIGEST_MISMATCH,
            f"{folder} holds bundle {bundle.digest[:16]}; expected {digest[:16]}.",
            "Save it again.",
        )
    return bundle


def _copy_base(source: Path, target: Path) -> None:
    target.mkdir()
    for pattern in FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
