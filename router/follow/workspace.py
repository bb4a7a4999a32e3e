"""A router's folder: a pool, a release, its bundles, and what was fetched before.

pool.dsse.json        the pool, pinned at the first pull
release.dsse.json     the newest release that was fetched whole and, where a model runs, taken up
releases/<number>...  every such release
bundles/<digest>/     its bundles; kept when a later release drops them
calibrations/<digest> biases and temperatures of its routers, and its cap, where it has any
statistics/<digest>   what the pool tells of public text, where it tells any
trusted/              what was seen of the pool's roles, as python-tuf keeps it
roots/                roots again, which say whose keys have the coordinator's duties
checkpoint.txt        the last checkpoint of the pool's log that was seen
.fingerprint.json     what the base model is by content; may be deleted at any time
.pull.lock            held by the pull at work
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from protocol.bundle import Bundle, SignedFile, check_file, open_bundle
from protocol.compatibility import check_fit
from protocol.documents import Pool, read_pool
from protocol.errors import Code, Refused
from protocol.release import Release, read_release
from protocol.roles.chain import with_duties
from router.base.progress import bar
from router.pool.calibration import Calibration, added

POOL, RELEASE, BUNDLES, FINGERPRINT = "pool.dsse.json", "release.dsse.json", "bundles", ".fingerprint.json"
RELEASES, CALIBRATIONS, STATISTICS, LOCK = "releases", "calibrations", "statistics", ".pull.lock"
CHECKPOINT, TRUSTED, ROOTS = "checkpoint.txt", "trusted", "roots"


@dataclass(frozen=True)
class Mirror:
    """A release on disk with every bundle in it."""

    pool: Pool
    release: Release
    bundles: tuple[Bundle, ...]
    """In the release's order."""
    calibration: Calibration | None = None
    """What the release adds to the scores of gates."""
    statistics: Path | None = None
    """What the pool tells of public text, in a file named by its digest."""


class Checked(NamedTuple):
    """What a look at a folder found."""

    held: int
    """Bundles and other files that its releases and its pool list."""
    read: int
    """How many of them were read."""
    damaged: dict[str, Refused]
    """What is wrong, by digest."""


def check_disk(folder: Path, sample: int | None = None) -> Checked:
    """Read again, byte by byte, what earlier pulls fetched; needs no network.

    Args:
        folder: Where releases are kept.
        sample: How many bundles and other files, drawn at random; without it, all of them.

    Raises:
        Refused: `WORKSPACE_MISSING`, or any code of a document: of the pool, or of a release.
    """
    pool, files = _open_pool(folder), dict[Path, SignedFile | None]()
    for envelope in (folder / RELEASES).glob("*.dsse.json"):
        release = read_release(envelope.read_bytes(), pool)
        files |= dict.fromkeys(folder / BUNDLES / expert.bundle for expert in release.spec.experts)
        files |= listed_files(folder, pool, release)
    drawn = random.sample(list(files), min(sample or len(files), len(files)))
    damaged = {}
    for path in drawn:
        try:
            if (file := files[path]) is None:
                open_listed(path, pool)
            else:
                _check_listed(path, file)
        except Refused as error:
            damaged[path.name] = error
    return Checked(len(files), len(drawn), damaged)


def open_mirror(folder: Path, number: int | None = None) -> Mirror:
    """Open what an earlier pull fetched; needs no network.

    Args:
        folder: Where releases are kept.
        number: A release; without one, the newest that was fetched.

    Raises:
        Refused: `WORKSPACE_MISSING`, `RELEASE_UNKNOWN`, or any code of a document or bundle.
    """
    pool = _open_pool(folder)
    path = folder / RELEASE if number is None else kept(folder, number)
    if not path.is_file():
        numbers = sorted(int(each.name.partition(".")[0]) for each in path.parent.glob("*.dsse.json"))
        raise Refused(
            Code.RELEASE_UNKNOWN,
            f"Release {number} was never fetched to {folder.resolve()}; these were: {', '.join(map(str, numbers))}.",
            "Ask for one of them, or leave the release out to take the newest.",
        )
    release = read_release(path.read_bytes(), pool)
    listed = bar(release.spec.experts, "Reading experts")
    bundles = [open_listed(folder / BUNDLES / expert.bundle, pool) for expert in listed]
    for each, file in listed_files(folder, pool, release).items():
        if each.parent.name != STATISTICS or each.exists():
            _check_listed(each, file)
    return assemble(folder, pool, release, bundles)


def listed_files(folder: Path, pool: Pool, release: Release) -> dict[Path, SignedFile]:
    """Return what a pool and a release list beside bundles, by where it lies."""
    spec, told = release.spec, pool.spec.statistics
    listed = [(STATISTICS, told), (CALIBRATIONS, spec.calibration), (CALIBRATIONS, spec.cap)]
    return {folder / where / file.sha256: SignedFile(file.sha256, file.size) for where, file in listed if file}


def assemble(folder: Path, pool: Pool, release: Release, bundles: Iterable[Bundle]) -> Mirror:
    """Put together what lies in a folder whole, and was checked."""
    spec, told = release.spec, pool.spec.statistics
    biases = [(folder / CALIBRATIONS / file.sha256).read_bytes() for file in (spec.calibration, spec.cap) if file]
    statistics = folder / STATISTICS / told.sha256 if told else None
    return Mirror(
        pool,
        release,
        tuple(bundles),
        added(*map(Calibration.load, biases)),
        # The coordinator may have lost it; then it is worked out here.
        statistics if statistics and statistics.is_file() else None,
    )


def _open_pool(folder: Path) -> Pool:
    if not (folder / RELEASE).is_file():
        raise Refused(
            Code.WORKSPACE_MISSING,
            f"{folder.resolve()} holds no release yet.",
            "Fetch one with: greylag-router pull --coordinator HOST:PORT --base MODEL",
        )
    return with_duties(read_pool((folder / POOL).read_bytes()), folder / ROOTS)


def _check_listed(path: Path, file: SignedFile) -> None:
    if not path.is_file():
        raise Refused(Code.FILE_MISSING, f"{path} is missing.", "Fetch it again with: greylag-router pull")
    check_file(path, file)


def kept(folder: Path, number: int) -> Path:
    """Return the file in which a release is kept for good."""
    return folder / RELEASES / f"{number}.dsse.json"


def open_listed(folder: Path, pool: Pool) -> Bundle:
    """Open a bundle whose folder is named by its digest.

    Raises:
        Refused: `DIGEST_MISMATCH`, or any code of a bundle.
    """
    bundle = open_bundle(folder)
    if bundle.digest != folder.name:
        raise Refused(
            Code.DIGEST_MISMATCH,
            f"{folder} holds another bundle than the release lists.",
            "Fetch it again with: greylag-router pull",
        )
    check_fit(bundle.manifest, pool)
    return bundle
