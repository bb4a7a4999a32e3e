"""Is an expert new? It is held against everything that was ever received, by what it adds and not by its bytes."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import structlog

from coordinator.admission import limited_process
from coordinator.admission.limited_process import CheckFailedError, ProcessLimits
from coordinator.admission.sketch import nearness, touched
from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from coordinator.registry.sketches import Known
from coordinator.registry.tables import BundleRow
from coordinator.review.bundle_cache import Cache
from protocol.bundle import Bundle
from protocol.compatibility import HOLDING
from protocol.documents import Pool
from protocol.errors import Code, GreylagError, Refused

COPY, NEAR = 0.9, 0.5
"""From which mean cosine of updates on, whatever its sign, an expert is a copy of another, or near one."""
_SUSPECT, _MOST_SUSPECTS = 0.3, 8
"""From which nearness by sketches on the weights themselves are compared, and of how many, the nearest first."""
PURPOSE = b"greylag sketches of experts, 1"
_log = structlog.get_logger(__name__)


class Near(NamedTuple):
    """An earlier bundle, and how much of the smaller of the two is the other's, 0 to 1."""

    known: Known
    share: float


class Copies:
    """Checks the content of bundles, and then whether they are copies.

    Args:
        pool: The pool.
        pool_file: Its signed document.
        registry: Rows.
        cache: Opens earlier bundles.
        secret: Draws the sketches.
        limits: What each process may use.
    """

    def __init__(
        self,
        pool: Pool,
        pool_file: Path,
        registry: Registry,
        cache: Cache,
        secret: bytes,
        limits: ProcessLimits,
    ) -> None:
        self._pool, self._pool_file, self._registry, self._cache = pool, pool_file, registry, cache
        self._secret, self._limits = secret, limits

    def check(self, bundle: Bundle) -> Refused | None:
        """Check a bundle's content, compare the expert, and say why a person must decide about it, if one must.

        Raises:
            Refused: As `check_content`, or `COPY_OF` or `QUOTA`.
            CheckFailedError: No verdict.
        """
        sketch = limited_process.check(bundle.folder, self._pool_file, self._limits, secret=self._secret)
        self._catch_up()
        row = self._registry.bundles.find(bundle.digest)
        if row is None:
            raise LookupError(f"bundle {bundle.digest} has no row")
        near = self._near(bundle, sketch, self._registry.sketches.before(row.sequence))
        suspicion = judge_copies(row, near, self._pool.spec.policy.max_experts_per_contributor)
        self._registry.sketches.keep(bundle.digest, sketch)
        return suspicion

    def _near(self, bundle: Bundle, sketch: bytes, earlier: Sequence[Known]) -> list[Near]:
        """Measure by sketches, and the nearest again by their weights, where those are still there."""
        if not earlier:
            return []
        mine, theirs = self._rows(sketch), np.stack([self._rows(known.sketch) for known in earlier])
        cosines = np.einsum("nmk,mk->nm", theirs, mine)
        shares = nearness(cosines, touched(mine), touched(theirs))
        order = np.argsort(-shares, kind="stable")
        found = [Near(earlier[place], float(shares[place])) for place in order if shares[place] >= _SUSPECT]
        exact = [Near(near.known, self._exactly(bundle, near)) for near in found[:_MOST_SUSPECTS]]
        return exact + found[_MOST_SUSPECTS:]

    def _rows(self, sketch: bytes) -> np.ndarray:
        return np.frombuffer(sketch, np.float16).reshape(len(self._pool.spec.modules), -1).astype(np.float32)

    def _exactly(self, bundle: Bundle, near: Near) -> float:
        row = self._registry.bundles.find(near.known.digest)
        try:
            if row is not None:
                return limited_process.compare(bundle.folder, self._cache.open(row).folder, self._pool_file)
        except (GreylagError, CheckFailedError):
            _log.info("compared by sketch", bundle=bundle.digest, other=near.known.digest)
        finally:
            if near.known.state not in HOLDING:
                self._cache.drop(near.known.digest)
        return near.share

    def _catch_up(self) -> None:
        """Sketch what an older version let in, as far as its bytes are there."""
        for row in self._registry.sketches.missing():
            with suppress(GreylagError, CheckFailedError):
                folder = self._cache.open(row).folder
                content = limited_process.sketch(folder, self._pool_file, secret=self._secret)
                self._registry.sketches.keep(row.digest, content)
            if row.state not in HOLDING:
                self._cache.drop(row.digest)


def judge_copies(row: BundleRow, near: Sequence[Near], most: int) -> Refused | None:
    """Decide what a bundle may be that is near to earlier ones.

    A contributor's expert may be like his own: it supersedes that one, or comes after it. What was refused or yanked
    stays out, whoever brings it. Experts near to each other count as those of one contributor.

    Args:
        row: The new bundle.
        near: Those it is near to.
        most: How many experts one contributor may hold.

    Returns:
        Why it waits for a person; None if it need not.

    Raises:
        Refused: `COPY_OF`, or `QUOTA` for the second place of one's own expert, or for too many near ones.
    """
    theirs = [each for each in near if not _may_be_alike(row, each.known)]
    first = max(theirs, key=lambda each: each.share, default=None)
    if first and first.share >= COPY:
        hint = "Submit an expert that you trained yourself, on data of your own."
        raise Refused(Code.COPY_OF, _sentence("It is a copy of", first), hint)
    own = next((e for e in near if e.share >= COPY and e.known.contributor == row.contributor and _other(row, e)), None)
    if own:
        what = _sentence("One expert has one place, and this is a copy of your own", own)
        raise Refused(Code.QUOTA, what, f"Supersede that one, under the name {own.known.name}.")
    held = [each for each in theirs if each.share >= NEAR and each.known.state in HOLDING]
    if len(held) >= most:
        what = f"It is near to {len(held)} experts of others, and {most} such ones have room."
        raise Refused(Code.QUOTA, what, "Submit an expert that you trained yourself, on data of your own.")
    if first and first.share >= NEAR:
        return Refused(Code.NEAR_COPY, _sentence("Much of it is that of", first), "The pool's operator decides.")
    return None


def _may_be_alike(row: BundleRow, known: Known) -> bool:
    return row.contributor == known.contributor and known.state not in (State.REFUSED, State.YANKED)


def _other(row: BundleRow, near: Near) -> bool:
    """Whether it is of another name, and holds that."""
    return near.known.name != row.name and near.known.state in HOLDING


def _sentence(start: str, near: Near) -> str:
    known = near.known
    whose = f"{known.name} by {known.called}, which is {known.state}"
    return f"{start} bundle number {known.sequence} ({whose}): mean cosine of updates {near.share:.2f}."
