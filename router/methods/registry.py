"""From a method's name to the plan of a request."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakSet

from protocol.errors import Code, Refused
from router.layer.routed_linear import RoutingPlan
from router.methods import find_method
from router.methods.arrow import Arrow
from router.methods.average_activation import AverageActivation
from router.methods.base_only import BaseOnly
from router.methods.context import MethodContext
from router.methods.genknowsub import GenKnowSub
from router.methods.lag import Lag
from router.methods.merged import Merged
from router.methods.nnls_cautious import cautiously
from router.methods.nnls_request import ByRequest, by_request, read_mass
from router.methods.nnls_token import Discriminant, ScaledGate, by_token
from router.methods.parameter_average import averaged
from router.methods.phatgoose import Phatgoose
from router.methods.retrieval import nearest
from router.methods.single_expert import SingleExpert
from router.methods.spectr import Spectr, triangle
from router.pool.pool import ExpertPool


def _by_means(asked: MethodContext) -> RoutingPlan:
    asked.check_means("average-activation", whole=True)
    return RoutingPlan(asked.pool, AverageActivation(asked.k, asked.temperature))


def _filtered(asked: MethodContext) -> RoutingPlan:
    pool = asked.only_factors()
    if pool not in _worked_out:
        # Of everybody, since nobody knows beforehand who passes the filter.
        for expert in pool.experts:
            for part in expert.modules.values():
                triangle(part)
        _worked_out.add(pool)
    return RoutingPlan(pool, Lag())


_worked_out: WeakSet[ExpertPool] = WeakSet()
"""Whose triangles are known."""


def _uniform(asked: MethodContext) -> RoutingPlan:
    """Give each its share of the whole pool everywhere; what an absent one would have had goes to nobody."""
    experts = asked.pool.experts
    return RoutingPlan(asked.pool, ByRequest([{expert.digest: 1 / len(experts) for expert in experts}]))


def _subtracted(asked: MethodContext) -> RoutingPlan:
    pool = asked.only_factors()
    named = {pool.find(name.strip()) for name in asked.argument.split(",")}
    if len(named) == len(pool.experts):
        raise Refused(Code.EXPERTS_EXHAUSTED, "Beside the general experts there is no other.", "Name fewer of them.")
    generals = tuple(expert for expert in pool.experts if expert in named)
    return RoutingPlan(pool, GenKnowSub(generals, asked.k, asked.temperature))


# A maker gives one plan for all inputs alike, or one for each of them.
_MAKERS: dict[str, Callable[[MethodContext], RoutingPlan | Sequence[RoutingPlan]]] = {
    "arrow": lambda asked: RoutingPlan(asked.only_factors(), Arrow(asked.k, asked.temperature)),
    "average-activation": _by_means,
    "base": lambda asked: RoutingPlan(asked.pool, BaseOnly()),
    "expert:NAME": lambda asked: RoutingPlan(asked.pool, SingleExpert(asked.pool.find(asked.argument))),
    "genknowsub:NAME,...": _subtracted,
    "lag": _filtered,
    "merged": lambda asked: RoutingPlan(asked.pool, Merged()),
    "nnls-cautious": cautiously,
    "nnls-fixed:MASS": lambda asked: by_request(asked, read_mass(asked.argument)),
    "nnls-gates": lambda asked: by_token(asked, ScaledGate),
    "nnls-request": by_request,
    "nnls-token": lambda asked: by_token(asked, Discriminant),
    "parameter-average": lambda asked: averaged(asked.only_factors()),
    "phatgoose": lambda asked: RoutingPlan(asked.pool, Phatgoose(asked.k, asked.temperature)),
    "retrieval": nearest,
    "spectr": lambda asked: RoutingPlan(asked.only_factors(), Spectr(asked.k, asked.temperature)),
    "uniform": _uniform,
}


def resolve(method: str, asked: MethodContext) -> list[RoutingPlan]:
    """Turn a method's name, an argument put in where it takes one, into a plan for each input.

    Inputs that are routed alike share one.

    Raises:
        Refused: `METHOD_UNKNOWN`, or what the method refuses.
    """
    made = _MAKERS[find_method(method)](replace(asked, argument=method.partition(":")[2]))
    return [made] * len(asked.inputs) if isinstance(made, RoutingPlan) else list(made)
