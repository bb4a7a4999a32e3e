"""A router's folder: a pool, a release, its bundles, and what was fetched before.

pool.dsse.json        the pool, pinned at the first pull
release.dsse.json     the newest release that was fetched whole
releases/<number>...  every release that was fetched whole
bundles/<digest>/     its bundles; kept when a later release drops them
calibrations/<digest> biases and temperatures of its routers, where it has any
.fingerprint.json     what the base model is by content; may be deleted at any time
.pull.lock            held by the pull at work
"""

from dataclasses import dataclass
from pathlib import Path

from protocol.bundle import Bundle, SignedFile, check_file, open_bundle
from protocol.compatibility import check_fit
from protocol.documents import Pool, read_pool
from protocol.errors import Code, Refused
from protocol.release import Release, read_release
from router.pool.calibration import Calibration

POOL, RELEASE, BUNDLES, FINGERPRINT = "pool.dsse.json", "release.dsse.json", "bundles", ".fingerprint.json"
RELEASES, CALIBRATIONS, LOCK = "releases", "calibrations", ".pull.lock"


@dataclass(frozen=True)
class Mirror:
    """A release on disk with every bundle in it."""

    pool: Pool
    release: Release
    bundles: tuple[Bundle, ...]
    """In the release's order."""
    calibration: Calibration | None = None
    """What the release adds to the scores of gates."""


def open_mirror(folder: Path, number: int | None = None) -> Mirror:
    """Open what an earlier pull fetched; needs no network.

    Args:
        folder: Where releases are kept.
        number: A release; without one, the newest that was fetched.

    Raises:
        Refused: `WORKSPACE_MISSING`, `RELEASE_UNKNOWN`, or any code of a document or bundle.
    """
    if not (folder / RELEASE).is_file():
        raise Refused(
            Code.WORKSPACE_MISSING,
            f"{folder.resolve()} holds no release yet.",
            "Fetch one with: greylag-router pull --coordinator HOST:PORT --base MODEL",
        )
    path = folder / RELEASE if number is None else kept(folder, number)
    if not path.is_file():
        numbers = sorted(int(each.name.partition(".")[0]) for each in path.parent.glob("*.dsse.json"))
        raise Refused(
            Code.RELEASE_UNKNOWN,
            f"Release {number} was never fetched to {folder.resolve()}; these were: {', '.join(map(str, numbers))}.",
            "Ask for one of them, or leave the release out to take the newest.",
        )
    pool = read_pool((folder / POOL).read_bytes())
    release = read_release(path.read_bytes(), pool)
    bundles = tuple(open_listed(folder / BUNDLES / expert.bundle, pool) for expert in release.spec.experts)
    file, calibration = release.spec.calibration, None
    if file is not None:
        path = folder / CALIBRATIONS / file.sha256
        check_file(path, SignedFile(file.sha256, file.size))
        calibration = Calibration.load(path.read_bytes())
    return Mirror(pool, release, bundles, calibration)


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
