"""What a routed model must do on public text before it answers anybody."""

import math
from collections.abc import Callable, Sequence

from protocol.errors import Code, Refused
from router.base.loading import first_line
from router.pool.capacity import memory_watched


def mean_of(score: Callable[[], Sequence[float]]) -> float:
    """Average the losses of a run that must hold.

    Args:
        score: Runs the model; returns the loss of each text, in nats a token.

    Raises:
        Refused: `PROBE_FAILED` if any figure is not finite, or if the model does not run.
        Unavailable: `MEMORY_FULL`.
    """
    try:
        with memory_watched():
            losses = score()
    except RuntimeError as error:  # torch's family: out of memory, shapes, kernels
        raise Refused(
            Code.PROBE_FAILED,
            f"The routed model does not run on the probe text: {first_line(error)}.",
            "Check the expert's ranks and modules, then train it again.",
        ) from error
    if not all(math.isfinite(loss) for loss in losses):
        raise Refused(
            Code.PROBE_FAILED,
            "With this expert the routed model's loss on the probe text is not finite.",
            "Train it again with a smaller learning rate.",
        )
    return sum(losses) / len(losses)
