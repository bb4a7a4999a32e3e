"""What a pool tells of public text: the same as worked out here, to rounding; followed, kept, and doubted."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protocol.documents import sign_pool
from protocol.errors import Code, Refused
from protocol.release import sign_release
from protocol.spec import Means, Routing, Statistics, StatisticsFile
from router.follow.pull import pull
from router.follow.workspace import STATISTICS, check_disk, open_mirror
from router.methods.features.background import KINDS, PublicText
from router.methods.features.covariance import DIRECTIONS, spread_of
from router.methods.features.pool_statistics import dump_statistics, read_statistics
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests import factories
from tests.router.catalog import Catalog

ASKED = RoutingChoice("nnls-request", 2)


@pytest.fixture(autouse=True)
def few_public_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.methods.features.background.TEXTS", 80)


@pytest.fixture
def told(catalog: Catalog, t5_base: Path, tmp_path: Path) -> Path:
    """The catalogue's pool tells what its method reads, and lists experts that tell means."""
    content = RoutedModel.from_base(str(t5_base), device="cpu").features.mixtures.public.dump(["pooled"])
    (file := tmp_path / "told").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    spec = catalog.pool.spec.model_copy(update={"statistics": StatisticsFile(sha256=digest, size=len(content))})
    catalog.pool, catalog.files[digest] = sign_pool(spec, catalog.identity), file
    means = Statistics(means=Means())
    catalog.publish([
        factories.make_bundle(
            tmp_path / name, catalog.pool, catalog.identity, name=name, seed=seed, statistics=means
        )
        for seed, name in enumerate("ab")
    ], number=1)  # fmt: skip
    return file


@pytest.mark.parametrize(("n", "d"), [(300, 24), (300, DIRECTIONS + 40)])
def test_a_file_says_what_was_worked_out(tmp_path: Path, n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    # Real activations have a few directions that are hundreds of times as wide as the others.
    wide = torch.ones(d)
    wide[3], wide[5] = 300, 100
    samples = torch.randn(n, d, generator=generator) * wide @ torch.linalg.qr(
        torch.eye(d) + 0.05 * torch.randn(d, d, generator=generator)).Q  # fmt: skip
    spread = spread_of(samples)
    (file := tmp_path / "f").write_bytes(dump_statistics({"x.pooled": spread}))
    found = read_statistics(file, "pooled", {"x": d})["x.pooled"]
    assert read_statistics(file, "token", {"x": d}) == {}
    vectors = samples[:20] - spread.mean
    exact = vectors @ spread.raised(vectors, 0.01, -1).T
    torch.testing.assert_close(
        vectors @ found.raised(vectors, 0.01, -1).T, exact, rtol=0.01, atol=0.01 * float(exact.max())
    )


def test_whoever_follows_a_pool_works_nothing_out(
    catalog: Catalog, address: str, told: Path, t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, texts = tmp_path / "node", ["please reverse it : a b c"]
    alone = RoutedModel.from_mirror(str(t5_base), pull(node, address), device="cpu")
    alone.features.mixtures.public.follow(None)
    expected = alone.losses(texts, texts, ASKED)
    monkeypatch.setattr(PublicText, "_samples", Mock(side_effect=AssertionError("public text is read again")))
    model = RoutedModel.from_mirror(str(t5_base), open_mirror(node), device="cpu")
    assert model.losses(texts, texts, ASKED) == pytest.approx(expected, rel=1e-3)
    assert model.features.mixtures.public.digest == hashlib.sha256(told.read_bytes()).hexdigest()
    model.save_pretrained(tmp_path / "saved")
    saved = RoutedModel.from_pretrained(tmp_path / "saved", base=str(t5_base), device="cpu")
    assert saved.losses(texts, texts, ASKED) == pytest.approx(expected, rel=1e-3)
    # A router that came up before the pool had a release follows it from the first on.
    early = RoutedModel.from_base(str(t5_base), device="cpu")
    early.take_up(pull(node, address))
    assert early.losses(texts, texts, ASKED) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(AssertionError, match="read again"):
        model.losses(texts, texts, RoutingChoice("nnls-token", 2))  # what the pool does not tell


def test_text_of_ones_own_goes_before_the_pools(
    catalog: Catalog, address: str, told: Path, t5_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("say a b\nreverse c d\ncopy e f\n")
    mirror = pull(tmp_path / "node", address)
    model = RoutedModel.from_mirror(str(t5_base), mirror, device="cpu", public=tmp_path / "text")
    assert model.features.mixtures.public.told is None


def test_what_the_coordinator_lost_keeps_nobody_out(
    catalog: Catalog, address: str, told: Path, t5_base: Path, tmp_path: Path
) -> None:
    catalog.lost.update(sha256 for sha256, path in catalog.files.items() if path == told)
    heard: list[str] = []
    assert pull(tmp_path / "node", address, say=heard.append).statistics is None
    assert "worked out here" in heard[-1]
    model = RoutedModel.from_mirror(str(t5_base), open_mirror(tmp_path / "node"), device="cpu")
    assert len(model.generate(["say a b"], ASKED, max_new_tokens=2)) == 1
    assert [error.code for error in check_disk(tmp_path / "node").damaged.values()] == [Code.FILE_MISSING]
    catalog.lost.clear()
    assert pull(tmp_path / "node", address).statistics


def test_what_is_told_is_read_once(
    catalog: Catalog, address: str, told: Path, t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = pull(tmp_path / "node", address)
    reading = Mock(side_effect=read_statistics)
    monkeypatch.setattr("router.methods.features.background.read_statistics", reading)
    model = RoutedModel.from_mirror(str(t5_base), mirror, device="cpu", cache=tmp_path / "cache")
    expected = model.losses(["say a b"], ["c"], ASKED)
    assert mirror.statistics
    mirror.statistics.unlink()  # and rot has nothing to spoil any more
    again = RoutedModel.from_mirror(str(t5_base), mirror, device="cpu", cache=tmp_path / "cache")
    assert again.losses(["say a b"], ["c"], ASKED) == pytest.approx(expected)
    assert reading.call_count == 1
    with pytest.raises(Refused) as refused:
        model.save_pretrained(tmp_path / "saved")
    assert refused.value.code is Code.DIGEST_MISMATCH
    assert not (tmp_path / "saved").exists()


def test_a_release_that_is_refused_changes_nothing(
    catalog: Catalog, address: str, told: Path, t5_base: Path, tmp_path: Path
) -> None:
    mirror = pull(tmp_path / "node", address)
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    spec = mirror.release.spec.model_copy(update={"routing": Routing(method="retrieval")})
    with pytest.raises(Refused):
        model.take_up(replace(mirror, release=sign_release(spec, catalog.identity)))
    assert model.features.mixtures.public.told is None


def test_what_rots_is_noticed_and_fetched_again(catalog: Catalog, address: str, told: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    pull(node, address)
    (kept,) = (node / STATISTICS).iterdir()
    kept.write_bytes(told.read_bytes()[:-1] + b"!")
    assert [error.code for error in check_disk(node).damaged.values()] == [Code.DIGEST_MISMATCH]
    with pytest.raises(Refused) as refused:
        open_mirror(node)
    assert refused.value.code is Code.DIGEST_MISMATCH
    assert pull(node, address).statistics == kept
    assert check_disk(node).damaged == {}


def test_a_saved_model_without_its_statistics_is_refused(
    catalog: Catalog, address: str, told: Path, t5_base: Path, tmp_path: Path
) -> None:
    model = RoutedModel.from_mirror(str(t5_base), pull(tmp_path / "node", address), device="cpu")
    model.save_pretrained(tmp_path / "saved")
    (kept,) = (tmp_path / "saved" / STATISTICS).iterdir()
    kept.unlink()
    with pytest.raises(Refused, match="not what was saved"):
        RoutedModel.from_pretrained(tmp_path / "saved", base=str(t5_base), device="cpu")


@pytest.mark.parametrize(
    ("field", "change", "code"),
    [
        ("mean", lambda mean: mean[1:].clone(), Code.TENSOR_SHAPE),
        ("basis", lambda basis: basis[1:].clone(), Code.TENSOR_SHAPE),
        ("basis", lambda basis: basis * float("nan"), Code.NOT_FINITE),
        ("variances", lambda variances: -variances, Code.NOT_FINITE),
        ("rest", lambda rest: rest + float("inf"), Code.NOT_FINITE),
    ],
)
def test_a_founder_who_signs_nonsense_is_refused(
    tmp_path: Path, field: str, change: Callable[[Tensor], Tensor], code: Code
) -> None:
    (file := tmp_path / "f").write_bytes(dump_statistics({"x.pooled": spread_of(torch.randn(40, 8))}))
    with pytest.raises(Refused) as refused:
        read_statistics(file, "pooled", {"y": 8})
    assert refused.value.code is Code.TENSOR_NAMES
    tensors = load_file(file)
    save_file(tensors | {f"x.pooled.{field}": change(tensors[f"x.pooled.{field}"])}, file)
    with pytest.raises(Refused) as refused:
        read_statistics(file, "pooled", {"x": 8})
    assert refused.value.code is code


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"nothing")
    with pytest.raises(Refused) as refused:
        read_statistics(tmp_path / "f", "pooled", {"x": 8})
    assert refused.value.code is Code.TENSOR_HEADER


def test_kinds_are_told_as_asked(t5_base: Path, tmp_path: Path) -> None:
    public = RoutedModel.from_base(str(t5_base), device="cpu").features.mixtures.public
    (tmp_path / "f").write_bytes(public.dump(KINDS))
    assert {name.split(".")[-2] for name in load_file(tmp_path / "f")} == set(KINDS)
