"""Random experts to measure with."""

from collections.abc import Mapping

import torch

from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise


def make_expert(
    number: int,
    shapes: Mapping[str, tuple[int, int]],
    rank: int,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Expert:
    """Make a random expert.

    Args:
        number: Tells it from others.
        shapes: Widths of its modules, in and out, by path.
        rank: Of every module.
        device: Where it goes; the CPU unless given.
        dtype: Of its factors; float32 unless given.
    """
    parts = {
        path: ExpertModule(
            torch.randn(rank, d, device=device, dtype=dtype) / d**0.5,
            torch.randn(o, rank, device=device, dtype=dtype) / rank**0.5,
            1.0,
            standardise(torch.randn(d, device=device)),
        )
        for path, (d, o) in shapes.items()
    }
    return Expert(f"{number:064x}", f"e{number}", "", parts)
