"""Controls take away what they say, and nothing else."""

import pytest
import torch

from protocol.signing import Identity
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests.factories import make_bundle, make_llama, make_pool
from tests.lab.evaluate import holding
from tests.real.bench import controls


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RoutedModel:
    folder = tmp_path_factory.mktemp("controls")
    base, identity = make_llama(folder / "base"), Identity.generate()
    pool = make_pool(base, identity)
    bundles = [make_bundle(folder / name, pool, identity, name=name, seed=at) for at, name in enumerate("abc")]
    return RoutedModel.from_bundles(str(base), bundles, device="cpu")


def test_random_experts_have_updates_of_the_same_norm_in_other_directions(model: RoutedModel) -> None:
    changed = controls.pools(model, 7)["random"]()
    for mine, theirs in zip(model.generation.pool.experts, changed.experts, strict=True):
        assert mine.name == theirs.name
        for path, part in mine.modules.items():
            other = theirs.modules[path]
            update, drawn = part.b @ part.a, other.b @ other.a
            assert drawn.norm() == pytest.approx(float(update.norm()), rel=1e-4)
            assert abs(torch.cosine_similarity(update.flatten(), drawn.flatten(), dim=0)) < 0.5
            assert torch.equal(part.gate, other.gate)


def test_shuffled_gates_are_everybodys_but_nobodys_own(model: RoutedModel) -> None:
    changed = controls.pools(model, 0)["shuffled-gates"]()
    path = next(iter(model.generation.pool.modules))
    mine = [expert.modules[path].gate for expert in model.generation.pool.experts]
    theirs = [expert.modules[path].gate for expert in changed.experts]
    for at, gate in enumerate(theirs):
        assert not torch.equal(gate, mine[at])
        assert sum(torch.equal(gate, other) for other in mine) == 1


def test_a_control_answers_otherwise_and_leaves_the_model_as_it_was(model: RoutedModel) -> None:
    asked, choice = ["reverse a b c"], RoutingChoice("phatgoose")
    before = model.losses(asked, ["c b a"], choice)
    with holding(model, controls.pools(model, 7)["random"]()):
        assert model.losses(asked, ["c b a"], choice) != before
    assert model.losses(asked, ["c b a"], choice) == before
