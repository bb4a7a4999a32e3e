"""Looks on while a batch is routed and remembers every choice."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from router.answer import ModuleRoute
from router.attach import reads_input
from router.gate import Choice, CommonChoice
from router.pool import ModuleExperts


class RouteRecorder:
    """Collects the choices of a batch, module by module, over prefill and every decoding step.

    Args:
        positions: Position among an answer's experts by an expert's bundle digest.
        rows: Inputs that are routed.
    """

    def __init__(self, positions: Mapping[str, int], rows: int) -> None:
        self._positions, self._rows = positions, rows
        self._chunks: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}

    def record(self, path: str, module: ModuleExperts, choice: Choice | CommonChoice, shape: torch.Size) -> None:
        """Keep one module's choice for an activation of shape [b, s, d], also where it comes as [t, d]."""
        if isinstance(choice, CommonChoice):
            rows = np.broadcast_to(np.array(choice.experts), (shape[:-1].numel(), len(choice.experts)))
            weights = np.broadcast_to(np.array(choice.weights, dtype=np.float32), rows.shape)
        else:
            rows, weights = choice.experts.cpu().numpy(), choice.weights.cpu().numpy()
        k = rows.shape[1]
        chosen, positions = np.unique(rows, return_inverse=True)
        known = np.array([self._positions[module.expert(row).digest] for row in chosen.tolist()], dtype=np.int64)
        experts = known[positions].reshape(self._rows, -1, k)
        self._chunks.setdefault(path, []).append((experts, weights.reshape(experts.shape)))

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
