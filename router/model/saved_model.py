"""A routed model in a folder of its own, by content, names kept; needs neither coordinator nor workspace.

greylag.json          base, routing and experts in pool order, all by digest
bundles/<digest>/     the experts as their contributors signed them
calibration           biases and temperatures of the routers, where the release has any
statistics/<digest>   what the pool tells of public text, where it tells any
base/                 the base model's files, if they were asked for
model.sig             a signature over all of these, if a key was given (`protocol.openssf.model_signature`)

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
from protocol.openssf.model_signature import ModelSigner, sign_model
from protocol.spec import BaseModelRef, Routing, Sha256, Version
from protocol.statement import Strict, read
from router.base.fingerprint import FILES, fingerprint, locate
from router.base.progress import bar
from router.model.releases import Generation
from router.pool.calibration import Calibration

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
        nameless = self.model_copy(update={"base": self.base.model_copy(update={"name": "-"})})
        # Without what it does not have, so that a model that was saved before there was any keeps its identity.
        hidden = {"statistics"} if self.statistics is None else set()
        return hashlib.sha256(strict_json.dumps(nameless.model_dump(mode="json", exclude=hidden))).hexdigest()


@dataclass(frozen=True)
class Saved:
    """A saved routed model that was read and checked."""

    index: SavedModel
    bundles: tuple[Bundle, ...]
    """In pool order."""
    base: Path | None
    """The base model's folder, where it was saved, too."""
    calibration: Calibration | None
    statistics: Path | None


def save(
    folder: Path,
    base: str,
    generation: Generation,
    *,
    with_base: bool,
    statistics: Path | None,
    signer: ModelSigner | None = None,
) -> str:
    """Write a routed model and return its identity; the folder must be new, and appears whole or not at all.

    Args:
        folder: Where to.
        base: Folder or Hub id of the base model.
        generation: What answers; its experts' bundles must still lie where they were loaded from.
        with_base: Whether to copy the base model's files, too; else whoever loads the model names them.
        statistics: What the pool tells of public text, if it does, in a file named by its sha256.
        signer: Signs the folder, if it is to be signed.

    Raises:
        Refused: `WORKSPACE_EXISTS` if there is something in the folder, `BASE_UNREADABLE`, `BUNDLE_UNKNOWN` or
            any other code of a bundle that is no longer what it was.
    """
    experts, calibration = generation.pool.experts, generation.pool.calibration
    index = SavedModel(
        base=fingerprint(base),
        routing=generation.settings,
        release=generation.release,
        experts=[SavedExpert(name=each.name, contributor=each.contributor, bundle=each.digest) for each in experts],
        calibration=calibration.digest if calibration else None,
        statistics=statistics.name if statistics else None,
    )
    with new_folder(folder) as partial:
        for expert in experts:
            source = _open_listed(expert.source, expert.digest).folder
            shutil.copytree(source, partial / BUNDLES / expert.digest)
        if calibration is not None:
            (partial / CALIBRATION).write_bytes(calibration.content)
        if statistics is not None:
            (partial / STATISTICS).mkdir()
            shutil.copyfile(_checked(statistics, statistics.name), partial / STATISTICS / statistics.name)
        if with_base:
            (partial / BASE).mkdir()
            for pattern in FILES:
                for file in locate(base).glob(pattern):
                    shutil.copyfile(file, partial / BASE / file.name)
        (partial / INDEX).write_bytes(strict_json.dumps(index.model_dump(mode="json")))
        if signer is not None:
            sign_model(partial, signer, name=folder.resolve().name)
    return index.identity


def open_saved(folder: Path, *, expected: str | None = None) -> Saved:
    """Read what `save` wrote, and check every byte of its bundles, and its identity, where one is expected.

    Raises:
        Refused: `WORKSPACE_MISSING`, `DIGEST_MISMATCH`, `SPEC_INVALID`, or any code of a bundle.
    """
    path = folder / INDEX
    if not path.is_file():
        hint = f"Give the folder in which {INDEX} lies."
        raise Refused(Code.WORKSPACE_MISSING, f"{folder} holds no saved model.", hint)
    value = strict_json.loads(path.read_bytes(), what=str(path), code=Code.SPEC_INVALID, max_bytes=_MAX_INDEX_BYTES)
    index = read(SavedModel, value, what=str(path))
    if expected is not None and index.identity != expected:
        raise _other(f"{folder} holds model {index.identity[:16]}; expected {expected[:16]}.")
    listed = bar((expert.bundle for expert in index.experts), "Reading experts", len(index.experts))
    bundles = tuple(_open_listed(folder / BUNDLES / digest, digest) for digest in listed)
    calibration = statistics = None
    if index.calibration is not None:
        calibration = Calibration.load(_checked(folder / CALIBRATION, index.calibration).read_bytes())
    if index.statistics is not None:
        statistics = _checked(folder / STATISTICS / index.statistics, index.statistics)
    return Saved(index, bundles, folder / BASE if (folder / BASE).is_dir() else None, calibration, statistics)


def _checked(path: Path, digest: str) -> Path:
    if not path.is_file() or sha256_of(path) != digest:
        raise _other(f"{path} is not what was saved.")
    return path


def _open_listed(folder: Path | None, digest: str) -> Bundle:
    if folder is None or not folder.is_dir():
        raise Refused(
            Code.BUNDLE_UNKNOWN,
            f"Bundle {digest[:16]} is not where it was loaded from.",
            "Load the model again from bundles that are on disk.",
        )
    bundle = open_bundle(folder)
    if bundle.digest != digest:
        raise _other(f"{folder} holds bundle {bundle.digest[:16]}; expected {digest[:16]}.")
    return bundle


def _other(reason: str) -> Refused:
    return Refused(Code.DIGEST_MISMATCH, reason, "Save it again.")
