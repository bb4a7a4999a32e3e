"""What an envelope alone decides, before a byte of the bundle is stored."""

from coordinator.policy.lifecycle import Standing
from protocol.bundle import Manifest
from protocol.compatibility import check_fit, check_succession, predecessor
from protocol.documents import Pool
from protocol.errors import Code, Refused


def judge(manifest: Manifest, pool: Pool, standing: Standing) -> None:
    """Hold a verified manifest against the pool and against what the registry knows; once more when it is kept.

    Raises:
        Refused: `KEY_UNKNOWN`, `KEY_REVOKED`, `KEY_ROTATED`, `KEY_PENDING`, `VERSION_REUSED`, `SUPERSEDES_UNKNOWN`,
            `DUPLICATE_OF`, `QUOTA`, or as `protocol.compatibility.check_fit`.
    """
    judge_contributor(standing.contributor)
    check_fit(manifest, pool)
    name = manifest.spec.name
    check_succession(name, manifest.spec.supersedes, standing.earlier.get(name, ()))
    if standing.twin is not None:
        raise Refused(
            Code.DUPLICATE_OF,
            f"Bundle number {standing.twin} holds the same weights; it is another key's, or was refused or yanked.",
            "Submit an expert that you trained yourself.",
        )
    limit = pool.spec.policy.max_experts_per_contributor
    others = {other for other, earlier in standing.earlier.items() if predecessor(earlier)}.union(standing.uploads)
    held = len(others - {name})
    if held >= limit:
        raise Refused(
            Code.QUOTA,
            f"A contributor may hold {limit} experts; this one holds or uploads {held} others.",
            "Supersede one of them.",
        )


def judge_contributor(state: str | None) -> None:
    """Let only active keys through (`KEY_UNKNOWN`, `KEY_PENDING`, `KEY_REVOKED` or `KEY_ROTATED`)."""
    match state:
        case "active":
            return
        case "pending":
            raise Refused(Code.KEY_PENDING, "The key waits for an operator's approval.", "Ask the pool's operator.")
        case "revoked":
            raise Refused(Code.KEY_REVOKED, "The key was revoked.", "Ask the pool's operator.")
        case "rotated":
            what = "Another key of its contributor took the key's place; nothing more of it is taken in."
            raise Refused(Code.KEY_ROTATED, what, "Use the workspace that holds the new key.")
    raise Refused(Code.KEY_UNKNOWN, "The key is not enrolled with this coordinator.", "Enrol it, then submit again.")
