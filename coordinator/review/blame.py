"""Who is to blame when experts that were let in fail together: found by leaving each out, never by who came last."""

from collections.abc import Callable, Collection, Sequence

Trial = Callable[[Collection[str]], float | None]
"""Loss in nats a token of the pool without some experts, by digest; None where it does not compute."""


def culprits(experts: Sequence[str], trial: Trial, most: float) -> list[str]:
    """Name the experts without which a list that fails holds.

    One whose absence mends the list is to blame; of several of which each absence does, the youngest, since the list
    held before it. Where no single one is, but the list does not compute, it is put together again in order, and
    whoever it breaks with is left out.

    Args:
        experts: Digests, oldest first.
        trial: Runs the model; once for each expert, or twice.
        most: By how much the loss falls at least, in nats a token, if somebody is to blame for it.

    Returns:
        Digests, oldest first; none if the loss is high and nobody alone is the reason.
    """
    whole = trial(())
    mending = []
    for digest in experts:
        without = trial((digest,))
        if without is not None and (whole is None or whole - without > most):
            mending.append(digest)
    if mending or whole is not None:
        return mending[-1:]
    guilty, later = list[str](), list(experts)
    while later:
        newest = later.pop(0)
        if trial((*guilty, *later)) is None:
            guilty.append(newest)
    return guilty
