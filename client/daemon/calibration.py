"""A node's part in a round of calibration: a few steps of gradient descent on the rows that experts are trained on."""

import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from client.data.columns import DataSource
from client.data.examples import read_examples
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Calibrating
from router.follow.workspace import Mirror
from router.pool.calibration import METHOD, Calibration
from router.training.calibrate import calibrate

if TYPE_CHECKING:
    import datasets

    from router.base.loading import Base
    from router.model.routed_model import RoutedModel

BATCH = 16
"""Rows a step."""


def take_steps(
    model: "RoutedModel", mirror: Mirror, start: Calibration | None, task: Calibrating, source: DataSource
) -> bytes:
    """Train biases and temperatures on the rows that training takes; those that it holds back are for `evaluate`.

    Without a start, from zeros.

    Returns:
        All numbers of the calibration, float32.

    Raises:
        Refused: A code of the data, `METHOD_UNKNOWN` for a release that routes by another method, `NOT_FINITE`, or
            as `router.pool.calibration.Calibration.load`.
    """
    pool, routing = mirror.pool.spec, mirror.release.spec.routing
    if routing.method != METHOD:
        raise Refused(
            Code.METHOD_UNKNOWN, f"Only {METHOD} is calibrated; the release routes by {routing.method}.",
            "Tell the pool's operator.",
        )  # fmt: skip
    base, listed = model.base, [expert.bundle for expert in mirror.release.spec.experts]
    start = (start or Calibration.zeros([], [])).over(listed, sorted(pool.modules))
    if task.numbers != len(start.vector):
        raise Refused(
            Code.ORDER_INVALID, f"The order asks for {task.numbers} numbers; the release has {len(start.vector)}.",
            "Tell the pool's operator.",
        )  # fmt: skip
    examples = read_examples(source, base.tokenizer, base.architecture, pool.recipe, positions=base.positions)
    seed = hashlib.sha256(f"{mirror.release.digest} {task.number}".encode()).digest()
    batches = _batches(base, examples.train, task.steps, random.Random(seed))  # noqa: S311 - no secret
    experts = model.generation.pool
    found = calibrate(base, experts, routing.k, start, batches, learning_rate=task.learning_rate).vector
    if task.privacy is not None:
        found = clipped(found, start.vector, task.privacy.clipping_norm)
    return found.astype("<f4").tobytes()


def clipped(found: NDArray[np.float32], start: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
    """Shorten the change from start [n] to found [n] to a norm, where it is longer."""
    change = found - start
    length = float(np.linalg.norm(change.astype(np.float64)))
    return found if length <= norm else start + change * np.float32(norm / length)


def _batches(base: "Base", rows: "datasets.Dataset", steps: int, draw: random.Random) -> Iterator[dict[str, Tensor]]:
    """Draw batches; the same rows for the same round, so that who is asked twice answers the same."""
    collate = DataCollatorForSeq2Seq(base.tokenizer)
    for _ in range(steps):
        batch = collate([rows[at] for at in draw.sample(range(len(rows)), min(BATCH, len(rows)))])
        yield {name: torch.as_tensor(value) for name, value in batch.items()}
