"""What a request's method needs once is worked out before its turn, and nothing is promised that is not."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.methods import parameter_average
from router.methods.features.covariance import Spread
from router.methods.lag import Lag
from router.model.routed_model import RoutedModel
from router.pool import prototypes
from router.query.request import RoutingChoice
from tests import factories


@pytest.fixture
def model(t5_base: Path, tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> RoutedModel:
    """Three experts, of which one touches a module alone, and so tells of that alone."""
    monkeypatch.setattr("router.methods.features.background.TEXTS", 40)
    pool, told = factories.make_pool(t5_base, identity), Statistics(means=Means())
    paths = list(pool.spec.modules)
    bundles = [
        factories.make_bundle(tmp_path / name, pool, identity, name=name, seed=at, statistics=told, modules=modules)
        for at, (name, modules) in enumerate({"a": paths, "b": paths, "c": paths[:1]}.items())
    ]
    return RoutedModel.from_bundles(str(t5_base), bundles, device="cpu")


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was worked out, one name for each time."""
    noted: list[str] = []

    def note(place: object, name: str) -> None:
        call: Callable[..., Any] = getattr(place, name)

        def noting(*arguments: object, **options: object) -> object:
            noted.append(name)
            return call(*arguments, **options)

        monkeypatch.setattr(place, name, noting)

    note(parameter_average, "_average")
    note(Spread, "raised")
    note(prototypes, "first_direction")
    note(torch.linalg, "qr")
    return noted


@pytest.mark.parametrize("method", ["parameter-average", "nnls-request", "nnls-token", "arrow", "genknowsub:a"])
def test_what_a_request_with_lists_needs_is_worked_out_before_its_turn(
    model: RoutedModel, worked_out: list[str], method: str
) -> None:
    whole, some = RoutingChoice(method), RoutingChoice(method, deny=("c",))
    model.prepare(whole)
    assert model.prepared(whole)
    for choice in (some, RoutingChoice(method, allow=("a", "b"))):
        if not model.prepared(choice):
            model.prepare(choice)
        assert model.prepared(choice)
        worked_out.clear()
        model.generate(["a b"], choice, max_new_tokens=2)
        assert worked_out == []


def test_whoever_passes_a_filter_is_worked_out_before(
    model: RoutedModel, worked_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.methods.registry.Lag", partial(Lag, 1))
    model.prepare(RoutingChoice("lag"))
    assert "qr" in worked_out
    worked_out.clear()
    model.generate(["a b c d", "x y z", "please reverse it"], RoutingChoice("lag"), max_new_tokens=6)
    assert worked_out == []


def test_what_is_no_longer_kept_is_not_promised(model: RoutedModel, worked_out: list[str]) -> None:
    arrow, others = RoutingChoice("arrow"), [f"genknowsub:{names}" for names in ("a", "b", "c", "a,b", "b,c")]
    for choice in (arrow, *map(RoutingChoice, others)):
        model.prepare(choice)
    assert not model.prepared(arrow)
    model.prepare(arrow)
    worked_out.clear()
    for choice in filter(model.prepared, (arrow, *map(RoutingChoice, others))):
        model.generate(["a b"], choice, max_new_tokens=2)
    assert worked_out == []


def test_a_subset_that_is_asked_for_by_turns_is_prepared_once(model: RoutedModel) -> None:
    denied = [RoutingChoice("parameter-average", deny=(name,)) for name in "ab"]
    for choice in denied:
        model.prepare(choice)
    assert all(map(model.prepared, denied))


def test_what_needs_no_vectors_pushes_nobody_out(model: RoutedModel) -> None:
    choices = [RoutingChoice(method) for method in ("arrow", "phatgoose", "base", "expert:a", "merged", "nnls-request")]
    for choice in choices:
        model.prepare(choice)
    assert all(map(model.prepared, choices))


def test_subsets_without_end_hold_two_averages(model: RoutedModel) -> None:
    for method in ("parameter-average", "arrow"):
        model.prepare(RoutingChoice(method))
        for names in combinations("abc", 2):
            model.generate(["a b"], RoutingChoice(method, allow=names), max_new_tokens=1)
    assert len(parameter_average._averages) == 2
    assert model.prepared(RoutingChoice("arrow", allow=("a", "c")))
