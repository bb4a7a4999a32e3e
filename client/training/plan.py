"""What decides how an expert comes out; light, so that a finished run is recognised without torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client.data.columns import DataColumns
from client.runs.consent import NOTHING, Sharing
from protocol.bundle import sha256_of
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.spec import Dtype, Promise, Recipe
from router.base.quantisation import Bits

if TYPE_CHECKING:
    from client.training.imported_adapter import Adapter


@dataclass(frozen=True)
class Thrift:
    """How training does with less memory or time; rounding apart, the expert comes out the same."""

    dtype: Dtype | None = None
    """What the base is held and computes in; None for the checkpoint's. What is trained stays float32."""
    quantise: Bits | None = None
    """Bits of the base's weights, as in QLoRA (arXiv 2305.14314); None for those of `dtype`."""
    recompute: bool = False
    """Activations are computed again for the backward pass, not kept."""
    packing: bool = False
    """Examples of a batch share rows, without seeing each other."""
    max_memory: Mapping[str, str] = field(default_factory=dict)
    """Most that a base that is spread takes of some devices, as in `router.base.loading.Loading`."""


FULL = Thrift()


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides how an expert comes out."""

    data: Path
    columns: DataColumns
    base: str
    """Folder or Hugging Face id."""
    name: str
    """The expert's name."""
    recipe: Recipe
    pool: Pool
    seed: int = 0
    device: str | None = None
    micro_batch: int | None = None
    sharing: Sharing = NOTHING
    """Changes nothing about the expert itself, so it has no part in the run's name."""
    thrift: Thrift = FULL
    adapter: "Adapter | None" = None
    """Trained elsewhere; only its gates are trained here."""
    privacy: Promise | None = None
    """What is promised to every example."""
    joint: bool = False
    """Expert and gates are trained together, to compare with (arXiv 2402.05859, appendix A)."""

    def run_id(self) -> str:
        """Name of the run's folder: equal input, equal name.

        Raises:
            Refused: `DATA_UNREADABLE`.
        """
        try:
            data = sha256_of(self.data)
        except OSError as error:
            raise Refused(
                Code.DATA_UNREADABLE, f"The data file {self.data} cannot be read: {error.strerror}.", "Check the path."
            ) from error
        facts = {
            "data": data,
            "columns": vars(self.columns),
            "base": self.pool.spec.base.model_dump(),
            "name": self.name,
            "pool": self.pool.digest,
            "recipe": self.recipe.model_dump(),
            "seed": self.seed,
            "adapter": self.adapter and self.adapter.digest,
            "joint": self.joint,
            "privacy": self.privacy and self.privacy.model_dump(),
        }
        return hashlib.sha256(strict_json.dumps(facts)).hexdigest()[:16]
