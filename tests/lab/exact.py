"""Exact match: the one way in which every method is asked and judged.

All get the same texts, batches and (greedy) decoding. Greedy decoding is not carried out token by token: a routed
model is causal (what a token gives depends on the input and on the tokens before it), so it writes the whole target
exactly if, given the input and the target's first t tokens, its likeliest next token is the target's, for every t up
to the end token. One forward pass over input and target tells that for all t at once.
"""

from collections.abc import Sequence

from router.base.batching import encode_pairs
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests.lab.world import Row

AT_ONCE = 256


def exact(model: RoutedModel, rows: Sequence[Row], choice: RoutingChoice) -> list[bool]:
    """Tell for each row whether greedy decoding would give its target and end there.

    Args:
        model: A routed model.
        rows: Inputs with their targets.
        choice: How all of them are routed.

    Raises:
        Refused: As `RoutedModel.likelihoods`.
    """
    # Rows of like length are padded least; the sort is stable, so batches are the same for every method.
    by_length = sorted(range(len(rows)), key=lambda at: len(rows[at]["input"].split()))
    found: dict[int, bool] = {}
    for start in range(0, len(rows), AT_ONCE):
        places = by_length[start : start + AT_ONCE]
        inputs, targets = [rows[at]["input"] for at in places], [rows[at]["target"] for at in places]
        scored = model.likelihoods(inputs, encode_pairs(model.base, inputs, targets), choice)
        found |= {at: each.greedy for at, each in zip(places, scored, strict=True)}
    return [found[at] for at in range(len(rows))]
