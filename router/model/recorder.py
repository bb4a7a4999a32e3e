"""Looks on while a batch is routed and remembers every choice."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.base.module_paths import reads_input
from router.layer.batch_rows import inseparable
from router.layer.choice import Choice, CommonChoice
from router.layer.routed_linear import Method
from router.pool.group_view import ModuleExperts
from router.query.answer import ModuleRoute


class _Chunk(NamedTuple):
    """What one forward pass of a module was given."""

    experts: NDArray[np.int64]
    """[b, s, k], positions among an answer's experts."""
    weights: NDArray[np.float32]
    """[b, s, k]"""
    full: NDArray[np.float32] | None
    """[b, s, n], the weights of all experts."""


class RouteRecorder:
    """Collects the choices of a batch, module by module, over prefill and every decoding step.

    Args:
        positions: Position among an answer's experts by an expert's bundle digest.
        rows: Inputs that are routed.
        unbounded: The same method, choosing all experts: their weights are the whole distribution.
    """

    def __init__(self, positions: Mapping[str, int], rows: int, unbounded: Method | None = None) -> None:
        self._positions, self._rows, self._unbounded = positions, rows, unbounded
        self._chunks: dict[str, list[_Chunk]] = {}

    def record(self, path: str, module: ModuleExperts, choice: Choice | CommonChoice, u: Tensor) -> None:
        """Keep one module's choice for an activation u of shape [b, s, d], also where it comes as [t, d].

        Raises:
            Refused: `REQUEST_INVALID` if the rows of the batch cannot be told apart in it.
        """
        if u.shape[:-1].numel() % self._rows:
            raise inseparable(path)
        experts, weights = self._known(module, choice, u.shape)
        full = None
        if self._unbounded is not None:
            full = np.zeros((*experts.shape[:2], len(self._positions)), dtype=np.float32)
            everybody = self._unbounded.choose(module, u)
            if everybody is not None:
                at, shares = self._known(module, everybody, u.shape)
                rows, tokens = np.ogrid[: full.shape[0], : full.shape[1]]
                # Added, not put: a filler may name an expert a second time, at weight 0.
                np.add.at(full, (rows[..., None], tokens[..., None], at), shares)
        self._chunks.setdefault(path, []).append(_Chunk(experts, weights, full))

    def _known(
        self, module: ModuleExperts, choice: Choice | CommonChoice, shape: torch.Size
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if isinstance(choice, CommonChoice):
            rows = np.broadcast_to(np.array(choice.experts), (shape[:-1].numel(), len(choice.experts)))
            weights = np.broadcast_to(np.array(choice.weights, dtype=np.float32), rows.shape)
        else:
            rows, weights = choice.experts.cpu().numpy(), choice.weights.cpu().numpy()
        k = rows.shape[1]
        chosen, positions = np.unique(rows, return_inverse=True)
        known = np.array([self._positions[module.expert(row).digest] for row in chosen.tolist()], dtype=np.int64)
        experts = known[positions].reshape(self._rows, -1, k)
        return experts, weights.reshape(experts.shape)

    def routes(self, row: int, input_mask: Sequence[bool], output_length: int, *, causal: bool) -> list[ModuleRoute]:
        """Put together what one row of the batch was given.

        Args:
            row: Its position.
            input_mask: For each input position whether it holds a token (else padding).
            output_length: Tokens that the model wrote for this row.
            causal: Whether the model is decoder-only; every module then sees input and output alike.

        Raises:
            Refused: `REQUEST_INVALID` if a module was not given every token.
        """
        kept_inputs = np.flatnonzero(np.array(input_mask))
        found = []
        for path, chunks in self._chunks.items():
            experts = np.concatenate([chunk.experts[row] for chunk in chunks])
            weights = np.concatenate([chunk.weights[row] for chunk in chunks])
            full = [chunk.full[row] for chunk in chunks if chunk.full is not None]
            if causal:
                # The last token that was written is never read again.
                outputs = len(input_mask) + np.arange(max(output_length - 1, 0))
                kept = np.concatenate([kept_inputs, outputs])
            else:
                kept = kept_inputs if reads_input(path) else np.arange(output_length)
            if kept.size and kept[-1] >= len(experts):
                raise inseparable(path)
            whole = np.concatenate(full)[kept] if full else None
            found.append(ModuleRoute(path, causal or reads_input(path), experts[kept], weights[kept], whole))
        return found
