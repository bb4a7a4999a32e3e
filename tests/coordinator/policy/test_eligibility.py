"""One reason, one test: what an envelope alone decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.policy.eligibility import judge
from coordinator.policy.lifecycle import Standing
from protocol.adapters import LoraModule
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle, Manifest, SignedFile
from protocol.compatibility import Submitted
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Centroid, Statistics
from tests import factories
from tests.coordinator.conftest import make_pool

ACTIVE = Standing("active")


def refusal(manifest: Manifest, pool: Pool, standing: Standing = ACTIVE) -> Refused:
    with pytest.raises(Refused) as refused:
        judge(manifest, pool, standing)
    return refused.value


def standing(**held: list[str]) -> Standing:
    """Whoever holds names with these bundles."""
    return Standing("active", earlier={name: [Submitted(digest, "released") for digest in held[name]] for name in held})


def change(manifest: Manifest, **facts: Any) -> Manifest:
    return replace(manifest, spec=manifest.spec.model_copy(update=facts))


def test_a_good_envelope_passes(bundle: Bundle, pool: Pool) -> None:
    judge(bundle.manifest, pool, ACTIVE)


@pytest.mark.parametrize(
    ("state", "code"),
    [(None, Code.KEY_UNKNOWN), ("pending", Code.KEY_PENDING), ("revoked", Code.KEY_REVOKED)],
)
def test_key(bundle: Bundle, pool: Pool, state: str | None, code: Code) -> None:
    assert refusal(bundle.manifest, pool, Standing(state)).code is code


def test_wrong_pool(bundle: Bundle, identity: Identity) -> None:
    assert refusal(bundle.manifest, make_pool(identity)).code is Code.WRONG_POOL


@pytest.mark.parametrize("part", ["config", "weights", "tokenizer"])
def test_base_mismatch_says_which_part(bundle: Bundle, pool: Pool, part: str) -> None:
    base = bundle.spec.base.model_copy(update={part: "f" * 64})
    refused = refusal(change(bundle.manifest, base=base), pool)
    assert refused.code is Code.BASE_MISMATCH
    assert part in refused.message
    assert "f" * 16 in refused.message
    assert getattr(pool.spec.base, part)[:16] in refused.message


@pytest.mark.parametrize(
    "modules",
    [
        {"block.9.q": LoraModule(d_in=16, d_out=16, rank=4, alpha=1.0)},
        {"block.0.q": LoraModule(d_in=16, d_out=17, rank=4, alpha=1.0)},
        {"block.0.q": LoraModule(d_in=15, d_out=16, rank=4, alpha=1.0)},
    ],
)
def test_module_unknown(bundle: Bundle, pool: Pool, modules: dict[str, LoraModule]) -> None:
    refused = refusal(change(bundle.manifest, modules=modules), pool)
    assert refused.code is Code.MODULE_UNKNOWN
    assert next(iter(modules)) in refused.message


def test_rank_out_of_bounds(tmp_path: Path, coordinator_identity: Identity, identity: Identity) -> None:
    pool = make_pool(coordinator_identity, max_rank=3)
    bundle = factories.make_bundle(tmp_path / "b", pool, identity, rank=4)
    assert refusal(bundle.manifest, pool).code is Code.RANK_OUT_OF_BOUNDS


def test_too_large(tmp_path: Path, coordinator_identity: Identity, identity: Identity) -> None:
    pool = make_pool(coordinator_identity, max_bundle_bytes=1000)
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    assert refusal(bundle.manifest, pool).code is Code.TOO_LARGE


def test_a_centroid_of_a_width_that_the_base_has_nowhere(tmp_path: Path, pool: Pool, identity: Identity) -> None:
    for embedding in (None, pool.spec.base.model_copy(update={"weights": "f" * 64})):
        told = Statistics(centroid=Centroid(embedding=embedding, width=17))
        manifest = factories.make_bundle(tmp_path / str(embedding is None), pool, identity, statistics=told).manifest
        if embedding is None:
            refused = refusal(manifest, pool)
            assert refused.code is Code.TENSOR_SHAPE
            assert "17" in refused.message
        else:  # of another model's width a pool knows nothing
            judge(manifest, pool, ACTIVE)


@pytest.mark.parametrize("name", [ADAPTER_WEIGHTS, GATES])
@pytest.mark.parametrize("size", [100, 3 << 20])
def test_sizes_that_the_tensors_cannot_have(bundle: Bundle, pool: Pool, name: str, size: int) -> None:
    files = dict(bundle.manifest.files) | {name: SignedFile("0" * 64, size)}
    assert refusal(replace(bundle.manifest, files=files), pool).code is Code.SIZE_MISMATCH


def test_a_name_in_use_must_be_superseded(bundle: Bundle, pool: Pool) -> None:
    in_use = standing(expert=["a" * 64, "b" * 64], other=["c" * 64])
    refused = refusal(bundle.manifest, pool, in_use)
    assert refused.code is Code.VERSION_REUSED
    assert "b" * 16 in refused.message, "the current one is the latest"
    judge(change(bundle.manifest, supersedes="b" * 64), pool, in_use)


@pytest.mark.parametrize("supersedes", ["a" * 64, "c" * 64, "d" * 64])
def test_supersedes_unknown(bundle: Bundle, pool: Pool, supersedes: str) -> None:
    in_use = standing(expert=["a" * 64, "b" * 64], other=["c" * 64])
    refused = refusal(change(bundle.manifest, supersedes=supersedes), pool, in_use)
    assert refused.code is Code.SUPERSEDES_UNKNOWN


def test_duplicate_of(bundle: Bundle, pool: Pool) -> None:
    refused = refusal(bundle.manifest, pool, Standing("active", twin=7))
    assert refused.code is Code.DUPLICATE_OF
    assert "7" in refused.message


def test_quota_counts_names_and_uploads(tmp_path: Path, coordinator_identity: Identity, identity: Identity) -> None:
    pool = make_pool(coordinator_identity, max_experts_per_contributor=2)
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    assert refusal(bundle.manifest, pool, standing(one=["a" * 64], two=["b" * 64])).code is Code.QUOTA
    assert refusal(bundle.manifest, pool, replace(standing(one=["a" * 64]), uploads={"two"})).code is Code.QUOTA
    judge(bundle.manifest, pool, standing(one=["a" * 64]))
    judge(bundle.manifest, pool, replace(standing(one=["a" * 64]), uploads={"one", "expert"}))
    refused = {"one": [Submitted("a" * 64, "refused")]}
    judge(bundle.manifest, pool, Standing("active", earlier=refused, uploads={"two"}))
    replacing = standing(one=["a" * 64], expert=["b" * 64])
    judge(change(bundle.manifest, supersedes="b" * 64), pool, replacing)
