"""The largest singular value of each of a base's weights, worked out once and kept beside its fingerprint."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from protocol.files.atomic import write_whole
from router.base.fingerprint import fingerprint
from router.base.linear import Linear, weight_of
from router.base.progress import bar
from router.pool.norms import spectral_norm

_LEAST = 0.01
"""Of the base's median: a weight of nearly nothing may be changed by more than itself."""


def base_norms(linears: Mapping[str, Linear], source: str, cache: Path | None = None) -> dict[str, float]:
    """Measure a base's linear modules; a minute for three billion parameters, nothing the second time.

    Args:
        linears: By path.
        source: Folder or Hub id that the base was loaded from.
        cache: The file that keeps the base's fingerprint; None keeps nothing.

    Returns:
        By path, none below a hundredth of their median.

    Raises:
        Refused: `KIND_UNSUPPORTED` for weights that cannot be read, or `BASE_UNREADABLE`.
    """
    place = cache and cache.with_name(f"norms-{fingerprint(source, cache).weights[:16]}.json")
    if place is None or (found := _kept(place, linears)) is None:
        measured = bar(linears.items(), "Measuring the base", len(linears))
        found = {path: spectral_norm(weight_of(linear, path)) for path, linear in measured}
        if place is not None:
            write_whole(place, json.dumps(found).encode())
    least = _LEAST * median(found.values())
    return {path: max(norm, least) for path, norm in found.items()}


def _kept(place: Path, linears: Mapping[str, Linear]) -> dict[str, float] | None:
    """Read what was written for these modules; None for nothing, or for what does not hold a number for each."""
    try:
        found = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.keys() == linears.keys()
    return found if whole and all(isinstance(norm, float) for norm in found.values()) else None
