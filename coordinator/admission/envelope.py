"""What an envelope alone decides, before a byte of the bundle is stored."""

from coordinator.life import Standing
from protocol import tensors
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Manifest
from protocol.errors import Code, Refused
from protocol.release import Pool
from protocol.spec import PoolSpec
from protocol.tensors import TensorInfo

_LENGTH_FIELD_BYTES = 8
_SMALLEST_HEADER_BYTES = 2


def judge(manifest: Manifest, pool: Pool, standing: Standing) -> None:
    """Hold a verified manifest against the pool and against what the registry knows.

    Raises:
        Refused: `KEY_UNKNOWN`, `KEY_REVOKED`, `KEY_PENDING`, `WRONG_POOL`, `BASE_MISMATCH`, `MODULE_UNKNOWN`,
            `RANK_OUT_OF_BOUNDS`, `TOO_LARGE`, `SIZE_MISMATCH`, or as `judge_standing`.
    """
    _check_key(standing.contributor)
    _check_pool(manifest, pool)
    _check_modules(manifest, pool.spec)
    _check_sizes(manifest, pool.spec)
    judge_standing(manifest, pool, standing)


def judge_standing(manifest: Manifest, pool: Pool, standing: Standing) -> None:
    """Hold a manifest against what the registry knows; asked again when the bundle is kept.

    Raises:
        Refused: `KEY_UNKNOWN`, `KEY_REVOKED`, `KEY_PENDING`, `VERSION_REUSED`, `SUPERSEDES_UNKNOWN`,
            `DUPLICATE_OF` or `QUOTA`.
    """
    _check_key(standing.contributor)
    spec = manifest.spec
    current = next((digest for name, digest in reversed(standing.live) if name == spec.name), None)
    if spec.supersedes is not None and spec.supersedes != current:
        raise Refused(
            Code.SUPERSEDES_UNKNOWN,
            f"{spec.supersedes[:16]} is not this contributor's current bundle named {spec.name!r}.",
            "See what is there with: greylag-client status",
        )
    if current is not None and spec.supersedes is None:
        raise Refused(
            Code.VERSION_REUSED,
            f"The name {spec.name!r} is in use by bundle {current[:16]}.",
            "Choose another name, or say that the new bundle supersedes that one.",
        )
    if standing.twin is not None:
        raise Refused(Code.DUPLICATE_OF, f"Bundle number {standing.twin} by another key holds the same weights.")
    limit = pool.spec.policy.max_experts_per_contributor
    held = len({name for name, _ in standing.live} - {spec.name}) + standing.uploads
    if held >= limit:
        raise Refused(
            Code.QUOTA,
            f"A contributor may hold {limit} experts; this one holds or uploads {held} others.",
            "Supersede one of them.",
        )


def _check_key(state: str | None) -> None:
    match state:
        case "active":
            return
        case "pending":
            raise Refused(Code.KEY_PENDING, "The key waits for an operator's approval.", "Ask the pool's operator.")
        case "revoked":
            raise Refused(Code.KEY_REVOKED, "The key was revoked.", "Ask the pool's operator.")
    raise Refused(Code.KEY_UNKNOWN, "The key is not enrolled with this coordinator.", "Enrol it, then submit again.")


def _check_pool(manifest: Manifest, pool: Pool) -> None:
    spec = manifest.spec
    if spec.pool != pool.digest:
        raise Refused(
            Code.WRONG_POOL,
            f"The bundle was made for pool {spec.pool[:16]}; this is pool {pool.digest[:16]}.",
            "Train and sign it for this pool.",
        )
    if spec.base.same_as(pool.spec.base):
        return
    part = next(part for part in ("config", "weights", "tokenizer") if _digest(spec, part) != _digest(pool.spec, part))
    raise Refused(
        Code.BASE_MISMATCH,
        f"The bundle was trained on another base model: its {part} digest is {_digest(spec, part)[:16]}; "
        f"expected {_digest(pool.spec, part)[:16]} ({pool.spec.base.name}).",
        "Train on the pool's base model.",
    )


def _digest(spec: object, part: str) -> str:
    digest: str = getattr(spec.base, part)  # type: ignore[attr-defined]
    return digest


def _check_modules(manifest: Manifest, pool: PoolSpec) -> None:
    for path, module in manifest.spec.modules.items():
        shape = pool.modules.get(path)
        if shape is None:
            raise Refused(Code.MODULE_UNKNOWN, f"The base model has no module {path}.", "Train on the pool's base.")
        if (module.d_in, module.d_out) != (shape.d_in, shape.d_out):
            raise Refused(
                Code.MODULE_UNKNOWN,
                f"{path} is declared {module.d_in} -> {module.d_out}; expected {shape.d_in} -> {shape.d_out}.",
                "Train on the pool's base.",
            )
        if module.rank > pool.policy.max_rank:
            raise Refused(
                Code.RANK_OUT_OF_BOUNDS,
                f"{path} has rank {module.rank}; the pool takes at most {pool.policy.max_rank}.",
                "Train with a smaller rank.",
            )


def _check_sizes(manifest: Manifest, pool: PoolSpec) -> None:
    if manifest.total_bytes > pool.policy.max_bundle_bytes:
        raise Refused(
            Code.TOO_LARGE,
            f"The bundle has {manifest.total_bytes} bytes; the pool takes at most {pool.policy.max_bundle_bytes}.",
            "Train with a smaller rank or fewer modules.",
        )
    _check_fits(manifest, ADAPTER_WEIGHTS, tensors.adapter_tensors(manifest.spec))
    _check_fits(manifest, GATES, tensors.gate_tensors(manifest.spec))


def _check_fits(manifest: Manifest, name: str, expected: dict[str, TensorInfo]) -> None:
    """A safetensors file is a length field, a header of bounded size, and the tensors."""
    size, payload = manifest.files[name].size, sum(info.nbytes for info in expected.values())
    least = payload + _LENGTH_FIELD_BYTES + _SMALLEST_HEADER_BYTES
    most = payload + _LENGTH_FIELD_BYTES + tensors.MAX_HEADER_BYTES
    if not least <= size <= most:
        raise Refused(
            Code.SIZE_MISMATCH,
            f"{name} is declared to have {size} bytes; its tensors need {least} to {most}.",
            "Pack the bundle again.",
        )
