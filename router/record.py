"""Looks on while a batch is routed and remembers every choice."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from router.answer import ModuleRoute
from router.attach import reads_input
from router.gate import Choice
from router.pool import ModuleExperts


class RouteRecorder:
    """Collects the choices of a batch, module by module, over prefill and every decoding step.

    Args:
        positions: Position in the pool by an expert's bundle digest.
    """

    def __init__(self, positions: Mapping[str, int]) -> None:
        self._positions = positions
        self._chunks: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}

    def record(self, path: str, module: ModuleExperts, choice: Choice, shape: torch.Size) -> None:
        """Keep one module's choice for an activation of shape [b, s, d]."""
        tokens, k = shape[:-1].numel(), choice.experts.shape[1]
        known = np.array([self._positions[expert.digest] for expert in module.experts])
        experts = known[choice.experts.expand(tokens, k).cpu().numpy()].reshape(*shape[:-1], k)
        weights = choice.weights.float().expand(tokens, k).cpu().numpy().reshape(*shape[:-1], k)
        self._chunks.setdefault(path, []).append((experts, weights))

    def routes(self, row: int, input_mask: Sequence[bool], output_length: int, *, causal: bool) -> list[ModuleRoute]:
        """Put together what one row of the batch was given.

        Args:
            row: Position in the batch.
            input_mask: For each input position whether it holds a token (else padding).
            output_length: Tokens that the model wrote for this row.
            causal: Whether the model is decoder-only; every module then sees input and output alike.
        """
        kept_inputs = np.flatnonzero(np.array(input_mask))
        found = []
        for path, chunks in self._chunks.items():
            experts = np.concatenate([experts[row] for experts, _ in chunks])
            weights = np.concatenate([weights[row] for _, weights in chunks])
            if causal:
                # The last token that was written is never read again.
                outputs = len(input_mask) + np.arange(max(output_length - 1, 0))
                kept = np.concatenate([kept_inputs, outputs])
            else:
                kept = kept_inputs if reads_input(path) else np.arange(output_length)
            found.append(ModuleRoute(path, causal or reads_input(path), experts[kept], weights[kept]))
        return found
