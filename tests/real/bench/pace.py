"""What routed generation costs: seconds that a method takes for requests and so many tokens each, over the base's.

A request's reading is part of it, where a method reads requests; what is worked out once a pool is not. Every method
writes as many tokens, wherever its answers would end.
"""

from collections.abc import Sequence
from functools import partial

import torch

from router.base.batching import Prompt, batch
from router.layer.routed_linear import routing
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice, one_each
from tests.bench.timing import alternate, median_ratio

TOKENS = 24
"""Tokens that each answer has."""
ROUNDS = 5
BATCHES = (1, 8)
"""Requests at a time."""


def pace(model: RoutedModel, inputs: Sequence[str], methods: Sequence[str]) -> dict[str, float]:
    """Time methods in turn.

    Args:
        model: With its experts; nothing of it is remembered from one batch to the next.
        inputs: One batch of requests.
        methods: Names; the base is beside them.

    Returns:
        By method, the median over rounds of its CPU time as a multiple of the base's in the same round.
    """
    prompts = model.read(list(inputs))
    choices = {name: RoutingChoice(name) for name in dict.fromkeys(("base", *methods))}
    for choice in choices.values():
        model.prepare(choice)
    work = {name: partial(_write, model, prompts, choice) for name, choice in choices.items()}
    took = alternate(work, rounds=ROUNDS)
    return {name: round(median_ratio(took[name], took["base"]), 2) for name in methods}


def _write(model: RoutedModel, prompts: Sequence[Prompt], choice: RoutingChoice) -> None:
    planned = plan(model.features, model.held, prompts, one_each(choice, len(prompts)))
    read = batch(model.base, [prompts[at].tokens for at in planned.order], "left")
    with torch.inference_mode(), routing(planned.plan):
        model.base.model.generate(**read, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS)
