"""What a contributor agrees to tell about the data: nothing unless asked for, and then exactly that."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq

from client.job import produce
from client.runs.consent import TELLS, Share
from client.training import pipeline
from client.training.plan import TrainingRequest
from client.workspace.paths import ClientWorkspace
from protocol.bundle import CARD, GATES, Bundle, sha256_of
from protocol.errors import Code, Refused
from protocol.spec import Statistics
from router.base.loading import Base, load_base
from router.base.tokens import IGNORED
from router.methods.features.embedder import Embedder
from router.training.mean_inputs import mean_inputs
from tests.client.conftest import NOW, Cli, Site, Trained
from tests.client.training.test_training import rows_of


@pytest.fixture
def site(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A workspace in which an expert was trained, to be changed at will; whoever trains again, fails."""
    for name in ("make_expert", "train_gates"):
        monkeypatch.setattr(pipeline._Run, name, lambda *_: pytest.fail("trained again"))
    shutil.copytree(trained.site.workspace.root, tmp_path / "workspace")
    return replace(trained.site, workspace=ClientWorkspace(tmp_path / "workspace"))


def share(site: Site, *shares: Share, **overrides: object) -> Bundle:
    order = TrainingRequest((site.data,), name="reverse", device="cpu", share=shares, overrides=overrides)
    return produce(site.workspace, order, lambda _: None, NOW)


def test_nothing_is_shared_unless_asked_for(site: Site) -> None:
    bundle = share(site)
    assert bundle.spec.statistics == Statistics()
    assert set(load_file(bundle.folder / GATES)) == {f"{path}.gate" for path in bundle.spec.modules}
    assert "| told about the data | nothing |" in (bundle.folder / CARD).read_text()


def test_what_is_shared_is_of_the_training_rows_and_of_the_base_alone(site: Site, tmp_path: Path) -> None:
    gates = load_file(share(site).folder / GATES)
    bundle = share(site, Share.ALL_MEANS, Share.CENTROID)
    told = load_file(bundle.folder / GATES)
    assert {name: told[name].tolist() for name in gates} == {name: gate.tolist() for name, gate in gates.items()}
    assert "the mean input of every module and the centroid" in (bundle.folder / CARD).read_text()

    base = load_base(str(site.base), device="cpu")
    rows = rows_of(site.data, base).train
    collate = DataCollatorForSeq2Seq(base.tokenizer)
    paths = list(bundle.spec.modules)
    # One at a time, where no padding can do harm.
    means = mean_inputs(base, paths, [dict(collate([row])) for row in rows])
    for path in paths:
        torch.testing.assert_close(told[f"{path}.mean"], means[path], rtol=1e-4, atol=1e-5)
    texts = [text_of(base, row["input_ids"], row["labels"]) for row in rows]
    torch.testing.assert_close(told["centroid"], Embedder.of_base(base).embed(texts).mean(0), rtol=1e-4, atol=1e-5)
    assert bundle.spec.statistics.centroid is not None
    assert bundle.spec.statistics.centroid.embedding is None


def text_of(base: Base, ids: list[int], labels: list[int]) -> str:
    prompt = ids if base.architecture == "encoder-decoder" else ids[: labels.count(IGNORED)]
    text: str = base.tokenizer.decode(prompt, skip_special_tokens=True)
    return text


def test_a_choice_that_is_taken_back_leaves_nothing(site: Site) -> None:
    assert share(site, Share.MEANS).spec.statistics.means
    again = share(site)
    assert set(load_file(again.folder / GATES)) == {f"{path}.gate" for path in again.spec.modules}
    assert not again.spec.statistics.means


def test_the_same_choice_gives_the_same_bundle(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = share(site, Share.CENTROID, Share.MEANS)
    monkeypatch.setattr("client.training.statistics.write", lambda *_: pytest.fail("computed again"))
    assert share(site, Share.MEANS, Share.CENTROID).digest == first.digest


def test_fewer_rows_are_told_of_and_another_number_trains_nothing_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(site.base), device="cpu")
    rows, collate = rows_of(site.data, base).train, DataCollatorForSeq2Seq(base.tokenizer)
    assert len(rows) > 60
    bundles = {count: share(site, Share.ALL_MEANS, Share.CENTROID, statistics_rows=count) for count in (50, 60, 1000)}
    for count, bundle in bundles.items():
        most = min(count, len(rows))
        # Spread over the file, not its beginning.
        looked_at = [rows[at * len(rows) // most] for at in range(most)]
        paths = list(bundle.spec.modules)
        told = load_file(shared_of(site, bundle))
        means = mean_inputs(base, paths, [dict(collate([row])) for row in looked_at])
        for path in paths:
            torch.testing.assert_close(told[f"{path}.mean"], means[path], rtol=1e-4, atol=1e-5)
        texts = [text_of(base, row["input_ids"], row["labels"]) for row in looked_at]
        torch.testing.assert_close(told["centroid"], Embedder.of_base(base).embed(texts).mean(0), rtol=1e-4, atol=1e-5)
    assert len(list(site.workspace.runs.iterdir())) == 1
    # What was told of some number is there still, whatever came between.
    monkeypatch.setattr("client.training.statistics.write", lambda *_: pytest.fail("computed again"))
    again = share(site, Share.ALL_MEANS, Share.CENTROID, statistics_rows=60)
    assert again.manifest.files[GATES] == bundles[60].manifest.files[GATES]


def shared_of(site: Site, bundle: Bundle) -> Path:
    """Find what the run keeps of a bundle that another has taken the place of."""
    digest = bundle.manifest.files[GATES].sha256
    return next(path for path in site.workspace.runs.rglob(GATES) if sha256_of(path) == digest)


@pytest.mark.parametrize(("most", "averaged"), [(70, 50), (1000, 50)])
def test_with_noise_the_number_of_rows_is_rounded_down(site: Site, most: int, averaged: int) -> None:
    pytest.importorskip("dp_accounting")
    noisy = replace(site, workspace=ClientWorkspace(site.workspace.root, share_epsilon=4.0))
    means = share(noisy, Share.MEANS, statistics_rows=most).spec.statistics.means
    assert means is not None
    assert means.noise is not None
    assert means.noise.rows == averaged  # of 96 rows, or of 70 of them


def test_so_few_rows_that_single_ones_show_are_refused(site: Site) -> None:
    with pytest.raises(Refused, match="--statistics-rows is wrong") as refused:
        share(site, Share.MEANS, statistics_rows=49)
    assert refused.value.code is Code.SETTINGS_INVALID


def test_a_contributor_is_told_what_others_learn(site: Site, cli: Cli) -> None:
    arguments: list[object] = ["train", "-w", site.workspace.root, "--data", site.data]
    status, _, said = cli(*arguments, "--name", "reverse", "--device", "cpu", "--share", "means")
    assert status == 0
    assert TELLS[Share.MEANS] in said
    assert TELLS[Share.CENTROID] not in said
    status, _, said = cli(*arguments, "--share", "everything")
    assert status
