"""A small model, and engines that answer by it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.signing import Identity
from router.model.routed_model import RoutedModel
from router.serving.batches.opening import open_engine
from router.serving.engine import Engine
from tests import factories
from tests.router.serving.asking import LONG


@pytest.fixture(scope="module")
def model(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RoutedModel:
    folder, identity = tmp_path_factory.mktemp("engine"), Identity.generate()
    pool = factories.make_pool(llama_base, identity)
    bundles = [factories.make_bundle(folder / f"e{n}", pool, identity, name=f"e{n}", seed=n) for n in range(2)]
    model = RoutedModel.from_bundles(str(llama_base), bundles, device="cpu")
    model.base.model.generation_config.min_new_tokens = LONG.max_new_tokens
    model.base.model.generation_config.suppress_tokens = [0]
    return model


@pytest.fixture
def opened(model: RoutedModel) -> Iterator[Callable[..., Engine]]:
    """Makes engines, and stops them."""
    made: list[Engine] = []

    def make(**limits: Any) -> Engine:
        engine = open_engine(model, **({"waiting": 8, "memory_share": 0.05} | limits))
        made.append(engine)
        engine.start()
        return engine

    yield make
    for engine in made:
        engine.stop()
