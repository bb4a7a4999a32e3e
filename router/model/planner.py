"""From inputs and their routing choices to the plans of one batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.base.batching import PromptLike
from router.layer.routed_linear import MixedPlan, RoutingPlan
from router.methods.context import Features, MethodContext
from router.methods.registry import resolve
from router.model.recorder import RouteRecorder
from router.model.releases import Generation, Held
from router.pool.expert import Expert
from router.query.answer import told_apart
from router.query.request import RoutingChoice

_Settled = tuple[Generation, str, int, float, tuple[str, ...] | None, tuple[str, ...]]
"""A choice that leaves nothing open: generation, method, k, temperature, allow, deny."""


@dataclass(frozen=True, eq=False)
class Part:
    """Inputs of a batch that are routed alike."""

    inputs: tuple[int, ...]
    """Their positions among the request's inputs."""
    method: str
    generation: Generation
    plan: RoutingPlan
    asked: MethodContext
    """What the method was resolved for."""


@dataclass(frozen=True, eq=False)
class Planned:
    """How a batch is routed: its inputs in another order, so that those of one plan stand together."""

    parts: tuple[Part, ...]

    @property
    def order(self) -> list[int]:
        """Positions of the request's inputs, in the order of the batch."""
        return [at for part in self.parts for at in part.inputs]

    @property
    def plan(self) -> RoutingPlan | MixedPlan:
        """What the batch is to be routed by."""
        if len(self.parts) == 1:
            return self.parts[0].plan
        return MixedPlan([(part.plan, len(part.inputs)) for part in self.parts])

    @property
    def experts(self) -> list[Expert]:
        """Every expert that the parts know, once: those of each release in its order."""
        known: dict[str, Expert] = {}
        for part in self.parts:
            for expert in (*part.generation.pool.experts, *part.plan.pool.experts):
                known.setdefault(expert.digest, expert)
        return list(known.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Their names; where releases hold several bundles of one name, the digest tells them apart."""
        return told_apart({expert.digest: expert.full_name for expert in self.experts})

    @property
    def digests(self) -> tuple[str, ...]:
        """Their bundles."""
        return tuple(expert.digest for expert in self.experts)

    def recorded(self, *, full: bool = False) -> "Planned":
        """Have every part's choices recorded.

        Args:
            full: Whether with the weights of all experts, not of the chosen ones alone.
        """
        positions = {expert.digest: at for at, expert in enumerate(self.experts)}
        parts = []
        for part in self.parts:
            everybody = replace(part.asked, k=max(len(part.plan.pool.experts), 1))
            unbounded = resolve(part.method, everybody)[0].method if full else None
            recorder = RouteRecorder(positions, len(part.inputs), unbounded)
            parts.append(replace(part, plan=replace(part.plan, recorder=recorder)))
        return Planned(tuple(parts))


def plan(features: Features, held: Held, inputs: Sequence[PromptLike], choices: Sequence[RoutingChoice]) -> Planned:
    """Decide how each input is routed by its own choice, among the releases that are held.

    Raises:
        Refused: `METHOD_UNKNOWN`, `EXPERT_UNKNOWN`, `EXPERTS_EXHAUSTED`, `RELEASE_UNKNOWN`, `RELEASE_EXPIRED`, or
            what a method refuses.
    """
    alike: dict[_Settled, list[int]] = {}
    for at, choice in enumerate(choices):
        generation = held.find(choice.release)
        method, k = choice.method or generation.settings.method, choice.k or generation.settings.k
        settled = (generation, method, k, choice.temperature or 1.0, choice.allow, choice.deny)
        alike.setdefault(settled, []).append(at)
    parts = []
    for (generation, method, k, temperature, allow, deny), positions in alike.items():
        mine = [inputs[at] for at in positions]
        asked = MethodContext(generation.allowing(allow, deny), mine, k, temperature, features=features)
        by_plan: dict[RoutingPlan, list[int]] = {}
        for at, each in zip(positions, resolve(method, asked), strict=True):
            by_plan.setdefault(each, []).append(at)
        parts += [
            Part(tuple(rows), method, generation, each, replace(asked, inputs=[inputs[at] for at in rows]))
            for each, rows in by_plan.items()
        ]
    return Planned(tuple(parts))
