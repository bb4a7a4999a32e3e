"""What an operator asks before deciding about a bundle: the base, it alone, and the release without and with it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coordinator.policy.lifecycle import State
from coordinator.registry.tables import BundleRow
from coordinator.review.bundle_cache import Cache
from protocol.bundle import Bundle, open_bundle
from protocol.errors import Code, GreylagError, Refused
from protocol.release import ReleasedExpert

if TYPE_CHECKING:  # torch comes with the model
    from router.model.routed_model import RoutedModel

_CHECKED = (State.QUARANTINED, State.ACCEPTED, State.RELEASED)


class Tried(NamedTuple):
    """What one input was answered with."""

    input: str
    base: str
    alone: str
    """By the expert alone, at weight one."""
    without: str
    """By the newest release without it."""
    within: str
    """By the release as it would be with the expert, uncapped: an earlier one that it supersedes is left out."""
    share: float
    """Of all routing weight of that answer, what the expert was given."""


def check_tried(row: BundleRow) -> None:
    """Refuse a bundle whose bytes the worker has not found to be sound, or has let go.

    Raises:
        Refused: `STATE_CHANGE`.
    """
    if row.state not in _CHECKED:
        what = f"Bundle {row.digest[:16]} is {row.state}; only what is {', '.join(_CHECKED)} can be asked."
        hint = "Wait for: greylag-coordinator worker" if row.state in (State.RECEIVED, State.VERIFIED) else ""
        raise Refused(Code.STATE_CHANGE, what, hint)


def opener(folder: Path, cache: Cache) -> Callable[[BundleRow], Bundle]:
    """Make what opens bundles: out of the worker's folder, which is not touched, where it has them; else of a cache."""

    def opened(row: BundleRow) -> Bundle:
        with suppress(GreylagError, OSError):
            return open_bundle(folder / row.digest)
        return cache.open(row)

    return opened


def try_out(
    model: "RoutedModel",
    released: Sequence[ReleasedExpert],
    new: ReleasedExpert,
    opened: Callable[[str], Bundle],
    inputs: Sequence[str],
    *,
    max_new_tokens: int,
) -> list[Tried]:
    """Ask the same inputs of the base, of an expert alone, and of a release without and with it.

    Args:
        model: The base, without experts, that routes as the pool says.
        released: Experts of the newest release, in order.
        new: The expert.
        opened: Opens a bundle by its digest.
        inputs: What is asked.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        Refused: As `RoutedModel.answer`, or what the router refuses a bundle with.
    """
    from router.query.attribution import expert_shares  # noqa: PLC0415 - the router's floors, with the first expert
    from router.query.request import RoutingChoice  # noqa: PLC0415 - as above

    def ask(choice: RoutingChoice) -> list[str]:
        return model.generate(inputs, choice, max_new_tokens=max_new_tokens)

    for expert in released:
        if expert.bundle != new.bundle:
            model.append(opened(expert.bundle), name=expert.name, contributor=expert.contributor)
    base = ask(RoutingChoice("base"))
    without = ask(RoutingChoice()) if model.digests else base
    for expert in released:
        if (expert.contributor, expert.name) == (new.contributor, new.name) and expert.bundle != new.bundle:
            model.remove(expert.bundle)
    model.append(opened(new.bundle), name=new.name, contributor=new.contributor)
    full = f"{new.contributor}/{new.name}"
    alone = ask(RoutingChoice(f"expert:{full}"))
    within = model.answer(inputs, max_new_tokens=max_new_tokens, explain=True)
    return [
        Tried(*texts, within=answer.text, share=expert_shares(answer.routes, within.experts).get(full, 0.0))
        for texts, answer in zip(zip(inputs, base, alone, without, strict=True), within.answers, strict=True)
    ]
