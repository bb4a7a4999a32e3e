"""A routed model of each family, with experts on some modules, and tasks of both kinds."""

from pathlib import Path

import pytest

from protocol.signing import Identity
from router.evaluation.rows import Task, read_rows
from router.model.routed_model import RoutedModel
from tests import factories

RANKED = [
    '{"task": "kind", "input": "please reverse it : a b c", "target": "c b a", "choices": ["a b c", "c b a", "x"]}',
    '{"task": "kind", "input": "say d", "target": "d", "choices": ["d", "x y z w v u t"]}',
    '{"task": "kind", "input": "copy it : x y z w v", "targets": ["x", "y"], "choices": ["z", "y", "x", "now it"]}',
]
WRITTEN = [
    '{"task": "free", "input": "say it ; now", "target": "it"}',
    '{"task": "free", "input": "copy it : x y z w v", "targets": ["x y", "z"]}',
]


@pytest.fixture(scope="session", params=["t5_base", "llama_base"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RoutedModel:
    """In float64, so that a slow answer and a quick one differ by nothing but a mistake."""
    base: Path = request.getfixturevalue(request.param)
    folder, identity = tmp_path_factory.mktemp("experts"), Identity.generate()
    pool = factories.make_pool(base, identity)
    routed = RoutedModel.from_base(str(base), device="cpu", dtype="float64")
    paths = list(pool.spec.modules)
    for number in range(3):
        bundle = factories.make_bundle(
            folder / f"b{number}", pool, identity, name=f"e{number}", rank=2 + number, modules=paths[number:],
            seed=number,
        )  # fmt: skip
        routed.append(bundle, contributor="ada")
    return routed


@pytest.fixture
def ranked() -> Task:
    (task,) = read_rows(RANKED, name="tasks")
    return task


@pytest.fixture
def written() -> Task:
    (task,) = read_rows(WRITTEN, name="tasks")
    return task
