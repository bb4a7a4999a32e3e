"""A toy of the laboratory: three experts with large random weights on a base that was trained for seconds."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from protocol.bundle import Bundle
from protocol.signing import Identity
from protocol.spec import Architecture, Centroid, Means, Statistics
from router.base.batching import encode_pairs, pair_batch
from router.base.loading import load_base
from tests import factories
from tests.lab.base import Course, make_model, make_tokenizer
from tests.lab.world import World

WIDTH = 32
STEPS = 150
EXPERTS = ("anna", "berta", "clara")


@dataclass(frozen=True)
class Toy:
    """A base model with bundles for it."""

    base: Path
    bundles: list[Bundle]
    silent: Bundle
    """The first one, by a contributor who tells nothing about the data."""


@pytest.fixture(scope="session", params=["encoder-decoder", "decoder-only"])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    base = train_toy(folder / "base", request.param)
    operator = Identity.generate()
    pool = factories.make_pool(base, operator)
    told = Statistics(means=Means(), centroid=Centroid(width=WIDTH))
    bundles = [
        factories.make_bundle(folder / name, pool, operator, name=name, seed=seed, statistics=told)
        for seed, name in enumerate(EXPERTS)
    ]
    silent = factories.make_bundle(folder / "silent", pool, operator, name="silent", seed=9)
    return Toy(base, bundles, silent)


def train_toy(folder: Path, architecture: Architecture) -> Path:
    """Train a very small base just long enough that it copies, and ends its answers."""
    torch.manual_seed(0)
    world = World(0, "toy")
    course = Course(architecture, width=WIDTH, inner=64, layers=1)
    tokenizer = make_tokenizer(world.vocabulary, architecture)
    make_model(course, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = load_base(str(folder), device="cpu")
    model = base.model.requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    rows = world.pretraining(0)
    for _ in range(STEPS):
        some = list(itertools.islice(rows, 32))
        pairs = encode_pairs(base, [row["input"] for row in some], [row["target"] for row in some])
        batch, labels = pair_batch(base, pairs)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
