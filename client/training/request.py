"""What is to be trained, as it is asked for; `client.training.plan` checks it and says what follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.runs.consent import Share
from protocol.spec import Dtype, Promise
from router.base.device_map import Bits


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, beyond the settings."""

    data: tuple[Path, ...]
    """Private files, which count as one."""
    name: str | None = None
    """The expert's name; None takes the contributor's."""
    seed: int = 0
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Fields of the recipe that differ from the pool's; None means the pool's."""
    adapter: str | None = None
    """Folder or Hugging Face id of an adapter of which only the gates are trained."""
    joint: bool = False
    """Gates are trained together with the expert, not after it, to compare (arXiv 2402.05859, appendix A)."""
    privacy: Promise | None = None
    """What is promised to every example."""
    max_epsilon: float | None = None
    """What all private trainings of the workspace may come to; None sets no bound."""
    share: tuple[Share, ...] = ()
    """Statistics of the data that the bundle tells, too; the expert is the same with them and without."""

    # How training does with less memory or time; rounding apart, the expert comes out the same.
    device: str | None = None
    """`cpu` keeps training off a GPU, `auto` spreads the base; None takes what there is."""
    max_memory: Mapping[str, str] = field(default_factory=dict)
    """Most that a base that is spread takes of some devices, as in `router.base.loading.load_base`."""
    micro_batch: int | None = None
    """Examples in memory at once, a divisor of this process's part of the batch; None takes all of it."""
    dtype: Dtype | None = None
    """What the base is held and computes in; None for the checkpoint's. What is trained stays float32."""
    quantise: Bits | None = None
    """Bits of the base's weights, as in QLoRA (arXiv 2305.14314); None for those of `dtype`."""
    recompute: bool = False
    """Activations are computed again for the backward pass, not kept."""
    packing: bool = False
    """Examples of a batch share rows, without seeing each other."""
