"""Save and reload: the same model, by content, or a refusal that says what is wrong."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Routing
from router.model.releases import Generation
from router.model.routed_model import RoutedModel
from router.model.saved_model import CALIBRATION, INDEX
from router.pool.calibration import Calibration
from tests.factories import make_bundle

TEXTS = ["please reverse it : a b c", "copy now ; d e"]


@pytest.fixture(scope="module")
def bundles(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    some = list(pool.spec.modules)[1:4]
    return [
        make_bundle(folder / "a", pool, Identity.generate(), seed=1, rank=2),
        make_bundle(folder / "b", pool, Identity.generate(), seed=2, modules=some),
        make_bundle(folder / "c", pool, Identity.generate(), seed=3, rank=5),
    ]


@pytest.fixture
def model(base: Path, bundles: list[Bundle]) -> RoutedModel:
    model = RoutedModel.from_base(str(base), device="cpu")
    for name, bundle in zip("abc", bundles, strict=True):
        model.append(bundle, name=f"expert-{name}", contributor="ada")
    model.generation = Generation(model.generation.pool, Routing(method="phatgoose", k=3), 7)
    return model


def test_a_calibrated_model_is_saved_with_its_calibration(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    plain = model.losses(TEXTS, TEXTS)
    empty = Calibration.zeros(model.digests, list(model.generation.pool.modules))
    drawn = empty.at(np.random.default_rng(0).normal(0, 1, empty.vector.shape).astype(np.float32))
    model.generation = replace(model.generation, pool=model.generation.pool.calibrated(drawn))
    model.save_pretrained(tmp_path / "saved")
    again = RoutedModel.from_pretrained(tmp_path / "saved", base=str(base), device="cpu")
    assert again.losses(TEXTS, TEXTS) == model.losses(TEXTS, TEXTS) != plain
    (tmp_path / "saved" / CALIBRATION).write_bytes(Calibration.zeros([], []).content)
    with pytest.raises(Refused) as refused:
        RoutedModel.from_pretrained(tmp_path / "saved", base=str(base), device="cpu")
    assert refused.value.code is Code.DIGEST_MISMATCH


def test_the_bases_fingerprint_is_kept_between_loads(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    cache = tmp_path / "base.json"
    RoutedModel.from_pretrained(tmp_path / "saved", base=str(base), cache=cache, device="cpu")
    assert cache.is_file()


def test_an_empty_stop_text_ends_nothing(model: RoutedModel) -> None:
    whole = model.generate(TEXTS, max_new_tokens=4)
    assert model.generate(TEXTS, max_new_tokens=4, stop=[""]) == whole


def test_a_reloaded_model_is_the_same(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    model.remove(model.digests[1])
    assert model.generation.release == 0  # changed by hand
    model.generation = replace(model.generation, release=7)
    identity = model.save_pretrained(tmp_path / "saved")
    again = RoutedModel.from_pretrained(tmp_path / "saved", base=str(base), device="cpu", expected=identity)
    assert [expert.full_name for expert in again.generation.pool.experts] == ["ada/expert-a", "ada/expert-c"]
    assert (again.digests, again.generation.settings, again.generation.release) == (
        model.digests,
        model.generation.settings,
        7,
    )
    # The pages of the first still have a place for the expert that left, so last bits may differ.
    assert again.losses(TEXTS, TEXTS) == pytest.approx(model.losses(TEXTS, TEXTS), rel=1e-6)
    assert again.generate(TEXTS, max_new_tokens=6) == model.generate(TEXTS, max_new_tokens=6)


def test_a_model_with_its_base_needs_nothing_else(model: RoutedModel, tmp_path: Path) -> None:
    identity = model.save_pretrained(tmp_path / "saved", with_base=True)
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    again = RoutedModel.from_pretrained(tmp_path / "moved", device="cpu")
    assert again.losses(TEXTS, TEXTS) == model.losses(TEXTS, TEXTS)
    assert again.save_pretrained(tmp_path / "twice") == identity


def test_the_identity_is_that_of_the_content(model: RoutedModel, tmp_path: Path) -> None:
    first = model.save_pretrained(tmp_path / "one")
    assert model.save_pretrained(tmp_path / "two") == first
    model.remove(model.digests[0])
    assert model.save_pretrained(tmp_path / "three") != first


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _damage_a_bundle(folder: Path) -> None:
    _flip(next(folder.glob(f"bundles/*/{ADAPTER_WEIGHTS}")))


def _swap_bundles(folder: Path) -> None:
    first, second, *_ = (folder / "bundles").iterdir()
    first.rename(folder / "bundles" / "x")
    second.rename(first)
    (folder / "bundles" / "x").rename(second)


def _lose_a_bundle(folder: Path) -> None:
    shutil.rmtree(next((folder / "bundles").iterdir()))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_damage_a_bundle, Code.DIGEST_MISMATCH),
        (_swap_bundles, Code.DIGEST_MISMATCH),
        (_lose_a_bundle, Code.BUNDLE_UNKNOWN),
        (lambda folder: (folder / INDEX).write_text("{}"), Code.SPEC_INVALID),
        (lambda folder: (folder / INDEX).unlink(), Code.WORKSPACE_MISSING),
        (shutil.rmtree, Code.WORKSPACE_MISSING),
    ],
)
def test_a_damaged_model_is_refused(
    base: Path, model: RoutedModel, tmp_path: Path, damage: Callable[[Path], object], code: Code
) -> None:
    model.save_pretrained(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(Refused) as refused:
        RoutedModel.from_pretrained(tmp_path / "saved", base=str(base), device="cpu")
    assert refused.value.code is code


def test_another_model_than_the_expected_is_refused(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(Refused) as refused:
        RoutedModel.from_pretrained(tmp_path / "saved", base=str(base), device="cpu", expected="0" * 64)
    assert refused.value.code is Code.DIGEST_MISMATCH


def test_another_base_is_refused(model: RoutedModel, tmp_path: Path, t5_base: Path, llama_base: Path) -> None:
    other = llama_base if model.base.architecture == "encoder-decoder" else t5_base
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(Refused) as refused:
        RoutedModel.from_pretrained(tmp_path / "saved", base=str(other), device="cpu")
    assert refused.value.code is Code.BASE_MISMATCH


def test_nothing_is_written_over_or_left_half(base: Path, pool: Pool, model: RoutedModel, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(Refused) as refused:
        model.save_pretrained(tmp_path / "mine")
    assert refused.value.code is Code.WORKSPACE_EXISTS
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"
    lost = RoutedModel.from_bundles(
        str(base), [make_bundle(tmp_path / "lost", pool, Identity.generate(), seed=9)], device="cpu"
    )
    shutil.rmtree(tmp_path / "lost")
    with pytest.raises(Refused) as refused:
        lost.save_pretrained(tmp_path / "new")
    assert refused.value.code is Code.BUNDLE_UNKNOWN
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_model_without_experts_is_saved_too(base: Path, tmp_path: Path) -> None:
    bare = RoutedModel.from_base(str(base), device="cpu")
    bare.save_pretrained(tmp_path / "saved")
    again = RoutedModel.from_pretrained(tmp_path / "saved", base=str(base), device="cpu")
    assert again.digests == ()
    with torch.inference_mode():
        assert again.losses(TEXTS, TEXTS) == bare.losses(TEXTS, TEXTS)
