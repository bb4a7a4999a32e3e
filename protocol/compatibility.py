"""Is a bundle one of a pool's, and does it hold what its spec says?

The envelope alone decides the first, before a byte is stored: a coordinator asks it of what it is to
take in, and a router of what it is to fetch; what a release lists is not for that reason fit to load.
Which bundle of a contributor the next one of its name supersedes is decided here for both sides, too.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

from protocol import adapter_config, tensors
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATES, Bundle, Manifest, check_canonical
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.spec import Centroid, PoolSpec

_LENGTH_FIELD_BYTES, _SMALLEST_HEADER_BYTES = 8, 2
MAX_MEAN = 65504.0
"""Largest number in a mean input: what float16 holds, in which every base can run."""
_MIN_GATE_STD, _ROUNDING = 1e-8, 1e-6

HOLDING = frozenset({"received", "verified", "quarantined", "accepted", "released"})
"""States in which a bundle holds its name."""


class Submitted(NamedTuple):
    """A bundle that its contributor submitted, as far as its name's next one is concerned."""

    digest: str
    state: str
    """The last that is known."""


def predecessor(earlier: Sequence[Submitted]) -> str | None:
    """Say which bundle the next one of a name supersedes: the newest that holds the name; None if it is free.

    Args:
        earlier: All that one contributor submitted under one name, oldest first.
    """
    return next((bundle.digest for bundle in reversed(earlier) if bundle.state in HOLDING), None)


def check_succession(name: str, supersedes: str | None, earlier: Sequence[Submitted]) -> None:
    """Hold what a new bundle supersedes against what was submitted under its name.

    Whatever came after the one that holds the name may be named, too, and anything where none does: a contributor who
    has not heard yet that it was refused or yanked knows of nothing that could be lost.

    Raises:
        Refused: `SUPERSEDES_UNKNOWN` or `VERSION_REUSED`.
    """
    current, digests = predecessor(earlier), [each.digest for each in earlier]
    if supersedes == current or supersedes in digests[digests.index(current) if current else 0 :]:
        return
    if supersedes is None:
        what = f"The name {name!r} is in use by bundle {str(current)[:16]}."
        raise Refused(Code.VERSION_REUSED, what, "Choose another name, or say that the new bundle supersedes that one.")
    raise Refused(
        Code.SUPERSEDES_UNKNOWN,
        f"{supersedes[:16]} is not this contributor's current bundle named {name!r}; "
        + (f"{current[:16]} is." if current else "there is none."),
        "Submit from the workspace that made the current one, or choose another name.",
    )


def is_constant(mean: float, std: float) -> bool:
    """Tell whether a gate of such a mean and standard deviation is constant, but for rounding.

    Gates are float32, of order 0.01 to 1. They are standardised before they are used, which turns a constant one
    into zeros or noise.
    """
    return std <= _MIN_GATE_STD + _ROUNDING * abs(mean)


def check_fit(manifest: Manifest, pool: Pool) -> None:
    """Hold a verified manifest against a pool: its digest, base model, modules and declared sizes.

    Raises:
        Refused: `WRONG_POOL`, `BASE_MISMATCH`, `MODULE_UNKNOWN`, `RANK_OUT_OF_BOUNDS`, `STATISTICS_MISSING`,
            `TENSOR_SHAPE`, `TOO_LARGE` or `SIZE_MISMATCH`.
    """
    spec = manifest.spec
    if spec.pool != pool.digest:
        what = f"The bundle was made for pool {spec.pool[:16]}; this is pool {pool.digest[:16]}."
        raise Refused(Code.WRONG_POOL, what, "Train and sign it for this pool.")
    base = pool.spec.base
    if part := spec.base.differing_part(base):
        raise Refused(
            Code.BASE_MISMATCH,
            f"The bundle was trained on another base model: its {part} digest is {getattr(spec.base, part)[:16]}; "
            f"expected {getattr(base, part)[:16]} ({base.name}).",
            "Train on the pool's base model.",
        )
    _check_modules(manifest, pool.spec)
    check_told([name for name, told in spec.statistics if told is not None], pool.spec)
    _check_centroid(spec.statistics.centroid, pool.spec)
    _check_sizes(manifest, pool.spec)


def check_derived(manifest: Manifest, pool: Pool) -> None:
    """Refuse a bundle whose envelope, spec.json or adapter_config.json is not the one that its facts have.

    A coordinator asks this of what it takes in. A router does not ask it of what was released: files that an older
    version wrote stay readable.

    Raises:
        Refused: `CONFIG_MISMATCH`, or as `protocol.bundle.check_canonical`.
    """
    check_canonical(manifest)
    config = adapter_config.render(manifest.spec, pool.spec)
    if manifest.files[ADAPTER_CONFIG].sha256 != hashlib.sha256(config).hexdigest():
        raise Refused(
            Code.CONFIG_MISMATCH,
            "adapter_config.json is not the one file that follows from the signed spec and the pool.",
            "Pack it again with the coordinator's version of greylag-client.",
        )


def check_tensors(bundle: Bundle) -> None:
    """Hold a bundle's tensors against its spec; only headers are read. Refuses as `tensors.check`."""
    tensors.check(bundle.folder / ADAPTER_WEIGHTS, tensors.adapter_tensors(bundle.spec))
    tensors.check(bundle.folder / GATES, tensors.gate_tensors(bundle.spec))


def check_told(told: Collection[str], pool: PoolSpec) -> None:
    """Refuse an expert that tells less of its data, by names of statistics, than a pool asks (`STATISTICS_MISSING`)."""
    asked = pool.policy.statistics
    if missing := [name for name in asked if name not in told]:
        raise Refused(
            Code.STATISTICS_MISSING,
            f"The pool {pool.name} takes experts that tell {' and '.join(asked)} of their data; this one tells no "
            f"{missing[0]}.",
            f"Agree to it with: greylag-client train {' '.join(f'--share {name}' for name in asked)}",
        )


def _check_modules(manifest: Manifest, pool: PoolSpec) -> None:
    for path, module in manifest.spec.modules.items():
        shape = pool.modules.get(path)
        if shape is None:
            what = f"{path} is no module that the pool's experts touch."
            raise Refused(Code.MODULE_UNKNOWN, what, "Train on the pool's base, on the pool's modules alone.")
        if (module.d_in, module.d_out) != (shape.d_in, shape.d_out):
            what = f"{path} is declared {module.d_in} -> {module.d_out}; expected {shape.d_in} -> {shape.d_out}."
            raise Refused(Code.MODULE_UNKNOWN, what, "Train on the pool's base.")
        if module.rank > pool.policy.max_rank:
            what = f"{path} has rank {module.rank}; the pool takes at most {pool.policy.max_rank}."
            raise Refused(Code.RANK_OUT_OF_BOUNDS, what, "Train with a smaller rank.")


def _check_centroid(centroid: Centroid | None, pool: PoolSpec) -> None:
    """Refuse a centroid that the base cannot have made; of another embedding model a pool knows nothing."""
    if centroid is None or centroid.embedding is not None:
        return
    # What the last layer puts out is as wide as what the first takes in, or as what a last projection makes of it.
    widths = {width for shape in pool.modules.values() for width in (shape.d_in, shape.d_out)}
    if centroid.width not in widths:
        raise Refused(
            Code.TENSOR_SHAPE,
            f"The centroid is declared {centroid.width} numbers wide; the base model's states are as wide as one of "
            f"its modules: {', '.join(map(str, sorted(widths)))}.",
            "Embed by the pool's base model, or name the model that embedded.",
        )


def _check_sizes(manifest: Manifest, pool: PoolSpec) -> None:
    if manifest.total_bytes > pool.policy.max_bundle_bytes:
        what = f"The bundle has {manifest.total_bytes} bytes; the pool takes at most {pool.policy.max_bundle_bytes}."
        raise Refused(Code.TOO_LARGE, what, "Train with a smaller rank or fewer modules.")
    wanted = {ADAPTER_WEIGHTS: tensors.adapter_tensors(manifest.spec), GATES: tensors.gate_tensors(manifest.spec)}
    for name, expected in wanted.items():
        # A safetensors file is a length field, a header of bounded size, and the tensors.
        payload = _LENGTH_FIELD_BYTES + sum(info.nbytes for info in expected.values())
        least, most, size = (
            payload + _SMALLEST_HEADER_BYTES,
            payload + tensors.MAX_HEADER_BYTES,
            manifest.files[name].size,
        )
        if not least <= size <= most:
            what = f"{name} is declared to have {size} bytes; its tensors need {least} to {most}."
            raise Refused(Code.SIZE_MISMATCH, what, "Pack the bundle again.")
