"""What the lower layers made of a batch is remembered, and changes no figure."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.base.batching import PromptLike
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests.factories import make_bundle, make_llama, make_pool, make_t5
from tests.real.bench.lower import remembering, remembering_requests

ASKED, TARGETS = ["reverse a b c", "copy a", "now rotate it : a b"], ["c b a", "a", "b a"]
CHOICE = RoutingChoice("phatgoose")
MEANS = Statistics(means=Means())


def make_model(folder: Path, make: Callable[[Path], Path] = make_llama) -> RoutedModel:
    base, identity = make(folder / "base"), Identity.generate()
    pool = make_pool(base, identity, layers=(1, 1))
    bundles = [
        make_bundle(folder / name, pool, identity, name=name, seed=at, statistics=MEANS) for at, name in enumerate("ab")
    ]
    return RoutedModel.from_bundles(str(base), bundles, device="cpu")


def test_scores_are_the_same_bit_for_bit_the_first_time_and_later(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    before = model.losses(ASKED, TARGETS, CHOICE)
    alone = model.losses(ASKED[:1], TARGETS[:1], CHOICE)
    remembering(model, 1)
    for _ in range(2):
        assert model.losses(ASKED, TARGETS, CHOICE) == before
        assert model.losses(ASKED[:1], TARGETS[:1], CHOICE) == alone


@pytest.mark.parametrize("method", ["nnls-request", "nnls-token", "average-activation", "merged"])
def test_what_methods_read_of_all_layers_is_there(tmp_path: Path, method: str) -> None:
    plain, remembered = make_model(tmp_path / "plain"), make_model(tmp_path / "remembered")
    remembering(remembered, 1)
    remembering_requests(remembered)
    for choice in (RoutingChoice("base"), RoutingChoice(method)):
        assert remembered.losses(ASKED, TARGETS, choice) == plain.losses(ASKED, TARGETS, choice)


def test_lower_layers_run_once_a_batch(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    ran = []
    model.base.model.get_submodule("model.layers.0.mlp").register_forward_hook(lambda *_: ran.append(1))
    remembering(model, 1)
    for method in ("phatgoose", "uniform", "base"):
        model.losses(ASKED, TARGETS, RoutingChoice(method))
    assert len(ran) == 1


def test_a_request_is_read_once(tmp_path: Path) -> None:
    model, read = make_model(tmp_path), []
    reader = model.features.mixtures.reader
    pooled = reader.pooled

    def counted(inputs: Sequence[PromptLike], paths: Collection[str]) -> dict[str, Tensor]:
        read.append(len(inputs))
        return pooled(inputs, paths)

    vars(reader)["pooled"] = counted
    remembering_requests(model)
    for method in ("nnls-request", "nnls-token"):
        model.losses(ASKED, TARGETS, RoutingChoice(method))
        model.losses(ASKED[1:], TARGETS[1:], RoutingChoice(method))
    assert read == [len(ASKED)]


def test_an_encoder_decoder_is_left_alone(tmp_path: Path) -> None:
    model = make_model(tmp_path, make_t5)
    before = model.losses(ASKED, TARGETS, CHOICE)
    remembering(model, 1)
    assert model.losses(ASKED, TARGETS, CHOICE) == before
