"""What a contributor may agree to tell about the data, beside what weights and gates tell: nothing unless asked for.

Light, so that `--help` need not wait for pydantic.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Share(StrEnum):
    """One kind of statistics."""

    MEANS = "means"
    ALL_MEANS = "all-means"
    CENTROID = "centroid"

    @property
    def statistic(self) -> str:
        """What a bundle's spec calls it."""
        return "centroid" if self is Share.CENTROID else "means"


TELLS = {
    Share.MEANS: "means: the mean activation that enters each module of the deeper layers. Others can read from it "
    "which words and subjects the data are made of, though not single examples.",
    Share.ALL_MEANS: "all-means: the mean activation that enters each module. Others can read from it, best from the "
    "first layer's, which words and subjects the data are made of, though not single examples.",
    Share.CENTROID: "centroid: one vector, the mean of the inputs' embeddings. Others can read from it what the inputs "
    "are about, though not single examples.",
}
"""What others learn."""


@dataclass(frozen=True)
class Sharing:
    """What is shared, of how many rows, and by which embedding model."""

    rows: int
    """Most rows that are looked at, spread over the file."""
    shares: tuple[Share, ...] = ()
    embedding: str | None = None
    """Folder or Hugging Face id of the model that places the centroid; None for the base model."""
    epsilon: float | None = None
    """What means may tell of any one row, as differential privacy counts; None for means as they are."""

    def folder(self, run: Path) -> Path:
        """Return the folder whose gates.safetensors holds what is shared: the run's own if that is nothing."""
        if not self.shares:
            return run
        facts = {
            "shares": sorted(set(self.shares)), "rows": self.rows, "embedding": self.embedding, "epsilon": self.epsilon,
        }  # fmt: skip
        return run / f"shared-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"
