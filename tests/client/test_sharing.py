"""What a contributor agrees to tell about the data: nothing unless asked for, and then exactly that."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq

from client import train
from client.produce import Order, produce
from client.sharing import TELLS, Share
from protocol.bundle import CARD, GATES, Bundle
from protocol.spec import Statistics
from router.base import Base, load_base
from router.embedding import Embedder
from router.means import mean_inputs
from router.text import IGNORED
from tests.client.conftest import NOW, Cli, Trained
from tests.client.test_training import rows_of


def share(trained: Trained, *shares: Share) -> Bundle:
    order = Order(trained.site.data, name="reverse", device="cpu", share=shares)
    return produce(trained.site.workspace, trained.site.settings, order, lambda _: None, NOW)


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains again, fails."""
    for name in ("_train_expert", "_train_gates"):
        monkeypatch.setattr(train, name, lambda *_: pytest.fail("trained again"))


@pytest.mark.usefixtures("untrainable")
def test_nothing_is_shared_unless_asked_for(trained: Trained) -> None:
    bundle = share(trained)
    assert bundle.spec.statistics == Statistics()
    assert set(load_file(bundle.folder / GATES)) == {f"{path}.gate" for path in bundle.spec.modules}
    assert "| told about the data | nothing |" in (bundle.folder / CARD).read_text()


@pytest.mark.usefixtures("untrainable")
def test_what_is_shared_is_of_the_training_rows_and_of_the_base_alone(trained: Trained, tmp_path: Path) -> None:
    gates = load_file(share(trained).folder / GATES)
    bundle = share(trained, Share.MEANS, Share.CENTROID)
    told = load_file(bundle.folder / GATES)
    assert {name: told[name].tolist() for name in gates} == {name: gate.tolist() for name, gate in gates.items()}
    assert "the mean input of every module and the centroid" in (bundle.folder / CARD).read_text()

    base = load_base(str(trained.site.base), device="cpu")
    rows = rows_of(trained.site.data, base, tmp_path).train
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


@pytest.mark.usefixtures("untrainable")
def test_a_choice_that_is_taken_back_leaves_nothing(trained: Trained) -> None:
    assert share(trained, Share.MEANS).spec.statistics.means
    again = share(trained)
    assert set(load_file(again.folder / GATES)) == {f"{path}.gate" for path in again.spec.modules}
    assert not again.spec.statistics.means


@pytest.mark.usefixtures("untrainable")
def test_the_same_choice_gives_the_same_bundle(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    first = share(trained, Share.CENTROID, Share.MEANS)
    monkeypatch.setattr("client.statistics.write", lambda *_: pytest.fail("computed again"))
    assert share(trained, Share.MEANS, Share.CENTROID).digest == first.digest


@pytest.mark.usefixtures("untrainable")
def test_a_contributor_is_told_what_others_learn(trained: Trained, cli: Cli) -> None:
    arguments: list[object] = ["train", "-w", trained.site.workspace.root, "--data", trained.site.data]
    status, _, said = cli(*arguments, "--name", "reverse", "--device", "cpu", "--share", "means")
    assert status == 0
    assert TELLS[Share.MEANS] in said
    assert TELLS[Share.CENTROID] not in said
    status, _, said = cli(*arguments, "--share", "everything")
    assert status
